"""A small output, made by the modules that make real ones, without Ray.

Two files of section=games in two units, one of section=net with a row group that was lost, one whose footer is
unreadable; some rows stand in the quarantine.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.plan import Fragment, RowGroup, Span, Unit
from pipeline.output import manifest, planfile
from pipeline.output.layout import part_owner, receipt_path
from pipeline.output.lease import Lease
from pipeline.output.parts import UnitCommit, commit_unit
from pipeline.output.planfile import PinnedAnnotation, Plan
from pipeline.output.receipts import Receipt, load, load_all
from pipeline.output.storage import Store
from pipeline.quarantine import Lost, Problem, Reason

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("topic_label", pa.string()),
        ("topic_embedding", pa.list_(pa.float32(), 2)),
        ("_file", pa.string()),
        ("_row", pa.int64()),
    ]
)
GAMES_A, GAMES_B, NET, BROKEN = (
    "section=games/a.parquet",
    "section=games/b.parquet",
    "section=net/c.parquet",
    "d.parquet",
)
FRAGMENTS = (
    Fragment(GAMES_A, 900, "900-1", (("section", "games"),), (RowGroup(60, 600), RowGroup(40, 400))),
    Fragment(GAMES_B, 500, "500-1", (("section", "games"),), (RowGroup(50, 500),)),
    Fragment(NET, 300, "300-1", (("section", "net"),), (RowGroup(20, 200), RowGroup(10, 100))),
    Fragment(BROKEN, 7, "7-1", (), (), (Reason.NOT_PARQUET, "no magic")),
)
UNITS = (
    Unit("a1", "section=games", (Span(0, 0, 0, 60), Span(0, 1, 0, 20))),
    Unit("a2", "section=games", (Span(0, 1, 20, 40), Span(1, 0, 0, 50))),
    Unit("c1", "section=net", (Span(2, 0, 0, 20), Span(2, 1, 0, 10))),
    Unit("d1", "", (Span(3, None, 0, 0),)),
)
PLAN = Plan(
    version=1,
    corpusmill="0.1.0",
    job={"corpus": {"path": "in", "filter": None}, "annotations": [{"name": "topic"}], "output": {"columns": "all"}},
    root="/corpus",
    schema=pa.schema([("text", pa.string()), ("section", pa.string())]),
    partition=("section",),
    identity_carried=False,
    annotations={"topic": PinnedAnnotation("wheel:x/y", None, "53aa", "torch", "float32", "cpu", 1, 1024)},
    fragments=FRAGMENTS,
    units=UNITS,
    rows_pruned=0,
)


def rows_of(pairs: Sequence[tuple[str, int]]) -> pa.Table:
    """Annotated rows of these (file, row)."""
    return pa.table(
        {
            "text": [f"text {row} of {file}" for file, row in pairs],
            "topic_label": ["games" if row % 3 else "net" for _, row in pairs],
            "topic_embedding": pa.array([[float(row), 1.0] for _, row in pairs], SCHEMA.field(2).type),
            "_file": [file for file, _ in pairs],
            "_row": pa.array([row for _, row in pairs], pa.int64()),
        },
        schema=SCHEMA,
    )


@dataclass
class Small:
    """An output on its way."""

    store: Store
    plan: Plan = PLAN
    lost: dict[str, list[Lost]] = field(default_factory=dict)
    blank: dict[str, list[int]] = field(default_factory=dict)

    def pairs(self, unit: Unit) -> list[tuple[str, int]]:
        """The (file, row) of a unit that can be read, in input order."""
        found = []
        lost = {
            (each.file, each.first_row + number)
            for each in self.lost.get(unit.id, [])
            if each.first_row is not None and each.rows is not None
            for number in range(each.rows)
        }
        for span in unit.spans:
            fragment = self.plan.fragments[span.fragment]
            if span.row_group is None:
                continue
            before = sum(group.rows for group in fragment.row_groups[: span.row_group])
            rows = span.selected or range(before + span.start, before + span.stop)
            found += [(fragment.path, row) for row in rows]
        return [pair for pair in found if pair not in lost]

    def commit(
        self, unit: Unit, epoch: int, pairs: Sequence[tuple[str, int]] | None = None, **changes: object
    ) -> Receipt:
        """Commit the rows of a unit, or these of them."""
        pairs = self.pairs(unit) if pairs is None else pairs
        blank = [row for row in self.blank.get(unit.id, []) if row < len(pairs)]
        commit = UnitCommit(
            unit=unit.id,
            folder=unit.folder,
            epoch=epoch,
            run_id=f"r{epoch}",
            table=rows_of(pairs),
            schema=SCHEMA,
            columns=tuple(SCHEMA.names),
            problems=[Problem(row, "topic", Reason.BLANK_TEXT, "told") for row in blank],
            lost=self.lost.get(unit.id, []),
            tokens=len(pairs),
            footer={"corpusmill": "0.1.0"},
        )
        return commit_unit(self.store, replace(commit, **changes))  # type: ignore[arg-type]

    def run(self, units: Sequence[Unit] | None = None, finish: bool = True) -> None:
        """One run over units that have no receipt yet."""
        with Lease.acquire(self.store, "r") as lease:
            if not planfile.exists(self.store):
                planfile.save(self.store, self.plan)
            for unit in self.plan.units if units is None else units:
                self.commit(unit, lease.epoch)
            if finish:
                self.write_manifest()

    def write_manifest(self) -> None:
        """The manifest of what stands there."""
        receipts, _ = load_all(self.store)
        manifest.save(self.store, manifest.build(self.store, self.plan, receipts))

    def receipt(self, unit: str) -> Receipt:
        """The receipt of a unit that has one."""
        receipt = load(self.store, unit)
        assert receipt is not None
        return receipt

    def put(self, receipt: Receipt) -> None:
        """Put a receipt there by hand, and let the manifest agree with it."""
        self.store.write(receipt_path(receipt.unit), receipt.to_bytes())
        self.write_manifest()

    def reseal(self, path: str, **changes: object) -> None:
        """Let the receipt and the manifest say of a file what it is now."""
        owner = part_owner(path)
        assert owner is not None
        receipt, data = self.receipt(owner[0]), self.store.read(path)
        now = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}
        files = (replace(file, **now) if file.path == path else file for file in receipt.files)  # type: ignore[arg-type]
        self.put(replace(receipt, files=tuple(files)))

    def rewrite(self, path: str, change: Callable[[pa.Table], pa.Table]) -> None:
        """Change the rows of a file, and let the receipt and the manifest agree."""
        full = self.store.full(path)
        table = change(pq.read_table(full, partitioning=None))
        pq.write_table(table, full, write_page_checksum=True)
        self.reseal(path, rows=table.num_rows)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """An output that has not begun."""
    lost = {
        "c1": [Lost(NET, 20, 10, Reason.DAMAGED_ROW_GROUP, "bad page")],
        "d1": [Lost(BROKEN, None, None, Reason.NOT_PARQUET, "no magic")],
    }
    return Small(Store.at(str(tmp_path / "out")), lost=lost, blank={"a1": [3, 70], "c1": [0]})


@pytest.fixture
def finished(small: Small) -> Small:
    """One that is done."""
    small.run()
    return small
