"""Every job in jobs/configs runs as it stands. Models of the hub are tiny ones of random weights under their names."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs import kinds, plain_yaml
from jobs.steps import StepsFile
from jobs.tasks import described
from pipeline import tasks
from pipeline.errors import JobError
from tests.hub_stand_in import HubStandIn

CONFIGS = Path(__file__).parents[2] / "jobs/configs"
JOBS = sorted(path.name for path in CONFIGS.glob("*.yaml"))
ANNOTATING = [name for name in JOBS if kinds.load(str(CONFIGS / name)).kind == "annotate"]

ENTITIES = ["O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]

# What stands at these names on the hub, as far as a job can tell: family, head, and what config.json says.
PUBLISHED: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": (
        "distilbert",
        "SequenceClassification",
        {"labels": ["NEGATIVE", "POSITIVE"]},
    ),
    "dslim/bert-base-NER": ("bert", "TokenClassification", {"labels": ENTITIES}),
    "cross-encoder/ms-marco-MiniLM-L6-v2": ("bert", "SequenceClassification", {"labels": ["LABEL_0"]}),
    "facebook/bart-large-mnli": (
        "bart",
        "SequenceClassification",
        {"labels": ["contradiction", "neutral", "entailment"]},
    ),
    "google-t5/t5-small": ("t5", "Seq2SeqLM", {}),
    # SmolLM2 is a Llama with a chat template; of the tiny families, Qwen has one.
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("qwen2", "CausalLM", {"max_tokens": 8192}),
    "openai-community/gpt2": ("gpt2", "CausalLM", {}),
    "FacebookAI/roberta-base": ("roberta", "MaskedLM", {}),
    "deepset/roberta-base-squad2": ("roberta", "QuestionAnswering", {}),
}

SAMPLED_ROWS = 20

# Previews one job after the other: torch and transformers are imported once.
PREVIEW = """
import json, sys
from pathlib import Path
import jobs
from pipeline.errors import CorpusmillError

rows, *paths = sys.argv[1:]
for path in paths:
    try:
        table = jobs.preview(path, int(rows), [f"corpus.sample={rows}"])
        found = {"rows": table.num_rows, "reasons": [each for each in table["quarantine"].to_pylist() if each]}
        found["nulls"] = {name: table[name].null_count for name in table.column_names}
    except CorpusmillError as error:
        found = {"fault": str(error)}
    print(json.dumps({path: found}), flush=True)
"""


@dataclass(frozen=True)
class Desk:
    """Where a user sits: a folder with the checkout's jobs in it, and an environment that finds the hub."""

    folder: Path
    environment: Mapping[str, str]
    commits: Mapping[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path], minilm: Path, repository: Path
) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "jobs").mkdir()
    (folder / "jobs/configs").symlink_to(repository / "jobs/configs")
    with HubStandIn() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        commits = {
            name: hub.publish(name, tiny(family, head, **{"max_tokens": 512, **options}))
            for name, (family, head, options) in PUBLISHED.items()
        }
        yield Desk(folder, hub.environment(folder / "home"), commits)
        hub.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def previews(desk: Desk) -> Mapping[str, Any]:
    """What a preview of each job gives, by the job's name."""
    for name in ANNOTATING:
        for command in commands_of(name):
            if command[0] == "python":  # writes a model of the user's own
                made = desk.run(*command[1:])
                assert made.returncode == 0, made.stderr
    done = desk.run("-c", PREVIEW, str(SAMPLED_ROWS), *(f"jobs/configs/{name}" for name in ANNOTATING))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"jobs/configs/'):
            found |= {Path(path).name: value for path, value in json.loads(line).items()}
    return found


def commands_of(name: str) -> list[list[str]]:
    """The commands that a job's first comment tells."""
    head = (CONFIGS / name).read_text(encoding="utf-8").partition("\nkind:")[0]
    lines = re.findall(r"^#   (\S.*)$", head, re.MULTILINE)
    return [command.split() for line in lines for command in line.split(" && ")]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_checked_and_an_unknown_key_in_it_refused(name, repository, monkeypatch):
    monkeypatch.chdir(repository)
    job: Any = kinds.load(f"jobs/configs/{name}").parsed()
    own = f"out/{name.removesuffix('.yaml')}"
    if isinstance(job, StepsFile):
        assert all(step["output"]["path"].startswith(f"{own}/") for step in job.steps)
    else:
        assert job.output.path == own
    deepest = "annotations.0" if name in ANNOTATING else "steps.0.output" if isinstance(job, StepsFile) else "output"
    with pytest.raises(JobError, match=re.escape(f"{deepest.removeprefix('steps.0.')}.surprise: there is no such key")):
        kinds.load(f"jobs/configs/{name}", [f"{deepest}.surprise=1"]).parsed()


@pytest.mark.parametrize("name", JOBS)
def test_a_job_says_what_it_does_and_how_to_run_it(name):
    first = (CONFIGS / name).read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# [A-Z].*\.", first)
    assert ["corpusmill", "run", f"jobs/configs/{name}"] in commands_of(name)


@pytest.mark.parametrize("name", ANNOTATING)
def test_a_model_of_the_hub_is_told_to_be_pinned(name):
    text = (CONFIGS / name).read_text(encoding="utf-8")
    models = {each["model"] for each in plain_yaml.load(text)["annotations"] if isinstance(each["model"], str)}
    hub = {model.removeprefix("hub:") for model in models if model.startswith("hub:")}
    assert hub <= {f"{published}@main" for published in PUBLISHED}
    assert ("`main` becomes a commit once" in text) == bool(hub)


def test_what_is_published_is_what_jobs_name():
    texts = [(CONFIGS / name).read_text(encoding="utf-8") for name in JOBS]
    assert {match for text in texts for match in re.findall(r"^ +model: hub:(.+)@main", text, re.MULTILINE)} == set(
        PUBLISHED
    )


@pytest.mark.parametrize("name", tasks.known())
def test_every_task_has_a_job(name):
    assert described(name).examples, f"write one in jobs/configs with `task: {name}`"


@pytest.mark.parametrize("name", ANNOTATING)
def test_a_job_annotates_every_row(name, previews):
    found = previews[name]
    assert "fault" not in found, found["fault"]
    assert found["reasons"] == []
    assert found["rows"] == SAMPLED_ROWS


@pytest.mark.parametrize("name", ANNOTATING)
def test_the_comments_name_the_columns_that_come(name, previews):
    for line in (CONFIGS / name).read_text(encoding="utf-8").splitlines():
        _, adds, named = line.partition("# adds ")
        for column in re.findall(r"\b[a-z]+_[a-z]+\b", named.partition(":")[0]):
            assert column in previews[name]["nulls"], f"{line.strip()} {adds}"


def test_a_job_runs_and_pins_the_commit_that_main_was(desk):
    overrides = (f"corpus.sample={SAMPLED_ROWS}", "cluster.actors=1", "output.path=out/run")
    arguments = [part for each in overrides for part in ("-o", each)]
    done = desk.run("-m", "jobs.cli", "run", "jobs/configs/sentiment.yaml", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows_out"] == SAMPLED_ROWS
    manifest = (desk.folder / "out/run/metadata/manifest.json").read_text(encoding="utf-8")
    (commit,) = (commit for name, commit in desk.commits.items() if name.startswith("distilbert/"))
    assert commit in manifest
    verified = desk.run("-m", "jobs.cli", "verify", "out/run")
    assert verified.returncode == 0, verified.stdout
