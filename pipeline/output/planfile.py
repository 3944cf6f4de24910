"""The plan of a run: what it will do, pinned at its first execution and kept in `metadata/plan.json`.

{"version": 1, "job": {"corpus": …, "annotations": […], "output": …}, "annotations": {"topic": {"digest": "53aa…",
 "engine": "torch", "dtype": "bfloat16", "threads": 1, "token_budget": 1024}}, "schema": "base64 of Arrow's IPC",
 "fragments": [["section=games/a.parquet", 91532, "91532-1763…", [["section", "games"]], [[4096, 1532112]], null]],
 "units": [["6f1c…", "section=games", [[0, 0, 0, 2048, null]]]], "computed_by": [{"torch": "2.13.0", …}], …}
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from pipeline.corpus.plan import Fragment, RowGroup, Span, Unit
from pipeline.errors import OutputError
from pipeline.output.layout import PLAN
from pipeline.output.sealed import BrokenSealError, seal, unseal
from pipeline.output.storage import Store
from pipeline.quarantine import Reason
from pipeline.workers import Device

VERSION = 1
"""Of the file's format; a plan of a newer one is refused."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What a trial found of one way to compute an annotation."""

    engine: str
    token_budget: int
    tokens_per_second: float | None  # of one worker, in the model; None: it could not


@dataclass(frozen=True, slots=True)
class PinnedAnnotation:
    """What decides the values of one annotation besides its options."""

    ref: str | None  # None: the task needs no model
    revision: str | None
    digest: str | None
    engine: str | None  # auto: a trial is still to come
    dtype: str | None  # what `auto` became
    device: Device
    threads: int
    token_budget: int  # padded tokens of one micro-batch
    tried: tuple[Tried, ...] = ()  # in a trial, which chose engine and token budget
    calibration: str | None = None  # the sha256 of what a model in int8 is quantised by, found before the first unit
    agreement: float | None = None  # with float32, as it was found then (see `pipeline.agreement`)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a resumed run must find unchanged, and all that `verify` needs besides the receipts."""

    version: int
    corpusmill: str  # version of the package
    job: Mapping[str, Any]  # the job's corpus, annotations and output sections in canonical form
    root: str  # of the corpus, as the file system spells it
    schema: pa.Schema  # of the whole corpus, unified, partition columns last
    partition: tuple[str, ...]  # names of the partition columns
    identity_carried: bool  # the corpus brought its own `_file` and `_row`
    annotations: Mapping[str, PinnedAnnotation]
    fragments: tuple[Fragment, ...]
    units: tuple[Unit, ...]
    rows_pruned: int  # rows of fragments and row groups that the filter excludes by partition or statistics
    computed_by: tuple[Mapping[str, str], ...] = ()  # versions, of each execution that differs from those before

    @property
    def rows(self) -> int:
        """Rows that the units stand for."""
        return sum(unit.rows for unit in self.units)


def exists(store: Store) -> bool:
    """Whether this output has a plan."""
    return store.exists(PLAN)


def save(store: Store, plan: Plan) -> None:
    """Write the plan, whole or not at all."""
    store.write(PLAN, to_bytes(plan))


def load(store: Store) -> Plan:
    """The plan of an output; OutputError where there is none, or not the one that was written there."""
    data = store.find(PLAN)
    if data is None and store.exists(f"predictions/{PLAN}"):
        raise OutputError(f"{store.root} is the output of an evaluate job; its rows are in {store.root}/predictions")
    if data is None:
        raise OutputError(f"{store.root} is no output of corpusmill: it has no {PLAN}")
    if (kind := _other_kind(data)) is not None:
        raise OutputError(
            f"{store.root} is the output of a {kind} job, not of an annotate job; what its model said of the test rows "
            f"is one: {store.root}/predictions"
        )
    try:
        return from_bytes(data)
    except BrokenSealError as error:
        raise OutputError(f"{PLAN} in {store.root}: {error}; restore it, or name another output.path") from error


def _other_kind(data: bytes) -> str | None:
    """The kind of job that a plan says it is of; None of an annotate job's, which says nothing."""
    try:
        kind = json.loads(data).get("kind")
    except (ValueError, AttributeError):
        return None
    return kind if isinstance(kind, str) else None


