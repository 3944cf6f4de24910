from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from sklearn.metrics import accuracy_score, f1_score  # type: ignore[import-untyped]
from sklearn.utils.class_weight import compute_class_weight  # type: ignore[import-untyped]

from pipeline.errors import CorpusError, JobError
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.classify import Classify as ClassifyTask
from pipeline.training.job import DataSettings, TrainingSettings
from pipeline.training.objectives import find
from pipeline.training.objectives.classify import Classify, problem_of

WORD, WORDS, NUMBER = pa.string(), pa.list_(pa.string()), pa.float64()
THINGS = ["cat", "dog", "bird", "fish"]


def stories(count=40):
    return [f"there was once a {THINGS[row % 4]} and it had {row % 7} friends" for row in range(count)]


LABELS: dict[Any, Any] = {
    WORD: [THINGS[row % 4] for row in range(40)],
    WORDS: [[name for at, name in enumerate(THINGS) if at == row % 4 or row % 7 == at] for row in range(40)],
    NUMBER: [float(row % 4) - 1.5 for row in range(40)],
}


@pytest.fixture
def bert(tiny):
    return tiny("bert", "Model", max_tokens=64)


@pytest.fixture
def ready(prepare, bert):
    """The objective, its examples, and what was learned of them."""

    def make(label_type, **options):
        made = prepare(Classify, bert, label_type, **options)
        encoded = made.encode({"text": stories(), "label": LABELS[label_type]})
        assert not encoded.failures
        return made, encoded.examples, made.learned(made.counted(encoded.examples))

    return make


def test_it_is_found_by_its_name_and_needs_a_label():
    assert find("classify") is Classify
    with pytest.raises(JobError, match=r"data\.label is missing: classify needs a column"):
        Classify(Classify.Config(name="classify"), DataSettings(path="corpus", text="body"))


@pytest.mark.parametrize(
    ("type_", "problem"),
    [
        (pa.string(), "single_label_classification"),
        (pa.large_string(), "single_label_classification"),
        (pa.dictionary(pa.int32(), pa.string()), "single_label_classification"),
        (pa.list_(pa.string()), "multi_label_classification"),
        (pa.large_list(pa.large_string()), "multi_label_classification"),
        (pa.int64(), "regression"),
        (pa.float32(), "regression"),
        (pa.decimal128(9, 2), "regression"),
    ],
    ids=str,
)
def test_the_type_of_the_label_makes_the_problem(type_, problem):
    assert problem_of(type_, "wanted") == problem


@pytest.mark.parametrize("type_", [pa.bool_(), pa.list_(pa.int64()), pa.timestamp("us"), pa.binary()], ids=str)
def test_other_types_are_refused(type_):
    with pytest.raises(CorpusError, match=r"data\.label 'wanted' is .*; classify needs strings"):
        problem_of(type_, "wanted")


