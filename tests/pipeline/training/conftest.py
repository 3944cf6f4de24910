"""A tiny corpus, encoded without Ray, and what a worker needs to train on it in this process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.models.reference import pin
from pipeline.output.storage import Store
from pipeline.training import rows as training_rows
from pipeline.training.examples import Counts, Examples, receipt_of
from pipeline.training.job import FinetuneJob
from pipeline.training.order import Order
from pipeline.training.schedule import Schedule
from pipeline.training.work import Work

MakeJob = Callable[..., FinetuneJob]
Encode = Callable[[FinetuneJob], tuple[training_rows.Work, Counts]]
MakeWork = Callable[..., Work]


@pytest.fixture(scope="session")
def labeled(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """Eighty rows: a text, one of three labels, a list of labels, a value, a group, a subset."""
    folder = tmp_path_factory.mktemp("labeled")
    texts = [f"{text} {sentences[(row * 7) % len(sentences)]}" for row, text in enumerate(sentences * 2)]
    rows = range(len(texts))
    table = pa.table(
        {
            "text": texts,
            "label": [("games", "mail", "web")[row % 3] for row in rows],
            "labels": [["games", "mail"][: row % 3] for row in rows],
            "value": [float(row) / 10 for row in rows],
            "huge": [1e30 if row % 2 else -1e30 for row in rows],
            "group": [f"group {row // 4}" for row in rows],
            "subset": [("train", "train", "validation", "test")[row % 4] for row in rows],
        }
    )
    pq.write_table(table, folder / "a.parquet")
    return folder


@pytest.fixture
def make_job(labeled: Path, make_encoder: Callable[..., Path], tmp_path: Path) -> MakeJob:
    """A job over the labeled rows: `make_job(data={"label": "value"}, training={"steps": 3})`."""

    def make(
        data: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None, **more: Any
    ) -> FinetuneJob:
        document = {
            "objective": "classify",
            "model": str(make_encoder()),
            "data": {"path": str(labeled), "text": "text", "label": "label"} | dict(data or {}),
            "training": {"batch_rows": 8, "learning_rate": 1e-3, "dtype": "float32", "log": None}
            | dict(training or {}),
            "output": {"path": str(tmp_path / "out")},
        }
        return FinetuneJob.model_validate(document | more)

    return make


def names_of(rows: Sequence[training_rows.Rows]) -> tuple[str, ...]:
    """The units of all corpora, in order."""
    return tuple(f"{source}-{unit.id}" for source, each in enumerate(rows) for unit in each.units)


@pytest.fixture
def encode() -> Encode:
    """Every unit of a job's corpora, encoded in this process."""

    def encoded(job: FinetuneJob) -> tuple[training_rows.Work, Counts]:
        store = Store.at(job.output.path)
        rows, _ = training_rows.plan_rows(job)
        work = training_rows.Work(store, job.model_dump(mode="json"), pin(job.model), 64, rows)
        for source, each in enumerate(rows):
            for unit in each.units:
                training_rows.encode_unit(training_rows.Order(source, unit), work)
        found = [receipt_of(store, name) for name in names_of(rows)]
        return work, Counts.of(each for each in found if each is not None)

    return encoded


@pytest.fixture
def make_work(make_job: MakeJob, encode: Encode) -> MakeWork:
    """What a worker is told of a job over the labeled rows: `make_work(micro_batch_tokens=64, training={…})`."""

    def make(micro_batch_tokens: int = 4096, store: str | None = None, **of_job: Any) -> Work:
        job = make_job(**of_job)
        if store is not None:
            job = job.model_copy(update={"output": job.output.model_copy(update={"path": store})})
        encoded, counts = encode(job)
        names = names_of(encoded.rows)
        schema = encoded.rows[0].read.schema
        objective = training_rows.started(job, encoded.model, encoded.max_tokens, schema)
        settings = job.training
        order = Order(
            Examples.of(encoded.store, "train", names).lengths_E,
            settings.batch_rows,
            settings.seed,
            settings.group_by_length,
        )
        return Work(
            store=encoded.store,
            job=job.model_dump(mode="json"),
            model=encoded.model,
            max_tokens=encoded.max_tokens,
            schema=schema,
            names=names,
            learned=objective.learned(counts.counted["train"]),
            schedule=Schedule.of(
                settings, order.steps_per_epoch, objective.validation_figures(), counts.rows.get("validation", 0) > 0
            ),
            device="cpu",
            threads=1,
            micro_batch_tokens=micro_batch_tokens,
            bf16=settings.dtype == "bfloat16",
        )

    return make


@pytest.fixture
def at_another_place(tmp_path: Path) -> Callable[[Work, str], Work]:
    """The same work on the same examples, with checkpoints of its own."""
    import shutil

    def move(work: Work, name: str) -> Work:
        place = tmp_path / name
        shutil.copytree(work.store.root, place)
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        return replace(work, store=Store.at(str(place)))

    return move


@pytest.fixture
def facts() -> dict[str, Any]:
    """What corpusmill.json of a promoted model holds."""
    figures = {
        "accuracy": {"value": 0.766, "low": 0.753, "high": 0.779, "rows": 4096},
        "log_loss": {"value": 0.9, "low": None, "high": None, "rows": 4096},
    }
    rows = {"train": 12_288, "validation": 1500, "test": 4096, "left_out": 7, "reasons": {"null_label": 7}}
    return {
        "name": "sections",
        "objective": "classify",
        "needs": "AutoModelForSequenceClassification",
        "synthetic": None,
        "model": {"digest": "d1"},
        "base": {"ref": "hub:org/small@main", "revision": "8b32", "digest": "b1"},
        "data": {"fingerprint": "9f0c"},
        "job": {
            "objective": {"name": "classify"},
            "data": {"path": "corpus", "split": {"group": "source"}},
            "training": {"learning_rate": 3e-4},
        },
        "rows": rows,
        "main": "accuracy",
        "figures": figures,
        "baselines": {"majority": {"accuracy": {"value": 0.103, "low": 0.09, "high": 0.11, "rows": 4096}}},
        "training": {
            "steps": 1536,
            "best_step": 1152,
            "tokens": 900_000,
            "seconds": 300.0,
            "device": "cpu",
            "dtype": "bfloat16",
            "max_tokens": 256,
        },
        "gate": {"passed": True, "asked": {"metric": "accuracy", "at_least": 0.5}},
        "versions": {"python": "3.12.3", "torch": "2.13.0"},
    }
