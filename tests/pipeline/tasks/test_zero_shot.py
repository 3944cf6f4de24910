from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.errors import JobError, ModelError
from pipeline.tasks.base import Texts
from pipeline.tasks.embed import Embed
from pipeline.tasks.zero_shot import ZeroShot

TOPICS = {"games": "ak bl cm", "web": "dn eo", "math": "fp gq hr is jt"}


def found(task, texts):
    annotation = task.annotate(Texts(list(texts)))
    assert [pa.field(name, column.type) for name, column in annotation.columns.items()] == task.fields()
    return {name: column.to_pylist() for name, column in annotation.columns.items()}


@pytest.fixture
def cosines(make_encoder, start, sentences):
    """Of each sentence to each topic, from embeddings."""
    embed = start(Embed, make_encoder(), normalize=True)
    vectors = embed.annotate(Texts([*sentences, *TOPICS.values()])).columns["embedding"].to_pylist()
    return np.array(vectors[:-3]) @ np.array(vectors[-3:]).T


def test_the_nearest_label_and_its_cosine(make_encoder, start, sentences, cosines):
    columns = found(start(ZeroShot, make_encoder(), labels=TOPICS), sentences)
    assert columns["label"] == [list(TOPICS)[number] for number in cosines.argmax(1)]
    np.testing.assert_allclose(columns["score"], cosines.max(1), atol=1e-5)


def test_all_scores_stand_in_the_jobs_order(make_encoder, start, sentences, cosines):
    columns = found(start(ZeroShot, make_encoder(), labels=TOPICS, all_scores=True), sentences)
    assert columns["labels"] == [list(TOPICS)] * len(sentences)
    np.testing.assert_allclose(columns["scores"], cosines, atol=1e-5)


def test_the_nearest_labels_stand_nearest_first(make_encoder, start, sentences, cosines):
    columns = found(start(ZeroShot, make_encoder(), labels=TOPICS, top_k=2), sentences)
    np.testing.assert_allclose(columns["scores"], -np.sort(-cosines, axis=1)[:, :2], atol=1e-5)


def test_below_the_threshold_there_is_no_label(make_encoder, start, sentences, cosines):
    threshold = float(np.median(cosines.max(1)))
    columns = found(start(ZeroShot, make_encoder(), labels=TOPICS, threshold=threshold), sentences)
    near_R = [score >= threshold for score in columns["score"]]
    assert [label is not None for label in columns["label"]] == near_R
    assert 0 < sum(near_R) < len(near_R)


def test_a_list_of_labels_describes_itself(make_encoder, start, sentences):
    named = found(start(ZeroShot, make_encoder(), labels={"ak": "ak", "bl": "bl"}), sentences)
    assert found(start(ZeroShot, make_encoder(), labels=["ak", "bl"]), sentences) == named


def test_of_labels_equally_near_the_first_wins(make_encoder, start, sentences):
    twins = start(ZeroShot, make_encoder(), labels={"second": "ak bl", "first": "ak bl"})
    assert set(found(twins, sentences)["label"]) == {"second"}


def test_a_failed_text_is_null(make_encoder, start):
    columns = found(start(ZeroShot, make_encoder(), labels=TOPICS), ["ak", "\u200b"])
    assert (columns["label"][1], columns["score"][1]) == (None, None)


def test_minilm_knows_a_game_from_a_web_server(minilm, start):
    labels = {"games": "a video game or puzzle to play", "web": "a web server, browser or tool for web sites"}
    texts = ["This is a chess program with a graphical board.", "A fast HTTP daemon that serves static pages."]
    assert found(start(ZeroShot, minilm, dtype="bfloat16", labels=labels), texts)["label"] == ["games", "web"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ["games"]}, "at least 2 items"),
        ({"labels": ["games", "games"]}, "labels: 'games' stands there twice"),
        ({"labels": ["games", "  "]}, "should match pattern"),
        ({"labels": ["games", "web"], "top_k": 3}, "top_k 3 is more than the 2 labels"),
        ({"labels": ["games", "web"], "top_k": 1, "all_scores": True}, "top_k and all_scores exclude each other"),
        ({"labels": ["games", "web"], "threshold": 2.0}, "less than or equal to 1"),
        ({}, "labels\n  Field required"),
        (
            {"labels": ["a", "b"], "hypothesis_template": "It is so."},
            "'It is so.' has no place for the label: write {}",
        ),
        (
            {"labels": ["a", "b"], "hypothesis_template": "It is {x}."},
            "cannot take a label (KeyError: 'x'): write one {}",
        ),
        ({"labels": ["a", "b"], "hypothesis_template": "{} {}"}, "cannot take a label (IndexError"),
        ({"labels": ["a", "b"], "hypothesis_template": "It is {.name}."}, "cannot take a label (AttributeError"),
        ({"labels": ["a", "b"], "hypothesis_template": "It is {0[a]}."}, "cannot take a label (TypeError"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        ZeroShot.Config.model_validate({"name": "a", "task": "zero_shot", "text": "b", "model": "c", **options})
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("ak " * 63, "is longer than 64 tokens: shorten it, or raise max_tokens"),
        ("\u200b", "gives no vector: no_tokens: the tokenizer finds no token in 1 characters"),
    ],
)
def test_a_description_that_cannot_be_read_whole_is_refused(make_encoder, start, description, words):
    with pytest.raises(JobError, match=f"annotation 'found': the description of label 'web' {words}"):
        start(ZeroShot, make_encoder(), labels={"games": "ak", "web": description})


