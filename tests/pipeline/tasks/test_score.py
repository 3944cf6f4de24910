import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from pipeline.errors import JobError, ModelError
from pipeline.models import losses as room
from pipeline.tasks.base import TextInput, Texts
from pipeline.tasks.score import Score

WINDOW = 32
CROSS_ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "deberta-v2", "deberta-v3", "modernbert", "distilbert")
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3")
MASKED = ("bert", "roberta", "xlm-roberta", "electra", "deberta-v3", "modernbert")


@pytest.fixture
def cross_encoder(tiny):
    return lambda family="bert", **options: tiny(family, "SequenceClassification", labels=["LABEL_0"], **options)


def found(task, texts, others=None):
    inputs = {"text": texts} if others is None else {"text": texts, "text_pair": others}
    annotation = task.annotate(Texts(list(texts), inputs))
    assert [pa.field(name, column.type) for name, column in annotation.columns.items()] == task.fields()
    return {name: column.to_pylist() for name, column in annotation.columns.items()}, annotation


def changed(folder, target, **options):
    """A copy of a folder with another config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **options}))
    return target


def by_library(folder, pairs):
    cross = pytest.importorskip("sentence_transformers", reason="the reference for cross-encoders is not installed")
    return cross.CrossEncoder(str(folder), max_length=WINDOW, device="cpu").predict(pairs, show_progress_bar=False)


@pytest.mark.parametrize("family", CROSS_ENCODERS)
def test_pairs_have_the_score_of_sentence_transformers(cross_encoder, start, texts_of, least_of, family):
    texts = texts_of(family)
    others = texts[11:] + texts[:11]
    options = {"text_pair": "other", "max_tokens": WINDOW, "token_budget": 2048}
    columns, annotation = found(start(Score, cross_encoder(family), **options), texts, others)
    kept = [row for row, score in enumerate(columns["score"]) if score is not None]
    assert len(kept) >= least_of(family)
    assert 0 < annotation.truncated_R.sum() < len(texts)
    theirs = by_library(cross_encoder(family), [(texts[row], others[row]) for row in kept])
    np.testing.assert_allclose([columns["score"][row] for row in kept], theirs, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_the_folder_says_which_activation(cross_encoder, start, sentences, tmp_path, options):
    folder = changed(cross_encoder(), tmp_path / "copy", **options)
    columns, _ = found(start(Score, folder, text_pair="other", max_tokens=WINDOW), sentences, sentences[::-1])
    theirs = by_library(folder, list(zip(sentences, sentences[::-1], strict=True)))
    np.testing.assert_allclose(columns["score"], theirs, atol=1e-4)


def test_the_job_says_which_activation(cross_encoder, start, sentences):
    plain, sigmoid = (
        found(start(Score, cross_encoder(), text_pair="other", activation=name), sentences, sentences[::-1])[0]["score"]
        for name in ("none", "sigmoid")
    )
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-np.array(plain))), atol=1e-5)


def test_an_activation_that_is_not_known_is_refused_unless_the_job_says_which(cross_encoder, prepare, tmp_path):
    folder = changed(
        cross_encoder(), tmp_path / "copy", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"}
    )
    with pytest.raises(
        ModelError, match=r"asks for the activation torch\.nn\.modules\.activation\.Tanh; known are torch's"
    ):
        prepare(Score, folder, text_pair="other")
    prepare(Score, folder, text_pair="other", activation="none")


def token_losses(folder, text, window=WINDOW, stride=None):
    """Of one text, by a sliding window over its tokens; every window alone, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    room = window - len(start)
    losses, judged, begin = [], 0, 0
    while judged < len(ids):
        part = start + ids[begin : begin + room]
        with torch.inference_mode():
            logp_LV = module(torch.tensor([part])).logits[0].log_softmax(-1)
        for token in range(judged, min(begin + room, len(ids))):
            place = token - begin + len(start)
            if place > 0:
                losses.append(-logp_LV[place - 1, ids[token]].item())
        judged = begin + room
        begin = judged - (stride or 0)
        if stride is None:
            break
    return losses


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("options", [{}, {"long_text": "windows", "stride": 5}])
def test_perplexity_is_that_of_each_text_alone(tiny, start, texts, family, options):
    folder = tiny(family, "CausalLM")
    texts = [text[:600] for text in texts][::4]
    columns, annotation = found(start(Score, folder, max_tokens=WINDOW, token_budget=512, **options), texts)
    assert annotation.truncated_R.any() == (not options)
    judged = 0
    for row, text in enumerate(texts):
        losses = token_losses(folder, text, stride=options.get("stride"))
        if not losses:
            assert columns["loss"][row] is None
            assert annotation.failures[row].reason == "no_tokens"
            continue
        judged += 1
        assert columns["loss"][row] == pytest.approx(np.mean(losses), abs=1e-4)
        assert columns["score"][row] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert judged >= 50


