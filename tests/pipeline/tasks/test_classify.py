import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.errors import JobError, ModelError
from pipeline.tasks.base import TextInput, Texts
from pipeline.tasks.classify import Classify

NAMES = ["games", "web", "math"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
MULTI = {**LABELS, "problem_type": "multi_label_classification"}


@pytest.fixture
def classifier(make_encoder):
    def make(kind="bert", **options):
        return make_encoder(kind, "ForSequenceClassification", **options)

    return make


def logits(folder, texts, max_tokens=64):
    """One text at a time, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = [tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt") for text in texts]
        return torch.cat([module(**each).logits for each in inputs])


def found(task, texts):
    annotation = task.annotate(Texts(list(texts)))
    assert [pa.field(name, column.type) for name, column in annotation.columns.items()] == task.fields()
    return {name: column.to_pylist() for name, column in annotation.columns.items()}


@pytest.fixture
def relabelled(classifier, tmp_path):
    """A classifier's folder with another config.json."""

    def make(folder, **options):
        target = tmp_path / "relabelled"
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text())
        config = {key: value for key, value in {**config, **options}.items() if value is not None}
        (target / "config.json").write_text(json.dumps(config))
        return target

    return make


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_best_label_and_its_probability(classifier, start, sentences, kind):
    expected_RL = logits(classifier(kind, **LABELS), sentences).softmax(1)
    columns = found(start(Classify, classifier(kind, **LABELS)), sentences)
    assert columns["label"] == [NAMES[number] for number in expected_RL.argmax(1)]
    np.testing.assert_allclose(columns["score"], expected_RL.amax(1), atol=1e-5)


def test_all_scores_stand_in_the_models_order(classifier, start, sentences):
    columns = found(start(Classify, classifier(**LABELS), all_scores=True), sentences)
    assert columns["labels"] == [NAMES] * len(sentences)
    np.testing.assert_allclose(columns["scores"], logits(classifier(**LABELS), sentences).softmax(1), atol=1e-5)


def test_the_top_labels_stand_best_first(classifier, start, sentences):
    expected = logits(classifier(**LABELS), sentences).softmax(1).topk(2)
    columns = found(start(Classify, classifier(**LABELS), top_k=2), sentences)
    assert columns["labels"] == [[NAMES[number] for number in row] for row in expected.indices]
    np.testing.assert_allclose(columns["scores"], expected.values, atol=1e-5)


@pytest.mark.parametrize(("options", "threshold"), [({}, 0.5), ({"threshold": 0.9}, 0.9), ({"threshold": 0.0}, 0.0)])
def test_several_labels_at_once_are_those_over_the_threshold(classifier, start, sentences, options, threshold):
    expected_RL = logits(classifier(**MULTI), sentences).sigmoid()
    columns = found(start(Classify, classifier(**MULTI), **options), sentences)
    for row, scores_L in enumerate(expected_RL):
        kept = [int(number) for number in scores_L.argsort(descending=True) if scores_L[number] >= threshold]
        assert columns["labels"][row] == [NAMES[number] for number in kept]
        np.testing.assert_allclose(columns["scores"][row], scores_L[kept], atol=1e-5)


def test_the_top_labels_of_several_at_once(classifier, start, sentences):
    columns = found(start(Classify, classifier(**MULTI), top_k=1), sentences)
    np.testing.assert_allclose(
        columns["scores"], logits(classifier(**MULTI), sentences).sigmoid().topk(1).values, atol=1e-5
    )


def test_the_job_may_say_which_problem_it_is(classifier, start, sentences):
    asked = start(Classify, classifier(**LABELS), problem_type="multi_label_classification", all_scores=True)
    expected = logits(classifier(**LABELS), sentences).sigmoid()
    np.testing.assert_allclose(found(asked, sentences)["scores"], expected, atol=1e-5)


def test_a_single_output_is_a_value(classifier, start, sentences):
    task = start(Classify, classifier(num_labels=1))
    assert task.fields() == [pa.field("score", pa.float32())]
    expected = logits(classifier(num_labels=1), sentences)[:, 0]
    np.testing.assert_allclose(found(task, sentences)["score"], expected, atol=1e-5)


