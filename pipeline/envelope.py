"""A unit on its way through Ray: one block of one row, opaque to Ray Data.

    unit    "6f1c…"
    state   "read" | "annotated" | "suspect" | "kept" | "fatal"
    rows    Arrow IPC bytes of the unit's table
    added   Arrow IPC bytes of the annotations' columns, as far as the pools that it passed have added them
    tokens  Arrow IPC bytes of the texts' tokens, where they were found ahead of a GPU
    told    JSON: problems, lost ranges, counts

Ray Data never sees the columns of the corpus, so it cannot change their types, drop an empty block, or cross units: one
block is one row is one unit, also when the unit has no rows at all.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pipeline.quarantine import Lost, Problem, Reason

State = Literal["read", "annotated", "suspect", "kept", "fatal"]


@dataclass(slots=True)
class Envelope:
    """What one stage hands the next about one unit."""

    unit: str
    state: State
    rows: pa.Table | None = None
    added: pa.Table | None = None
    problems: list[Problem] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    tokens: pa.Table | None = None
    sealed_rows: pa.ChunkedArray | None = None  # `rows` as they came, so that the next stage need not pack them again

    def to_block(self) -> pa.Table:
        """One row for Ray Data."""
        told = {
            "problems": [(each.row, each.annotation, each.reason, each.detail) for each in self.problems],
            "lost": [asdict(each) for each in self.lost],
            "told": self.told,
        }
        return pa.table(
            {
                "unit": pa.array([self.unit], pa.string()),
                "state": pa.array([self.state], pa.string()),
                "rows": _packed(self.rows) if self.sealed_rows is None else self.sealed_rows,
                "added": _packed(self.added),
                "tokens": _packed(self.tokens),
                "told": pa.array([json.dumps(told)], pa.large_string()),
            }
        )

    @classmethod
    def of_block(cls, block: pa.Table) -> "Envelope":
        """Back from Ray Data; the tables are views of the block, not copies."""
        assert block.num_rows == 1, "one block is one unit"
        told = json.loads(block["told"][0].as_py())
        return cls(
            unit=block["unit"][0].as_py(),
            state=block["state"][0].as_py(),
            rows=_unpacked(block["rows"]),
            added=_unpacked(block["added"]),
            problems=[Problem(row, annotation, Reason(why), text) for row, annotation, why, text in told["problems"]],
            lost=[_lost(each) for each in told["lost"]],
            told=told["told"],
            tokens=_unpacked(block["tokens"]),
            sealed_rows=block["rows"],
        )


def _lost(each: Mapping[str, Any]) -> Lost:
    return Lost(each["file"], each["first_row"], each["rows"], Reason(each["reason"]), each["detail"])


def _packed(table: pa.Table | None) -> pa.Array:
    """The table as IPC bytes in an array of one value."""
    if table is None:
        return pa.array([None], pa.large_binary())
    measure = pa.MockOutputStream()
    _write(table, measure)
    data = pa.allocate_buffer(measure.size())  # a sink that grows would copy what it has, again and again
    _write(table, pa.FixedSizeBufferWriter(data))
    offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _unpacked(column: pa.ChunkedArray) -> pa.Table | None:
    value = column[0]
    if not value.is_valid:
        return None
    with pa.ipc.open_stream(pa.BufferReader(value.as_buffer())) as reader:
        return reader.read_all()
