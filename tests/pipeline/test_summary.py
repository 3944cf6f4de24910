"""Rates, sums and the limit, from receipts alone."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.plan import Fragment, RowGroup, Span, Unit
from pipeline.job import Limits
from pipeline.output.planfile import PinnedAnnotation, Plan
from pipeline.output.receipts import Receipt
from pipeline.quarantine import Reason
from pipeline.summary import Pace, Quarantine, Startup, Tally, lowered_budgets, over_limit


def _plan(rows: Sequence[int], unreadable: Sequence[int] = ()) -> Plan:
    """A plan of one file a unit; files have ten bytes a row, unreadable ones the bytes that are given."""
    broken = Reason.TRUNCATED_FILE, "cut"
    fragments = [Fragment(f"{n}.parquet", count * 10, "1", (), (RowGroup(count, 1),)) for n, count in enumerate(rows)]
    fragments += [Fragment(f"x{n}.parquet", size, "1", (), (), broken) for n, size in enumerate(unreadable)]
    units = [Unit(f"u{n}", "", (Span(n, 0, 0, count),)) for n, count in enumerate(rows)]
    units += [Unit(f"x{n}", "", (Span(len(rows) + n, None, 0, 0),)) for n in range(len(unreadable))]
    return Plan(1, "0", {}, "/", pa.schema([]), (), False, {}, tuple(fragments), tuple(units), 0)


def _receipt(unit: str, read: int, quarantined: int = 0, tokens: int = 0, **more: object) -> Receipt:
    values = {
        "unit": unit,
        "epoch": 1,
        "run_id": "r",
        "files": (),
        "rows_read": read,
        "rows_filtered": 0,
        "rows_out": read - quarantined,
        "rows_quarantined": quarantined,
        "unit_lost": False,
        "reasons": {},
        "tokens": tokens,
        "padding_tokens": tokens // 10,
        "tokens_by_annotation": {},
        "token_budget": {},
        "seconds": 1.0,
    }
    return Receipt(**(values | more))  # type: ignore[arg-type]


def _tally(plan: Plan, limits: Limits | None = None, actors: int = 1) -> Tally:
    return Tally(len(plan.units), plan.rows, 0.0, Quarantine(limits or Limits(), plan), Pace(actors))


def _told(actor: str, seconds: float, since_ready: float) -> dict[str, object]:
    return {"seconds": seconds, "since_ready": {actor: since_ready}}


def test_a_budget_that_memory_lowered_is_told_with_how_many_units_it_met() -> None:
    pinned = PinnedAnnotation("m", None, "d", "torch", "float32", "cpu", 1, 2048)
    plan = replace(_plan([5, 5, 5]), annotations={"a": pinned, "b": pinned})
    budgets = [{"a": 2048, "b": 2048}, {"a": 1024, "b": 2048}, {"a": 512, "b": 2048}]
    receipts = [_receipt(f"u{n}", 5, token_budget=budget) for n, budget in enumerate(budgets)]
    assert lowered_budgets(receipts, plan) == {"a": (512, 2)}


# -------------------------------------------------------------------------------------------------------------- pace


def test_before_the_first_receipt_there_is_no_rate() -> None:
    assert Pace(2).tokens_per_second() is None


def test_the_rate_begins_when_all_actors_hold_their_models() -> None:
    pace = Pace(2)
    pace.took(arrived=12.0, seconds=2.0, since_ready={"a": 2.0}, tokens=1000)  # a was ready at 10
    pace.took(arrived=16.0, seconds=2.0, since_ready={"b": 2.0}, tokens=800)  # b at 14
    pace.took(arrived=18.0, seconds=6.0, since_ready={"a": 8.0}, tokens=900)  # 12 to 18: two thirds came after 14
    assert pace.tokens_per_second() == pytest.approx((800 + 600) / (18 - 14))
    assert (pace.first, pace.last) == (12.0, 18.0)


def test_an_actor_in_place_of_a_dead_one_does_not_begin_the_rate_again() -> None:
    pace = Pace(1)
    pace.took(arrived=12.0, seconds=2.0, since_ready={"a": 2.0}, tokens=1000)
    pace.took(arrived=100.0, seconds=1.0, since_ready={"later": 1.0}, tokens=10)
    assert pace.tokens_per_second() == pytest.approx(1010 / 90)


def test_the_rate_begins_when_the_actors_of_all_pools_hold_their_models() -> None:
    pace = Pace(2)
    pace.took(arrived=20.0, seconds=4.0, since_ready={"a": 10.0, "large": 3.0}, tokens=1000)  # ready at 10 and 17
    assert pace.tokens_per_second() == pytest.approx(1000 * (3 / 4) / (20 - 17))
    # The first receipt had waited; when its actors held their models is known better now.
    pace.took(arrived=22.0, seconds=2.0, since_ready={"a": 12.5, "large": 6.0}, tokens=600)  # 9.5 and 16
    assert pace.tokens_per_second() == pytest.approx((1000 + 600) / (22 - 16))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.1, 5), st.integers(0, 1000), st.floats(0, 3)),
        min_size=1,
        max_size=40,
    )
)
def test_the_sum_that_grows_is_the_sum_over_all(units: list[tuple[str, float, int, float]]) -> None:
    pace, clock = Pace(3), 50.0
    ready: dict[str, float] = {"a": 10.0, "b": 17.0, "c": 23.0}
    for actor, seconds, tokens, delay in units:
        clock += seconds
        pace.took(clock + delay, seconds, {actor: clock - ready[actor]}, tokens)
        again = Pace(3, pace._done.copy(), pace._ready.copy(), None, 0.0, pace.first, pace.last)
        start = sorted(again._ready.values())[:3][-1]
        shares = [
            tokens if began >= start else tokens * max(0.0, ended - start) / (ended - began)
            for began, ended, tokens in again._done
        ]
        rate, last = pace.tokens_per_second(), pace.last
        assert last is not None
        assert rate == pytest.approx(sum(shares) / (last - start)) if last > start else rate is None


# ------------------------------------------------------------------------------------------------------------- tally


def test_receipts_of_earlier_runs_count_as_done_but_not_as_work_of_this_one() -> None:
    tally = _tally(_plan([100, 100, 100]))
    tally.stands([_receipt("u0", 100, 4, 5000)])
    tally.came(_receipt("u1", 100, 1, 700), None, 10.0, _told("a", 1.0, 1.0))
    shown = tally.snapshot(10.0)
    assert (shown.units_done, shown.units_total, shown.rows_done, shown.rows_total) == (2, 3, 200, 300)
    assert (shown.rows_quarantined, shown.tokens, shown.padding_tokens) == (5, 700, 70)
    assert shown.padding_share == pytest.approx(70 / 770)


def test_a_retry_counts_only_the_tokens_that_it_computed() -> None:
    tally = _tally(_plan([100]))
    before = _receipt("u0", 100, 10, 5000)
    tally.came(_receipt("u0", 100, 0, 5300), before, 10.0, _told("a", 1.0, 1.0))
    assert (tally.tokens, tally.padding_tokens) == (300, 30)
    assert tally.pace.tokens_per_second() == pytest.approx(300)


def test_the_time_left_leaves_out_what_starting_took() -> None:
    tally = _tally(_plan([100] * 4))
    assert tally.snapshot(5.0).eta_seconds is None
    tally.came(_receipt("u0", 100), None, 20.0, _told("a", 1.0, 1.0))
    assert tally.snapshot(20.0).eta_seconds == pytest.approx(60.0)
    tally.came(_receipt("u1", 100), None, 21.0, _told("a", 1.0, 2.0))
    assert tally.snapshot(21.0).eta_seconds == pytest.approx(2.0)


def test_a_file_that_turned_out_longer_than_planned_leaves_no_time_below_zero() -> None:
    tally = _tally(_plan([10], unreadable=[100]))
    tally.came(_receipt("x0", 500), None, 20.0, _told("a", 1.0, 1.0))
    assert tally.snapshot(20.0).eta_seconds == 0


# ------------------------------------------------------------------------------------------------------------- limit


@pytest.mark.parametrize(
    ("allowed", "quarantined", "over"),
    [(0, 0, False), (0, 1, True), (5, 5, False), (5, 6, True), (0.05, 10, False), (0.05, 11, True), (1.0, 200, False)],
)
def test_the_limit_is_rows_or_a_share_of_the_planned_rows(allowed: float, quarantined: int, over: bool) -> None:
    plan = _plan([100, 100])
    receipts = [_receipt("u0", 100, min(quarantined, 100)), _receipt("u1", 100, max(0, quarantined - 100))]
    assert over_limit(Limits(max_quarantined=allowed), receipts, plan) is over


def test_an_unreadable_file_counts_with_the_rows_that_its_size_lets_expect() -> None:
    plan = _plan([100], unreadable=[250])  # ten bytes a row elsewhere: some 25 rows
    receipts = [_receipt("u0", 100), _receipt("x0", 0)]
    assert over_limit(Limits(max_quarantined=24), receipts, plan)
    assert not over_limit(Limits(max_quarantined=25), receipts, plan)
    assert over_limit(Limits(max_quarantined=0.19), receipts, plan)
    assert not over_limit(Limits(max_quarantined=0.2), receipts, plan)


def test_an_unreadable_file_that_a_retry_read_counts_with_its_own_rows() -> None:
    plan = _plan([100], unreadable=[250])
    receipts = [_receipt("u0", 100), _receipt("x0", 30, 1, spans=(("x0.parquet", 0, 30),))]
    assert not over_limit(Limits(max_quarantined=1), receipts, plan)
    assert over_limit(Limits(max_quarantined=0), receipts, plan)


def test_where_nothing_can_be_read_any_limit_below_all_is_broken() -> None:
    plan = _plan([], unreadable=[250])
    assert over_limit(Limits(max_quarantined=0.99), [_receipt("x0", 0)], plan)
    assert not over_limit(Limits(max_quarantined=1.0), [_receipt("x0", 0)], plan)


def test_an_empty_corpus_breaks_no_limit() -> None:
    assert not over_limit(Limits(max_quarantined=0.0), [], _plan([]))


@given(st.lists(st.integers(0, 10), max_size=30), st.floats(0, 1) | st.integers(0, 100))
def test_a_limit_once_broken_stays_broken(quarantined: list[int], allowed: float) -> None:
    plan = _plan([10] * len(quarantined), unreadable=[35])
    quarantine, before = Quarantine(Limits(max_quarantined=allowed), plan), False
    for number, rows in enumerate(quarantined):
        quarantine.add(_receipt(f"u{number}", 10, rows))
        assert quarantine.over_limit >= before
        before = quarantine.over_limit


# ---------------------------------------------------------------------------------------------------------- start-up


def _loaded(at: float, imports: float = 5.0, models: float = 2.0) -> dict[str, float]:
    return {"at": at, "imports": imports, "models": models}


def test_the_stages_of_a_start_up_are_all_of_the_time_to_the_first_receipt() -> None:
    startup = Startup(began=100.0, epoch=1000.0, planned=103.0, connected=106.5, chosen=107.0)
    assert startup.seconds() is None
    startup.came(125.0, {"loaded": {"a": _loaded(1116.0)}, "since_ready": {"a": 8.5}})
    startup.came(130.0, {"loaded": {"b": _loaded(1120.0)}, "since_ready": {"b": 9.5}})  # no more
    found = startup.seconds()
    assert found == {
        "planning": 3.0, "ray": 3.5, "trial": 0.5, "actors": 2.0, "imports": 5.0, "models": 2.0, "first_unit": 9.0
    }  # fmt: skip
    assert sum(found.values()) == 125.0 - 100.0


def test_a_first_unit_that_passed_several_pools_waited_for_the_actor_that_was_ready_last() -> None:
    startup = Startup(began=0.0, epoch=0.0, planned=1.0, connected=2.0)
    loaded = {"small": _loaded(9.0, 4.0, 1.0), "large": _loaded(14.0, 4.0, 6.0)}
    startup.came(20.0, {"loaded": loaded, "since_ready": {"small": 10.0, "large": 5.0}})
    assert startup.seconds() == {
        "planning": 1.0, "ray": 1.0, "trial": 0.0, "actors": 2.0, "imports": 4.0, "models": 6.0, "first_unit": 6.0
    }  # fmt: skip


@pytest.mark.parametrize("ahead", [-1e6, 1e6])
def test_a_node_whose_clock_is_wrong_was_ready_after_ray_ran_and_before_it_had_computed_the_unit(ahead: float) -> None:
    startup = Startup(began=0.0, epoch=0.0, planned=1.0, connected=2.0)
    startup.came(20.0, {"loaded": {"a": _loaded(14.0 + ahead, 4.0, 1.0)}, "since_ready": {"a": 5.0}})
    found = startup.seconds()
    assert found is not None
    assert found["first_unit"] == (18.0 if ahead < 0 else 5.0)
    assert all(seconds >= 0 for seconds in found.values())


def test_a_unit_that_no_actor_touched_ends_no_start_up() -> None:
    startup = Startup(began=0.0, epoch=0.0, planned=1.0, connected=2.0)
    startup.came(3.0, {"loaded": None, "since_ready": None})
    assert startup.seconds() is None
