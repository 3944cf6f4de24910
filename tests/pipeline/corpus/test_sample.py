import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.sample import choose, choose_from

ROWS = st.lists(st.integers(0, 50), max_size=8)


@settings(max_examples=100)
@given(ROWS, st.integers(0, 300), st.integers(0, 5))
def test_a_sample_has_count_distinct_rows_of_the_corpus_sorted_and_the_same_for_a_seed(rows, count, seed):
    sample = choose(rows, count, seed)
    assert sum(map(len, sample.values())) == min(count, sum(rows))
    assert list(sample) == sorted(sample)
    for fragment, positions in sample.items():
        assert positions
        assert positions == sorted(set(positions))
        assert positions[0] >= 0
        assert positions[-1] < rows[fragment]
        assert all(type(position) is int for position in positions)
    assert choose(rows, count, seed) == sample


@settings(max_examples=100)
@given(st.lists(st.sets(st.integers(0, 10**12), max_size=20), max_size=6), st.integers(0, 100), st.integers(0, 5))
def test_a_sample_of_matching_rows_takes_only_those(matching, count, seed):
    positions = {2 * index: np.array(sorted(rows), dtype=np.int64) for index, rows in enumerate(matching)}
    sample = choose_from(positions, count, seed)
    assert sum(map(len, sample.values())) == min(count, sum(map(len, matching)))
    for fragment, chosen in sample.items():
        assert chosen == sorted(set(chosen))
        assert set(chosen) <= matching[fragment // 2]


def test_another_seed_takes_other_rows():
    assert choose([1000], 10, seed=0) != choose([1000], 10, seed=1)


def test_each_row_is_as_likely_as_any_other():
    drawn = np.zeros(30)
    for seed in range(2000):
        for fragment, positions in choose([10, 0, 20], 3, seed).items():
            drawn[[position + 10 * (fragment == 2) for position in positions]] += 1
    assert drawn.sum() == 6000
    assert np.abs(drawn - 200).max() < 5 * np.sqrt(200)  # five standard deviations


def test_a_few_rows_of_a_corpus_that_no_memory_holds():
    assert sum(map(len, choose([10**14, 10**14], 100, 0).values())) == 100
