"""From a job to its plan: what makes it impossible, what must not change, and what the user is told."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.reader import ReadPlan
from pipeline.errors import CorpusError, JobError, OutputError, PlacementError
from pipeline.job import AnnotateJob
from pipeline.models.reference import ModelSettings, PinnedModel
from pipeline.output.planfile import PinnedAnnotation, Plan, from_bytes, to_bytes
from pipeline.planning import (
    Models,
    _as_planned,
    _check_int8,
    added_columns,
    as_pinned,
    carried_columns,
    check_unchanged,
    corpus_notes,
    new_plan,
    passes,
    pin_models,
    place,
    read_plan,
    specs,
    with_gold_of,
)
from pipeline.tasks.base import OWN_MODULE, Annotation, AnnotationSettings, Task, Texts
from pipeline.workers import Pools, Workers

COUNTING = Path(__file__).parent.parent / "chaos/counting.py"
WORKERS = Workers(actors=2, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)
ONE_POOL: Pools = {None: WORKERS}
TABLE = pa.table({"text": [f"text {row}" for row in range(100)], "number": list(range(100))})

Jobs = Callable[..., AnnotateJob]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files of 100 rows in row groups of 50."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a", "b"):
        pq.write_table(TABLE, folder / f"{name}.parquet", row_group_size=50)
    return folder


@pytest.fixture
def job(corpus: Path, tmp_path: Path) -> Jobs:
    """A job with one annotation that costs nothing; `names` gives it several."""

    def make(names: tuple[str, ...] = ("size",), text: str = "text", **sections: Any) -> AnnotateJob:
        return AnnotateJob.model_validate(
            {
                "allow_code": True,
                "corpus": {"path": str(corpus)} | sections.get("corpus", {}),
                "annotations": [
                    {"name": name, "task": str(COUNTING), "text": text} | sections.get("annotation", {})
                    for name in names
                ],
                "output": {"path": str(tmp_path / "out")} | sections.get("output", {}),
            }
        )

    return make


def _plan(job: AnnotateJob, pools: Pools = ONE_POOL) -> Plan:
    return new_plan(job, pin_models(job), pools)[0]


def _read_plan(job: AnnotateJob, plan: Plan) -> ReadPlan:
    return read_plan(job, pin_models(job), plan)


# ---------------------------------------------------------------------------------------------------------- possible


def test_a_plan_says_what_will_be_done(job: Jobs) -> None:
    plan = _plan(job())
    assert (plan.rows, plan.rows_pruned, [each.path for each in plan.fragments]) == (
        200,
        0,
        ["a.parquet", "b.parquet"],
    )
    pinned = plan.annotations["size"]
    assert (pinned.ref, pinned.digest, pinned.dtype, pinned.device, pinned.threads) == (None, None, None, "cpu", 1)


def test_a_text_of_an_unknown_column_names_its_annotation(job: Jobs) -> None:
    with pytest.raises(CorpusError, match=r"annotation 'size': .*'txt'.*did you mean 'text'"):
        _plan(job(text="{txt}"))


def test_a_column_that_the_corpus_has_already_is_not_added(job: Jobs, corpus: Path) -> None:
    pq.write_table(TABLE.append_column("size_chars", [list(range(100))]), corpus / "a.parquet")
    with pytest.raises(CorpusError, match=r"a column 'size_chars' already.*give the annotation another `name`"):
        _plan(job())


def test_two_annotations_never_add_one_column(job: Jobs, tmp_path: Path) -> None:
    words = COUNTING.read_text().replace('pa.field("chars"', 'pa.field("b_tokens"').replace('"chars":', '"b_tokens":')
    (tmp_path / "odd.py").write_text(words)
    with pytest.raises(CorpusError, match="two annotations would add a column 'a_b_tokens'"):
        _plan(job(names=("a", "a_b"), annotation={"task": str(tmp_path / "odd.py")}))


def test_output_columns_must_be_in_the_corpus(job: Jobs) -> None:
    with pytest.raises(CorpusError, match=r"output\.columns names 'nummer', which is not in the corpus: text, number"):
        _plan(job(output={"columns": ["text", "nummer"]}))


@pytest.mark.parametrize(
    ("names", "values", "words"),
    [
        (["_file"], [["a"] * 100], r"has a column '_file', but its '_row' is not there instead of int64"),
        (["_row"], [list(range(100))], r"has a column '_row', but its '_file' is not there instead of string"),
        (["_file", "_row"], [["a"] * 100, ["b"] * 100], r"its '_row' is string instead of int64"),
    ],
)
def test_identity_of_another_kind_is_refused(
    job: Jobs, corpus: Path, names: list[str], values: list[list[object]], words: str
) -> None:
    table = TABLE
    for name, column in zip(names, values, strict=True):
        table = table.append_column(name, [column])
    for file in ("a", "b"):
        pq.write_table(table, corpus / f"{file}.parquet")
    with pytest.raises(CorpusError, match=words):
        _plan(job())


def test_an_output_of_ours_brings_its_identity_along(job: Jobs, corpus: Path) -> None:
    for file in ("a", "b"):
        ours = TABLE.append_column("_file", [[file] * 100]).append_column("_row", [list(range(100))])
        pq.write_table(ours, corpus / f"{file}.parquet")
    plan = _plan(job())
    assert plan.identity_carried
    assert carried_columns(job(), plan) == ("text", "number")


# ------------------------------------------------------------------------------------------------------ rows, columns


def test_row_groups_that_the_filter_excludes_are_pruned_and_counted(job: Jobs) -> None:
    plan = _plan(job(corpus={"filter": "number >= 50"}))
    assert (plan.rows, plan.rows_pruned) == (100, 100)
    assert _read_plan(job(corpus={"filter": "number >= 50"}), plan).filter == "number >= 50"


def test_a_sample_is_of_the_rows_that_the_filter_keeps_and_nothing_is_left_to_filter(job: Jobs) -> None:
    sampled = job(corpus={"filter": "number >= 90", "sample": 7})
    plan = _plan(sampled)
    assert (plan.rows, plan.rows_pruned) == (7, 0)
    chosen = [row for unit in plan.units for span in unit.spans for row in span.selected or ()]
    assert all(row >= 90 for row in chosen)
    assert _read_plan(sampled, plan).filter is None
    assert _plan(sampled).units == plan.units


def test_a_sample_larger_than_what_is_kept_takes_it_all(job: Jobs) -> None:
    assert _plan(job(corpus={"filter": "number >= 90", "sample": 1000})).rows == 20
    assert _plan(job(corpus={"sample": 30})).rows == 30


@pytest.mark.parametrize(
    ("wanted", "carried", "read"),
    [
        ("all", ("text", "number"), ("text", "number")),
        (["number"], ("number",), ("text", "number")),
        ("none", (), ("text",)),
        ([], (), ("text",)),
    ],
)
def test_only_columns_that_are_carried_or_rendered_are_read(
    job: Jobs, wanted: object, carried: tuple[str, ...], read: tuple[str, ...]
) -> None:
    made = job(output={"columns": wanted})
    plan = _plan(made)
    assert (carried_columns(made, plan), _read_plan(made, plan).columns) == (carried, read)


def test_added_columns_stand_in_the_order_of_the_annotations(job: Jobs) -> None:
    made = job(names=("b", "a"), annotation={"errors": "keep"})
    names = [field.name for field in added_columns(made, pin_models(made))]
    assert names == [
        f"{each}_{column}" for each in "ba" for column in ("chars", "label", "tokens", "truncated", "error")
    ]


def test_a_users_own_task_travels_by_its_absolute_path(job: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(COUNTING.parent)
    made = job(annotation={"task": "counting.py"})
    models = pin_models(made)
    (spec,) = specs(made, models, _plan(made).annotations)
    assert spec.settings["task"] == str(COUNTING)


# ---------------------------------------------------------------------------------------------------------- unchanged


def test_the_same_job_goes_on_also_with_other_limits_and_elsewhere(job: Jobs, tmp_path: Path) -> None:
    plan = from_bytes(to_bytes(_plan(job())))
    check_unchanged(job(), pin_models(job()), plan)
    check_unchanged(job(output={"path": str(tmp_path / "moved")}), pin_models(job()), plan)


def test_every_difference_is_told_with_the_way_to_a_sidecar(job: Jobs) -> None:
    plan = from_bytes(to_bytes(_plan(job())))
    changed = job(names=("size", "more"), annotation={"max_chars": 9}, output={"columns": "none"})
    with pytest.raises(OutputError, match="was made by a job that differs") as told:
        check_unchanged(changed, pin_models(changed), plan)
    lines = str(told.value).splitlines()
    assert "  annotations.0.max_chars: was 10000000, is now 9" in lines
    assert any(line.startswith("  annotations.1: is new") for line in lines)
    assert "  output.columns: was 'all', is now 'none'" in lines
    assert "`output: {columns: none, path: <another folder>}`" in lines[-1]


def _with_model(plan: Plan, **changes: Any) -> Plan:
    pinned = replace(plan.annotations["size"], ref="wheel:x/y", digest="53aa", **changes)
    return replace(plan, annotations={"size": pinned})


def test_a_model_with_another_digest_is_refused(job: Jobs) -> None:
    models = Models({"size": PinnedModel("wheel:x/y", None, "/", "77bb", 90, {})})
    with pytest.raises(OutputError, match=r"model of 'size' \(wheel:x/y\): its digest was 53aa, is now 77bb"):
        check_unchanged(job(), models, _with_model(_plan(job())))


def test_a_resumed_run_computes_with_the_threads_of_its_plan(job: Jobs) -> None:
    plan = _with_model(_plan(job()), threads=3)
    assert as_pinned(plan, ONE_POOL)[None].threads == 3


def test_a_resumed_run_on_another_kind_of_device_is_refused_with_the_way_on(job: Jobs) -> None:
    gpus: Pools = {None: replace(WORKERS, gpus_per_actor=1)}
    plan = _plan(job())
    with pytest.raises(PlacementError, match=r"begun on device cpu, .* on cuda.*cluster\.gpus_per_actor: 0"):
        as_pinned(_with_model(plan), gpus)
    with pytest.raises(PlacementError, match=r"begun on device cuda, .* on cpu.*cluster\.gpus_per_actor: 1 on a"):
        as_pinned(_with_model(plan, device="cuda"), ONE_POOL)
    assert as_pinned(plan, gpus)[None].device == "cuda"  # no model: nothing that a device could change


# -------------------------------------------------------------------------------------------------------------- pools

LARGE = Workers(actors=1, cpus_per_actor=4, gpus_per_actor=1, threads=4, memory_bytes=None)
TWO_POOLS: Pools = {None: WORKERS, "large": LARGE}


@pytest.fixture
def two(job: Jobs) -> Callable[..., AnnotateJob]:
    """A job of two annotations, `size` in the job's own pool and `again` in `large`; options are those of `again`."""

    def make(**options: Any) -> AnnotateJob:
        document = job(("size", "again")).model_dump(mode="json")
        document["annotations"][1] |= {"pool": "large"} | options
        return AnnotateJob.model_validate(document)

    return make


