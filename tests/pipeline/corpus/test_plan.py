from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.plan import Fragment, RowGroup, Span, UnitBounds, plan_units
from pipeline.quarantine import Reason

LARGE = UnitBounds(rows=4096, bytes=2**40, min_units=1)


def fragment(path, *groups, problem=None):
    """A file in the hive folder that its path says; each group is (rows, bytes) or rows of one byte."""
    partition = tuple(tuple(folder.split("=")) for folder in path.split("/")[:-1])
    row_groups = tuple(RowGroup(*group) if isinstance(group, tuple) else RowGroup(group, group) for group in groups)
    return Fragment(path, 1, f"fingerprint of {path}", partition, row_groups, problem)


GROUPS = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 5000)), max_size=4)


@st.composite
def corpora(draw):
    """Files over three folders, in any order, some unreadable; a filter and a sample, or none; bounds."""
    fragments = []
    for number, (folder, groups, bad) in enumerate(
        draw(st.lists(st.tuples(st.sampled_from("abc"), GROUPS, st.integers(0, 9)), max_size=8))
    ):
        problem = (Reason.DAMAGED_FOOTER, "no footer") if bad == 0 else None
        fragments.append(fragment(f"k={folder}/{number}", *(() if problem else groups), problem=problem))
    indexes = range(len(fragments))
    kept = draw(
        st.none()
        | st.fixed_dictionaries(
            {i: st.sets(st.sampled_from(range(len(fragments[i].row_groups) or 1))).map(sorted) for i in indexes}
        )
    )
    selection = draw(
        st.none()
        | st.fixed_dictionaries(
            {i: st.sets(st.integers(0, max(0, fragments[i].rows - 1)), max_size=60).map(sorted) for i in indexes}
        )
    )
    bounds = UnitBounds(
        rows=draw(st.integers(1, 300)),
        bytes=draw(st.integers(1, 3000)),
        ranges_per_group=draw(st.integers(1, 32)),
        min_units=draw(st.integers(1, 12)),
    )
    return fragments, kept, selection, bounds


def wanted_rows(fragments, kept, selection):
    """(fragment, row group, file position) of every row that must be planned."""
    for index, of in enumerate(fragments):
        position = 0
        for number, group in enumerate(of.row_groups):
            rows = range(position, position := position + group.rows)
            if kept is None or number in kept.get(index, ()):
                yield from (
                    (index, number, row) for row in rows if selection is None or row in selection.get(index, ())
                )


def planned_rows(fragments, units):
    for unit in units:
        for span in unit.spans:
            if span.row_group is None:
                continue
            first = sum(group.rows for group in fragments[span.fragment].row_groups[: span.row_group])
            rows = range(first + span.start, first + span.stop) if span.selected is None else span.selected
            assert span.rows == len(rows) > 0
            assert rows[0] == first + span.start
            assert rows[-1] == first + span.stop - 1
            yield from ((span.fragment, span.row_group, row) for row in rows)


@settings(max_examples=60, deadline=None)
@given(corpora())
def test_every_kept_row_stands_in_exactly_one_span_of_a_unit_within_the_bounds(corpus):
    fragments, kept, selection, bounds = corpus
    units = plan_units(fragments, kept, selection, bounds)
    if selection is not None:
        readable = [index for index, of in enumerate(fragments) if of.rows]
        selection = {index: selection[index] for index in readable}
    assert sorted(planned_rows(fragments, units)) == sorted(wanted_rows(fragments, kept, selection))
    ranges_of = Counter((span.fragment, span.row_group) for unit in units for span in unit.spans)
    assert all(ranges <= bounds.ranges_per_group for ranges in ranges_of.values())
    for unit in units:
        assert {fragments[span.fragment].folder for span in unit.spans} == {unit.folder}
        size = sum(
            fragments[span.fragment].row_groups[span.row_group].bytes
            * span.rows
            / fragments[span.fragment].row_groups[span.row_group].rows
            for span in unit.spans
            if span.row_group is not None
        )
        only = unit.spans[0]
        if len(unit.spans) > 1 or ranges_of[only.fragment, only.row_group] < bounds.ranges_per_group:
            assert unit.rows <= bounds.rows
            assert size <= bounds.bytes * (1 + 1e-9) or unit.rows == 1


