"""Which rows a fine-tuning reads, and the way of one unit of them: read, divided among the subsets, encoded, kept.

plan_rows(job)                     -> RowPlan(sources=(Source(subset=None, read=…, units=(…)),), …)
encode_unit(order, work)           -> what its receipt tells, and on disk:

metadata/examples/0-6f1c…-train.arrow         input_ids, weight, … : what a worker maps into memory
metadata/examples/0-6f1c…-validation.arrow
metadata/examples/0-6f1c…-test.parquet        the rows themselves: they are judged as any annotate job sees them
metadata/examples/0-6f1c…-left_out.parquet    _file, _row, reason, detail
metadata/examples/0-6f1c….json                the unit's receipt, last
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.plan import Fragment, Unit, UnitBounds, plan_units
from pipeline.corpus.reader import ReadPlan, ReadUnit, UnitReader
from pipeline.corpus.source import CorpusSettings, open_corpus
from pipeline.corpus.text import compile_text
from pipeline.errors import CorpusError
from pipeline.inputs import Source as InputSource
from pipeline.inputs import source_of
from pipeline.models.reference import PinnedModel
from pipeline.output.storage import Store
from pipeline.planning import carries_identity, file_system_of, rows_wanted
from pipeline.quarantine import Failure, Reason
from pipeline.training import objectives
from pipeline.training.job import DataSettings, FinetuneJob
from pipeline.training.objectives.base import Encoded, Learned, Objective
from pipeline.training.split import SUBSETS, Subset, subset_named, subset_of

EXAMPLES = "metadata/examples"

_BOUNDS = UnitBounds(rows=16_384, min_units=1)
"""Tokenising is cheap beside training, and beside the start of a process for it; few large files are read faster than
many. Where a run computes plays no part in it: the order of the examples is the order of the units."""

MOST_CHARS = 10_000_000

_LEFT_OUT = pa.schema(
    [
        ("_file", pa.string()),
        ("_row", pa.int64()),
        ("subset", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Rows:
    """One corpus of a job: all of it, or the files of one subset."""

    subset: Subset | None  # None: each row says, by its group or a column
    read: ReadPlan
    fragments: tuple[Fragment, ...]
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """All that the encoding of a unit needs: picklable, brought to each process once."""

    store: Store
    job: Mapping[str, Any]
    model: PinnedModel
    max_tokens: int
    rows: tuple[Rows, ...]
    learned: Learned | None = None  # rows that ask for something else are left out; None: it is not known yet


@dataclass(frozen=True, slots=True)
class Order:
    """One unit of one of the job's corpora."""

    source: int
    unit: Unit

    @property
    def name(self) -> str:
        """What its files' names begin with."""
        return f"{self.source}-{self.unit.id}"


def plan_rows(job: FinetuneJob) -> tuple[tuple[Rows, ...], tuple[str, ...]]:
    """Look at the corpus, check that what the job reads is there, and cut units; also what the user should be told.

    Raises CorpusError: no such column, a label of a type that the objective can make nothing of.
    """
    found: list[Rows] = []
    notes: list[str] = []
    for subset, settings in corpora(job.data):
        rows, told = rows_of(settings, subset, lambda schema: _columns(job, schema))
        found.append(rows)
        notes += told
    return tuple(found), tuple(notes)


def rows_of(
    settings: CorpusSettings, subset: Subset | None, columns: Callable[[pa.Schema], Collection[str]]
) -> tuple[Rows, tuple[str, ...]]:
    """The units of one corpus, of which these columns are read; also what the user should be told."""
    corpus = open_corpus(settings)
    wanted = columns(corpus.schema)
    kept, _, selection = rows_wanted(settings, corpus)
    units = plan_units(corpus.fragments, kept, selection, _BOUNDS)
    read = ReadPlan(
        filesystem=file_system_of(settings),
        root=corpus.root,
        schema=corpus.schema,
        columns=tuple(name for name in corpus.schema.names if name in wanted),
        filter=None if settings.sample is not None else settings.filter,
        partition=corpus.partition,
        identity_carried=carries_identity(corpus.schema),
    )
    return Rows(subset, read, corpus.fragments, tuple(units)), corpus.notes


def read_unit(rows: Rows, unit: Unit) -> ReadUnit:
    """One unit of them."""
    return UnitReader(rows.read).read(unit, {span.fragment: rows.fragments[span.fragment] for span in unit.spans})