def test_an_example_holds_the_tokens_that_annotate_reads(prepare, bert, texts):
    made = prepare(Classify, bert, WORD, max_tokens=32)
    good = [text for text in texts if text.strip()]
    encoded = made.encode({"text": good, "label": ["a"] * len(good)})
    assert {failure.reason for failure in encoded.failures.values()} <= {Reason.NO_TOKENS}
    kept = [text for row, text in enumerate(good) if row not in encoded.failures]
    wanted = made.tokenizer(kept, truncation=True, max_length=32)["input_ids"]
    assert encoded.examples["input_ids"].to_pylist() == wanted
    assert encoded.examples["weight"].to_pylist() == [1.0] * len(kept)
    assert encoded.tokens == sum(map(len, wanted))
    made.tokenizer.backend_tokenizer.no_truncation()
    whole = [len(made.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in kept]
    assert encoded.truncated_rows == sum(length > 30 for length in whole) > 0


def test_pairs_are_put_side_by_side(prepare, bert):
    made = prepare(Classify, bert, WORD, data={"text_pair": "other"})
    assert list(made.inputs()) == ["text", "label", "text_pair"]
    encoded = made.encode({"text": ["a cat"], "text_pair": ["a dog"], "label": ["same"]})
    wanted = made.tokenizer("a cat", "a dog")
    assert encoded.examples["input_ids"].to_pylist() == [wanted["input_ids"]]
    assert encoded.examples["token_type_ids"].to_pylist() == [wanted["token_type_ids"]]
    assert made.prediction("said").annotations[0]["text_pair"] == "other"


@pytest.mark.parametrize(
    ("type_", "label", "reason"),
    [
        (WORD, None, Reason.NULL_LABEL),
        (WORDS, None, Reason.NULL_LABEL),
        (WORDS, ["a", None], Reason.NULL_LABEL),
        (NUMBER, None, Reason.NULL_LABEL),
        (NUMBER, float("nan"), Reason.BAD_LABEL),
        (NUMBER, float("-inf"), Reason.BAD_LABEL),
    ],
)
def test_a_bad_label_leaves_its_row_out(prepare, bert, type_, label, reason):
    made = prepare(Classify, bert, type_)
    encoded = made.encode({"text": ["a", "b", "\u200b"], "label": [label, LABELS[type_][0], LABELS[type_][0]]})
    assert {row: failure.reason for row, failure in encoded.failures.items()} == {0: reason, 2: Reason.NO_TOKENS}
    assert encoded.examples["target"].to_pylist() == [LABELS[type_][0]]


def test_a_row_with_no_label_of_several_is_a_row(prepare, bert):
    encoded = prepare(Classify, bert, WORDS).encode({"text": ["a"], "label": [[]]})
    assert encoded.examples["target"].to_pylist() == [[]]


def test_a_job_may_ask_for_as_many_labels_as_make_a_row(prepare, bert):
    made = prepare(Classify, bert, WORDS, min_labels=2)
    encoded = made.encode({"text": ["a", "b", "c"], "label": [[], ["cat", "dog"], ["cat"]]})
    assert {row: failure.reason for row, failure in encoded.failures.items()} == dict.fromkeys(
        (0, 2), Reason.TOO_FEW_LABELS
    )
    assert encoded.failures[2].detail == "'wanted' holds 1, and min_labels is 2"
    assert encoded.examples["target"].to_pylist() == [["cat", "dog"]]


def test_labels_are_learned_in_the_order_of_the_alphabet_with_their_rows(ready):
    made, _, learned = ready(WORD)
    assert learned == {"labels": ["bird", "cat", "dog", "fish"], "counts": [10, 10, 10, 10], "rows": 40}
    assert made.model_options(learned)["id2label"] == {0: "bird", 1: "cat", 2: "dog", 3: "fish"}
    made, _, learned = ready(WORDS)
    counts = [sum(name in labels for labels in LABELS[WORDS]) for name in learned["labels"]]
    assert learned == {"labels": sorted(THINGS), "counts": counts, "rows": 40}
    made, _, learned = ready(NUMBER)
    assert learned["mean"] == pytest.approx(np.mean(LABELS[NUMBER]))


def test_what_two_units_counted_adds_up(ready):
    for type_ in (WORD, WORDS, NUMBER):
        made, examples, learned = ready(type_)
        sums: dict[str, float] = {}
        for part in (examples.slice(0, 7), examples.slice(7)):
            for key, value in made.counted(part).items():
                sums[key] = sums.get(key, 0) + value
        assert made.learned(sums) == learned


def test_one_label_is_too_few_and_one_of_several_is_not(prepare, bert):
    with pytest.raises(CorpusError, match=r"the training rows have 1 label in 'wanted' \(cat\); at least 2 are needed"):
        prepare(Classify, bert, WORD).learned({"cat": 3})
    with pytest.raises(CorpusError, match="the training rows have 0 labels in 'wanted'"):
        prepare(Classify, bert, WORDS).learned({"": 3})
    assert prepare(Classify, bert, WORDS).learned({"cat": 3, "": 5})["rows"] == 5


def test_labels_that_no_training_row_has_are_told(ready, prepare, bert):
    made, _, learned = ready(WORD)
    made.check_known(learned, {"cat": 3}, "test")
    with pytest.raises(CorpusError, match="2 labels of 'wanted' in 5 test rows are in no training row: ant, bee;"):
        made.check_known(learned, {"cat": 3, "bee": 4, "ant": 1}, "test")
    with pytest.raises(CorpusError, match=r"30 labels .* 18, 19 …; leave them out"):
        made.check_known(learned, {f"{each:02}": 1 for each in range(30)}, "validation")
    made, _, learned = ready(NUMBER)
    made.check_known(learned, made.counted(pa.table({"target": [9.0]})), "test")


@pytest.mark.parametrize("type_", [WORD, WORDS, NUMBER], ids=str)
def test_the_loss_is_that_of_transformers_summed_over_the_rows(type_, ready, batch_of):
    made, examples, learned = ready(type_)
    module = made.build(learned, TrainingSettings()).eval()
    assert module.config.problem_type == made.problem
    assert module.config.num_labels == (1 if type_ == NUMBER else 4)
    batch = batch_of(made, examples, learned)
    inputs = {name: values for name, values in batch.items() if name != "target"}
    with torch.no_grad():
        theirs = module(**inputs, labels=batch["target"]).loss
        ours = made.loss(module, batch, learned)
        judged, _ = made.judge(module, batch, learned)
    torch.testing.assert_close(ours / 40, theirs)
    torch.testing.assert_close(judged, ours)
    parts = [made.loss(module, batch_of(made, each, learned), learned) for each in (examples[:7], examples[7:])]
    torch.testing.assert_close(sum(parts), ours)


def test_targets_are_numbers_of_labels_zeros_and_ones_or_values(ready, batch_of):
    for type_ in (WORD, WORDS, NUMBER):
        made, examples, learned = ready(type_)
        target = batch_of(made, examples, learned)["target"]
        if type_ == WORD:
            assert [learned["labels"][at] for at in target] == LABELS[WORD]
        elif type_ == WORDS:
            said = [
                [name for name, is_on in zip(learned["labels"], row, strict=True) if is_on] for row in target.tolist()
            ]
            assert said == [sorted(labels) for labels in LABELS[WORDS]]
        else:
            assert target.tolist() == LABELS[NUMBER]


@pytest.mark.parametrize("asked", ["balanced", "sqrt", {"cat": 3.0}])
def test_weights_of_labels_have_the_mean_one_over_the_rows(prepare, bert, batch_of, asked):
    made = prepare(Classify, bert, WORD, class_weights=asked)
    labels = ["cat"] * 24 + ["dog"] * 6 + ["bird"] * 2
    examples = made.encode({"text": stories(32), "label": labels}).examples
    learned = made.learned(made.counted(examples))
    weights = made._weights(learned, torch.zeros(1)).double().numpy()
    counts = np.array(learned["counts"])
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    if asked == "balanced":
        theirs = compute_class_weight("balanced", classes=np.array(learned["labels"]), y=labels)
        np.testing.assert_allclose(weights, theirs, rtol=1e-6)
    elif asked == "sqrt":
        np.testing.assert_allclose(weights[0] / weights[1], np.sqrt(24 / 2), rtol=1e-6)
    else:
        np.testing.assert_allclose(weights[1] / weights[0], 3, rtol=1e-6)
        np.testing.assert_allclose(weights[2], weights[0], rtol=1e-6)
    module = made.build(learned, TrainingSettings()).eval()
    batch = batch_of(made, examples, learned)
    with torch.no_grad():
        logits = module(**{name: values for name, values in batch.items() if name != "target"}).logits
        each = torch.nn.functional.cross_entropy(logits, batch["target"], reduction="none").double().numpy()
        ours = made.loss(module, batch, learned).item()
    assert ours == pytest.approx((each * weights[batch["target"].numpy()]).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "bias"), [("bert", "classifier"), ("roberta", "classifier.out_proj"), ("distilbert", "classifier")]
)
def test_a_new_head_begins_with_what_is_known_before_a_text_is_read(prepare, tiny, family, bias):
    labels = ["cat"] * 30 + ["dog"] * 8 + ["bird"] * 2
    several = [["cat", label] if label != "cat" else ["cat"] for label in labels]
    values = [float(row) for row in range(40)]
    folder = tiny(family, "Model", max_tokens=64)

    def begun(type_, targets, **options):
        made = prepare(Classify, folder, type_, **options)
        examples = made.encode({"text": stories(), "label": targets}).examples
        module = made.build(made.learned(made.counted(examples)), TrainingSettings())
        weights = module.get_submodule(bias)
        assert weights.weight.abs().max() > 0
        return weights.bias.detach()

    np.testing.assert_allclose(begun(WORD, labels).softmax(0), [2 / 40, 30 / 40, 8 / 40], atol=0.02)
    np.testing.assert_allclose(begun(WORDS, several).sigmoid(), [2 / 40, 1, 8 / 40], atol=0.02)
    np.testing.assert_allclose(begun(NUMBER, values), [np.mean(values)], rtol=1e-6)
    np.testing.assert_allclose(begun(WORD, labels, class_weights="balanced").softmax(0), [1 / 3] * 3, atol=0.05)


