"""A receipt comes back as it was written, or is told to be damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.output.receipts import PartFile, Receipt, ReceiptError, load, load_all, totals
from pipeline.output.sealed import BrokenSealError, seal, unseal
from pipeline.output.storage import Store

RECEIPT = Receipt(
    unit="ab12",
    epoch=1,
    run_id="r1",
    files=(PartFile("data/part-ab12-1.parquet", "data", 9, 1234, "0" * 64),),
    rows_read=12,
    rows_filtered=2,
    rows_out=9,
    rows_quarantined=1,
    unit_lost=False,
    reasons={"blank_text": 1},
    tokens=90,
    padding_tokens=7,
    tokens_by_annotation={"topic": 90},
    token_budget={"topic": 1024},
    seconds=0.25,
)
PATH = "metadata/receipts/ab12.json"


def put(store: Store, receipt: Receipt) -> None:
    store.write(f"metadata/receipts/{receipt.unit}.json", receipt.to_bytes())


@pytest.mark.parametrize("receipt", [RECEIPT, replace(RECEIPT, spans=(("a/ü\udcff.parquet", 0, 12),), files=())])
def test_a_receipt_comes_back(receipt: Receipt) -> None:
    assert Receipt.parse(receipt.to_bytes(), PATH) == receipt


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is not JSON"),
        (b"[1]", "it carries no checksum"),
        (b"\xff", "it is not JSON"),
        (RECEIPT.to_bytes().replace(b'"rows_out":9', b'"rows_out":8'), "it was changed since it was written"),
        (RECEIPT.to_bytes().replace(b'"rows_out":9', b'"rows_out":NaN'), "it was changed since it was written"),
        (seal({"unit": "ab12"}), "it is sealed but no receipt of this version"),
        (replace(RECEIPT, unit="cd34").to_bytes(), "it is the receipt of unit cd34"),
    ],
)
def test_a_damaged_receipt_is_told(data: bytes, message: str) -> None:
    with pytest.raises(ReceiptError, match=f"^{PATH}: {message}.*; restore it, or delete it to have its unit computed"):
        Receipt.parse(data, PATH)


def test_all_are_loaded_and_the_damaged_told(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert load_all(store) == ({}, [])
    for number in range(300):
        put(store, replace(RECEIPT, unit=f"{number:04x}"))
    store.write("metadata/receipts/ff.json", b"torn")
    receipts, damaged = load_all(store)
    assert sorted(receipts) == [f"{number:04x}" for number in range(300)]
    assert len(damaged) == 1
    assert damaged[0].startswith("metadata/receipts/ff.json: it is not JSON")


def test_one_is_loaded(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert load(store, "ab12") is None
    put(store, RECEIPT)
    assert load(store, "ab12") == RECEIPT


def test_totals_add_up() -> None:
    other = replace(
        RECEIPT, unit="cd", unit_lost=True, reasons={"not_utf8": 2, "blank_text": 1}, tokens_by_annotation={}
    )
    assert totals({"ab12": RECEIPT, "cd": other}) == {
        "units": 2,
        "units_quarantined": 1,
        "rows_read": 24,
        "rows_filtered": 4,
        "rows_out": 18,
        "rows_quarantined": 2,
        "tokens": 180,
        "padding_tokens": 14,
        "tokens_by_annotation": {"topic": 90},
        "reasons": {"blank_text": 2, "not_utf8": 2},
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "checksum"), VALUES, max_size=4))
def test_what_is_sealed_comes_back(value: dict[str, object]) -> None:
    assert unseal(seal(value)) == value
    assert set(json.loads(seal(value))) == {"checksum", *value}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_goes_unseen(position: int, change: int) -> None:
    data = bytearray(RECEIPT.to_bytes())
    position %= len(data) - 1  # the last byte is the newline, which means nothing
    data[position] ^= change
    try:
        value = unseal(bytes(data))
    except BrokenSealError:
        return
    assert seal(value) == RECEIPT.to_bytes()  # blanks alone
