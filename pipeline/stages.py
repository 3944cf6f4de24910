"""The three stages of a unit, as plain functions over envelopes: read, annotate, commit. Without Ray.

    read      unit -> rows, as far as they can be read
    annotate  rows -> columns of every annotation, and the rows that failed; once in each pool
    commit    both -> part, quarantine file, receipt

Each runs in a process of its own choosing (`pipeline.stream` gives them to Ray). None lets an exception out: what is a
user's to know becomes a `fatal` envelope with the error's own words, what is ours carries its traceback.
"""

import os
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.annotator import Annotations, AnnotationSpec, Annotator
from pipeline.blame import DEATHS_AT_MOST, DEATHS_BESIDE_OTHERS, Attempt, Phase, blamed_rows, suspected_rows
from pipeline.corpus.identity import IDENTITY
from pipeline.corpus.plan import Fragment, Unit
from pipeline.corpus.reader import ReadPlan, ReadUnit, UnitReader
from pipeline.corpus.rowgroup import ranges_of
from pipeline.envelope import Envelope
from pipeline.errors import CorpusmillError, RunError
from pipeline.mend import standing_rows, without
from pipeline.models.memory import give_back, hold, keep_products
from pipeline.models.reference import has_tokenizer
from pipeline.output.parts import UnitCommit, commit_unit
from pipeline.output.receipts import Receipt
from pipeline.output.receipts import load as load_receipt
from pipeline.output.storage import Store
from pipeline.profile import Span, as_told, recorded, timed
from pipeline.quarantine import Lost, Problem, Reason
from pipeline.repeats import Repeats
from pipeline.workers import Pools, section

LOADS_AT_MOST = 3
"""So many processes may die while they load the models before the run ends."""


_WHOLE = "pipeline.models.loading"
_LEAN = "pipeline.models.lean:import_lean"


@dataclass(frozen=True, slots=True)
class Work:
    """All that the stages of one run share: picklable, and brought to each process once."""

    store: Store
    epoch: int
    run_id: str
    read: ReadPlan
    fragments: tuple[Fragment, ...]
    annotations: tuple[AnnotationSpec, ...]
    carried: tuple[str, ...]  # the corpus's columns that the parts keep
    added: tuple[pa.Field, ...]  # the columns of all annotations
    footer: Mapping[str, Any]
    token_budget: Mapping[str, int]
    pools: Pools  # in the order in which a unit passes them
    repeats: Repeats = Repeats()  # noqa: RUF009 - frozen
    alone: bool = False  # nothing runs beside a unit: who dies now is to blame
    profile: bool = False  # tell with each unit where the time went

    @property
    def pools_ahead(self) -> list[str | None]:
        """Pools whose texts are tokenised by the processes that read them, in order."""
        return [pool for pool, workers in self.pools.items() if workers.readers]

    def units_at_once(self, pool: str | None) -> int:
        """Units that an actor of a pool has under way.

        On a GPU two: while it computes for one, what it said of the other becomes columns. A user's own code is never
        called by two threads, and what has killed processes runs with nothing beside it.
        """
        here = [spec for spec in self.annotations if spec.pool == pool]
        of_a_users = any(spec.code is not None or (spec.model and spec.model.allow_remote_code) for spec in here)
        alone = self.alone or of_a_users or self.repeats.cache is not None
        return 2 if self.pools[pool].gpus_per_actor and not alone else 1

    @property
    def imports(self) -> list[str]:
        """What actors import first, where all of them import the same."""
        pools = {spec.pool for spec in self.annotations if spec.model is not None}
        if not pools:
            return []
        return [_LEAN if all(self.reads_alone(pool) for pool in pools) else _WHOLE]

    def reads_alone(self, pool: str | None) -> bool:
        """Whether a pool's actors do no more than read, with encoders of families that are well known to us."""
        here = [spec for spec in self.annotations if spec.pool == pool]
        return any(spec.model is not None for spec in here) and all(spec.reads_alone for spec in here)


