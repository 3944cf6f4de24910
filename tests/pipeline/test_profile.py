"""Spans, what they sum up to, and the trace: without a run."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import profile
from pipeline.profile import Profile, Span, as_told, recorded, stages, timed


def test_spans_are_recorded_inside_a_block_that_asks_and_nowhere_else() -> None:
    with timed("before"):
        pass
    with recorded() as spans, timed("unit", unit="6f1c"):
        with timed("tokenise"):
            pass
        with recorded(wanted=False) as none, timed("forward"):
            pass
    with timed("after"):
        pass
    assert none == []
    assert [(each.name, each.depth, each.about) for each in spans] == [
        ("tokenise", 1, {}),
        ("forward", 1, {}),
        ("unit", 0, {"unit": "6f1c"}),
    ]
    tokenise, _, unit = spans
    assert unit.began <= tokenise.began
    assert tokenise.seconds <= unit.seconds


def test_a_span_whose_block_raises_is_recorded_too() -> None:
    with pytest.raises(ValueError, match="out"), recorded() as spans, timed("unit"), timed("forward"):
        raise ValueError("out")
    assert [(each.name, each.depth) for each in spans] == [("forward", 1), ("unit", 0)]


UNIT = (
    Span("tokenise", 10.0, 1.0, 2),
    Span("forward", 11.0, 4.0, 2),
    Span("annotate", 10.0, 6.0, 1, {"annotation": "topic"}),
    Span("forward", 16.5, 2.0, 2),
    Span("annotate", 16.5, 2.0, 1, {"annotation": "d"}),
    Span("unit", 9.5, 10.0, 0, {"unit": "6f1c"}),
)


def test_a_stage_has_the_seconds_of_its_spans_without_those_inside_them() -> None:
    assert stages(UNIT) == [
        ("tokenise", 1.0),
        ("forward topic", 4.0),
        ("decode", 1.0),
        ("forward d", 2.0),
        ("decode", 0.0),
        ("rest", 2.0),
    ]


def test_what_a_task_computes_while_it_starts_is_its_first_pass() -> None:
    assert stages((Span("forward", 1.0, 2.0, 1), Span("first pass", 0.0, 3.0))) == [
        ("first pass", 2.0),
        ("first pass", 1.0),
    ]


_TREES = st.recursive(st.just(()), lambda inside: st.lists(inside, max_size=3).map(tuple), max_leaves=12)


def _ended(tree: Sequence[object], began: float, depth: int) -> tuple[list[Span], float]:
    """The spans of a tree in the order in which they end; each takes a second besides what is inside it."""
    spans: list[Span] = []
    now = began + 0.5
    for inside in tree:
        assert isinstance(inside, tuple)
        found, now = _ended(inside, now, depth + 1)
        spans += found
    now += 0.5
    return [*spans, Span(f"at {depth}", began, now - began, depth)], now


@given(st.lists(_TREES, max_size=3))
def test_whatever_lies_inside_what_each_span_has_its_own_second(trees: list[tuple[object, ...]]) -> None:
    spans: list[Span] = []
    now = 0.0
    for tree in trees:
        found, now = _ended(tree, now, 0)
        spans += found
    assert [stage for stage, _ in stages(spans)] == [each.name for each in spans]
    assert [seconds for _, seconds in stages(spans)] == pytest.approx([1.0] * len(spans))


def _of(role: str, process: str, *spans: Span) -> dict[str, object]:
    """As it came from that process."""
    return {**json.loads(json.dumps(as_told(role, spans))), "process": process}


def test_the_stages_of_the_actors_and_their_waiting_are_all_of_their_time() -> None:
    found = Profile(began=0.0)
    found.took(_of("actor", "n:2", Span("imports", 4.0, 3.0), Span("weights", 7.0, 1.0), *UNIT))
    found.took(_of("actor", "n:1", Span("imports", 5.0, 3.0)))
    found.took(_of("actor", "n:1", Span("unit", 12.0, 6.0)))
    found.took(_of("commit", "n:3", Span("parts", 20.0, 0.5, 1), Span("commit", 19.9, 0.75)))
    found.took(_of("driver", "n:0", Span("planning", 0.0, 2.0)))
    sums = found.sums(ended=21.0)
    assert list(sums) == ["driver", "actors", "commits"]
    assert sums["actors"] == {
        "rest": 8.0,
        "waiting": (21 - 4 - 14) + (21 - 5 - 9),
        "imports": 6.0,
        "forward topic": 4.0,
        "forward d": 2.0,
        "weights": 1.0,
        "tokenise": 1.0,
        "decode": 1.0,
    }
    assert sum(sums["actors"].values()) == (21 - 4) + (21 - 5)
    assert list(sums["actors"].values()) == sorted(sums["actors"].values(), reverse=True)
    assert sums["commits"] == {"parts": 0.5, "commit": 0.25}
    assert [lane.process for lane in found.lanes] == ["n:0", "n:2", "n:1", "n:3"]


def test_a_trace_names_each_process_and_has_each_span_in_microseconds() -> None:
    found = Profile(began=8.0)
    found.took(_of("actor", "n:2", *UNIT))
    trace = json.loads(json.dumps(found.trace({"run_id": "r"})))
    assert trace["otherData"] == {"run_id": "r"}
    meta = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    assert [event["args"] for event in meta] == [{"name": "actor n:2"}, {"sort_index": 0}]
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in spans] == [
        "tokenise",
        "forward",
        "annotate topic",
        "forward",
        "annotate d",
        "unit",
    ]
    assert spans[-1] == {
        "ph": "X",
        "name": "unit",
        "cat": "actor",
        "pid": 0,
        "tid": 0,
        "ts": 1_500_000.0,
        "dur": 10_000_000.0,
        "args": {"unit": "6f1c"},
    }


def test_spans_beyond_what_a_trace_holds_count_in_the_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MOST_SPANS", 4)
    found = Profile(began=0.0)
    for start in (0.0, 10.0, 20.0):
        found.took(_of("actor", "n:1", Span("forward", start, 3.0, 1), Span("unit", start, 4.0)))
    assert found.left_out == 2
    assert sum(event["ph"] == "X" for event in found.trace({})["traceEvents"]) == 4
    assert found.sums(ended=24.0)["actors"] == {"waiting": 12.0, "forward": 9.0, "rest": 3.0}


def test_an_actors_second_hand_has_a_lane_of_its_own_and_is_no_second_actor() -> None:
    profile = Profile(began=0.0)
    for hand in (0, 1):
        profile.took(as_told("actor", UNIT, hand))
    first, second = (lane.process for lane in profile.lanes)
    assert second == f"{first}+1"
    assert profile.actors == 1
    assert profile.sums(19.5)["actors"]["forward topic"] == 8.0
