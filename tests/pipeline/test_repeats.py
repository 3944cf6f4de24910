import sqlite3
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.repeats import FILE, Cache, distinct, key, of_bytes, salt, to_bytes


@given(st.lists(st.text(max_size=2), max_size=40))
def test_each_value_is_found_at_its_first_place(values: list[str]) -> None:
    first, which = distinct(values)
    assert [values[first[each]] for each in which] == values
    assert first == sorted({values.index(value) for value in values})


def test_values_that_are_no_keys_are_refused() -> None:
    with pytest.raises(TypeError):
        distinct([["a"], ["a"]])  # type: ignore[list-item]


def test_a_key_tells_texts_options_and_inputs_apart() -> None:
    keys = {
        key(salt(facts), inputs)
        for facts in ({"digest": "a", "options": {"top_k": 1}}, {"digest": "a", "options": {"top_k": 2}}, {})
        for inputs in (["ab"], ["a", "b"], ["b", "a"], ["a", None], [["a", "b"]])
    }
    assert len(keys) == 15
    assert key(salt({"a": 1, "b": 2}), ["x"]) == key(salt({"b": 2, "a": 1}), ["x"])


def test_rows_of_any_type_come_back_as_they_were() -> None:
    batch = pa.record_batch(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 3),
            "entities": pa.array([[{"label": "A", "start": 1}], [], None, [{"label": "B", "start": None}] * 2]),
            "label": pa.array(["a", None, "", "\U0001f980"]),
            "truncated": pa.array([True, False, None, True]),
        }
    )
    kept = {bytes([row]): to_bytes(batch, row) for row in range(4)}
    found = of_bytes(kept, batch.schema)
    assert [found[bytes([row])].to_pylist() for row in range(4)] == [[row] for row in batch.to_pylist()]
    damaged = {b"cut": kept[b"\0"][:40], b"empty": b"", b"whole": kept[b"\1"], b"other": b"no Arrow at all" * 9}
    assert list(of_bytes(damaged, batch.schema)) == [b"whole"]


def test_a_cache_keeps_over_processes_and_the_first_value_stays(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "deep/cache"))
    keys = [number.to_bytes(32, "big") for number in range(1200)]
    assert cache.find(keys) == {}
    cache.keep({each: each[-2:] for each in keys[::2]})
    again = Cache(str(tmp_path / "deep/cache"))
    again.keep({keys[0]: b"other", keys[1]: b"new"})
    assert cache.find(keys) == {each: each[-2:] for each in keys[::2]} | {keys[1]: b"new"}


def test_what_one_process_computes_now_the_others_know_until_it_has_ended(tmp_path: Path) -> None:
    one, other = Cache(str(tmp_path)), Cache(str(tmp_path))
    with one.claimed([b"a", b"b"]) as theirs:
        assert theirs == set()
        with other.claimed([b"b", b"c"]) as theirs, one.claimed([b"c", b"a"]) as again:
            assert (theirs, again) == ({b"b"}, {b"c"}), "its own words are none of another's"
    with pytest.raises(KeyError), one.claimed([b"a"]):
        raise KeyError
    with other.claimed([b"a", b"b"]) as theirs:
        assert theirs == set()


def test_what_a_killed_process_said_it_would_compute_is_forgotten(tmp_path: Path) -> None:
    keys = [number.to_bytes(32, "big") for number in range(1200)]
    Cache(str(tmp_path))
    for at, expected in ((time.time(), set(keys)), (time.time() - 1200, set())):
        with sqlite3.connect(tmp_path / FILE) as file:
            file.executemany("INSERT INTO claimed VALUES (?, ?, ?)", [(each, b"killed", at) for each in keys])
        with Cache(str(tmp_path)).claimed(keys) as theirs:
            assert theirs == expected
        with sqlite3.connect(tmp_path / FILE) as file:
            file.execute("DELETE FROM claimed")


def test_a_file_that_is_no_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"a user's own file, not SQLite's" * 100)
    with pytest.raises(JobError, match=r"cache: .*said\.sqlite cannot be used: file is not a database; name another"):
        Cache(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="cannot be used: "):
        Cache(str(tmp_path / "file"))


def test_a_cache_that_breaks_half_way_holds_nothing_and_ends_no_run(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    cache.keep({b"a": b"1"})
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("DROP TABLE said")
        other.execute("DROP TABLE claimed")
    assert cache.find([b"a"]) == {}
    with cache.claimed([b"a"]) as theirs:
        assert theirs == set()
    cache.keep({b"b": b"2"})
