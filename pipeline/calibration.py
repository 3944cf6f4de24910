"""Calibration of `dtype: int8`: what a model's inputs reach on rows of the corpus, and a guard against losing too much.

    calibrate(spec, table) -> Calibrated(data=b"…", agreement=Agreement("cosine", 0.9934, rows=256))

Some rows go through the model in float32 while its layers' inputs are looked at; others, which took no part in that, go
through it in float32 and in int8, and what the task says of them is compared. Less agreement than the job asks for ends
the run before anything is written. Rows that float32 cannot annotate tell nothing; without any other there is no
calibration, and nothing that would need one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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
from pipeline.models.ranges import digest_of, to_bytes
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
    from pipeline.models.int8 import watched

    if not rows.num_rows:
        return None
    looked_at, compared = rows.slice(0, rows.num_rows // 3), rows.slice(rows.num_rows // 3)
    exact = _annotator(_by(TORCH, spec), "float32", None, rows.schema)  # whose layers can be looked at
    with watched(exact.module(spec.name)) as ranges:
        seen = _annotate(exact, looked_at)
        if not ranges or not _annotated(spec, seen).any():
            _annotate(exact, compared)
    wanted = _annotate(exact, compared)
    del exact
    if not _annotated(spec, wanted).any():
        compared, wanted = looked_at, seen
    kept_R = pa.array(_annotated(spec, wanted))
    if not kept_R.true_count or not any(chunk.tokens for chunk in wanted):
        return None
    data = to_bytes(ranges)
    own = [name for name in wanted[0].columns if name not in _told_of(spec.name)]

    def agrees_by(engine: str) -> Agreement | None:
        found = _annotate(_annotator(_by(engine, spec), "int8", data, rows.schema), compared)
        both = ({name: _joined(chunks, name).filter(kept_R) for name in own} for chunks in (wanted, found))
        return agreement(*both)

    agrees = {engine: each for engine in _engines(spec, guarded) if (each := _or_torch(agrees_by, engine, spec))}
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


def _or_torch(agrees_by: Callable[[str], Agreement | None], engine: str, spec: AnnotationSpec) -> Agreement | None:
    """None too where OpenVINO cannot compute what torch may as well."""
    try:
        return agrees_by(engine)
    except ModelError:
        if engine == OPENVINO and spec.pinned.engine == AUTO:
            return None
        raise


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
    for start in range(0, rows.num_rows, _CHUNK_ROWS):
        chunks.append(annotator.annotate(rows.slice(start, _CHUNK_ROWS)))
        if sum(chunk.tokens for chunk in chunks) >= _MOST_TOKENS:
            break
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


def calibrate_units(
    work: "Work", units: Sequence[Unit], name: str, attempt: int = 0
) -> tuple[str, Agreement, str] | None:
    """Calibrate an annotation by rows of these units, and keep it in the output: the calibration's sha256.

    With it how far it agrees, and the engine that computes it, or `auto` where either may. None where it could annotate
    no row. Another attempt takes other rows. Raises what `calibrate` raises.
    """
    (spec,) = [each for each in work.annotations if each.name == name]
    done = calibrate(spec, good_rows(units, work, spec, attempt))
    if done is None:
        return None
    path = calibration_path(done.digest)
    if not work.store.exists(path):
        work.store.write(path, done.data)
    return done.digest, done.agreement, done.engine
