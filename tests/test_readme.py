"""The README's commands are what `.ci/run` runs; here: that it can, and that nothing in it escapes."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def readme_commands(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_commands", repository / ".ci/readme_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def test_every_block_says_its_language(readme_commands: ModuleType, page: str) -> None:
    blocks = readme_commands.blocks(page)
    assert 2 * len(blocks) == sum(line.startswith("```") for line in page.splitlines())
    assert {language for language, _ in blocks} <= {"sh", "python", "yaml", "text"}


def test_commands_of_the_page_install_run_the_quickstart_and_test(readme_commands: ModuleType, page: str) -> None:
    script = readme_commands.script(readme_commands.blocks(page))
    assert 'pip install ".[quickstart]" && corpusmill run jobs/configs/quickstart.yaml || exit' in script
    assert 'pip install -e ".[test]"' in script
    assert "pytest -n auto --dist loadfile --no-loadscope-reorder || exit" in script
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_what_a_user_does_and_the_tests_are_two_roads_from_nothing(readme_commands: ModuleType, page: str) -> None:
    user, tests = readme_commands.roads(page)
    assert user + tests == readme_commands.script(readme_commands.blocks(page))
    assert "corpusmill run jobs/configs/steps.yaml" in user
    assert tests.count("|| exit") == 1
    assert "pytest" in tests
    page = "```text\nnone\n```\n```sh\necho one\n```\n```python\ntwo\n```\n```sh\npython3 -m venv v\n```\n"
    first, second = readme_commands.roads(page)
    assert "echo one" in first
    assert "two" in first
    assert second.startswith("echo")
    assert readme_commands.roads("nothing to run") == [""]


@pytest.mark.parametrize("block", ["false && true\necho on", "true\nfalse\necho on", "true && \\\nfalse\necho on"])
def test_script_stops_at_the_first_failure(readme_commands: ModuleType, block: str) -> None:
    ended = run(readme_commands.script(readme_commands.blocks(f"```sh\n{block}\n```\n")))
    assert ended.returncode == 1
    assert ended.stdout == ""


def test_script_runs_shell_and_python_and_leaves_other_blocks_alone(readme_commands: ModuleType) -> None:
    page = (
        "```sh\n# a comment\necho one\n```\n```yaml\nkind: annotate\n```\n```python\nif True:\n    print('two')\n```\n"
    )
    ended = run(readme_commands.script(readme_commands.blocks(page)))
    assert (ended.returncode, ended.stdout) == (0, "one\ntwo\n")


def test_script_stops_at_a_failing_python_block(readme_commands: ModuleType) -> None:
    assert (
        run(
            readme_commands.script(readme_commands.blocks("```python\nraise SystemExit(3)\n```\n```sh\ntrue\n```\n"))
        ).returncode
        == 3
    )