WINDOW = 40
NLI = ["contradiction", "neutral", "entailment"]
LABELS = ["politics", "die Bahn", "погода"]


def of_families(tiny):
    """Models of inference, each with its classes in another order."""
    return {
        "bert": tiny("bert", "SequenceClassification", max_tokens=WINDOW, labels=NLI),
        "roberta": tiny("roberta", "SequenceClassification", max_tokens=WINDOW, labels=[name.upper() for name in NLI]),
        "bart": tiny("bart", "SequenceClassification", max_tokens=WINDOW, labels=NLI),
        "deberta-v3": tiny("deberta-v3", "SequenceClassification", max_tokens=WINDOW, labels=NLI[::-1]),
    }


def by_pipeline(folder, texts, **options):
    """Label -> score of each text."""
    from transformers import ZeroShotClassificationPipeline

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = WINDOW
    module = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    said = ZeroShotClassificationPipeline(model=module, tokenizer=tokenizer)(texts, candidate_labels=LABELS, **options)
    return [dict(zip(each["labels"], each["scores"], strict=True)) for each in said]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("roberta", {"hypothesis_template": "{} — о чём это?"}),
        ("bart", {}),
        ("deberta-v3", {}),
        ("bert", {"multi_label": True}),
        ("deberta-v3", {"multi_label": True, "hypothesis_template": "Is it {}"}),
    ],
)
def test_inference_says_what_the_librarys_pipeline_says(tiny, start, texts, family, options):
    folder = of_families(tiny)[family]
    task = start(ZeroShot, folder, token_budget=2048, labels=LABELS, top_k=3, max_tokens=WINDOW, **options)
    assert task.needs == "AutoModelForSequenceClassification"
    annotation = task.annotate(Texts(list(texts)))
    scores = {name: annotation.columns[name].to_pylist() for name in ("labels", "scores")}
    kept = [row for row, names in enumerate(scores["labels"]) if names is not None]
    assert len(kept) >= 200
    assert annotation.failures.keys() == set(range(len(texts))) - set(kept)
    assert 0 < annotation.truncated_R.sum() < len(texts)
    for row, expected in zip(kept, by_pipeline(folder, [texts[row] for row in kept], **options), strict=True):
        ours = dict(zip(scores["labels"][row], scores["scores"][row], strict=True))
        assert ours == pytest.approx(expected, abs=1e-4)
        assert scores["scores"][row] == sorted(scores["scores"][row], reverse=True)


def test_inference_gives_the_columns_that_similarity_gives(tiny, start, texts):
    folder, few = of_families(tiny)["bert"], texts[:30]
    labels = {"politics": "a vote", "train": "die Bahn"}
    every = found(start(ZeroShot, folder, labels=labels, all_scores=True), few)
    best = found(start(ZeroShot, folder, labels=labels), few)
    sure = found(start(ZeroShot, folder, labels=labels, threshold=0.6), few)
    for row, scores in enumerate(every["scores"]):
        if scores is None:
            assert (best["label"][row], best["score"][row]) == (None, None)
            continue
        assert every["labels"][row] == ["politics", "train"]
        assert sum(scores) == pytest.approx(1)
        assert best["score"][row] == max(scores)
        assert best["label"][row] == ["politics", "train"][int(np.argmax(scores))]
        assert sure["label"][row] == (best["label"][row] if max(scores) >= np.float32(0.6) else None)