@settings(max_examples=60, deadline=None)
@given(corpora(), st.randoms(use_true_random=False))
def test_ids_are_unique_and_do_not_depend_on_the_order_of_the_files(corpus, random):
    fragments, kept, _, bounds = corpus
    ids = [unit.id for unit in plan_units(fragments, kept, None, bounds)]
    assert len(set(ids)) == len(ids)
    order = list(range(len(fragments)))
    random.shuffle(order)
    shuffled_kept = None if kept is None else {place: kept[index] for place, index in enumerate(order)}
    shuffled = plan_units([fragments[index] for index in order], shuffled_kept, None, bounds)
    assert [unit.id for unit in shuffled] == ids


def test_an_id_changes_with_file_rows_and_sample_and_stays_over_versions():
    def ids(of, selection=None):
        return {unit.id for unit in plan_units([of], None, selection, LARGE)}

    of = fragment("k=a/x.parquet", 100)
    assert ids(of) == {"cc82e208f6c5e591"}  # resuming an old output hangs on it
    changed = [replace(of, fingerprint="other"), replace(of, path="k=a/y.parquet"), fragment("k=a/x.parquet", 99)]
    for other in changed:
        assert ids(other).isdisjoint(ids(of))
    assert ids(of, {0: [1, 5]}) != ids(of, {0: [1, 4, 5]})
    assert ids(of, {0: list(range(100))}) != ids(of)


def test_a_row_group_is_divided_evenly():
    units = plan_units([fragment("x", 10_000)], None, None, LARGE)
    assert [span for unit in units for span in unit.spans] == [
        Span(0, 0, 0, 3334),
        Span(0, 0, 3334, 6668),
        Span(0, 0, 6668, 10_000),
    ]


def test_a_huge_row_group_is_divided_32_times_and_no_more():
    units = plan_units([fragment("x", 1_000_000)], None, None, LARGE)
    assert [unit.rows for unit in units] == [31_250] * 32


def test_wide_rows_make_small_units():
    units = plan_units([fragment("x", (1000, 10 * 2**20))], None, None, UnitBounds(bytes=2**20, min_units=1))
    assert [unit.rows for unit in units] == [100] * 10


def test_small_files_of_a_folder_are_joined_in_path_order_wherever_they_stand_in_the_list():
    fragments = [fragment(f"k={number % 2}/{9 - number}", 10, 0, 5) for number in range(10)]
    units = plan_units(fragments, None, None, LARGE)
    assert [unit.folder for unit in units] == ["k=0", "k=1"]
    assert [span.fragment for span in units[0].spans] == [8, 8, 6, 6, 4, 4, 2, 2, 0, 0]
    assert [unit.rows for unit in units] == [75, 75]


def test_ten_thousand_small_files_give_few_units():
    units = plan_units([fragment(f"{number:05}", 100) for number in range(10_000)], None, None, LARGE)
    assert len(units) == 245  # 1,000,000 rows in units of 4,096, filled to the brim


def test_units_are_smaller_where_actors_would_be_idle():
    bounds = UnitBounds.for_device("cpu", actors=2)
    units = plan_units([fragment("x", 4000)], None, None, bounds)
    assert max(unit.rows for unit in units) == 500
    assert len(units) >= 8


def test_units_are_not_made_silly_small_for_idle_actors():
    bounds = UnitBounds.for_device("cpu", actors=100)
    assert [unit.rows for unit in plan_units([fragment("x", 640)], None, None, bounds)] == [64] * 10
    assert [unit.rows for unit in plan_units([fragment("x", 5)], None, None, bounds)] == [5]


def test_units_of_long_texts_have_fewer_rows_where_a_processor_computes():
    corpus = [fragment(str(number), (3_000, 30 * 2**20)) for number in range(8)]
    rows = {
        device: max(unit.rows for unit in plan_units(corpus, None, None, UnitBounds.for_device(device, actors=2)))
        for device in ("cpu", "cuda")
    }
    assert rows == {"cpu": 800, "cuda": 3_000}


def test_bounds_follow_the_device():
    assert UnitBounds.for_device("cpu", 3) == UnitBounds(4096, 8 * 2**20, 32, 12, 64, 3, 16)
    on_gpu = UnitBounds.for_device("cuda", 1, readers=15)
    assert on_gpu == UnitBounds(65_536, 64 * 2**20, 32, 60, 1024, 1, 1024)
    assert [on_gpu.rows_of(rows) for rows in (21_256, 600_000, 2**30)] == [1024, 10_000, 65_536]