def to_bytes(plan: Plan) -> bytes:
    """Sealed JSON; fragments, row groups, spans are lists, for there are thousands of them."""
    value = {
        "version": plan.version,
        "corpusmill": plan.corpusmill,
        "job": plan.job,
        "root": plan.root,
        "schema": base64.b64encode(plan.schema.serialize().to_pybytes()).decode(),
        "partition": plan.partition,
        "identity_carried": plan.identity_carried,
        "annotations": {name: asdict(pinned) for name, pinned in plan.annotations.items()},
        "fragments": [
            [each.path, each.size, each.fingerprint, each.partition, _group_rows(each.row_groups), each.problem]
            for each in plan.fragments
        ],
        "units": [[unit.id, unit.folder, [_span_row(span) for span in unit.spans]] for unit in plan.units],
        "rows_pruned": plan.rows_pruned,
        "computed_by": plan.computed_by,
    }
    return seal(value)


def from_bytes(data: bytes) -> Plan:
    """The plan that was sealed; BrokenSealError where it is not whole or of a newer version."""
    value = unseal(data)
    if value.get("version") != VERSION:
        raise BrokenSealError(
            f"it is of version {value.get('version')}, and this corpusmill reads version {VERSION}; take the "
            f"corpusmill that wrote it ({value.get('corpusmill')})"
        )
    try:
        return Plan(
            version=value["version"],
            corpusmill=value["corpusmill"],
            job=value["job"],
            root=value["root"],
            schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value["schema"]))),
            partition=tuple(value["partition"]),
            identity_carried=value["identity_carried"],
            annotations={name: _pinned(pinned) for name, pinned in value["annotations"].items()},
            fragments=tuple(map(_fragment, value["fragments"])),
            units=tuple(
                Unit(name, folder, tuple(_span(row) for row in spans)) for name, folder, spans in value["units"]
            ),
            rows_pruned=value["rows_pruned"],
            computed_by=tuple(value.get("computed_by", ())),  # older plans tell none
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenSealError(f"it is sealed but no plan of version {VERSION}: {error!r}") from error


def _pinned(value: Mapping[str, Any]) -> PinnedAnnotation:
    """Plans from before there were trials tell of none."""
    return PinnedAnnotation(**{**value, "tried": tuple(Tried(**each) for each in value.get("tried", ()))})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two jobs in canonical form: `annotations.0.max_tokens: was 256, is now 128`."""
    return _differences("", old, new)


_ABSENT = object()
_SHOWN_CHARACTERS = 200


def _differences(path: str, old: object, new: object) -> list[str]:
    """Walk down while both sides have parts of the same names; tell the first place where they differ."""
    old_parts, new_parts = _parts(old), _parts(new)
    if old_parts is not None and new_parts is not None and isinstance(old, Mapping) == isinstance(new, Mapping):
        names = [*old_parts, *(name for name in new_parts if name not in old_parts)]
        return [
            difference
            for name in names
            for difference in _differences(
                f"{path}.{name}" if path else name, old_parts.get(name, _ABSENT), new_parts.get(name, _ABSENT)
            )
        ]
    if old is _ABSENT:
        return [f"{path}: is new, {_shown(new)}"]
    if new is _ABSENT:
        return [f"{path}: was {_shown(old)}, is gone"]
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if same else [f"{path}: was {_shown(old)}, is now {_shown(new)}"]


def _parts(value: object) -> dict[str, object] | None:
    """What a mapping or list holds, by name or number; None for a plain value."""
    if isinstance(value, Mapping):
        return dict(value)
    return {str(index): part for index, part in enumerate(value)} if isinstance(value, list | tuple) else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _group_rows(groups: tuple[RowGroup, ...]) -> list[tuple[int, int]]:
    return [(group.rows, group.bytes) for group in groups]


def _span_row(span: Span) -> list[Any]:
    """A span; selected positions as distances, which are short."""
    selected = span.selected
    gaps = None if selected is None else [now - before for before, now in zip((0, *selected), selected, strict=False)]
    return [span.fragment, span.row_group, span.start, span.stop, gaps]


def _span(row: list[Any]) -> Span:
    fragment, row_group, start, stop, gaps = row
    return Span(fragment, row_group, start, stop, None if gaps is None else tuple(accumulate(gaps)))


def _fragment(row: list[Any]) -> Fragment:
    path, size, fingerprint, partition, groups, problem = row
    return Fragment(
        path,
        size,
        fingerprint,
        tuple((key, value) for key, value in partition),
        tuple(RowGroup(rows, size_bytes) for rows, size_bytes in groups),
        None if problem is None else (Reason(problem[0]), problem[1]),
    )