def test_each_annotation_is_pinned_to_the_device_and_threads_of_its_pool(two: Callable[..., AnnotateJob]) -> None:
    pins = _plan(two(), TWO_POOLS).annotations
    assert (pins["size"].device, pins["size"].threads) == ("cpu", 1)
    assert (pins["again"].device, pins["again"].threads) == ("cuda", 4)


def test_units_are_cut_for_the_slower_device_and_the_larger_pool(two: Callable[..., AnnotateJob]) -> None:
    assert _plan(two(), TWO_POOLS).units == _plan(two(), {None: WORKERS, "large": WORKERS}).units


def test_a_resumed_run_takes_threads_and_devices_of_each_pool_as_they_were(two: Callable[..., AnnotateJob]) -> None:
    plan = from_bytes(to_bytes(_plan(two(), TWO_POOLS)))
    weighed = {name: replace(pin, ref="wheel:x/y", digest="53aa") for name, pin in plan.annotations.items()}
    plan = replace(plan, annotations=weighed)
    now: Pools = {None: replace(WORKERS, threads=7), "large": replace(LARGE, actors=2, threads=1)}
    assert [(each.actors, each.threads) for each in as_pinned(plan, now).values()] == [(2, 1), (2, 4)]
    with pytest.raises(
        PlacementError, match=r"on device cuda, .* on cpu.*cluster\.pools\.large\.gpus_per_actor: 1 on a"
    ):
        as_pinned(plan, {None: WORKERS, "large": replace(LARGE, gpus_per_actor=0)})
    with pytest.raises(PlacementError, match=r"on device cpu, .* on cuda.*with cluster\.gpus_per_actor: 0"):
        as_pinned(plan, {None: LARGE, "large": LARGE})


