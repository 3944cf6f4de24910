"""Receipts: the commit record of each unit, written last. A unit with a receipt is never computed again.

{"checksum": "9f0c…", "unit": "6f1c…", "epoch": 1, "run_id": "20260102-…", "seconds": 1.7, "rows_read": 4096,
 "rows_filtered": 0, "rows_out": 4095, "rows_quarantined": 1, "unit_lost": false, "reasons": {"blank_text": 1},
 "files": [{"path": "data/part-6f1c…-1.parquet", "kind": "data", "rows": 4095, "bytes": 812233, "sha256": "…"}, …],
 "tokens": 91342, "padding_tokens": 5121, "tokens_by_annotation": {"topic": 91342}, "token_budget": {"topic": 1024},
 "spans": null}
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Literal, TypedDict

from pipeline.errors import OutputError
from pipeline.output.layout import RECEIPTS, receipt_path
from pipeline.output.sealed import BrokenSealError, seal, unseal
from pipeline.output.storage import Store

Kind = Literal["data", "quarantine"]

_THREADS = 16  # reading small files waits for the disk, not for the processor


class ReceiptError(OutputError):
    """A receipt is damaged, was edited, or is another unit's."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """One Parquet file that a unit wrote; `rows` of the quarantine are entries, one a failure."""

    path: str
    kind: Kind
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one unit.

    rows_read = rows_filtered + rows_out + rows_quarantined, all counted in rows of the corpus: rows that could not be
    read count as read and quarantined where their number is known. `reasons` counts rows too (a row that failed twice
    counts under both), and a file of unknown length once.
    """

    unit: str
    epoch: int
    run_id: str
    files: tuple[PartFile, ...]
    rows_read: int
    rows_filtered: int
    rows_out: int
    rows_quarantined: int
    unit_lost: bool  # nothing of it could be read
    reasons: Mapping[str, int]
    tokens: int
    padding_tokens: int
    tokens_by_annotation: Mapping[str, int]
    token_budget: Mapping[str, int]  # padded tokens of a micro-batch, by annotation
    seconds: float
    spans: tuple[tuple[str, int, int], ...] | None = None
    """(file, first row, rows) of all that it covers, where the plan could not know; else None."""

    @classmethod
    def parse(cls, data: bytes, path: str) -> "Receipt":
        """A receipt from the bytes at `path`; ReceiptError where they are not what was written there."""
        try:
            value = unseal(data)
            value["files"] = tuple(PartFile(**file) for file in value["files"])
            if value["spans"] is not None:
                value["spans"] = tuple((file, first, rows) for file, first, rows in value["spans"])
            receipt = cls(**value)
        except BrokenSealError as error:
            raise _refused(path, str(error)) from error
        except (TypeError, KeyError, ValueError) as error:
            raise _refused(path, f"it is sealed but no receipt of this version: {error}") from error
        if path != receipt_path(receipt.unit):
            raise _refused(path, f"it is the receipt of unit {receipt.unit}")
        return receipt

    def to_bytes(self) -> bytes:
        """Sealed JSON."""
        return seal(asdict(self))


def _refused(path: str, why: str) -> ReceiptError:
    return ReceiptError(f"{path}: {why}; restore it, or delete it to have its unit computed again")


def load(store: Store, unit: str) -> Receipt | None:
    """The receipt of a unit, if it has one; ReceiptError where it is damaged."""
    data = store.find(receipt_path(unit))
    return None if data is None else Receipt.parse(data, receipt_path(unit))


def load_all(store: Store) -> tuple[dict[str, Receipt], list[str]]:
    """All receipts by unit, and one sentence for each that is damaged."""

    def read(path: str) -> Receipt | str:
        try:
            return Receipt.parse(store.read(path), path)
        except ReceiptError as error:
            return str(error)

    paths = store.list(RECEIPTS)
    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(read, paths))
    return (
        {result.unit: result for result in results if isinstance(result, Receipt)},
        [result for result in results if isinstance(result, str)],
    )


class Totals(TypedDict):
    """Sums over receipts; `reasons` and `tokens_by_annotation` sorted by name."""

    units: int
    units_quarantined: int
    rows_read: int
    rows_filtered: int
    rows_out: int
    rows_quarantined: int
    tokens: int
    padding_tokens: int
    tokens_by_annotation: dict[str, int]
    reasons: dict[str, int]


def totals(receipts: Mapping[str, Receipt]) -> Totals:
    """Add up receipts."""
    every = receipts.values()
    return Totals(
        units=len(every),
        units_quarantined=sum(receipt.unit_lost for receipt in every),
        rows_read=sum(receipt.rows_read for receipt in every),
        rows_filtered=sum(receipt.rows_filtered for receipt in every),
        rows_out=sum(receipt.rows_out for receipt in every),
        rows_quarantined=sum(receipt.rows_quarantined for receipt in every),
        tokens=sum(receipt.tokens for receipt in every),
        padding_tokens=sum(receipt.padding_tokens for receipt in every),
        tokens_by_annotation=add(receipt.tokens_by_annotation for receipt in every),
        reasons=add(receipt.reasons for receipt in every),
    )


def add(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums by name, sorted by name."""
    sums: Counter[str] = Counter()
    for count in counts:
        sums.update(count)
    return dict(sorted(sums.items()))


def least(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The least by name, sorted by name: of token budgets, what memory allowed."""
    found: dict[str, int] = {}
    for count in counts:
        for name, value in count.items():
            found[name] = min(value, found.get(name, value))
    return dict(sorted(found.items()))