def test_a_perplexity_whose_memory_runs_out_lowers_and_tells_the_budget_though_its_logits_kept_it_small(
    tiny, start, sentences, monkeypatch
):
    sizes = []

    def narrow(module, arguments, options):
        sizes.append(options["input_ids"].numel())
        if sizes[-1] > 90:
            raise MemoryError

    folder = tiny("gpt2", "CausalLM")
    plain, _ = found(start(Score, folder, max_tokens=WINDOW, token_budget=512), sentences)
    task = start(Score, folder, edit=narrow, max_tokens=WINDOW, token_budget=512)
    monkeypatch.setattr(room, "_LOGITS", 128 * task.loaded.module.config.vocab_size)
    scores, annotation = found(task, sentences)
    np.testing.assert_allclose(scores["loss"], plain["loss"], rtol=1e-4)
    assert max(sizes) > 90
    assert 1 <= task.loaded.budget.told() <= 64
    sizes.clear()
    assert found(task, sentences)[1].failures == annotation.failures == {}
    assert max(sizes) <= 64


@pytest.mark.parametrize("family", CAUSAL)
def test_a_text_that_fits_has_the_loss_that_the_model_tells_itself(tiny, start, family, texts):
    folder = tiny(family, "CausalLM")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    short = [text for text in texts if 2 < len(tokenizer(text)["input_ids"]) <= 100][:40]
    columns, _ = found(start(Score, folder, max_tokens=100), short)
    for text, loss in zip(short, columns["loss"], strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            assert loss == pytest.approx(module(ids, labels=ids).loss.item(), abs=1e-4)


@pytest.mark.parametrize("family", MASKED)
@pytest.mark.parametrize("options", [{}, {"long_text": "windows", "stride": 6}])
def test_pseudo_perplexity_masks_each_token_of_each_text_alone(tiny, start, texts, family, options):
    folder, window = tiny(family, "MaskedLM"), 20
    texts = [text[:120] for text in texts][::11]
    columns, _ = found(start(Score, folder, max_tokens=window, token_budget=512, **options), texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    judged = 0
    for text, loss, score in zip(texts, columns["loss"], columns["score"], strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            assert loss is None
            continue
        room, stride = window - 2, options.get("stride")
        begins = [0] if stride is None else list(range(0, max(1, len(ids) - stride), room - stride))
        losses = []
        for token in range(len(ids) if options else min(room, len(ids))):
            # The window in which the token stands farther from an edge; half of what two share belongs to each.
            begin = max(start for start in begins if start == 0 or token >= start + stride // 2)
            row = torch.tensor([[tokenizer.cls_token_id, *ids[begin : begin + room], tokenizer.sep_token_id]])
            row[0, token - begin + 1] = tokenizer.mask_token_id
            with torch.inference_mode():
                losses.append(-module(row).logits[0, token - begin + 1].log_softmax(-1)[ids[token]].item())
        assert loss == pytest.approx(np.mean(losses), abs=1e-4)
        assert score == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)
        judged += 1
    assert judged >= 15


def test_a_single_token_with_nothing_before_it_fails_where_the_tokenizer_puts_nothing_there(tiny, start):
    columns, annotation = found(start(Score, tiny("gpt2", "CausalLM")), ["a", "a b c"])
    assert columns["score"][0] is None
    assert columns["score"][1] > 0
    assert annotation.failures[0].detail == (
        "the text is one token, and nothing stands before it that it could be judged by"
    )
    assert found(start(Score, tiny("llama", "CausalLM")), ["a"])[0]["score"][0] > 0


def test_a_perplexity_beyond_float32_is_told(tiny, start):
    task = start(Score, tiny("gpt2", "CausalLM"))
    with torch.no_grad():
        task.loaded.module.get_output_embeddings().weight.mul_(10_000)
    columns, annotation = found(task, ["a b c d"])
    assert columns == {"score": [None], "loss": [None]}
    assert "nats is more than exp can take" in annotation.failures[0].detail


def test_two_annotations_of_one_model_run_it_once(tiny, start):
    task, texts = start(Score, tiny("gpt2", "CausalLM")), Texts(["a b c", "d e"])
    first, second = task.annotate(texts), task.annotate(texts)
    assert first.columns == second.columns
    assert (first.forward_tokens > 0, second.forward_tokens) == (True, 0)


def test_needs_are_those_of_the_kind(tiny, cross_encoder, prepare):
    assert prepare(Score, cross_encoder(), text_pair="b").needs == "AutoModelForSequenceClassification"
    assert prepare(Score, tiny("gpt2", "CausalLM")).needs == "AutoModelForCausalLM"
    assert prepare(Score, tiny("bert", "MaskedLM")).needs == "AutoModelForMaskedLM"


def test_either_text_of_a_pair_may_be_words_and_a_single_one_may_not(tiny, cross_encoder, prepare):
    assert prepare(Score, tiny("gpt2", "CausalLM")).inputs() == {"text": TextInput("body")}
    pair = prepare(Score, cross_encoder(), text_pair="what is it")
    assert pair.inputs() == {"text": TextInput("body", True), "text_pair": TextInput("what is it", True)}


@pytest.mark.parametrize(
    ("family", "head", "options", "words"),
    [
        ("bert", "Model", {}, "is no language model \\(BertModel\\), and perplexity needs one that continues a text"),
        ("t5", "Seq2SeqLM", {}, "is no language model \\(T5ForConditionalGeneration\\)"),
        ("bert", "SequenceClassification", {}, "text_pair`, makes pairs for it, and `task: classify` gives its value"),
        ("bert", "SequenceClassification", {"text_pair": "b"}, "gives 2 numbers for a pair, and a score is one; `task"),
        (
            "gpt2",
            "CausalLM",
            {"text_pair": "b"},
            "is of another kind .* score with a `text_pair` needs one with a head",
        ),
    ],
)
def test_models_of_another_kind_are_refused(tiny, prepare, family, head, options, words):
    with pytest.raises(ModelError, match=words):
        prepare(Score, tiny(family, head), **options)


def test_windows_that_share_nothing_are_refused_where_the_tokenizer_puts_no_start(tiny, start):
    options = {"long_text": "windows", "stride": 0, "max_tokens": 16}
    with pytest.raises(JobError, match="annotation 'found': stride: 0 leaves the first token of a window nothing"):
        start(Score, tiny("gpt2", "CausalLM"), **options)
    start(Score, tiny("llama", "CausalLM"), **options)
    start(Score, tiny("bert", "MaskedLM"), **options)


def test_a_tokenizer_without_a_mask_is_refused(make_encoder, start):
    with pytest.raises(ModelError, match="has no mask token, and each token is masked"):
        start(Score, make_encoder("bert", "ForMaskedLM"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "none"}, "activation needs a `text_pair`; without one the score is a perplexity"),
        ({"text_pair": "b", "long_text": "windows"}, "text_pair needs `long_text: truncate`; a pair is read in one"),
        ({"text_pair": "b", "activation": "tanh"}, "Input should be 'sigmoid' or 'none'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        Score.Config.model_validate({"name": "a", "task": "score", "text": "b", "model": "c", **options})
    assert words in str(told.value)