def test_a_head_that_the_model_has_stays(prepare, tiny):
    folder = tiny("bert", "SequenceClassification", max_tokens=64, labels=sorted(THINGS))
    made = prepare(Classify, folder, WORD)
    encoded = made.encode({"text": stories(), "label": ["cat"] * 30 + ["dog"] * 4 + ["bird"] * 4 + ["fish"] * 2})
    learned = made.learned(made.counted(encoded.examples))
    module = made.build(learned, TrainingSettings())
    theirs = safetensors.torch.load_file(folder / "model.safetensors")["classifier.bias"]
    assert torch.equal(module.classifier.bias, theirs)


def test_smoothing_is_that_of_torch(ready, batch_of):
    made, examples, learned = ready(WORD, label_smoothing=0.2)
    module = made.build(learned, TrainingSettings()).eval()
    batch = batch_of(made, examples, learned)
    with torch.no_grad():
        logits = module(**{name: values for name, values in batch.items() if name != "target"}).logits
        ours = made.loss(module, batch, learned)
    spread = torch.full(logits.shape, 0.2 / 4).scatter(1, batch["target"][:, None], 0.8 + 0.2 / 4)
    torch.testing.assert_close(ours, -(spread * logits.log_softmax(1)).sum())


def test_figures_of_a_validation_are_those_of_scikit_learn(ready, batch_of):
    for type_ in (WORD, WORDS):
        made, examples, learned = ready(type_)
        module = made.build(learned, TrainingSettings()).eval()
        parts, logits, wanted = [], [], []
        with torch.no_grad():
            for part in (examples[:13], examples[13:]):
                batch = batch_of(made, part, learned)
                parts.append(made.judge(module, batch, learned)[1])
                logits.append(module(**{name: each for name, each in batch.items() if name != "target"}).logits)
                wanted.append(batch["target"])
        said = torch.cat(logits).argmax(1) if type_ == WORD else torch.cat(logits).sigmoid() >= 0.5
        right = torch.cat(wanted).numpy()
        figures = made.score(np.concatenate(parts), learned)
        assert list(figures) == list(made.figures)
        assert figures["accuracy"] == pytest.approx(accuracy_score(right, said.numpy()))
        assert figures["macro_f1"] == pytest.approx(f1_score(right, said.numpy(), average="macro", zero_division=0))