@dataclass(frozen=True, slots=True)
class Order:
    """One unit to compute; a retry computes only the rows of it that stand in no part yet."""

    unit: Unit
    retry: bool = False


def fatal(unit: str, error: BaseException) -> Envelope:
    """An error that ends the run, on its way to the driver."""
    ours = not isinstance(error, CorpusmillError)
    message = "".join(traceback.format_exception(error)) if ours else str(error)
    return Envelope(unit, "fatal", told={"kind": type(error).__name__, "message": message})


# ------------------------------------------------------------------------------------------------------------- read


def read(order: Order, work: Work) -> Envelope:
    """Read a unit. What cannot be read is told as lost; a unit that killed its readers is lost whole."""
    with recorded(work.profile) as spans, timed("read", unit=order.unit.id):
        answer = _read(order, work)
    if work.profile:
        answer.told["profile"] = [as_told("reader", spans)]
    return answer


def _read(order: Order, work: Work) -> Envelope:
    unit = order.unit
    try:
        attempt = Attempt(work.store, work.epoch, unit.id, "read")
        if len(attempt.deaths) == DEATHS_BESIDE_OTHERS and not work.alone:
            attempt.withdraw()
            return Envelope(unit.id, "suspect")
        if len(attempt.deaths) > DEATHS_BESIDE_OTHERS:
            found = _killed_readers(order, work, len(attempt.deaths))
        else:
            found = UnitReader(work.read).read(unit, _fragments(order, work), accept_changed=order.retry)
        answer = _sealed(order, found) if not order.retry else _mend(order, found, work)
        if not attempt.deaths:  # else the actor tokenises, which can tell one row from another
            answer.tokens = _tokenised(answer, work)
        attempt.end()
        return answer
    except Exception as error:  # noqa: BLE001 - the boundary of a process
        return fatal(unit.id, error)


def _tokenised(envelope: Envelope, work: Work) -> pa.Table | None:
    """The tokens of the unit's texts, where actors would wait for them; what cannot be tokenised is left to these."""
    if not work.pools_ahead or envelope.rows is None:
        return None
    if (made := _tokenizers.get(work.run_id)) is None:
        made = _tokenizers[work.run_id] = _with_tokenizers(work)
    at_fault = {each.row for each in envelope.problems if each.annotation is None}
    columns: dict[str, pa.ChunkedArray] = {}
    try:
        for annotator in made:
            found = annotator.tokenise(envelope.rows, at_fault)
            columns |= dict(zip(found.column_names, found.columns, strict=True))
    except Exception:  # noqa: BLE001 - the actor meets it too, and can say whose fault it is
        return None
    return pa.table(columns) if columns else None


_tokenizers: dict[str, list[Annotator]] = {}
"""Those of a run, loaded once in each process that reads."""


def _with_tokenizers(work: Work) -> list[Annotator]:
    """An annotator for each pool that is tokenised for, as far as its tokenizers are on this node."""
    made = []
    for pool in work.pools_ahead:
        here = [spec for spec in work.annotations if spec.pool == pool]
        if all(spec.model is None or has_tokenizer(spec.model) for spec in here):
            try:
                once = Repeats(work.repeats.once)
                annotator = Annotator(work.annotations, _schema_read(work), here, once, look=False)
                annotator.take_tokenizers()
            except Exception:  # noqa: BLE001 - as above
                continue
            made.append(annotator)
    hold()
    return made


def _fragments(order: Order, work: Work) -> dict[int, Fragment]:
    return {span.fragment: work.fragments[span.fragment] for span in order.unit.spans}


def _sealed(order: Order, found: ReadUnit) -> Envelope:
    counts = {
        "folder": order.unit.folder,
        "retry": order.retry,
        "rows_read": found.rows_read,
        "rows_filtered": found.rows_filtered,
        "spans": found.spans,
    }
    return Envelope(order.unit.id, "read", found.table, None, found.problems, found.lost, counts)