def _columns(job: FinetuneJob, schema: pa.Schema) -> set[str]:
    sources = sources_of(job, objective_over(job, schema), schema)
    return {name for source in sources.values() for name in source.columns}


def objective_of(job: FinetuneJob) -> Objective:
    """The job's objective, made. Raises JobError where the data section lacks what it needs."""
    return objectives.find(job.objective.name, allow_code=job.allow_code)(job.objective, job.data)


def objective_over(job: FinetuneJob, schema: pa.Schema) -> Objective:
    """The objective, which knows the type of its label column. Raises CorpusError: no such column, or a wrong type."""
    objective = objective_of(job)
    objective.look_at(schema)
    return objective


def sources_of(job: FinetuneJob, objective: Objective, schema: pa.Schema) -> dict[str, InputSource]:
    """What is read of each row: the objective's inputs, and what tells its subset (`split`). Raises CorpusError."""
    found = {name: source_of(wanted, schema) for name, wanted in objective.inputs().items()}
    split = job.data.split
    by = split.column or split.group
    if by is not None:
        found["split"] = compile_text(by, schema) if "{" in by else compile_text("{" + by + "}", schema)
    return found


def corpora(data: DataSettings) -> list[tuple[Subset | None, CorpusSettings]]:
    """The corpora of a job: one, or one for each subset that has files of its own."""
    shared: dict[str, Any] = {"filter": data.filter, "sample": data.sample, "seed": data.seed}
    if data.split.files is None:
        assert data.path is not None
        return [(None, CorpusSettings(path=data.path, **shared))]
    paths = {subset: getattr(data.split.files, subset) for subset in SUBSETS}
    return [(subset, CorpusSettings(path=path, **shared)) for subset, path in paths.items() if path is not None]


# ------------------------------------------------------------------------------------------------------------ encode


def encode_unit(order: Order, work: Work) -> dict[str, Any]:
    """Read, divide and encode one unit, and write what came of it; returns its receipt.

    The same unit gives the same files, so a unit without a receipt is simply made again.
    """
    job = FinetuneJob.model_validate(work.job)
    rows = work.rows[order.source]
    objective = started(job, work.model, work.max_tokens, rows.read.schema)
    found = read_unit(rows, order.unit)
    table = found.table
    sources = sources_of(job, objective, table.schema)
    inputs, failures = _rendered(sources, table)
    for problem in found.problems:
        failures.setdefault(problem.row, Failure(problem.reason, problem.detail))
    subsets_N = _subsets(job, rows.subset, inputs, table, failures)
    receipt: dict[str, Any] = {
        "rows_read": found.rows_read,
        "rows_filtered": found.rows_filtered,
        "unreadable": sum(lost.rows or 0 for lost in found.lost),
        "rows": {},
        "truncated_rows": 0,
        "tokens": {},
        "counted": {},
    }
    for subset in SUBSETS:
        mine = [row for row in range(table.num_rows) if subsets_N[row] == subset and row not in failures]
        if not mine:
            continue
        encoded = objective.encode(
            {name: [values[row] for row in mine] for name, values in inputs.items() if name != "split"}
        )
        if subset != "train" and work.learned is not None:
            encoded = without_unseen(objective, work.learned, encoded, len(mine), subset)
        failures |= {mine[at]: failure for at, failure in encoded.failures.items()}
        kept = [row for at, row in enumerate(mine) if at not in encoded.failures]
        receipt["rows"][subset] = len(kept)
        receipt["truncated_rows"] += encoded.truncated_rows
        receipt["tokens"][subset] = encoded.tokens
        receipt["counted"][subset] = dict(objective.counted(encoded.examples))
        if subset == "test":
            write_parquet(
                work.store,
                f"{EXAMPLES}/{order.name}-test.parquet",
                objective.judged_rows(table.take(pa.array(kept, pa.int64()))),
            )
        else:
            _write_arrow(work.store, f"{EXAMPLES}/{order.name}-{subset}.arrow", encoded.examples)
    receipt["left_out"] = dict(Counter(failure.reason.value for failure in failures.values()))
    if failures:
        write_parquet(work.store, f"{EXAMPLES}/{order.name}-left_out.parquet", _left_out(table, subsets_N, failures))
    work.store.write(f"{EXAMPLES}/{order.name}.json", json.dumps(receipt).encode())
    return receipt


