"""Calibration of `dtype: int8`: what a model's inputs reach on rows of the corpus, and a guard against losing too much.

    calibrate(spec, table) -> Calibrated(data=b"…", agreement=Agreement("cosine", 0.9934, rows=256))

Some rows go through the model in float32 while its layers' inputs are looked at; others, which took no part in that, go
through it in float32 and in int8, and what the task says of them is compared. Less agreement than the job asks for ends
the run before anything is written. Rows that float32 cannot annotate tell nothing; without any other there is no
calibration, and nothing that would need one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.agreement import Agreement, agreement
from pipeline.annotator import Annotations, AnnotationSpec, Annotator, columns_of
from pipeline.corpus.plan import Unit
from pipeline.corpus.reader import UnitReader
from pipeline.errors import JobError, ModelError
from pipeline.inputs import compile_inputs
from pipeline.models.engines import AUTO, OPENVINO, TORCH
from pipeline.models.ranges import Ranges, digest_of, to_bytes
from pipeline.output.layout import calibration_path
from pipeline.quantize import is_packed
from pipeline.unit_texts import UnitTexts

if TYPE_CHECKING:
    from pipeline.stages import Work

CALIBRATION_ROWS, GUARD_ROWS = 128, 256
"""Rows that are looked at, and others that are compared."""

_OF_LABELS = ("classify", "zero_shot")
"""Tasks that may list labels beside the best one, or beside those above the threshold."""

_UNITS, _MOST_UNITS = 4, 64
"""That are read at least, and at most once they have given a chunk of rows: a filter may keep few."""

_CHUNK_ROWS = 32
"""Of the first chunk, which tells how many tokens a row has."""

_GROWTH = 4
"""So many times as much as all before may a chunk have: of more rows, micro-batches are full and hardly padded."""

_MOST_TOKENS = 65_536
"""Of either kind of rows: half a minute of a small encoder in float32, by one thread. The first chunk counts always."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What the actors need to quantise the model, and what quantising it costs."""

    data: bytes  # see `pipeline.models.ranges`
    agreement: Agreement
    engine: str  # auto: either may compute it, and the agreement is the lesser one

    @property
    def digest(self) -> str:
        """The sha256 of the data."""
        return digest_of(self.data)


def calibrate(spec: AnnotationSpec, rows: pa.Table, *, guarded: bool = True) -> Calibrated | None:
    """Calibrate one annotation's model on rows of the corpus that it reads; None where it could annotate none of them.

    Raises JobError: less agreement with float32 than the job asks for, where it is `guarded`; ModelError where the
    model cannot be quantised.
    """
    if not rows.num_rows:
        return None
    looked_at, compared = _parts(rows)
    exact = _exact(spec, rows.schema)
    ranges, seen = _look(spec, exact, looked_at, compared)
    wanted = _annotate(exact, compared)
    del exact
    if not _annotated(spec, wanted).any():
        compared, wanted = looked_at, seen
    if not _comparable(spec, wanted):
        return None
    data = to_bytes(ranges)
    return _judged(spec, data, wanted, _in_int8(spec, data, compared, guarded), guarded=guarded)


