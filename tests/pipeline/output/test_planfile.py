"""A plan comes back whole, is refused when it was changed, and tells how two jobs differ."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.plan import Fragment, RowGroup, Span, Unit
from pipeline.errors import OutputError
from pipeline.output import planfile
from pipeline.output.planfile import PinnedAnnotation, Plan, Tried, differences
from pipeline.output.sealed import seal, unseal
from pipeline.output.storage import Store
from pipeline.quarantine import Reason

PLAN = Plan(
    version=1,
    corpusmill="0.1.0",
    job={"corpus": {"path": "in", "filter": None}, "annotations": [{"name": "topic", "max_tokens": 256}]},
    root="/corpus",
    schema=pa.schema([pa.field("text", pa.large_string(), metadata={"a": "b"})], metadata={"pandas": "{}"}),
    partition=("section",),
    identity_carried=False,
    annotations={"topic": PinnedAnnotation("wheel:x/y", None, "53aa", "torch", "bfloat16", "cpu", 1, 1024)},
    fragments=(
        Fragment("section=games/a.parquet", 915, "915-1", (("section", "games"),), (RowGroup(10, 99), RowGroup(5, 44))),
        Fragment("b.parquet", 3, "3-1", (), (), (Reason.NOT_PARQUET, "no magic")),
    ),
    units=(
        Unit("ab", "section=games", (Span(0, 0, 2, 10), Span(0, 1, 0, 5, (10, 11, 14)))),
        Unit("cd", "", (Span(1, None, 0, 0),)),
    ),
    rows_pruned=7,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path / "out"))


def test_a_plan_comes_back(store: Store) -> None:
    assert not planfile.exists(store)
    planfile.save(store, PLAN)
    assert planfile.exists(store)
    loaded = planfile.load(store)
    assert loaded == PLAN
    assert loaded.schema.equals(PLAN.schema, check_metadata=True)
    assert loaded.rows == 11


def test_what_a_trial_found_comes_back_and_a_plan_from_before_there_were_trials_tells_of_none(store: Store) -> None:
    tried = (Tried("torch", 2048, 7021.5), Tried("openvino", 4096, None))
    plan = replace(PLAN, annotations={"topic": replace(PLAN.annotations["topic"], tried=tried)})
    planfile.save(store, plan)
    assert planfile.load(store) == plan
    value = unseal(planfile.to_bytes(PLAN))
    del value["annotations"]["topic"]["tried"]
    assert planfile.from_bytes(seal(value)) == PLAN


def test_a_folder_without_a_plan_is_no_output(store: Store) -> None:
    with pytest.raises(OutputError, match=r"is no output of corpusmill: it has no metadata/plan.json"):
        planfile.load(store)


def test_an_edited_plan_is_refused(store: Store) -> None:
    store.write("metadata/plan.json", planfile.to_bytes(PLAN).replace(b'"max_tokens":256', b'"max_tokens":128'))
    with pytest.raises(OutputError, match=r"metadata/plan.json in .*: it was changed since .*name another output.path"):
        planfile.load(store)


def test_a_plan_of_a_newer_version_is_refused(store: Store) -> None:
    planfile.save(store, replace(PLAN, version=2, corpusmill="9.0"))
    with pytest.raises(
        OutputError,
        match=r"it is of version 2, and this corpusmill reads version 1; take the corpusmill that wrote it \(9.0\)",
    ):
        planfile.load(store)


def test_a_sealed_file_that_is_no_plan_is_refused(store: Store) -> None:
    store.write("metadata/plan.json", seal({"version": 1}))
    with pytest.raises(OutputError, match="it is sealed but no plan of version 1: KeyError"):
        planfile.load(store)


def test_ten_thousand_fragments_stay_compact() -> None:
    groups = tuple(RowGroup(100, 4_000) for _ in range(2))
    fragments = tuple(Fragment(f"part-{i:05}.parquet", 9_153, f"9153-{i}", (), groups) for i in range(10_000))
    units = tuple(Unit(f"{i:016x}", "", (Span(i, 0, 0, 100), Span(i, 1, 0, 100))) for i in range(10_000))
    plan = replace(PLAN, fragments=fragments, units=units)
    data = planfile.to_bytes(plan)
    assert len(data) < 2_000_000
    assert planfile.from_bytes(data) == plan


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 2**40), max_size=20))
def test_any_selection_comes_back(positions: set[int]) -> None:
    span = Span(0, 0, 0, 5, tuple(sorted(positions)))
    plan = replace(PLAN, units=(Unit("ab", "", (span,)),))
    assert planfile.from_bytes(planfile.to_bytes(plan)).units[0].spans[0] == span


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}]}, []),
        ({"annotations": [{"max_tokens": 256}]}, {"annotations": [{"max_tokens": 128}]}, [
            "annotations.0.max_tokens: was 256, is now 128"
        ]),
        ({"a": [1]}, {"a": [1, {"name": "mood"}]}, ["a.1: is new, {'name': 'mood'}"]),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, ["a.x: was 1, is now 3", "a.y: was 2, is gone"]),
        ({"a": 1}, {"a": True}, ["a: was 1, is now True"]),
        ({"a": None}, {"a": {"b": 1}}, ["a: was None, is now {'b': 1}"]),
        ({"a": {}}, {"a": []}, ["a: was {}, is now []"]),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": "x" * 900}, {"a": 1}, ["a: was '" + "x" * 199 + "…, is now 1"]),
    ],
)  # fmt: skip
def test_differences_name_the_place_and_both_values(
    old: dict[str, object], new: dict[str, object], told: list[str]
) -> None:
    assert differences(old, new) == told


JOBS = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("xy", min_size=1, max_size=1), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("xy"), JOBS), st.dictionaries(st.sampled_from("xy"), JOBS))
def test_nothing_is_told_only_of_equal_jobs(old: dict[str, object], new: dict[str, object]) -> None:
    assert differences(old, old) == []
    assert bool(differences(old, new)) == (repr_sorted(old) != repr_sorted(new))


def repr_sorted(value: object) -> str:
    return seal({"value": value}).decode()