@pytest.mark.parametrize(("how", "by_hand"), [("mean", np.mean), ("max", np.max)])
def test_long_texts_pool_the_probabilities_of_their_windows(classifier, start, sentences, how, by_hand):
    folder = classifier(**LABELS)
    options = {"max_tokens": 12, "long_text": "windows", "stride": 0, "window_pooling": how, "all_scores": True}
    scores = found(start(Classify, folder, **options), sentences)["scores"]
    for text, row in zip(sentences, scores, strict=True):
        words = text.split()
        parts = [" ".join(words[first : first + 10]) for first in range(0, len(words), 10)]
        expected = by_hand(logits(folder, parts).softmax(1).numpy(), axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_a_failed_text_is_null(classifier, start):
    texts = ["ak", "\u200b", "al"]
    assert found(start(Classify, classifier(**LABELS)), texts)["label"][1] is None
    assert found(start(Classify, classifier(**MULTI)), texts)["labels"][1] is None
    assert found(start(Classify, classifier(num_labels=1)), texts)["score"][1] is None


def test_labels_without_names_are_numbered(classifier, relabelled, prepare, start):
    task = start(Classify, relabelled(classifier(**LABELS), id2label=None, num_labels=3), all_scores=True)
    assert found(task, ["ak"])["labels"] == [["LABEL_0", "LABEL_1", "LABEL_2"]]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            {"0": "games", "1": "web"},
            "has more labels than names: its head has 3 rows, and id2label in config.json names 2",
        ),
        ({str(number): str(number) for number in range(4)}, "has more names than labels: its head has 3 rows"),
        ({"1": "games", "2": "web", "3": "math"}, "id2label in config.json does not count from 0 without gaps"),
        ({"games": 0, "web": 1, "math": 2}, "id2label in config.json does not name labels by their numbers, .*'games'"),
        (["games", "web", "math"], "id2label in config.json does not name labels by their numbers"),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_names_that_do_not_fit_the_head_are_refused(classifier, relabelled, prepare, kind, names, words):
    with pytest.raises(ModelError, match=words):
        prepare(Classify, relabelled(classifier(kind, **LABELS), id2label=names))


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("BertModel", "encoder"),
        ("T5ForConditionalGeneration", "seq2seq"),
        ("BertForTokenClassification", "token_class"),
    ],
)
def test_a_model_of_another_kind_is_refused(classifier, relabelled, prepare, architecture, kind):
    with pytest.raises(
        ModelError, match=f"is of another kind \\({kind}.*: {architecture}\\); classify needs one with a hea"
    ):
        prepare(Classify, relabelled(classifier(**LABELS), architectures=[architecture]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 2, "all_scores": True}, "top_k and all_scores exclude each other"),
        ({"top_k": 2, "threshold": 0.1}, "top_k and threshold exclude each other"),
        ({"all_scores": True, "problem_type": "regression"}, "all_scores needs labels; regression gives one value"),
        ({"threshold": 0.3, "problem_type": "single_label_classification"}, "threshold needs several labels at once"),
        ({"threshold": 1.3}, "less than or equal to 1"),
        ({"text_pair": "c", "long_text": "windows"}, "text_pair needs `long_text: truncate`; a pair is read in one"),
        ({"top_k": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        Classify.Config.model_validate({"name": "a", "task": "classify", "text": "b", "model": "c", **options})
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            LABELS,
            {"threshold": 0.3},
            "threshold needs several labels .* set `problem_type: multi_label_classification`",
        ),
        (LABELS, {"top_k": 4}, "top_k: 4 is more than the 3 labels of the model"),
        ({"num_labels": 1}, {"label_names": {"LABEL_0": "value"}}, "top_k, all_scores and label_names need labels"),
        ({"num_labels": 1}, {"top_k": 1}, "top_k, all_scores and label_names need labels; .* gives one value"),
        (LABELS, {"problem_type": "regression"}, "regression gives one value, and .* gives 3"),
    ],
)
def test_options_that_this_model_gives_no_sense_to_are_refused(classifier, prepare, model, options, words):
    with pytest.raises(JobError, match=f"annotation 'found': {words}"):
        prepare(Classify, classifier(**model), **options)


# Families with a head for sequences, and how many classes; GPT-2 and Llama have no token to pad with.
FAMILIES = (
    "bert",
    "distilbert",
    "electra",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "deberta-v2",
    "deberta-v3",
    "modernbert",
    "t5",
    "bart",
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
)
WINDOW = 32