def _parts(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Those that are looked at, and those that are compared."""
    return rows.slice(0, rows.num_rows // 3), rows.slice(rows.num_rows // 3)


def _comparable(spec: AnnotationSpec, wanted: Sequence[Annotations]) -> bool:
    """Whether a model said anything of any row."""
    return bool(_annotated(spec, wanted).any()) and any(chunk.tokens for chunk in wanted)


def _exact(spec: AnnotationSpec, schema: pa.Schema) -> Annotator:
    """The model in float32, by the engine whose layers can be looked at."""
    return _annotator(_by(TORCH, spec), "float32", None, schema)


def _look(
    spec: AnnotationSpec, exact: Annotator, looked_at: pa.Table, compared: pa.Table
) -> tuple[Ranges, list[Annotations]]:
    """What layers' inputs reach, and what was said of the rows that are looked at; else of the other ones."""
    from pipeline.models.int8 import watched

    with watched(exact.module(spec.name)) as ranges:
        seen = _annotate(exact, looked_at)
        if not ranges or not _annotated(spec, seen).any():
            _annotate(exact, compared)
    return ranges, seen


def _in_int8(spec: AnnotationSpec, data: bytes, compared: pa.Table, guarded: bool) -> dict[str, list[Annotations]]:
    """What each engine says that may compute the run."""
    found = {}
    for engine in _engines(spec, guarded):
        try:
            found[engine] = _annotate(_annotator(_by(engine, spec), "int8", data, compared.schema), compared)
        except ModelError:
            if engine == TORCH or spec.pinned.engine != AUTO:
                raise
            # OpenVINO cannot compute what torch may as well
    return found


def _judged(
    spec: AnnotationSpec,
    data: bytes,
    wanted: Sequence[Annotations],
    found: Mapping[str, Sequence[Annotations]],
    *,
    guarded: bool,
) -> Calibrated | None:
    """How far each engine agrees with what is `wanted`; raises JobError where that is too little."""
    own = [name for name in wanted[0].columns if name not in _told_of(spec.name)]
    kept_R = pa.array(_annotated(spec, wanted))

    def kept(chunks: Sequence[Annotations]) -> dict[str, pa.Array]:
        return {name: _joined(chunks, name).filter(kept_R) for name in own}

    agrees = {engine: each for engine in found if (each := agreement(kept(wanted), kept(found[engine])))}
    if not agrees:
        return None
    good = _good_enough(spec, agrees) if guarded else agrees
    return Calibrated(data, min(good.values(), key=attrgetter("figure")), AUTO if len(good) > 1 else next(iter(good)))


def _good_enough(spec: AnnotationSpec, agrees: Mapping[str, Agreement]) -> dict[str, Agreement]:
    """Those engines that agree with float32 as much as the job asks for; raises JobError where none does."""
    level: float = spec.task().config.int8_agreement
    good = {engine: each for engine, each in agrees.items() if each.figure >= level}
    if not good:
        nearest = max(agrees.values(), key=attrgetter("figure"))
        raise JobError(
            f"annotation '{spec.name}': dtype: int8 loses too much with this model on this corpus: {nearest}, beside "
            f"float32, and int8_agreement asks for {level:g}; set `dtype: bfloat16`, or a lower `int8_agreement`"
        )
    return good


def _engines(spec: AnnotationSpec, guarded: bool) -> tuple[str, ...]:
    """Which may compute the run: both where a trial is still to come. A look takes torch then."""
    engine = spec.pinned.engine or TORCH
    return (engine,) if engine != AUTO else (TORCH, OPENVINO) if guarded else (TORCH,)


def _annotated(spec: AnnotationSpec, chunks: Sequence[Annotations]) -> npt.NDArray[np.bool_]:
    """Of which rows the annotation said anything: those alone have tokens."""
    tokens = [chunk.columns[f"{spec.name}_tokens"] for chunk in chunks]
    return np.concatenate([np.zeros(0, np.bool_), *(np.asarray(each.is_valid()) for each in tokens)])


def _told_of(name: str) -> set[str]:
    """Columns that tell of the text, or of a fault."""
    return {f"{name}_tokens", f"{name}_truncated", f"{name}_error"}


def _by(engine: str, spec: AnnotationSpec) -> AnnotationSpec:
    return replace(spec, pinned=replace(spec.pinned, engine=engine))


def _annotator(spec: AnnotationSpec, dtype: str, data: bytes | None, schema: pa.Schema) -> Annotator:
    settings = dict(spec.settings)
    if is_packed(settings.get("output", "float32")):
        settings["output"] = "float32"  # the vectors are compared, not their signs
    if settings["task"] in _OF_LABELS:  # all of them are always the same, and those far down change places for nothing
        settings |= {"all_scores": False, "top_k": None}
    elif settings["task"] == "fill":
        settings["top_k"] = 1
    pinned = replace(spec.pinned, dtype=dtype, calibration=None if data is None else digest_of(data))
    made = Annotator([replace(spec, settings=settings, pinned=pinned, calibration=data)], schema)
    made.load()
    return made


def _annotate(annotator: Annotator, rows: pa.Table) -> list[Annotations]:
    """The rows chunk by chunk, as far as the tokens allow."""
    chunks: list[Annotations] = []
    start = tokens = 0
    while start < rows.num_rows and tokens < _MOST_TOKENS:
        room = _MOST_TOKENS - tokens
        count = _CHUNK_ROWS if not chunks else min(_GROWTH * start, -(-room * start // max(1, tokens)))
        chunks.append(annotator.annotate(rows.slice(start, count)))
        start, tokens = start + count, tokens + chunks[-1].tokens
    return chunks


def _joined(chunks: Sequence[Annotations], name: str) -> pa.Array:
    return pa.concat_arrays([chunk.columns[name] for chunk in chunks])


def calibrated(specs: Sequence[AnnotationSpec], rows: pa.Table) -> tuple[tuple[AnnotationSpec, ...], tuple[str, ...]]:
    """The specs, those in int8 calibrated on these rows, and how far they agree: for a look, which keeps nothing.

    Few rows refuse no job: a run compares others, and more of them.
    """
    every, notes = [], []
    for spec in specs:
        if spec.pinned.dtype != "int8":
            every.append(spec)
            continue
        done = calibrate(spec, spread([_read(spec, rows)], CALIBRATION_ROWS + GUARD_ROWS), guarded=False)
        if done is None:
            every.append(replace(spec, pinned=replace(spec.pinned, dtype="bfloat16")))  # as a run does
            continue
        pinned = replace(spec.pinned, calibration=done.digest)
        every.append(replace(spec, calibration=done.data, pinned=pinned))
        notes.append(f"annotation '{spec.name}' in int8, beside float32: {done.agreement}")
    return tuple(every), tuple(notes)


# ------------------------------------------------------------------------------------------------------- in a worker


def apart(units: Sequence[Unit]) -> list[Unit]:
    """The units, those first that lie apart: a few, then four times as many, until all are there."""
    places: dict[int, None] = {}
    count = _UNITS
    while len(places) < len(units):
        count = min(count, len(units))
        places |= dict.fromkeys(len(units) * each // count for each in range(count))
        count *= 4
    return [units[place] for place in places]


def good_rows(units: Sequence[Unit], work: "Work", spec: AnnotationSpec, attempt: int = 0) -> pa.Table:
    """Rows that the annotation reads, which lie apart: of a few units, of more where those have too few.

    The first attempt takes them from all, the second and third from every other one: they have none in common.
    """
    reader = UnitReader(work.read)
    tables, count = [reader.empty()], 0
    for number, unit in enumerate(apart(units)):
        enough = _CHUNK_ROWS if number >= _MOST_UNITS else CALIBRATION_ROWS + GUARD_ROWS
        if number >= _UNITS and count >= enough:
            break
        found = reader.read(unit, {span.fragment: work.fragments[span.fragment] for span in unit.spans})
        tables.append(_read(spec, found.table, {problem.row for problem in found.problems}))
        count += tables[-1].num_rows
    whole = pa.concat_tables(tables)
    if attempt:
        whole = whole.take(pa.array(range((attempt - 1) % 2, whole.num_rows, 2), pa.int64()))
    return spread([whole], CALIBRATION_ROWS + GUARD_ROWS)


def _read(spec: AnnotationSpec, table: pa.Table, faulty: Collection[int] = ()) -> pa.Table:
    """The rows that an annotation reads, without those that are at fault."""
    task = spec.on_this_node().task()
    (reads,) = compile_inputs([task], [columns_of(task)], table.schema)
    unit = UnitTexts(table, frozenset(), faulty, None, offsets=False, once=False)
    return table.take(pa.array(unit.rendered(task, reads).rows_R, pa.int64()))


def spread(tables: Sequence[pa.Table], rows: int) -> pa.Table:
    """At most so many rows, from everywhere in the tables; neighbours of the result lie apart."""
    whole = pa.concat_tables(tables)
    count = min(rows, whole.num_rows)
    places = [whole.num_rows * each // count for each in range(count)]
    return whole.take(pa.array([place for first in range(3) for place in places[first::3]], pa.int64()))


Answer = tuple[str, Agreement, str]
"""Of a calibration that is kept in the output: its sha256, how far it agrees, the engine (`auto`: either may)."""


def calibrate_units(work: "Work", units: Sequence[Unit], name: str, attempt: int = 0) -> Answer | None:
    """Calibrate an annotation by rows of these units, and keep it in the output.

    None where it could annotate no row. Another attempt takes other rows. Raises what `calibrate` raises.
    """
    spec = _spec(work, name)
    return _kept(work, calibrate(spec, good_rows(units, work, spec, attempt)))


Rounded = tuple[bytes, dict[str, list[Annotations]]]
"""What was calibrated, and what each engine says by it."""


def round_units(work: "Work", units: Sequence[Unit], name: str, attempt: int = 0) -> Rounded | None:
    """The first half of `calibrate_units`, as long as the other: look at some rows, then compute the others in int8.

    None where there is no row that the annotation reads, or none that goes through the model.
    """
    spec = _spec(work, name)
    looked_at, compared = _parts(rows := good_rows(units, work, spec, attempt))
    if not rows.num_rows:
        return None
    ranges, _ = _look(spec, _exact(spec, rows.schema), looked_at, compared)
    if not ranges:
        return None
    data = to_bytes(ranges)
    return data, _in_int8(spec, data, compared, guarded=True)


def exact_units(work: "Work", units: Sequence[Unit], name: str, attempt: int = 0) -> list[Annotations]:
    """The other half: what is said of the rows to compare in float32."""
    spec = _spec(work, name)
    _, compared = _parts(rows := good_rows(units, work, spec, attempt))
    return _annotate(_exact(spec, rows.schema), compared)


def can_judge(work: "Work", name: str, rounded: Rounded, wanted: Sequence[Annotations]) -> bool:
    """Whether the halves tell enough: rows that float32 could annotate, and the same ones, as files may change."""
    spec = _spec(work, name)
    counts = {len(_annotated(spec, chunks)) for chunks in (wanted, *rounded[1].values())}
    return len(counts) == 1 and _comparable(spec, wanted)


def judge(work: "Work", name: str, rounded: Rounded, wanted: Sequence[Annotations]) -> Answer | None:
    """What `calibrate_units` answers, by its halves, where they can be judged by; on the driver."""
    data, found = rounded
    return _kept(work, _judged(_spec(work, name), data, wanted, found, guarded=True))


def _spec(work: "Work", name: str) -> AnnotationSpec:
    (spec,) = [each for each in work.annotations if each.name == name]
    return spec


def _kept(work: "Work", done: Calibrated | None) -> Answer | None:
    if done is None:
        return None
    path = calibration_path(done.digest)
    if not work.store.exists(path):
        work.store.write(path, done.data)
    return done.digest, done.agreement, done.engine
