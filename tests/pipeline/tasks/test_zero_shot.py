import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.errors import JobError
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
