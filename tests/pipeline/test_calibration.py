"""Calibrating a model in int8: on rows of the corpus, compared on others, kept in the output."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate import Run
from pipeline.annotator import AnnotationSpec, Annotator
from pipeline.calibration import calibrate, calibrate_units, calibrated, sampled, spread, with_calibration
from pipeline.corpus.plan import Span, Unit
from pipeline.errors import JobError, OutputError
from pipeline.job import AnnotateJob
from pipeline.models.device import resolve_dtype
from pipeline.models.reference import ModelSettings, pin
from pipeline.output.planfile import PinnedAnnotation
from pipeline.output.storage import Store
from pipeline.planning import new_plan, pin_models
from pipeline.stages import AnnotateStage, Order, read
from pipeline.workers import Pools, Workers

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _has_int8() -> None:
    try:
        resolve_dtype("int8", "cpu")
    except JobError as error:
        pytest.skip(str(error))


def table(texts: Sequence[str | None]) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.string())})


def spec_of(folder: Path, task: str = "embed", **options: Any) -> AnnotationSpec:
    model = pin(ModelSettings(ref=str(folder)))
    pinned = PinnedAnnotation(model.ref, None, model.digest, "torch", "int8", "cpu", 1, 256)
    return AnnotationSpec({"name": "a", "task": task, "text": "text", **options}, False, model, pinned)


@pytest.mark.parametrize("output", ["float32", "ubinary"])
def test_vectors_are_compared_by_their_cosine(make_encoder: Make, sentences: list[str], output: str) -> None:
    done = calibrate(spec_of(make_encoder(), output=output, int8_agreement=0.9), table([*sentences, None]))
    assert done.agreement.of == "cosine"
    assert 0.9 < done.agreement.figure < 1
    assert done.agreement.rows == len(sentences) - len(sentences) // 3


def test_labels_are_compared_as_they_are(make_encoder: Make, sentences: list[str]) -> None:
    folder = make_encoder("bert", "ForSequenceClassification", num_labels=3)
    done = calibrate(spec_of(folder, "classify", int8_agreement=0.5), table(sentences))
    assert done.agreement.of == "same"
    assert done.agreement.figure > 0.5


@pytest.mark.parametrize("listed", [{"all_scores": True}, {"top_k": 3}])
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_of_listed_labels_those_are_compared_that_would_be_chosen(
    make_encoder: Make, sentences: list[str], problem: str, listed: dict[str, Any]
) -> None:
    folder = make_encoder("bert", "ForSequenceClassification", num_labels=3, problem_type=problem)
    plain, several = (
        calibrate(spec_of(folder, "classify", int8_agreement=0.1, **options), table(sentences))
        for options in ({}, listed)
    )
    assert several == plain
    assert several.agreement.figure < 1


def test_less_agreement_than_the_job_asks_for_is_refused_with_the_figure_and_the_way_on(
    make_encoder: Make, sentences: list[str]
) -> None:
    told = (
        r"annotation 'a': dtype: int8 loses too much with this model on this corpus: 99% of 27 rows have a cosine of "
        r"at least 0\.\d{4}, beside float32, and int8_agreement asks for 1; set `dtype: bfloat16`, or a lower `int8_"
    )
    with pytest.raises(JobError, match=told):
        calibrate(spec_of(make_encoder(), int8_agreement=1.0), table(sentences))


def test_rows_of_which_none_can_be_annotated_are_told(make_encoder: Make) -> None:
    with pytest.raises(JobError, match=r"of 3 sampled ones none could be annotated: set `dtype: bfloat16`"):
        calibrate(spec_of(make_encoder()), table([None, " ", None]))


def test_one_row_is_both_looked_at_and_compared(make_encoder: Make) -> None:
    assert calibrate(spec_of(make_encoder(), int8_agreement=0.5), table(["ak bl cm"])).agreement.rows == 1


def test_rows_lie_apart() -> None:
    found = spread([pa.table({"row": range(100)}), pa.table({"row": range(100, 200)})], 8)["row"].to_pylist()
    assert sorted(found) == [0, 25, 50, 75, 100, 125, 150, 175]
    assert found[:3] == [0, 75, 150]
    assert spread([pa.table({"row": range(3)})], 8).num_rows == 3
    assert spread([pa.table({"row": range(0)})], 8).num_rows == 0
    units = [Unit(f"{number}", "", (Span(0, 0, number, number + 1),)) for number in range(9)]
    assert [unit.id for unit in sampled(units)] == ["0", "2", "4", "6"]
    assert sampled(units[:2]) == units[:2]


def test_a_look_at_a_job_calibrates_on_its_rows_and_leaves_others_alone(
    make_encoder: Make, sentences: list[str]
) -> None:
    int8 = spec_of(make_encoder(), int8_agreement=0.5)
    plain = replace(int8, pinned=replace(int8.pinned, dtype="float32"))
    found, same = calibrated([int8, plain], table(sentences))
    assert same is plain
    assert found.pinned.calibration is not None
    annotator = Annotator([found], table(sentences).schema)
    annotator.load()
    assert annotator.annotate(table(sentences[:2])).columns["a_embedding"].null_count == 0


def test_an_actor_takes_what_the_plan_pins_from_the_output_and_nothing_else(
    make_encoder: Make, sentences: list[str], tmp_path: Path
) -> None:
    pq.write_table(table(sentences), tmp_path / "corpus.parquet")
    annotation = {"name": "a", "task": "embed", "text": "text", "model": str(make_encoder()), "dtype": "int8"}
    job = AnnotateJob.model_validate(
        {
            "corpus": {"path": str(tmp_path / "corpus.parquet")},
            "annotations": [annotation | {"int8_agreement": 0.5}],
            "output": {"path": str(tmp_path / "out")},
        }
    )
    pools: Pools = {None: Workers(1, 1, 0, 1, None)}
    models, store = pin_models(job), Store.at(str(tmp_path / "out"))
    plan, _ = new_plan(job, models, pools)
    run = Run(job, store, models, plan, pools, 1, "r1", {}, 0.0)
    digest, agreement = calibrate_units(run.work(), sampled(plan.units), "a")
    pins = {"a": replace(plan.annotations["a"], calibration=digest, agreement=agreement.figure)}
    run.plan = replace(plan, annotations=pins)
    found = AnnotateStage(run.work())(read(Order(plan.units[0]), run.work()))
    assert found.state == "annotated"
    assert found.added is not None
    assert found.added["a_embedding"].null_count == 0

    (spec,) = run.work().annotations
    assert spec.decisive()["calibration"] == digest
    assert with_calibration(spec, store).calibration is not None
    path = f"metadata/calibration-{digest}.safetensors"
    Path(store.full(path)).write_bytes(b"another")
    with pytest.raises(OutputError, match=r"by which annotation 'a' is quantised, is not what was written there"):
        with_calibration(spec, store)
    store.delete(path)
    with pytest.raises(OutputError, match=rf"{path} in .*, by which annotation 'a' is quantised, is gone: restore it"):
        with_calibration(spec, store)