def test_a_unit_passes_the_pools_in_the_order_of_what_they_read(two: Callable[..., AnnotateJob]) -> None:
    made = two()
    document = made.model_dump(mode="json")
    document["annotations"][0] |= {"pool": "first"}
    document["annotations"].insert(0, document["annotations"][0] | {"name": "zero", "pool": "large"})
    document["annotations"][2] |= {"text": "size_label"}
    made = AnnotateJob.model_validate(document)
    pools: Pools = {"large": LARGE, "first": WORKERS}
    plan = _plan(made, pools)
    assert list(passes(made, pin_models(made), plan, pools)) == ["first", "large"]
    document["annotations"][1] |= {"text": "zero_label"}
    with pytest.raises(
        JobError, match=r"'size' \(pool 'first'\) reads 'zero' \(pool 'large'\), 'again' .* reads 'size'"
    ):
        _plan(AnnotateJob.model_validate(document), pools)


def test_a_pool_holds_the_weights_of_its_own_annotations_each_once(two: Callable[..., AnnotateJob]) -> None:
    document = two().model_dump(mode="json")
    document["annotations"].append(document["annotations"][1] | {"name": "third"})
    small, large = (PinnedModel(f"wheel:x/{size}", None, "/", f"d{size}", size, {}) for size in (90, 7000))
    models = Models({"size": small, "again": large, "third": large})
    asked: dict[str | None, int] = {}

    class Asked:
        def workers(self, weights_bytes: Mapping[str | None, int]) -> Pools:
            asked.update(weights_bytes)
            return TWO_POOLS

        def connected(self, imports: Sequence[str] = ()) -> Any:
            raise AssertionError("a plan needs no Ray")

        def log_folder(self) -> str | None:
            return None

    place(Asked(), AnnotateJob.model_validate(document), models)
    assert asked == {None: 90, "large": 7000}


