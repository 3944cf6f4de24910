"""Calibrating a model in int8: on rows of the corpus, compared on others, kept in the output."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import calibration, choosing, stream
from pipeline.annotate import annotate
from pipeline.annotator import AnnotationSpec, Annotator
from pipeline.calibration import (
    Calibrated,
    apart,
    calibrate,
    calibrate_units,
    calibrated,
    good_rows,
    spread,
)
from pipeline.corpus.plan import Span, Unit
from pipeline.envelope import Envelope
from pipeline.errors import JobError, ModelError, OutputError, RunError, WorkerDiedError
from pipeline.job import AnnotateJob
from pipeline.models import conversion
from pipeline.models.device import resolve_dtype
from pipeline.models.ranges import from_bytes
from pipeline.models.reference import ModelSettings, pin
from pipeline.output import planfile
from pipeline.output.planfile import PinnedAnnotation
from pipeline.output.storage import Store
from pipeline.planning import new_plan, pin_models
from pipeline.progress import Silent, Snapshot
from pipeline.run import Run
from pipeline.stages import AnnotateStage, Order, Work, commit, read
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


def done_of(spec: AnnotationSpec, rows: pa.Table) -> Calibrated:
    done = calibrate(spec, rows)
    assert done is not None
    return done


def run_of(folder: Path, model: Path, tables: Sequence[pa.Table], engine: str = "auto", **corpus: Any) -> Run:
    """A run of its own plan, on a corpus of these tables, each a unit."""
    for number, rows in enumerate(tables):
        (folder / f"corpus/part={number}").mkdir(parents=True)
        pq.write_table(rows, folder / f"corpus/part={number}/rows.parquet")
    annotation = {"name": "a", "task": "embed", "text": "text", "model": str(model), "dtype": "int8", "engine": engine}
    job = AnnotateJob.model_validate(
        {
            "corpus": {"path": str(folder / "corpus"), **corpus},
            "annotations": [annotation | {"int8_agreement": 0.5}],
            "output": {"path": str(folder / "out")},
        }
    )
    pools: Pools = {None: Workers(1, 1, 0, 1, None)}
    models, store = pin_models(job), Store.at(str(folder / "out"))
    plan, _ = new_plan(job, models, pools)
    return Run(job, store, models, plan, pools, 1, "r1", {}, 0.0)


@pytest.mark.parametrize("output", ["float32", "ubinary"])
def test_vectors_are_compared_by_their_cosine(make_encoder: Make, sentences: list[str], output: str) -> None:
    done = done_of(spec_of(make_encoder(), output=output, int8_agreement=0.9), table([*sentences, None]))
    assert done.agreement.of == "cosine"
    assert 0.9 < done.agreement.figure < 1
    assert done.agreement.rows == len(sentences) - len(sentences) // 3


def test_labels_are_compared_as_they_are(make_encoder: Make, sentences: list[str]) -> None:
    folder = make_encoder("bert", "ForSequenceClassification", num_labels=3)
    done = done_of(spec_of(folder, "classify", int8_agreement=0.5), table(sentences))
    assert done.agreement.of == "same"
    assert done.agreement.figure > 0.5


@pytest.mark.parametrize("listed", [{"all_scores": True}, {"top_k": 3}])
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_of_listed_labels_those_are_compared_that_would_be_chosen(
    make_encoder: Make, sentences: list[str], problem: str, listed: dict[str, Any]
) -> None:
    folder = make_encoder("bert", "ForSequenceClassification", num_labels=3, problem_type=problem)
    plain, several = (
        done_of(spec_of(folder, "classify", int8_agreement=0.1, **options), table(sentences))
        for options in ({}, listed)
    )
    assert several == plain
    assert several.agreement.figure < 1


@pytest.mark.parametrize("listed", [{"all_scores": True}, {"top_k": 2}])
def test_of_labels_nearest_to_a_text_the_nearest_is_compared_however_many_are_listed(
    make_encoder: Make, sentences: list[str], listed: dict[str, Any]
) -> None:
    labels = [f"{one} {other}" for one in ("ak", "bl", "cm", "dn") for other in ("bo", "ck", "dl", "an")]
    plain, several = (
        done_of(spec_of(make_encoder(), "zero_shot", labels=labels, int8_agreement=0.1, **options), table(sentences))
        for options in ({}, listed)
    )
    assert several == plain
    assert (several.agreement.of, several.agreement.rows) == ("same", 27)
    assert several.agreement.figure < 1


def test_of_fills_the_best_one_is_compared(make_encoder: Make, sentences: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_encoder("bert", "ForMaskedLM"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": "ak"}))
    gaps = table([f"[MASK] {text}" for text in sentences])
    one, five = (done_of(spec_of(folder, "fill", int8_agreement=0.01, **more), gaps) for more in ({"top_k": 1}, {}))
    assert five == one
    assert calibrate(spec_of(folder, "fill"), table(["bl cm", "bl"])) is None, "no model reads a text without a gap"


def test_less_agreement_than_the_job_asks_for_is_refused_with_the_figure_and_the_way_on(
    make_encoder: Make, sentences: list[str]
) -> None:
    told = (
        r"annotation 'a': dtype: int8 loses too much with this model on this corpus: 99% of 27 rows have a cosine of "
        r"at least 0\.\d{4}, beside float32, and int8_agreement asks for 1; set `dtype: bfloat16`, or a lower `int8_"
    )
    with pytest.raises(JobError, match=told):
        calibrate(spec_of(make_encoder(), int8_agreement=1.0), table(sentences))


def test_rows_of_which_none_can_be_annotated_give_no_calibration(make_encoder: Make) -> None:
    assert calibrate(spec_of(make_encoder()), table([None, " ", None])) is None
    assert calibrate(spec_of(make_encoder()), table([])) is None


@pytest.mark.parametrize("texts", [["ak bl cm"], ["ak bl", "cm"] + [None] * 4, [None] * 4 + ["ak bl", "cm"]])
def test_few_rows_are_both_looked_at_and_compared(make_encoder: Make, texts: list[str | None]) -> None:
    done = done_of(spec_of(make_encoder(), int8_agreement=0.5), table(texts))
    assert done.agreement.rows == sum(text is not None for text in texts)


def test_rows_that_are_not_finite_in_float32_tell_nothing(
    make_encoder: Make, sentences: list[str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(make_encoder(), folder)
    weights = load_file(folder / "model.safetensors")
    word = sentences[0].split()[0]
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"][word]
    weights["embeddings.word_embeddings.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    good = [word not in text.split() for text in sentences]
    assert 0 < sum(good[len(good) // 3 :]) < len(good[len(good) // 3 :])
    done = done_of(spec_of(folder, int8_agreement=0.5), table(sentences))
    assert done.agreement.rows == sum(good[len(good) // 3 :])
    assert all(np.isfinite([*each.most_K, each.least, each.greatest]).all() for each in from_bytes(done.data).values())


def test_rows_that_int8_alone_can_annotate_are_not_compared(
    make_encoder: Make, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = make_encoder(), calibration._annotator
    word = sentences[0].split()[0]
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"][word]

    def without_the_word(module: Any, arguments: Any, inputs: Mapping[str, Any], found: Any) -> None:
        found.last_hidden_state[(inputs["input_ids"] == token).any(1)] = float("nan")

    def annotator(spec: AnnotationSpec, dtype: str, *given: Any) -> Annotator:
        found = made(spec, dtype, *given)
        if dtype == "float32":
            found.module(spec.name).register_forward_hook(without_the_word, with_kwargs=True)
        return found

    every = done_of(spec_of(folder, int8_agreement=0.9), table(sentences))
    monkeypatch.setattr(calibration, "_annotator", annotator)
    done = done_of(spec_of(folder, int8_agreement=0.9), table(sentences))
    compared = [word not in text.split() for text in sentences[len(sentences) // 3 :]]
    assert 0 < sum(compared) < every.agreement.rows == len(compared)
    assert done.agreement.rows == sum(compared)


def test_rows_lie_apart() -> None:
    found = spread([pa.table({"row": range(100)}), pa.table({"row": range(100, 200)})], 8)["row"].to_pylist()
    assert sorted(found) == [0, 25, 50, 75, 100, 125, 150, 175]
    assert found[:3] == [0, 75, 150]
    assert spread([pa.table({"row": range(3)})], 8).num_rows == 3
    assert spread([pa.table({"row": range(0)})], 8).num_rows == 0
    units = [Unit(f"{number}", "", (Span(0, 0, number, number + 1),)) for number in range(9)]
    assert [unit.id for unit in apart(units)] == ["0", "2", "4", "6", "1", "3", "5", "7", "8"]
    assert apart(units[:2]) == units[:2]


def test_rows_that_an_annotation_reads_are_looked_for_until_all_units_are_read(
    make_encoder: Make, tmp_path: Path
) -> None:
    tables = [table([None, " "]) for _ in range(9)]
    tables[7] = table(["ak", None, "bl", "cm"])
    run = run_of(tmp_path, make_encoder(), tables)
    (spec,) = run.work().annotations
    found = [good_rows(run.plan.units, run.work(), spec, attempt)["text"].to_pylist() for attempt in range(3)]
    assert [sorted(texts) for texts in found] == [["ak", "bl", "cm"], ["ak", "cm"], ["bl"]]


def calibrate_in(run: Run) -> PinnedAnnotation:
    choosing.calibrate(run, [Order(unit) for unit in run.plan.units], Silent())
    return run.plan.annotations["a"]


def here(compute: Callable[..., Any], *given: Any, like: Workers) -> Any:
    """In the place of a worker."""
    return compute(*given)


def test_a_corpus_without_a_row_to_calibrate_by_is_computed_in_bfloat16(
    make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "on_a_worker", here)
    run = run_of(tmp_path, make_encoder(), [table([None, "ak", "cm"])], filter="text = 'bl'")
    assert calibrate_in(run).dtype == "bfloat16"
    assert planfile.load(run.store).annotations["a"] == run.plan.annotations["a"]
    assert run.notes == [
        "annotation 'a' in int8: there is no row to calibrate it by, of all that were read, so bfloat16 computes it"
    ]
    assert calibrate_in(run).dtype == "bfloat16"
    assert len(run.notes) == 1
    assert AnnotateStage(run.work())(read(Order(run.plan.units[0]), run.work())).state == "annotated"


def each_here(computes: Sequence[Callable[[], Any]], *, like: Workers) -> list[Any]:
    """In the place of workers."""
    return [compute() for compute in computes]


def not_alone(*_: Any, like: Workers) -> Any:
    raise AssertionError("two halves are enough")


def test_two_processes_find_what_one_finds(
    make_encoder: Make, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "on_a_worker", here)
    run = run_of(tmp_path, make_encoder(), [table(sentences[:20]), table([*sentences[20:], None])])
    planned = run.plan
    alone = calibrate_in(run)
    kept = run.store.find(f"metadata/calibration-{alone.calibration}.safetensors")
    run.store.delete(f"metadata/calibration-{alone.calibration}.safetensors")
    run.plan, run.pools = planned, {None: Workers(2, 1, 0, 1, None)}
    monkeypatch.setattr(stream, "on_workers", each_here)
    monkeypatch.setattr(stream, "on_a_worker", not_alone)
    assert calibrate_in(run) == alone
    assert run.store.find(f"metadata/calibration-{alone.calibration}.safetensors") == kept is not None
    assert run.notes[0] == run.notes[1]


@pytest.mark.parametrize("texts", [[], [None, " "], ["\u0301", "\u0301\u0301"]])
def test_rows_of_which_no_model_reads_any_give_two_processes_nothing(
    make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str | None]
) -> None:
    monkeypatch.setattr(stream, "on_workers", each_here)
    monkeypatch.setattr(stream, "on_a_worker", not_alone)
    run = run_of(tmp_path, make_encoder(), [table([*texts, "ak"])], filter="text != 'ak'")
    run.pools = {None: Workers(2, 1, 0, 1, None)}
    assert calibrate_in(run).dtype == "bfloat16"


def test_rows_that_two_processes_cannot_compare_are_left_to_one(
    make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, make_encoder(), [table(["ak bl cm", "ak", "bl cm dn", "cm"])])
    run.pools = {None: Workers(2, 1, 0, 1, None)}
    monkeypatch.setattr(stream, "on_a_worker", here)
    halves: list[Any] = [None, []]
    monkeypatch.setattr(stream, "on_workers", lambda _, like: halves)
    planned = run.plan
    assert calibrate_in(run).dtype == "bfloat16", "no row at all"
    run.plan = planned
    halves[:] = [calibration.round_units(run.work(), run.plan.units, "a"), []]
    assert calibrate_in(run).calibration is not None, "of other rows than were compared"
    run.plan = planned
    (spec,) = run.work().annotations
    nothing = calibration._annotator(spec, "float32", None, table([]).schema).annotate(table([None, None, " "]))
    halves[1] = [nothing]
    assert calibrate_in(run).calibration is not None, "of rows that float32 could not annotate"


def test_rows_that_kill_the_process_give_way_to_others_and_a_process_that_always_dies_ends_the_run(
    make_encoder: Make, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies_of_the_first(compute: Callable[..., Any], *given: Any, like: Workers) -> Any:
        work, units, name, attempt = given
        if sentences[0] in good_rows(units, work, work.annotations[0], attempt)["text"].to_pylist():
            raise WorkerDiedError("gone")
        return compute(work, units, name, attempt)

    monkeypatch.setattr(stream, "on_a_worker", dies_of_the_first)
    run = run_of(tmp_path, make_encoder(), [table(sentences)])
    planned = run.plan
    assert calibrate_in(run).calibration is not None

    def dies(*_: Any, like: Workers) -> Any:
        raise WorkerDiedError("gone")

    monkeypatch.setattr(stream, "on_a_worker", dies)
    run.plan = planned
    told = (
        r"the process that calibrated annotation 'a' in int8 died 3 times, .* want of memory; ask for fewer actors "
        r"\(cluster\.actors, now 1\), or set `dtype: bfloat16`"
    )
    with pytest.raises(RunError, match=told):
        calibrate_in(run)


def test_a_look_at_a_job_calibrates_on_its_rows_and_leaves_others_alone(
    make_encoder: Make, sentences: list[str]
) -> None:
    int8 = spec_of(make_encoder(), int8_agreement=0.5)
    plain = replace(int8, pinned=replace(int8.pinned, dtype="float32"))
    (found, same), notes = calibrated([int8, plain], table(sentences))
    assert same is plain
    assert notes[0].startswith("annotation 'a' in int8, beside float32: 99% of 27 rows have a cosine of at least 0.")
    assert len(notes) == 1
    assert found.pinned.calibration is not None
    annotator = Annotator([found], table(sentences).schema)
    annotator.load()
    assert annotator.annotate(table(sentences[:2])).columns["a_embedding"].null_count == 0


@pytest.mark.parametrize("texts", [[], [None, " "]])
def test_a_look_at_rows_of_which_none_can_be_annotated_takes_bfloat16(make_encoder: Make, texts: list[str]) -> None:
    (found,), notes = calibrated([spec_of(make_encoder())], table(texts))
    assert (found.pinned.dtype, notes) == ("bfloat16", ())


def test_a_look_at_a_job_refuses_nothing_for_want_of_agreement(make_encoder: Make, sentences: list[str]) -> None:
    (found,), notes = calibrated([spec_of(make_encoder(), int8_agreement=1.0)], table(sentences))
    assert found.pinned.calibration is not None
    assert len(notes) == 1


@pytest.fixture
def has_openvino() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")


@pytest.mark.usefixtures("has_openvino")
def test_openvino_is_judged_by_what_it_computes_itself(make_encoder: Make, sentences: list[str]) -> None:
    in_torch = spec_of(make_encoder(), int8_agreement=0.9)
    in_openvino, in_either = (
        replace(in_torch, pinned=replace(in_torch.pinned, engine=engine)) for engine in ("openvino", "auto")
    )
    by_torch, by_openvino, by_either = (done_of(spec, table(sentences)) for spec in (in_torch, in_openvino, in_either))
    assert by_torch.data == by_openvino.data == by_either.data
    assert [done.engine for done in (by_torch, by_openvino, by_either)] == ["torch", "openvino", "auto"]
    figures = [done.agreement.figure for done in (by_torch, by_openvino)]
    assert min(figures) > 0.9
    assert figures[0] != figures[1]
    assert by_either.agreement.figure == min(figures), "a trial may take either"


@pytest.mark.usefixtures("has_openvino")
def test_an_engine_that_loses_too_much_is_left_to_no_trial(
    make_encoder: Make, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(make_encoder(), int8_agreement=0.9)
    spec = replace(spec, pinned=replace(spec.pinned, engine="auto"))
    annotator = calibration._annotator

    def vague(spec: AnnotationSpec, dtype: str, *rest: Any) -> Annotator:
        openvino_in_int8 = (spec.pinned.engine, dtype) == ("openvino", "int8")
        return annotator(
            replace(spec, settings={**spec.settings, "prefix": "ak bl "}) if openvino_in_int8 else spec, dtype, *rest
        )

    monkeypatch.setattr(calibration, "_annotator", vague)
    done = done_of(replace(spec, settings={**spec.settings, "int8_agreement": 0.97}), table(sentences))
    assert done.engine == "torch"
    assert done.agreement.figure >= 0.97


@pytest.mark.usefixtures("has_openvino")
def test_where_openvino_cannot_compute_it_torch_does(
    make_encoder: Make, sentences: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> object:
        raise RuntimeError("no rule for aten::odd")

    spec = spec_of(make_encoder(), int8_agreement=0.9)
    monkeypatch.setattr(conversion, "_graph", refuse)
    monkeypatch.setenv("CORPUSMILL_CACHE", str(tmp_path))
    assert done_of(replace(spec, pinned=replace(spec.pinned, engine="auto")), table(sentences)).engine == "torch"
    with pytest.raises(ModelError, match="no rule for aten::odd"):
        calibrate(replace(spec, pinned=replace(spec.pinned, engine="openvino")), table(sentences))


def test_an_actor_takes_what_the_plan_pins_from_the_output_and_nothing_else(
    make_encoder: Make, sentences: list[str], tmp_path: Path
) -> None:
    run = run_of(tmp_path, make_encoder(), [table(sentences)])
    plan, store = run.plan, run.store
    done = calibrate_units(run.work(), plan.units, "a")
    assert done is not None
    digest, agreement, engine = done
    assert engine == plan.annotations["a"].engine == "torch"
    pins = {"a": replace(plan.annotations["a"], calibration=digest, agreement=agreement.figure)}
    run.plan = replace(plan, annotations=pins)
    found = AnnotateStage(run.work())(read(Order(plan.units[0]), run.work()))
    assert found.state == "annotated"
    assert found.added is not None
    assert found.added["a_embedding"].null_count == 0

    (spec,) = run.work().annotations
    assert spec.decisive()["calibration"] == digest
    assert spec.with_calibration(store).calibration is not None
    path = f"metadata/calibration-{digest}.safetensors"
    Path(store.full(path)).write_bytes(b"another")
    with pytest.raises(OutputError, match=r"by which annotation 'a' is quantised, is not what was written there"):
        spec.with_calibration(store)
    store.delete(path)
    with pytest.raises(OutputError, match=rf"{path} in .*, by which annotation 'a' is quantised, is gone: restore it"):
        spec.with_calibration(store)


class OneProcess:
    """A cluster whose one actor, readers and workers are this process."""

    def workers(self, weights_bytes: Mapping[str | None, int]) -> Pools:
        return dict.fromkeys(weights_bytes, Workers(1, 1, 0, 1, None))

    def connected(self, imports: Sequence[str] = ()) -> AbstractContextManager[None]:
        return nullcontext()

    def log_folder(self) -> str | None:
        return None


def in_this_process(orders: Sequence[Order], work: Work) -> Iterator[dict[str, Any]]:
    stage = AnnotateStage(work)
    for order in orders:
        found = stage(Envelope.of_block(read(order, work).to_block()))
        yield commit(Envelope.of_block(found.to_block()), work)


class Killed(BaseException):
    """The end of a process; nobody catches it."""


class KilledAtTheFirstReceipt(Silent):
    """Somebody who kills."""

    def advance(self, snapshot: Snapshot) -> None:
        raise Killed


def said_in(output: str) -> list[tuple[str, int, bytes]]:
    """The vectors of all rows, to the bit."""
    parts = [pq.read_table(path, partitioning=None) for path in Path(output, "data").rglob("*.parquet")]
    rows = pa.concat_tables(parts).sort_by([("_file", "ascending"), ("_row", "ascending")])
    vectors = [np.array(each, np.float32).tobytes() for each in rows["a_embedding"].to_pylist()]
    return list(zip(rows["_file"].to_pylist(), rows["_row"].to_pylist(), vectors, strict=True))


def test_a_node_that_is_slow_is_told_once(make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Annotator, "slow_here", lambda _: ["node n is slow"])
    monkeypatch.setattr(stream, "on_a_worker", here)
    monkeypatch.setattr(stream, "stream_with_suspects", in_this_process)
    job = run_of(tmp_path, make_encoder(), [table(["ak", "bl cm"]), table(["cm"])]).job
    done = annotate(job, OneProcess(), Silent())
    assert done.summary["units_done"] == 2
    assert done.notes.count("node n is slow") == 1


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_run_in_int8_that_was_killed_goes_on_by_its_calibration_and_says_the_same_to_the_bit(
    make_encoder: Make, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")
    calibrated_in: list[int] = []

    def on_a_worker(compute: Callable[..., Any], work: Work, *given: Any, like: Workers) -> Any:
        calibrated_in.append(work.epoch)
        return compute(work, *given)

    monkeypatch.setattr(stream, "on_a_worker", on_a_worker)
    monkeypatch.setattr(stream, "stream_with_suspects", in_this_process)
    tables = [table(sentences[:20]), table(sentences[20:]), table(["ak", "bl"])]
    job = run_of(tmp_path, make_encoder(), tables, engine).job
    with pytest.raises(Killed):
        annotate(job, OneProcess(), KilledAtTheFirstReceipt())
    begun = planfile.load(Store.at(job.output.path)).annotations["a"]
    assert (begun.engine, begun.calibration is None) == (engine, False)
    done = annotate(job, OneProcess(), Silent())
    assert (done.summary["units_skipped"], done.summary["units_done"], calibrated_in) == (1, 2, [1])
    assert planfile.load(Store.at(job.output.path)).annotations["a"] == begun
    assert len(done.summary["computed_by"]) == 1

    other = job.model_copy(update={"output": job.output.model_copy(update={"path": str(tmp_path / "undisturbed")})})
    annotate(other, OneProcess(), Silent())
    assert planfile.load(Store.at(other.output.path)).annotations["a"] == begun
    assert said_in(job.output.path) == said_in(other.output.path)
