from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quarantine import Failure, Reason
from pipeline.text.tokens import Tokens
from pipeline.text.travel import packed, unpacked

NO_TOKENS = Failure(Reason.TOKENIZER_FAILED, "no")


@st.composite
def tokens(draw: st.DrawFn, with_offsets: bool) -> Tokens | Failure | None:
    """What a tokenizer may say of a text."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from([None, NO_TOKENS]))
    ids = np.array(draw(st.lists(st.integers(0, 2**31 - 1), max_size=6)), np.int32)
    places = np.arange(2 * len(ids), dtype=np.int32).reshape(-1, 2) if with_offsets else None
    return Tokens(ids, places, draw(st.booleans()))


def plain(found: Any) -> Any:
    if not isinstance(found, Tokens):
        return None
    return found.ids_T.tolist(), None if found.offsets_T2 is None else found.offsets_T2.tolist(), found.whole


@given(st.booleans().flatmap(lambda offsets: st.lists(tokens(offsets), max_size=12)), st.integers(0, 3))
def test_tokens_come_as_they_went_each_to_its_row(found: list[Tokens | Failure | None], gap: int) -> None:
    rows = [row * (gap + 1) for row in range(len(found))]
    table = packed({"topic/": (rows, found), "none/text": ([], [])}, rows=len(found) * (gap + 1))
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        table = pa.ipc.open_stream(sink.getvalue()).read_all()
    there = unpacked(table)
    assert list(there) == ["topic/", "none/text"]
    assert there["none/text"] == [None] * table.num_rows
    expected: list[Any] = [None] * table.num_rows
    for row, each in zip(rows, found, strict=True):
        expected[row] = plain(each)
    assert [plain(each) for each in there["topic/"]] == expected