def without_unseen(objective: Objective, learned: Learned, encoded: Encoded, rows: int, subset: Subset) -> Encoded:
    """The examples of some of R rows, without those that ask for what no training row has (`check_known`)."""
    if knows(objective, learned, objective.counted(encoded.examples), subset):
        return encoded
    examples = encoded.examples
    kept_E = [row for row in range(rows) if row not in encoded.failures]
    assert len(kept_E) == len(examples), "an objective with labels makes one example of a row"
    unseen_E = [
        not knows(objective, learned, objective.counted(examples.slice(at, 1)), subset) for at in range(len(examples))
    ]
    failures = {
        row: Failure(Reason.UNSEEN_LABEL, f"a label of '{objective.data.label}' is in no training row")
        for row, unseen in zip(kept_E, unseen_E, strict=True)
        if unseen
    }
    left = examples.filter(pa.array([not unseen for unseen in unseen_E], pa.bool_()))
    return replace(
        encoded,
        examples=left,
        failures={**encoded.failures, **failures},
        tokens=int(pc.sum(pc.list_value_length(left["input_ids"])).as_py() or 0),
    )


def knows(objective: Objective, learned: Learned, counted: Mapping[str, float], subset: Subset) -> bool:
    """Whether the training rows have all that rows of another subset ask for."""
    try:
        objective.check_known(learned, counted, subset)
    except CorpusError:
        return False
    return True


_started: dict[str, Objective] = {}


def started(job: FinetuneJob, model: PinnedModel, max_tokens: int, schema: pa.Schema | None = None) -> Objective:
    """The job's objective with its tokenizer, made once in each process."""
    key = json.dumps([job.pinned(), model.digest, max_tokens], default=str)
    if key not in _started:
        from pipeline.models.pretrained import prepared_tokenizer
        from pipeline.models.reference import on_this_node

        _started.clear()
        objective = objective_of(job) if schema is None else objective_over(job, schema)
        here = on_this_node(model)
        objective.start(prepared_tokenizer(here, 1), here, max_tokens)
        _started[key] = objective
    return _started[key]


def _rendered(sources: Mapping[str, InputSource], table: pa.Table) -> tuple[dict[str, list[Any]], dict[int, Failure]]:
    inputs: dict[str, list[Any]] = {}
    failures: dict[int, Failure] = {}
    for name, source in sources.items():
        inputs[name], broken = source.render(table, MOST_CHARS)
        if name != "split":  # a row without a group is a group of its own
            failures = {**broken, **failures}
    return inputs, failures


def _subsets(
    job: FinetuneJob,
    subset: Subset | None,
    inputs: Mapping[str, Sequence[Any]],
    table: pa.Table,
    failures: dict[int, Failure],
) -> list[Subset | None]:
    if subset is not None:
        return [subset] * table.num_rows
    split = job.data.split
    if split.column is not None:
        named = [None if word is None else subset_named(word) for word in inputs["split"]]
        for row, found in enumerate(named):
            if found is None:
                word = inputs["split"][row]
                failures.setdefault(
                    row, Failure(Reason.NO_SUBSET, f"'{split.column}' is {word!r}, and not train, validation or test")
                )
        return list(named)
    groups = inputs.get("split", inputs["text"])
    files, rows = table["_file"].to_pylist(), table["_row"].to_pylist()
    return [
        subset_of(f"\0{files[row]}\0{rows[row]}" if group is None else group, split.shares)
        for row, group in enumerate(groups)
    ]


def _left_out(table: pa.Table, subsets_N: Sequence[Subset | None], failures: Mapping[int, Failure]) -> pa.Table:
    rows = sorted(failures)
    told = [failures[row] for row in rows]
    columns = [
        table["_file"].take(rows),
        table["_row"].take(rows),
        pa.array([subsets_N[row] for row in rows], pa.string()),
        pa.array([each.reason.value for each in told], pa.string()),
        pa.array([each.detail for each in told], pa.string()),
    ]
    return pa.table(columns, schema=_LEFT_OUT)


def write_parquet(store: Store, path: str, table: pa.Table) -> None:
    """A whole file or none."""
    with store.create(path) as sink:
        pq.write_table(table, sink, compression="zstd")


def _write_arrow(store: Store, path: str, table: pa.Table) -> None:
    with store.create(path) as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4096)
