from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.rowgroup import Piece, pieces_of, ranges_of


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 30), st.integers(0, 30))
def test_pieces_hold_each_wanted_row_of_the_file_once(group_rows, first, stop):
    pieces = pieces_of(list(accumulate(group_rows)), range(first, stop))
    assert [row for piece in pieces for row in piece.positions] == list(range(first, min(stop, sum(group_rows))))
    assert all(0 <= piece.start < piece.stop <= group_rows[piece.group] for piece in pieces)


@given(st.lists(st.integers(0, 6), max_size=6), st.sets(st.integers(0, 30)))
def test_pieces_hold_each_selected_row_once(group_rows, rows):
    pieces = pieces_of(list(accumulate(group_rows)), tuple(sorted(rows)))
    assert [row for piece in pieces for row in piece.position_array] == [
        row for row in sorted(rows) if row < sum(group_rows)
    ]


def test_a_piece_says_where_it_begins_and_ends_in_its_row_group():
    assert pieces_of([10, 20], (12, 17)) == [Piece(1, 10, 2, 8, (12, 17))]
    assert pieces_of([10, 20], range(8, 12)) == [Piece(0, 0, 8, 10), Piece(1, 10, 0, 2)]


@given(st.sets(st.integers(0, 20)))
def test_ranges_are_the_runs_of_the_rows(rows):
    runs = list(ranges_of(sorted(rows)))
    assert [row for first, count in runs for row in range(first, first + count)] == sorted(rows)
    assert all(first + count < later for (first, count), (later, _) in pairwise(runs))


def test_a_range_is_one_run():
    assert list(ranges_of(range(3, 9))) == [(3, 6)]
    assert list(ranges_of(range(3, 3))) == []