def test_labels_that_no_row_wants_or_gets_do_not_count(ready):
    made, _, learned = ready(WORD)
    figures = made.score(np.array([[0, 0], [0, 1]]), learned)
    assert figures["macro_f1"] == pytest.approx(f1_score([0, 0], [0, 1], average="macro"))
    made, _, learned = ready(WORDS)
    assert made.score(np.zeros((3, 8)), learned) == {"macro_f1": 0.0, "accuracy": 1.0}


def test_of_values_the_validation_tells_the_mean_absolute_error(ready, batch_of):
    made, examples, learned = ready(NUMBER)
    module = made.build(learned, TrainingSettings()).eval()
    batch = batch_of(made, examples, learned)
    with torch.no_grad():
        _, judged = made.judge(module, batch, learned)
        said = module(**{name: each for name, each in batch.items() if name != "target"}).logits[:, 0].numpy()
    error = np.abs(said - np.array(LABELS[NUMBER])).mean()
    assert made.score(judged, learned) == {"mae": pytest.approx(error, rel=1e-5)}


@pytest.mark.parametrize(
    ("type_", "kind", "columns"),
    [
        (WORD, "labels", {"gold": "wanted", "predicted": "said_label", "score": "said_score"}),
        (WORDS, "multilabels", {"gold": "wanted", "labels": "said_labels", "scores": "said_scores"}),
        (NUMBER, "numbers", {"gold": "wanted", "predicted": "said_score"}),
    ],
    ids=str,
)
def test_the_prediction_names_the_columns_that_the_classify_task_gives(ready, trained, tmp_path, type_, kind, columns):
    made, _, learned = ready(type_)
    prediction = made.prediction("said")
    assert (prediction.kind, prediction.columns) == (kind, columns)
    module, losses = trained(made, {"text": stories(), "label": LABELS[type_]}, steps=80)
    assert losses[-1] < 0.2 * losses[0]
    made.save(made.finish(module, learned), str(tmp_path / "model"))
    model = ModelSettings(ref=str(tmp_path / "model"))
    task = ClassifyTask(ClassifyTask.Config.model_validate({**prediction.annotations[0], "model": model}), pin(model))
    task.start(load(pin(model), task.needs, dtype="float32", device="cpu", threads=1, token_budget=512))
    found = task.annotate(Texts(stories())).columns
    given = {f"said_{name}" for name in found}
    assert {name for meant, name in columns.items() if meant != "gold"} <= given
    if type_ == WORD:
        assert (
            np.mean([one == other for one, other in zip(found["label"].to_pylist(), LABELS[WORD], strict=True)]) > 0.9
        )
    elif type_ == WORDS:
        said = [
            {name for name, score in zip(names, scores, strict=True) if score >= 0.5}
            for names, scores in zip(found["labels"].to_pylist(), found["scores"].to_pylist(), strict=True)
        ]
        assert np.mean([one == set(other) for one, other in zip(said, LABELS[WORDS], strict=True)]) > 0.8
    else:
        assert np.abs(np.array(found["score"].to_pylist()) - np.array(LABELS[NUMBER])).mean() < 0.6


def test_an_empty_label_is_none() -> None:
    """Neither the softmax nor the count of rows knows the empty text."""
    for label, value in ((pa.string(), ""), (pa.list_(pa.string()), ["games", ""])):
        objective = Classify(Classify.Config(name="classify"), DataSettings(path="c", text="t", label="l"))
        objective.check_label(label)
        failure = objective._fault(value)
        assert failure is not None
        assert failure.reason == Reason.BAD_LABEL


def test_values_are_chosen_by_their_error() -> None:
    objective = Classify(Classify.Config(name="classify"), DataSettings(path="c", text="t", label="l"))
    objective.check_label(pa.float64())
    assert objective.validation_figures() == {"mae": False}
    assert objective.score(np.array([[1.0, 2.0], [3.0, 3.5]]), {}) == {"mae": 0.75}