def _killed_readers(order: Order, work: Work, deaths: int) -> ReadUnit:
    lost = []
    for span in order.unit.spans:
        fragment = work.fragments[span.fragment]
        detail = f"{deaths} processes died while they read these rows, the last with nothing beside it"
        if span.row_group is None:
            lost.append(Lost(fragment.path, None, None, Reason.KILLED_PROCESS, detail))
            continue
        before = sum(group.rows for group in fragment.row_groups[: span.row_group])
        rows = span.selected or range(before + span.start, before + span.stop)
        lost += [Lost(fragment.path, first, count, Reason.KILLED_PROCESS, detail) for first, count in ranges_of(rows)]
    return ReadUnit(UnitReader(work.read).empty(), [], lost, order.unit.rows, 0)


def _mend(order: Order, found: ReadUnit, work: Work) -> Envelope:
    """What a retry has to compute. Where less can be read than the receipt tells, the unit is kept as it is."""
    receipt = load_receipt(work.store, order.unit.id)
    assert receipt is not None, "a retry mends what a receipt tells"
    rest = without(found, standing_rows(work.store, receipt))
    worse = sum(lost.rows or 0 for lost in rest.lost) > receipt.rows_quarantined
    if work.read.identity_carried and rest.lost:
        # Who they are stood in the rows that are lost now: one that stands could not be told from one that does not.
        worse |= found.table.num_rows - rest.table.num_rows < receipt.rows_out
    return Envelope(order.unit.id, "kept") if worse else _sealed(order, rest)


# --------------------------------------------------------------------------------------------------------- annotate


