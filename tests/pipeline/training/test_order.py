import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.training.order import Order, shared_out

LENGTHS = arrays(np.int64, st.integers(1, 400), elements=st.integers(1, 512))
ORDERS = st.builds(Order, LENGTHS, st.integers(1, 40), st.integers(0, 5), st.booleans())


@settings(deadline=None, max_examples=50)
@given(order=ORDERS, epoch=st.integers(0, 3))
def test_an_epoch_sees_every_example_once(order: Order, epoch: int) -> None:
    steps = order.steps(epoch)
    assert len(steps) == order.steps_per_epoch
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(order.lengths_E)))


@settings(deadline=None, max_examples=50)
@given(order=ORDERS, epoch=st.integers(0, 3))
def test_all_steps_but_one_have_the_rows_that_were_asked_for(order: Order, epoch: int) -> None:
    sizes = sorted(len(step) for step in order.steps(epoch))
    odd = [size for size in sizes if size != order.batch_rows]
    assert len(odd) <= 1
    if len(order.lengths_E) >= order.batch_rows:
        assert all(order.batch_rows / 2 <= size <= order.batch_rows * 1.5 for size in odd)


@settings(deadline=None, max_examples=50)
@given(order=ORDERS, epoch=st.integers(0, 3))
def test_the_same_seed_and_epoch_give_the_same_order(order: Order, epoch: int) -> None:
    again = Order(order.lengths_E.copy(), order.batch_rows, order.seed, order.by_length)
    for one, other in zip(order.steps(epoch), again.steps(epoch), strict=True):
        assert one.tolist() == other.tolist()


def test_another_epoch_is_another_order() -> None:
    order = Order(np.arange(1, 501), 16, 0)
    assert [each.tolist() for each in order.steps(0)] != [each.tolist() for each in order.steps(1)]


@settings(deadline=None, max_examples=50)
@given(order=ORDERS, epoch=st.integers(0, 3))
def test_by_length_the_longest_step_comes_first(order: Order, epoch: int) -> None:
    if order.by_length:
        tokens = [int(order.lengths_E[step].sum()) for step in order.steps(epoch)]
        assert tokens[0] == max(tokens)


def test_by_length_there_is_less_padding() -> None:
    lengths_E = np.random.default_rng(0).integers(1, 256, 2000)

    def padded(by_length: bool) -> int:
        return sum(int(lengths_E[step].max()) * len(step) for step in Order(lengths_E, 32, 0, by_length).steps(0))

    assert padded(True) < 1.1 * lengths_E.sum() < 1.6 * lengths_E.sum() < padded(False)


@settings(deadline=None, max_examples=50)
@given(lengths_E=LENGTHS, ranks=st.integers(1, 9), rows=st.data())
def test_ranks_share_a_step_out_evenly(lengths_E: npt.NDArray[np.int64], ranks: int, rows: st.DataObject) -> None:
    count = rows.draw(st.integers(1, len(lengths_E)))
    rows_B = np.random.default_rng(count).permutation(len(lengths_E))[:count]
    shares = shared_out(rows_B, lengths_E, ranks)
    assert len(shares) == ranks
    assert sorted(np.concatenate(shares).tolist()) == sorted(rows_B.tolist())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    tokens = [int(lengths_E[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= 2 * int(lengths_E[rows_B].max())