# --------------------------------------------------------------------------------------------------------------- told


def test_files_that_came_went_or_changed_since_the_plan_are_told(job: Jobs, corpus: Path) -> None:
    made = job()
    plan = _plan(made)
    assert corpus_notes(made, plan) == []
    for number in range(5):
        pq.write_table(TABLE, corpus / f"new-{number}.parquet")
    (corpus / "a.parquet").unlink()
    os.utime(corpus / "b.parquet", ns=(1, 1))
    added, gone, changed = corpus_notes(made, plan)
    assert added.startswith("5 files were added since the plan")
    assert added.endswith("new-0.parquet, new-1.parquet, new-2.parquet …")
    assert gone.startswith("1 files are gone since the plan; rows of theirs without a receipt will be quarantined: a.")
    assert changed.startswith("1 files changed since the plan")
    assert changed.endswith(": b.parquet")


def test_a_hub_branch_that_a_plan_has_resolved_stays_resolved() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    settings = ModelSettings(ref="hub:org/name@main")
    planned = PinnedAnnotation(settings.ref, commit, "d1", "torch", "float32", "cpu", 1, 2048)
    assert _as_planned(settings, planned).ref == f"hub:org/name@{commit}"
    assert _as_planned(settings, None) == settings
    assert _as_planned(ModelSettings(ref="hub:org/name@v2"), planned).ref == "hub:org/name@v2"


# --------------------------------------------------------------------------------------------------------------- int8


class _Labels(Task):
    """A task by what it needs and adds."""

    def __init__(self, needs: str, *fields: pa.Field) -> None:
        super().__init__(AnnotationSettings(name="a", task="some", text="text", dtype="int8"), None)
        self.needs, self._fields = needs, list(fields)

    def fields(self) -> list[pa.Field]:
        return self._fields

    def annotate(self, texts: Texts) -> Annotation:
        raise NotImplementedError