def test_an_unreadable_file_is_a_unit_of_its_own_whatever_filter_and_sample_say():
    bad = fragment("k=a/b", problem=(Reason.TRUNCATED_FILE, "no footer"))
    fragments = [fragment("k=a/a", 10), bad, fragment("k=a/c", 10)]
    for kept, selection in [(None, None), ({0: [0], 2: [0]}, None), (None, {0: range(10), 2: range(10)})]:
        units = plan_units(fragments, kept, selection, LARGE)
        assert [[span.fragment for span in unit.spans] for unit in units] == [[1], [0, 2]]
        assert units[0].spans == (Span(1, None, 0, 0),)
        assert (units[0].rows, units[0].folder) == (0, "k=a")


@pytest.mark.parametrize("fragments", [[], [fragment("x")], [fragment("x", 0, 0), fragment("y")]])
def test_files_without_rows_owe_nothing(fragments):
    assert plan_units(fragments, None, None, LARGE) == ()


def test_a_sample_reads_only_the_row_groups_that_it_touches():
    units = plan_units([fragment("x", 100, 100, 100), fragment("y", 100)], None, {0: [5, 7, 250]}, LARGE)
    assert [unit.spans for unit in units] == [(Span(0, 0, 5, 8, (5, 7)), Span(0, 2, 50, 51, (250,)))]


def test_the_row_bound_counts_sampled_rows():
    bounds = UnitBounds(rows=100, bytes=2**40, min_units=1)
    units = plan_units([fragment("x", 100_000)], None, {0: list(range(0, 100_000, 500))}, bounds)
    assert [unit.rows for unit in units] == [100, 100]
    assert (units[1].spans[0].start, units[1].spans[0].stop) == (50_000, 99_501)


def rows_on_cpus(actors, *files):
    fragments = [fragment(f"{number:02}", file) for number, file in enumerate(files)]
    return [unit.rows for unit in plan_units(fragments, None, None, UnitBounds.for_device("cpu", actors))]


def test_each_actor_begins_with_a_small_unit_so_that_the_first_receipt_comes_soon():
    assert rows_on_cpus(1, 8192) == [16, 2048, 2048, 2048, 2032]
    assert rows_on_cpus(2, 16_384)[:3] == [16, 16, 2048]
    assert rows_on_cpus(2, *[1024] * 16)[:3] == [16, 16, 2048]


def test_of_few_rows_no_unit_is_smaller_for_being_an_actors_first():
    assert rows_on_cpus(2, 127) == [64, 63]
    assert rows_on_cpus(2, 128) == [16, 16, 64, 32]
    assert rows_on_cpus(2, 50) == [50]


def test_the_last_units_of_several_actors_are_smaller_each_half_of_an_actors_share_of_what_is_left():
    rows = rows_on_cpus
    assert rows(2, 16_384)[2:] == [2048] * 4 + [2040, 1530, 1147, 860, 645, 484, 363, 272, 256, 256, 256, 51]
    assert rows(2, *[1024] * 16) == rows(2, 16_384)
    assert rows(1, 16_384) == [16, *[4096] * 3, 4080]
    assert rows(2, 500) == [16, 16, *[64] * 7, 20]
    assert sum(rows(64, 10**6)) == 10**6


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(2, 9))
def test_however_many_actors_no_row_is_lost_and_no_unit_is_over_the_bounds(corpus, actors):
    fragments, kept, selection, bounds = corpus
    units = plan_units(fragments, kept, selection, replace(bounds, actors=actors))
    alone = plan_units(fragments, kept, selection, bounds)
    assert sorted(planned_rows(fragments, units)) == sorted(planned_rows(fragments, alone))
    ranges_of = Counter((span.fragment, span.row_group) for unit in units for span in unit.spans)
    assert all(ranges <= bounds.ranges_per_group for ranges in ranges_of.values())
    for unit in units:
        only = unit.spans[0]
        if len(unit.spans) > 1 or ranges_of[only.fragment, only.row_group] < bounds.ranges_per_group:
            assert unit.rows <= bounds.rows
