"""What a user installs: its names, its version, the corpus that ships, and which part may import which."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "jobs", "cluster")
SOURCES = sorted(
    path.relative_to(REPOSITORY).as_posix() for name in PACKAGES for path in REPOSITORY.glob(f"{name}/**/*.py")
)

MAY_IMPORT_RAY = ("pipeline/stream.py", "pipeline/training/fit.py", "cluster/", "jobs/bench/peers/ray_data.py")
MAY_IMPORT_TORCH = (
    *("pipeline/models/", "pipeline/tasks/", "jobs/configs/", "jobs/bench/"),
    *(
        f"pipeline/training/{name}"
        for name in ("attention", "dropout", "fit", "loading", "loop", "masters", "objectives/")
    ),
    "pipeline/training/shrink",
)


def imports(source: str) -> set[str]:
    """Every module that a source file imports, wherever in it: {"ray.data", "pipeline.errors"}."""
    found = set()
    for node in ast.walk(ast.parse((REPOSITORY / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} has a relative import"
            found.add(node.module or "")
    return found


def roots(source: str) -> set[str]:
    """The top-level packages that a source file imports."""
    return {module.partition(".")[0] for module in imports(source)}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_provides_our_packages(package: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners <= {"corpusmill"}, f"{owners} also install a top-level {package!r}, which shadows ours or is shadowed"


def test_changelog_begins_with_the_version_of_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == project["version"]


def test_sample_is_small_and_whole(sample: Path) -> None:
    files = sorted(sample.glob("*.parquet"))
    assert len(files) >= 4
    assert sum(file.stat().st_size for file in files) <= 1_000_000
    tables = [pq.read_table(file) for file in files]
    assert 1_900 <= sum(table.num_rows for table in tables) <= 2_100
    for table in tables:
        assert table.schema.equals(tables[0].schema)
        shortest = pc.min(pc.utf8_length(pc.utf8_trim_whitespace(table["description"]))).as_py()
        assert shortest > 0
        assert table["description"].null_count == 0


def test_sources_of_the_sample_lie_whole_in_one_file(sample: Path) -> None:
    sources = [set(pq.read_table(file)["source"].to_pylist()) for file in sorted(sample.glob("*.parquet"))]
    assert sum(map(len, sources)) == len(set().union(*sources))


def test_note_of_the_sample_tells_its_origin_and_true_size(sample: Path) -> None:
    note = (sample / "README.md").read_text(encoding="utf-8")
    rows = sum(pq.read_metadata(file).num_rows for file in sample.glob("*.parquet"))
    assert f"{rows:,} package descriptions of Debian" in note
    assert "licence" in note


def test_wheel_holds_the_packages_the_sample_and_every_job(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("corpusmill-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("jobs/configs/**/*") if path.is_file()
    }
    assert held >= shipped | set(SOURCES)
    assert {name.partition("/")[0] for name in held if ".dist-info/" not in name} == set(PACKAGES)


@pytest.mark.parametrize("source", SOURCES)
def test_dependencies_run_one_way(source: str) -> None:
    forbidden = {"pipeline": {"jobs", "cluster"}, "cluster": {"jobs"}, "jobs": set[str]()}[source.partition("/")[0]]
    assert not roots(source) & forbidden


@pytest.mark.parametrize("source", SOURCES)
def test_ray_and_torch_stand_in_few_files(source: str) -> None:
    if not source.startswith(MAY_IMPORT_RAY):
        assert "ray" not in roots(source)
    if not source.startswith(MAY_IMPORT_TORCH):
        assert not roots(source) & {"torch", "transformers", "tokenizers", "safetensors"}