@dataclass(slots=True)
class AnnotateStage:
    """An actor: loads the models of its pool when it is made, then annotates unit after unit."""

    work: Work
    pool: str | None = None
    own_process: bool = False  # nobody else imports anything here
    annotator: Annotator = field(init=False)
    broken: Envelope | None = field(init=False, default=None)
    ready: float = field(init=False, default=0.0)
    name: str = field(init=False, default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    loaded: dict[str, float] = field(init=False)
    slow: list[str] = field(init=False, default_factory=list)  # what this node is no good for
    _untold: list[Span] = field(init=False)
    _free_hands: list[int] = field(init=False, default_factory=lambda: [1, 0])  # whoever calls takes one

    def __post_init__(self) -> None:
        """Load. What goes wrong is told with the first unit, once, instead of by restarts without end."""
        began = time.monotonic()
        with recorded() as spans:
            try:
                with timed("imports"):
                    if self.own_process and self.work.reads_alone(self.pool):
                        from pipeline.models.lean import import_lean  # torch takes seconds; some jobs need none

                        import_lean()
                    specs = [spec.with_calibration(self.work.store) for spec in self.work.annotations]
                    here = [spec for spec in specs if spec.pool == self.pool]
                    self.annotator = Annotator(specs, _schema_read(self.work), here, self.work.repeats)
                    self.annotator.import_libraries()
                if self.own_process:
                    keep_products(few=not self.annotator.writes)
                _load(self.annotator, self.work, self.pool, self.own_process)
                self.slow = self.annotator.slow_here()
                if self.own_process:
                    hold()
            except Exception as error:  # noqa: BLE001 - the boundary of a process
                self.broken = fatal("", error)
        self.ready = time.monotonic()
        imports = sum(each.seconds for each in spans if each.name == "imports")
        self.loaded = {"at": time.time(), "imports": imports, "models": self.ready - began - imports}
        self._untold = spans if self.work.profile else []

    def __call__(self, envelope: Envelope) -> Envelope:
        """Annotate the rows of one unit; as many threads may call at once as `units_at_once` says."""
        hand = self._free_hands.pop()
        try:
            with recorded(self.work.profile) as spans, timed("unit", unit=envelope.unit):
                answer = self._through(envelope)
        finally:
            self._free_hands.append(hand)
        if self.work.profile:
            before, self._untold = self._untold, []
            answer.told["profile"] = [*envelope.told.get("profile", []), as_told("actor", before + spans, hand)]
        return answer

    def _through(self, envelope: Envelope) -> Envelope:
        if self.broken is not None:
            return self.broken
        if envelope.state not in ("read", "annotated") or envelope.rows is None:
            return envelope
        began = time.monotonic()
        try:
            stage = "annotate" if self.pool is None else f"annotate-{self.pool}"
            attempt = Attempt(self.work.store, self.work.epoch, envelope.unit, stage)
            if len(attempt.deaths) >= DEATHS_BESIDE_OTHERS and not self.work.alone:
                attempt.withdraw()
                return Envelope(envelope.unit, "suspect")
            on_cpu = self.work.pools[self.pool].device == "cpu"  # beside a GPU there is memory enough
            if on_cpu:
                give_back()  # of the unit before, since when its answer was packed and went into Ray's store
            answer = self._annotate(envelope, attempt)
            attempt.end()
            if on_cpu:
                give_back()
        except Exception as error:  # noqa: BLE001 - the boundary of a process
            return fatal(envelope.unit, error)
        now = time.monotonic()
        seconds = now - began
        before: Mapping[str, float] = envelope.told.get("since_ready", {})
        answer.told |= {
            "seconds": envelope.told.get("seconds", 0.0) + seconds,
            # The actors of the pools before have held their models for so much longer by now.
            "since_ready": {actor: since + seconds for actor, since in before.items()} | {self.name: now - self.ready},
            "loaded": envelope.told.get("loaded", {}) | {self.name: self.loaded},
            "slow": [*envelope.told.get("slow", []), *self.slow],
        }
        return answer

    def _annotate(self, envelope: Envelope, attempt: Attempt) -> Envelope:
        table, deaths = envelope.rows, attempt.deaths
        assert table is not None, "only read units are annotated"
        killers = set(range(table.num_rows)) if len(deaths) >= DEATHS_AT_MOST else blamed_rows(deaths, table.num_rows)
        at_fault = {each.row for each in envelope.problems if each.annotation is None} | killers
        if envelope.added is not None:  # by the pools before
            table = with_columns(table, envelope.added)
        if self.work.alone:
            for row in suspected_rows(deaths, table.num_rows):
                if row not in at_fault:
                    attempt.running("trial", [row])
                    self.annotator.annotate(table.slice(row, 1))
            attempt.running("whole", None)
        phase: Phase = "whole" if self.work.alone else "stream"
        running = (lambda rows: attempt.running(phase, rows)) if deaths else None
        found = self.annotator.annotate(table, at_fault, running, None if deaths else envelope.tokens)
        later = list(self.work.pools)[list(self.work.pools).index(self.pool) + 1 :]
        if not any(pool in later for pool in self.work.pools_ahead):
            envelope.tokens = None  # nobody asks for them any more
        detail = f"{len(deaths)} processes died over this unit, the last while it ran this row with nothing beside it"
        problems = envelope.problems + [Problem(row, None, Reason.KILLED_PROCESS, detail) for row in sorted(killers)]
        return _answer(envelope, found, problems + found.problems)


def _answer(envelope: Envelope, found: Annotations, problems: list[Problem]) -> Envelope:
    before = envelope.told  # by the pools before
    told = before | {
        "tokens": before.get("tokens", 0) + found.tokens,
        "padding_tokens": before.get("padding_tokens", 0) + found.padding_tokens,
        "tokens_by_annotation": before.get("tokens_by_annotation", {}) | found.tokens_by_annotation,
        "seconds_by_annotation": before.get("seconds_by_annotation", {}) | found.seconds_by_annotation,
        "repeated_by_annotation": before.get("repeated_by_annotation", {}) | found.repeated_by_annotation,
        "lowered_budget": before.get("lowered_budget", {}) | found.lowered_budget,
    }
    new = pa.table(found.columns)
    added = new if envelope.added is None else with_columns(envelope.added, new)
    return replace(envelope, state="annotated", rows=None, added=added, problems=problems, told=told)


def with_columns(table: pa.Table, added: pa.Table) -> pa.Table:
    """A table with the columns of another of the same rows behind its own."""
    for name, values in zip(added.column_names, added.columns, strict=True):
        table = table.append_column(name, values)
    return table


def _schema_read(work: Work) -> pa.Schema:
    return UnitReader(work.read).empty().schema


def _load(annotator: Annotator, work: Work, pool: str | None, own_process: bool) -> None:
    """Load the models, unless process after process died of it."""
    marks = f"metadata/tmp/attempts-{work.epoch}/loading{'' if pool is None else f'-{pool}'}"
    actors = work.pools[pool].actors
    mark = f"{marks}/{os.getpid()}-{time.monotonic_ns()}"
    died = len(work.store.list(marks)) - (actors - 1)  # so many others may be loading right now
    if died >= LOADS_AT_MOST:
        raise RunError(
            f"{died} processes died while they loaded the {'job' if pool is None else 'pool'}'s models, most likely "
            f"for want of memory; ask for fewer actors ({section(pool)}.actors, now {actors}) or a smaller model"
        )
    work.store.mark(mark, b"")
    annotator.load(apart=own_process)
    work.store.delete(mark)


# ----------------------------------------------------------------------------------------------------------- commit


def commit(envelope: Envelope, work: Work) -> dict[str, Any]:
    """Write what the unit became; the receipt last. Returns what the driver is told."""
    with recorded(work.profile) as spans, timed("commit", unit=envelope.unit):
        answer = _commit(envelope, work)
    if work.profile:
        answer["profile"] = [*envelope.told.get("profile", []), as_told("commit", spans)]
    return answer


def _commit(envelope: Envelope, work: Work) -> dict[str, Any]:
    if envelope.state in ("suspect", "kept", "fatal"):
        return {"state": envelope.state, "unit": envelope.unit, **envelope.told}
    try:
        previous = load_receipt(work.store, envelope.unit) if envelope.told["retry"] else None
        if previous is None or previous.epoch < work.epoch:  # else this task is executed again, and had come to its end
            commit_unit(work.store, _unit_commit(envelope, previous, work))
    except Exception as error:  # noqa: BLE001 - the boundary of a process
        return {"state": "fatal", "unit": envelope.unit, **fatal(envelope.unit, error).told}
    return {"state": "done", "unit": envelope.unit, **{name: envelope.told.get(name) for name in _TOLD}}


_TOLD = ("seconds", "since_ready", "loaded", "slow", "seconds_by_annotation", "repeated_by_annotation")
"""Of a unit that is done, for the summary of this run alone."""


def _unit_commit(envelope: Envelope, previous: Receipt | None, work: Work) -> UnitCommit:
    told, rows = envelope.told, envelope.rows
    assert rows is not None, "only read units are committed"
    table = rows
    for column in work.added:
        values = pa.nulls(rows.num_rows, column.type) if envelope.added is None else envelope.added[column.name]
        table = table.append_column(column, values)
    schema = pa.schema([*_schema_read(work), *work.added], metadata=work.read.schema.metadata)
    filtered_before = previous.rows_filtered if previous is not None else 0
    return UnitCommit(
        unit=envelope.unit,
        folder=told["folder"],
        epoch=work.epoch,
        run_id=work.run_id,
        table=table,
        schema=schema,
        columns=(*work.carried, *(column.name for column in work.added), *(field.name for field in IDENTITY)),
        problems=envelope.problems,
        lost=envelope.lost,
        rows_filtered=told["rows_filtered"] - filtered_before,
        tokens=told["tokens"],
        padding_tokens=told["padding_tokens"],
        tokens_by_annotation=told["tokens_by_annotation"],
        token_budget={**work.token_budget, **told["lowered_budget"]},
        seconds=told["seconds"],
        footer=work.footer,
        spans=None if told["spans"] is None else tuple((file, first, count) for file, first, count in told["spans"]),
        previous=previous,
    )