def test_tokens_of_inference_are_those_of_every_pair_and_a_second_annotation_runs_no_model(tiny, start):
    folder = of_families(tiny)["bert"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = Texts(["Der Zug fährt.", " ", "a vote"])
    first = start(ZeroShot, folder, labels=LABELS).annotate(texts)
    sentences = [f"This example is {label}." for label in LABELS]
    counted = [
        sum(len(tokenizer(text, sentence)["input_ids"]) for sentence in sentences)
        for text in ("Der Zug fährt.", "a vote")
    ]
    assert first.tokens_R.tolist() == [counted[0], 0, counted[1]]
    assert first.forward_tokens == sum(counted)
    assert first.failures[1].reason == "no_tokens"
    again = start(ZeroShot, folder, labels=LABELS, multi_label=True, top_k=1).annotate(texts)
    assert again.forward_tokens == 0


def test_who_listens_is_told_the_texts_and_one_at_fault_fails_alone(tiny, start):
    told: list[Sequence[int]] = []

    def edit(_module, _args, inputs):
        if (inputs["input_ids"] == bad).any():
            raise RuntimeError("no such town")

    folder = of_families(tiny)["bert"]
    bad = AutoTokenizer.from_pretrained(folder)("q", add_special_tokens=False)["input_ids"][0]
    task = start(ZeroShot, folder, labels=["die Bahn", "vote"], edit=edit, token_budget=4096)
    annotation = task.annotate(Texts(["Der Zug", "q q", "a vote"], running=told.append))
    assert list(annotation.failures) == [1]
    assert annotation.failures[1].detail == "RuntimeError: no such town"
    assert annotation.columns["label"].is_null().to_pylist() == [False, True, False]
    assert {row for rows in told for row in rows} == {0, 1, 2}


def test_the_model_decides_the_method_unless_the_job_does(tiny, make_encoder, prepare):
    folder = of_families(tiny)["bert"]
    topics = tiny("bert", "SequenceClassification", labels=["games", "web", "math"])
    assert prepare(ZeroShot, folder, labels=LABELS).needs == "AutoModelForSequenceClassification"
    assert prepare(ZeroShot, folder, labels=LABELS, method="similarity").needs == "AutoModel"
    assert prepare(ZeroShot, topics, labels=LABELS).needs == "AutoModel"
    assert prepare(ZeroShot, make_encoder(), labels=LABELS).needs == "AutoModel"


@pytest.mark.parametrize(
    ("classes", "options", "fault", "words"),
    [
        (["games", "web"], {"method": "nli"}, ModelError, "has no class that is called entailment \\(games, web\\)"),
        (
            ["entailment", "other", "none"],
            {"multi_label": True},
            ModelError,
            "has no class that is called contradiction",
        ),
        (NLI, {"pooling": "cls"}, JobError, "pooling is an option of `method: similarity`, and with .* this is nli"),
        (
            NLI,
            {"method": "similarity", "multi_label": False},
            JobError,
            "multi_label is an option of `method: nli`, and",
        ),
        (NLI, {"long_text": "windows"}, JobError, "`method: nli` reads a text in one window; leave `long_text: trunc"),
    ],
)
def test_a_method_that_the_model_or_an_option_does_not_go_with_is_refused(
    tiny, prepare, classes, options, fault, words
):
    with pytest.raises(fault, match=words):
        prepare(ZeroShot, tiny("bert", "SequenceClassification", labels=classes), labels=LABELS, **options)


def test_a_model_without_a_head_is_refused_for_inference(make_encoder, prepare):
    with pytest.raises(ModelError, match=r"is of another kind .*; `method: nli` needs one with a head for sequences"):
        prepare(ZeroShot, make_encoder(), labels=LABELS, method="nli")


def test_a_sentence_that_leaves_no_room_for_a_text_is_refused(tiny, start):
    with pytest.raises(
        JobError, match=r"the sentence of label 'b' has .* tokens, which leaves no room for a text in a w"
    ):
        start(ZeroShot, of_families(tiny)["bert"], labels={"a": "a", "b": "b " * 40})


def test_a_sentence_without_tokens_is_refused(tiny, start):
    folder = of_families(tiny)["bert"]
    with pytest.raises(JobError, match="annotation 'found': the sentence of label 'nothing' has no token"):
        start(ZeroShot, folder, labels={"a": "a", "nothing": "\u200b"}, hypothesis_template="{}\u200b")