def assert_as_the_pipeline_says(found, folder, texts, pairs=None, least=200, **options):
    """Labels and scores of at least so many texts that did not fail, each text alone."""
    from transformers import TextClassificationPipeline

    pipe = TextClassificationPipeline(
        model=AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    kept = [row for row, names in enumerate(found["labels"]) if names is not None]
    assert len(kept) >= least
    inputs = [texts[row] if pairs is None else {"text": texts[row], "text_pair": pairs[row]} for row in kept]
    expected = pipe(inputs, top_k=None, truncation="longest_first", max_length=WINDOW, **options)
    for row, said in zip(kept, expected, strict=True):
        theirs = {each["label"]: each["score"] for each in said}
        ours = dict(zip(found["labels"][row], found["scores"][row], strict=True))
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_the_librarys_pipeline_says(tiny, start, texts_of, least_of, family):
    texts = texts_of(family)
    folder = tiny(family, "SequenceClassification", labels=NAMES)
    task = start(Classify, folder, token_budget=2048, all_scores=True, max_tokens=WINDOW)
    assert_as_the_pipeline_says(found(task, texts), folder, texts, least=least_of(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_of_pairs_what_the_librarys_pipeline_says(tiny, start, texts_of, least_of, family):
    texts = texts_of(family)
    folder = tiny(family, "SequenceClassification", labels=NAMES)
    others = texts[7:] + texts[:7]
    options = {"text_pair": "other", "top_k": 3, "max_tokens": WINDOW}
    task = start(Classify, folder, token_budget=2048, **options)
    annotation = task.annotate(Texts(list(texts), {"text": texts, "text_pair": others}))
    columns = {name: column.to_pylist() for name, column in annotation.columns.items()}
    assert_as_the_pipeline_says(columns, folder, texts, others, least_of(family))
    assert 0 < annotation.truncated_R.sum() < len(texts)
    for scores in columns["scores"]:
        assert scores is None or scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_sigmoids_and_values_are_the_pipelines(tiny, start, texts, family):
    folder = tiny(family, "SequenceClassification", labels=NAMES)
    task = start(
        Classify,
        folder,
        problem_type="multi_label_classification",
        all_scores=True,
        max_tokens=WINDOW,
        token_budget=999,
    )
    assert_as_the_pipeline_says(found(task, texts), folder, texts, function_to_apply="sigmoid")
    folder = tiny(family, "SequenceClassification", labels=["value"])
    values = found(start(Classify, folder, max_tokens=WINDOW, token_budget=999), texts)["score"]
    named = {"labels": [None if value is None else ["value"] for value in values], "scores": [[v] for v in values]}
    assert_as_the_pipeline_says(named, folder, texts, function_to_apply="none")


def test_labels_bear_the_jobs_names(classifier, start, sentences):
    folder = classifier(**LABELS)
    named = {"web": "internet", "games": "play"}
    plain, renamed = (found(start(Classify, folder, **options), sentences) for options in ({}, {"label_names": named}))
    assert renamed["label"] == [named.get(label, label) for label in plain["label"]]
    assert renamed["score"] == plain["score"]
    assert set(renamed["label"]) & {"internet", "play"}
    swapped = found(start(Classify, folder, label_names={"web": "math", "math": "web"}), sentences)
    assert swapped["label"] == [{"web": "math", "math": "web"}.get(label, label) for label in plain["label"]]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"wbe": "internet"}, "the model has no label 'wbe'; did you mean 'web'\\? it has games, web, math"),
        ({"9": "internet"}, "the model has no label '9'; it has games, web, math"),
        ({"web": "internet", "games": "internet"}, "games and web would both be 'internet'; keep them apart, and add"),
        ({"web": "games"}, "games and web would both be 'games'"),
    ],
)
def test_names_that_the_model_has_not_or_that_merge_are_refused(classifier, prepare, names, words):
    with pytest.raises(JobError, match=f"annotation 'found': label_names: {words}"):
        prepare(Classify, classifier(**LABELS), label_names=names)


def test_the_second_text_of_a_pair_is_an_input_that_may_be_words(classifier, prepare):
    assert list(prepare(Classify, classifier(**LABELS)).inputs()) == ["text"]
    inputs = prepare(Classify, classifier(**LABELS), text_pair="is about games").inputs()
    assert list(inputs) == ["text", "text_pair"]
    assert inputs["text_pair"] == TextInput("is about games", may_be_words=True)
