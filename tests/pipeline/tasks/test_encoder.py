"""What all tasks with an encoder share, seen through `embed`."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers import AutoModel, AutoTokenizer

from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import DEFAULT_WINDOW_TOKENS
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.embed import Embed
from pipeline.tasks.zero_shot import ZeroShot

POISON = "jt"


@pytest.fixture
def poison_id(make_encoder):
    return AutoTokenizer.from_pretrained(make_encoder()).convert_tokens_to_ids(POISON)


def vectors(annotation):
    return np.array([row or [np.nan] * 32 for row in annotation.columns["embedding"].to_pylist()], np.float32)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_a_long_text_is_pooled_from_windows_as_by_hand(make_encoder, start, sentences, how):
    folder = make_encoder()
    task = start(Embed, folder, max_tokens=12, long_text="windows", stride=3, window_pooling=how)
    annotation = task.annotate(Texts(sentences))
    tokenizer, module = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    expected, tokens = [], []
    for text in sentences:
        found = tokenizer(text, truncation=True, max_length=12, stride=3, return_overflowing_tokens=True)["input_ids"]
        with torch.inference_mode():
            hidden = [module(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy() for ids in found]
        expected.append(np.mean(hidden, 0) if how == "mean" else np.max(hidden, 0))
        tokens.append(sum(map(len, found)))
    np.testing.assert_allclose(vectors(annotation), np.stack(expected), atol=1e-5)
    assert annotation.tokens_R.tolist() == tokens
    assert annotation.forward_tokens == sum(tokens)
    assert not annotation.truncated_R.any()


def test_windows_share_an_eighth_by_default(make_encoder, start, sentences):
    default = start(Embed, make_encoder(), max_tokens=32, long_text="windows").annotate(Texts(sentences))
    stated = start(Embed, make_encoder(), max_tokens=32, long_text="windows", stride=4).annotate(Texts(sentences))
    assert default.tokens_R.tolist() == stated.tokens_R.tolist()


def test_a_cut_text_is_told(make_encoder, start, sentences):
    annotation = start(Embed, make_encoder(), max_tokens=12).annotate(Texts(sentences))
    assert annotation.truncated_R.tolist() == [len(text.split()) > 10 for text in sentences]
    assert annotation.tokens_R.max() == 12
    assert annotation.tokens_R.dtype == np.int32


def test_annotations_of_one_model_share_tokens_and_the_forward_pass(make_encoder, start, sentences):
    embed = start(Embed, make_encoder(), name="text")
    topic = start(ZeroShot, make_encoder(), name="topic", labels=["ak", "bl"])
    texts = Texts(sentences)
    first, second = embed.annotate(texts), topic.annotate(texts)
    assert first.forward_tokens == first.tokens_R.sum() == second.tokens_R.sum()
    assert first.padding_tokens > 0
    assert (second.forward_tokens, second.padding_tokens) == (0, 0)
    alone = topic.annotate(Texts(sentences))
    assert alone.columns == second.columns
    assert alone.forward_tokens == first.forward_tokens


@pytest.mark.parametrize(
    ("options", "shares_pieces"),
    [
        ({"pooling": "cls"}, True),
        ({"normalize": True}, True),
        ({"max_tokens": 20}, False),
        ({"prefix": "ak "}, False),
        ({"long_text": "windows"}, False),
    ],
)
def test_what_differs_is_not_shared(make_encoder, start, sentences, options, shares_pieces):
    plain, other = start(Embed, make_encoder()), start(Embed, make_encoder(), **options)
    texts = Texts(sentences)
    plain.annotate(texts)
    found = other.annotate(texts)
    alone = other.annotate(Texts(sentences))
    assert found.columns["embedding"].equals(alone.columns["embedding"])
    assert sum("pieces" in key for key in texts.shared if isinstance(key, tuple)) == (1 if shares_pieces else 2)
    assert (found.forward_tokens == 0) == ("normalize" in options)


def test_a_text_that_the_model_fails_at_fails_alone(make_encoder, start, sentences, poison_id):
    def fail(module, args, inputs):
        if (inputs["input_ids"] == poison_id).any():
            raise ValueError("this word is too much")

    texts = [*sentences[:5], f"ak {POISON}", *sentences[5:10]]
    texts = [text if row == 5 else text.replace(POISON, "ak") for row, text in enumerate(texts)]
    annotation = start(Embed, make_encoder(), edit=fail).annotate(Texts(texts))
    assert {row: failure.reason for row, failure in annotation.failures.items()} == {5: Reason.MODEL_FAILED}
    assert annotation.failures[5].detail == "ValueError: this word is too much"
    expected = vectors(start(Embed, make_encoder()).annotate(Texts(texts)))
    others = [row for row in range(len(texts)) if row != 5]
    np.testing.assert_allclose(vectors(annotation)[others], expected[others], atol=1e-5)
    assert np.isnan(vectors(annotation)[5]).all()


def test_a_failed_window_fails_its_text(make_encoder, start, poison_id):
    def fail(module, args, inputs):
        if (inputs["input_ids"] == poison_id).any():
            raise MemoryError("9 GiB")

    task = start(Embed, make_encoder(), edit=fail, max_tokens=8, long_text="windows", window_pooling="max")
    annotation = task.annotate(Texts(["ak " * 20, "ak " * 20 + POISON, "bl"]))
    assert {row: failure.reason for row, failure in annotation.failures.items()} == {1: Reason.OUT_OF_MEMORY}
    assert annotation.columns["embedding"].is_null().to_pylist() == [False, True, False]


def test_numbers_that_are_not_finite_fail_their_text_alone(make_encoder, start, poison_id):
    task = start(Embed, make_encoder())
    weights = task.loaded.module.get_input_embeddings().weight
    with torch.no_grad():
        weights[poison_id] = float("inf")
    annotation = task.annotate(Texts(["ak bl", f"ak {POISON}", "bl ak"]))
    assert {row: failure.reason for row, failure in annotation.failures.items()} == {1: Reason.NON_FINITE_OUTPUT}


def test_texts_without_tokens_and_no_texts_at_all(make_encoder, start):
    task = start(Embed, make_encoder())
    nothing = task.annotate(Texts(["\u200b", "\u200b"]))
    assert {failure.reason for failure in nothing.failures.values()} == {Reason.NO_TOKENS}
    assert nothing.columns["embedding"].null_count == 2
    assert nothing.forward_tokens == 0
    assert len(task.annotate(Texts([])).columns["embedding"]) == 0


def test_the_journal_hears_which_texts_are_about_to_run(make_encoder, start):
    told: list[list[int]] = []
    texts = Texts(["ak", "bl " * 20, "\u200b", "cm " * 6], running=told.append)  # type: ignore[arg-type]
    start(Embed, make_encoder(), max_tokens=12, long_text="windows", token_budget=24).annotate(texts)
    assert told == [[1], [0, 1, 3]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 3}, "stride needs `long_text: windows`; with truncate there is one window"),
        ({"window_pooling": "max"}, "window_pooling needs `long_text: windows`"),
        ({"long_text": "windows", "max_tokens": 12, "stride": 12}, "stride 12 must be less than max_tokens 12"),
        ({"long_text": "windows", "stride": -1}, "greater than or equal to 0"),
        ({"pooling": "sum"}, "'mean', 'cls', 'max' or 'last'"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        Embed.Config.model_validate({"name": "a", "task": "embed", "text": "b", "model": "c", **options})
    assert words in str(told.value)


def test_a_task_without_its_model_is_refused():
    config = Embed.Config.model_validate({"name": "a", "task": "embed", "text": "b"})
    with pytest.raises(JobError, match="annotation 'a': the task 'embed' needs a `model`"):
        Embed(config, None)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 64), ("roberta", 64)])
def test_a_window_over_the_models_positions_is_refused(make_encoder, prepare, kind, positions):
    prepare(Embed, make_encoder(kind), max_tokens=positions)
    with pytest.raises(
        JobError, match=f"max_tokens: 65 is more than the {positions} positions of .*`long_text: windows`"
    ):
        prepare(Embed, make_encoder(kind), max_tokens=65)


def test_an_overlap_that_leaves_no_room_beside_special_tokens_is_refused(make_encoder, start):
    with pytest.raises(JobError, match="annotation 'found': stride: 10 tokens of overlap leave no room"):
        start(Embed, make_encoder(), max_tokens=12, long_text="windows", stride=10)


def test_the_window_is_the_models_own_unless_nothing_bounds_it(make_encoder, prepare, tmp_path):
    assert prepare(Embed, make_encoder()).window_tokens == 64
    folder = tmp_path / "copy"
    shutil.copytree(make_encoder(), folder)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        options = json.loads((folder / name).read_text())
        del options[key]
        (folder / name).write_text(json.dumps(options))
    assert prepare(Embed, folder).window_tokens == DEFAULT_WINDOW_TOKENS


def test_a_model_that_gives_other_numbers_than_it_says_is_refused(make_encoder, start, prepare):
    task = prepare(Embed, make_encoder())
    task._hidden = 31
    with pytest.raises(ModelError, match=r"annotation 'found': model .* gives 32 numbers for a text, and .* says 31"):
        task.start(start(Embed, make_encoder()).loaded)


def test_a_model_that_cannot_compute_is_refused_at_the_start(make_encoder, start, prepare):
    loaded = start(Embed, make_encoder()).loaded
    loaded.module.encoder.layer[0].output = None
    with pytest.raises(ModelError, match=r"annotation 'found': model .* cannot compute: TypeError: 'NoneType'"):
        prepare(Embed, make_encoder()).start(loaded)


def test_a_model_that_cannot_compute_in_bfloat16_is_told_so(start, make_encoder, tmp_path):
    config = transformers.XLNetConfig(vocab_size=300, d_model=16, n_head=2, n_layer=1, d_inner=16, pad_token_id=0)
    transformers.XLNetModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(make_encoder()).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"cannot compute: RuntimeError: .*; it may need float32 \(dtype is bfloat16\)"
    ):
        start(Embed, tmp_path, dtype="bfloat16")