LABEL, SCORE = pa.field("label", pa.string()), pa.field("score", pa.float32())


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (_Labels("AutoModelForSeq2SeqLM", LABEL), "is for models that read, and the one of task 'some' writes"),
        (_Labels("AutoModelForCausalLM", LABEL), "is for models that read, and the one of task 'some' writes"),
        (_Labels(OWN_MODULE, LABEL), "is for models of transformers, and this one brings code of its own"),
        (_Labels("AutoModelForSequenceClassification", SCORE), "task 'some' gives numbers alone"),
    ],
    ids=["seq2seq", "causal", "own", "numbers"],
)
def test_int8_that_a_task_cannot_have_is_refused_before_anything_is_computed(task: Task, why: str) -> None:
    with pytest.raises(JobError, match=rf"annotation 'a': dtype: int8 .*{why}: set `dtype: auto`"):
        _check_int8(task)


def test_int8_is_for_tasks_that_give_labels() -> None:
    _check_int8(_Labels("AutoModelForSequenceClassification", LABEL, SCORE))


def test_int8_of_what_another_annotation_adds_is_refused(job: Jobs) -> None:
    made = job(names=("size", "next"))
    last = made.annotations[1].model_copy(update={"text": "size_label", "dtype": "int8"})
    with pytest.raises(JobError, match=r"annotation 'next': dtype: int8 .* reads what size adds: set `dtype: auto`"):
        _plan(made.model_copy(update={"annotations": [made.annotations[0], last]}))


def test_the_level_of_int8_stands_in_a_plan_only_where_the_job_names_it(job: Jobs) -> None:
    assert "int8_agreement" not in job().pinned()["annotations"][0]
    assert job(annotation={"int8_agreement": 0.9}).pinned()["annotations"][0]["int8_agreement"] == 0.9


# --------------------------------------------------------------------------------------------------------------- gold

GOLD = """

class Judged(Counting):
    def compared(self):
        from pipeline.tasks.base import Comparison

        return Comparison("labels", {"predicted": "label"})


del Counting
"""


@pytest.fixture
def judged(job: Jobs, tmp_path: Path) -> Jobs:
    """A job whose annotation can be compared with labels."""
    (tmp_path / "judged.py").write_text(COUNTING.read_text() + GOLD)

    def make(gold: str | None = None, **sections: Any) -> AnnotateJob:
        return job(annotation={"task": str(tmp_path / "judged.py"), "gold": gold}, **sections)

    return make


@pytest.mark.parametrize(
    ("columns", "carried"), [("all", ("text", "number")), ("none", ("number",)), (["text"], ("text", "number"))]
)
def test_gold_stands_in_the_parts_whatever_columns_say(judged: Jobs, columns: object, carried: tuple[str, ...]) -> None:
    made = judged(gold="number", output={"columns": columns})
    plan = _plan(made)
    assert carried_columns(made, plan) == carried
    assert set(_read_plan(made, plan).columns) == {"text", "number"}


def test_gold_that_the_corpus_has_not_is_told_with_its_annotation(judged: Jobs) -> None:
    with pytest.raises(CorpusError, match=r"annotation 'size': gold: no column 'nummer'; did you mean 'number'"):
        _plan(judged(gold="nummer"))


def test_another_gold_is_no_other_job_where_the_parts_hold_it_anyway(judged: Jobs) -> None:
    plan = from_bytes(to_bytes(_plan(judged())))
    check_unchanged(judged(gold="number"), pin_models(judged(gold="number")), plan)
    plan = from_bytes(to_bytes(_plan(judged(gold="number"))))
    check_unchanged(judged(), pin_models(judged()), plan)
    changed = with_gold_of(plan, judged(gold="text"))
    assert changed.job["annotations"][0]["gold"] == "text"
    assert with_gold_of(changed, judged(gold="text")) is changed


def test_another_gold_is_refused_where_the_parts_would_have_other_columns(judged: Jobs) -> None:
    plan = from_bytes(to_bytes(_plan(judged(output={"columns": "none"}))))
    changed = judged(gold="number", output={"columns": "none"})
    with pytest.raises(OutputError, match=r"annotations\.0\.gold: is new, 'number'"):
        check_unchanged(changed, pin_models(changed), plan)


def test_without_gold_a_job_is_pinned_as_before_there_was_gold(judged: Jobs) -> None:
    assert "gold" not in judged().pinned()["annotations"][0]
