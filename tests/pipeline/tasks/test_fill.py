"""`fill` against FillMaskPipeline, and where the pipeline cannot go: long texts, and the row's own offsets."""

import random
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForMaskedLM, AutoTokenizer, FillMaskPipeline

from pipeline.errors import JobError, ModelError
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.fill import Fill, windows_around

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
)
NEAR = 1e-6  # two probabilities this near may change places


def reference(folder):
    """The library's own, on a model of its own."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    return FillMaskPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device=-1)


def theirs(pipe, text, mark="[MASK]", **options):
    """The pipeline's fills of each mask of one text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pipe(text.replace(mark, pipe.tokenizer.mask_token), **options)
    return found if isinstance(found[0], list) else [found]


def with_gaps(texts, most_chars, mark="[MASK]", seed=11):
    """Each text, not longer than that, with one to three gaps somewhere in it."""
    choice = random.Random(seed)
    made = []
    for text in texts:
        text = text[:most_chars]
        for _ in range(choice.randint(1, 3)):
            at = choice.randint(0, len(text))
            text = text[:at] + choice.choice([mark, f" {mark}", f" {mark} "]) + text[at:]
        made.append(text)
    return made


def said(task, texts):
    annotation = task.annotate(Texts(list(texts)))
    assert [pa.field(name, column.type) for name, column in annotation.columns.items()] == task.fields()
    return annotation


def found(task, texts):
    annotation = said(task, texts)
    assert annotation.failures == {}
    return annotation.columns["fills"].to_pylist()


def same_fills(ours, others):
    """Whether these are the same words with the same scores; of words with near scores either may come first."""
    scores = np.array([fill["score"] for fill in others])
    np.testing.assert_allclose(ours["scores"], scores, atol=1e-4)
    words = [fill["token_str"] for fill in others]
    if ours["labels"] == words:
        return True
    differ = [place for place, word in enumerate(words) if ours["labels"][place] != word]
    return all(np.sort(np.abs(scores - scores[place]))[1] < NEAR for place in differ)


@pytest.mark.parametrize("family", FAMILIES)
def test_fills_are_those_of_the_librarys_pipeline(tiny, start, texts_of, least_of, family):
    texts = texts_of(family)
    folder = tiny(family, "MaskedLM", max_tokens=2048)
    gapped = with_gaps(texts, 300)
    assert len(gapped) >= least_of(family)
    pipe = reference(folder)
    fills = found(start(Fill, folder, token_budget=4096), gapped)
    swapped = 0
    for text, ours in zip(gapped, fills, strict=True):
        expected = theirs(pipe, text)
        assert len(ours) == len(expected)
        for each, other in zip(ours, expected, strict=True):
            assert same_fills(each, other), text
            swapped += each["labels"] != [fill["token_str"] for fill in other]
    assert swapped <= len(gapped) // 50


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projection_to_the_vocabulary_sees_masks_alone(tiny, start, family):
    task = start(Fill, tiny(family, "MaskedLM"))
    rows = []
    last = task.loaded.module.get_output_embeddings()
    last.register_forward_hook(lambda _, given, made: rows.append(tuple(made.shape[:-1])))
    found(task, ["one [MASK] two [MASK]", "a [MASK]" + " and a much longer text behind it" * 2])
    assert sum(shape[0] for shape in rows) == 3
    assert {len(shape) for shape in rows} == {1}


def test_a_head_that_needs_every_token_gets_every_token(tiny, prepare, texts):
    from pipeline.models.loading import load

    gapped = with_gaps(texts[:60], 60)
    fills = []
    for layer in ("get_output_embeddings", "get_input_embeddings"):  # fewer ids are not what a model can start with
        task = prepare(Fill, tiny("bert", "MaskedLM", max_tokens=512))
        loaded = load(task.model, task.needs, dtype="float32", device="cpu", threads=1, token_budget=512)
        loaded.module.get_output_embeddings = getattr(loaded.module, layer)
        task.start(loaded)
        fills.append(found(task, gapped))
    for one, other in zip(*fills, strict=True):
        assert [each["labels"] for each in one] == [each["labels"] for each in other]
        np.testing.assert_allclose(
            [each["scores"] for each in one], [each["scores"] for each in other], rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_neighbours_and_budget_change_nothing(tiny, start, texts, family):
    folder = tiny(family, "MaskedLM", max_tokens=128)
    gapped = with_gaps(texts, 400)
    together = found(start(Fill, folder, token_budget=8192), gapped)
    task = start(Fill, folder, token_budget=128)
    alone = [found(task, [text])[0] for text in gapped]
    for one, other in zip(together, alone, strict=True):
        for ours, theirs_ in zip(one, other, strict=True):
            np.testing.assert_allclose(ours["scores"], theirs_["scores"], atol=1e-5)
            near = np.diff(theirs_["scores"]).max(initial=-1.0) > -NEAR
            assert near or ours["labels"] == theirs_["labels"]


def test_start_and_end_are_the_placeholders_own(tiny, start, texts):
    gapped = [text.replace("[MASK]", "___") for text in texts]
    gapped = with_gaps(gapped, 5_000, mark="___")
    task = start(Fill, tiny("roberta", "MaskedLM"), mask="___", top_k=1)
    for text, fills in zip(gapped, found(task, gapped), strict=True):
        marks = {text[each["start"] : each["end"]] for each in fills}
        assert marks <= {"___", "<mask>"}
        starts = [each["start"] for each in fills]
        assert starts == sorted(set(starts))
        assert len(fills) == text.count("___") + text.count("<mask>")


def test_the_models_own_mask_is_understood_beside_the_jobs(tiny, start):
    task = start(Fill, tiny("roberta", "MaskedLM"))
    (fills,) = found(task, ["a <mask> b [MASK] c"])
    assert [(each["start"], each["end"]) for each in fills] == [(2, 8), (11, 17)]
    ((first, _),) = found(task, ["a [MASK] b <mask> c"])
    assert first["labels"] == fills[0]["labels"]


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_masks_of_long_texts_are_read_in_the_middle_of_a_window(tiny, start, family):
    folder = tiny(family, "MaskedLM", max_tokens=32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForMaskedLM.from_pretrained(folder).eval()
    words = [letter for letter in "the train from Boston leaves at seven" if letter != " "] * 12
    for place in (0, 3, 50, 120, len(words) - 2, len(words)):
        text = " ".join([*words[:place], "[MASK]", *words[place:]])
        task = start(Fill, folder)
        annotation = said(task, [text])
        ids = tokenizer(text.replace("[MASK]", tokenizer.mask_token), add_special_tokens=False)["input_ids"]
        at = ids.index(tokenizer.mask_token_id)
        begin = min(max(0, at - 15), len(ids) - 30)
        window = [tokenizer.cls_token_id, *ids[begin : begin + 30], tokenizer.sep_token_id]
        with torch.inference_mode():
            scores = module(input_ids=torch.tensor([window])).logits[0, 1 + at - begin].softmax(0).topk(5)
        ((fill,),) = annotation.columns["fills"].to_pylist()
        assert fill["labels"] == [tokenizer.decode([token]) for token in scores.indices]
        np.testing.assert_allclose(fill["scores"], scores.values, atol=1e-4)
        assert annotation.tokens_R.tolist() == [32]
        assert annotation.truncated_R.tolist() == [True]


def test_of_two_windows_a_mask_is_read_in_the_one_where_it_stands_deeper(tiny, start):
    folder = tiny("bert", "MaskedLM", max_tokens=32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForMaskedLM.from_pretrained(folder).eval()
    words = ["a"] * 200
    for place in (60, 74, 77):  # 60 and 74 share the window [52, 82), 77 has [62, 92), in which 74 stands deeper
        words[place] = "[MASK]"
    (fills,) = found(start(Fill, folder), [" ".join(words)])
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert len(ids) == 200
    for fill, place, begin in zip(fills, (60, 74, 77), (52, 62, 62), strict=True):
        window = [tokenizer.cls_token_id, *ids[begin : begin + 30], tokenizer.sep_token_id]
        with torch.inference_mode():
            scores = module(input_ids=torch.tensor([window])).logits[0, 1 + place - begin].softmax(0).topk(5)
        np.testing.assert_allclose(fill["scores"], scores.values, atol=1e-5)


def test_a_text_that_its_windows_cover_is_not_truncated(tiny, start):
    task = start(Fill, tiny("bert", "MaskedLM", max_tokens=32))
    short, covered = "a [MASK] b", " ".join((["a"] * 7 + ["[MASK]"]) * 8)
    annotation = said(task, [short, covered])
    assert annotation.truncated_R.tolist() == [False, False]
    assert annotation.tokens_R[0] == 5
    assert annotation.tokens_R[1] > 64


@given(st.data())
def test_each_mask_stands_well_inside_a_window(data):
    tokens = data.draw(st.integers(1, 400))
    room = data.draw(st.integers(1, 64))
    masks = sorted(data.draw(st.sets(st.integers(0, tokens - 1), min_size=1)))
    windows = windows_around(masks, tokens, room)
    assert windows == sorted(set(windows))
    assert all(0 <= start < stop <= tokens and stop - start == min(room, tokens) for start, stop in windows)
    for mask in masks:
        sides = [
            (mask - start if start else room, stop - 1 - mask if stop < tokens else room)
            for start, stop in windows
            if start <= mask < stop
        ]
        assert max(min(side) for side in sides) >= room // 4 - 1
    if len(masks) == 1 and tokens > room:
        start = windows[0][0]
        assert start in (0, tokens - room) or start == masks[0] - room // 2
    assert len(windows) <= 1 + 2 * tokens // room


def test_a_text_without_a_mask_fails_and_its_neighbours_do_not(tiny, start):
    task = start(Fill, tiny("roberta", "MaskedLM"))
    annotation = said(task, ["a [MASK] b", "no gap", "[mask]", "<mask>"])
    assert sorted(annotation.failures) == [1, 2]
    assert annotation.failures[1].reason == Reason.NO_MASK
    assert annotation.failures[1].detail == "the text holds no '[MASK]' or '<mask>'"
    assert annotation.columns["fills"].is_null().to_pylist() == [False, True, True, False]
    assert annotation.columns["text"].is_null().to_pylist() == [False, True, True, False]
    assert (annotation.tokens_R[[1, 2]] == 0).all()


def test_a_unit_without_any_mask_runs_no_model(tiny, start):
    annotation = said(start(Fill, tiny("bert", "MaskedLM")), ["no gap", "nor here"])
    assert sorted(annotation.failures) == [0, 1]
    assert annotation.forward_tokens == 0


def test_masks_that_the_tokenizer_does_not_find_are_told(tiny, start):
    task = start(Fill, tiny("bert", "MaskedLM"))
    task._mask_id = 5  # another token: as a tokenizer would do whose mask is cut up
    annotation = said(task, ["a [MASK]"])
    assert annotation.failures[0].reason == Reason.TOKENIZER_FAILED
    assert "the text holds 1 of '[MASK]', and the tokenizer finds 0" in annotation.failures[0].detail


def test_numbers_that_are_not_finite_fail_the_row(tiny, start):
    task = start(Fill, tiny("bert", "MaskedLM"))
    with torch.no_grad():
        task.loaded.module.cls.predictions.transform.dense.weight.fill_(float("nan"))
    assert said(task, ["a [MASK]"]).failures[0].reason == Reason.NON_FINITE_OUTPUT


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_targets_are_chosen_as_the_librarys_pipeline_does(tiny, start, texts, family):
    folder = tiny(family, "MaskedLM", max_tokens=512)
    pipe = reference(folder)
    words: dict[int, str] = {}
    for word in ("the", " the", "in", "and", "zu", "st", "er", "a", " a", "e"):
        ids = pipe.tokenizer.encode(word, add_special_tokens=False)
        token = pipe.tokenizer.get_vocab().get(word, ids[0])
        if (len(ids) == 1 or word in pipe.tokenizer.get_vocab()) and token != pipe.tokenizer.unk_token_id:
            words.setdefault(token, word)
    targets = list(words.values())
    assert len(targets) >= 4
    gapped = with_gaps(texts, 60)
    for top_k in (None, 2):
        options = {} if top_k is None else {"top_k": top_k}
        for text, ours in zip(gapped, found(start(Fill, folder, targets=targets, **options), gapped), strict=True):
            expected = theirs(pipe, text, targets=targets, **options)
            for each, other in zip(ours, expected, strict=True):
                named = [{**fill, "token_str": words[fill["token"]]} for fill in other]
                assert same_fills(each, named)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["a", "newspaperman"], "targets: 'newspaperman' is [0-9]+ tokens of the model .*a mask stands for one"),
        (["\u2603"], "targets: '\u2603' is unknown to the model"),
        (["The", "the"], "targets: 'The' and 'the' are the same token of the model"),
    ],
)
def test_targets_that_are_no_token_of_their_own_are_refused(tiny, start, targets, words):
    with pytest.raises(JobError, match=f"annotation 'found': {words}"):
        start(Fill, tiny("bert", "MaskedLM"), targets=targets)


def token_of(task, written):
    return task.loaded.tokenizer.convert_tokens_to_ids(written)


@pytest.mark.parametrize(
    ("family", "text", "tokens", "filled"),
    [
        ("bert", "Nobody [MASK] it.", ["the"], "Nobody the it."),
        ("bert", "He work [MASK] now", ["##e"], "He worke now"),
        ("bert", "[MASK]work", ["##e"], "ework"),
        ("bert", "火车[MASK]点", ["上"], "火车上点"),
        ("bert", "[MASK] [MASK]", ["the", "##e"], "thee"),
        ("roberta", "Nobody [MASK] it [MASK]", ["Ġthe", "."], "Nobody the it."),
        ("roberta", "([MASK])", ["Ġthe"], "(the)"),
        (
            "xlm-roberta",
            "e\u0301 [MASK] \U0001f44d\U0001f3fd[MASK]",
            ["▁is", "e"],
            "e\u0301 is \U0001f44d\U0001f3fde",
        ),
    ],
)
def test_the_text_is_filled_as_the_tokenizer_would_write_it(tiny, start, family, text, tokens, filled):
    task = start(Fill, tiny(family, "MaskedLM"))
    ids = [token_of(task, token) for token in tokens]
    assert task.loaded.tokenizer.unk_token_id not in ids
    (gaps,) = task._gaps(Texts([text]))
    assert task._words.filled(text, gaps, ids) == filled


def test_the_text_holds_the_best_fill_of_each_mask(tiny, start):
    task = start(Fill, tiny("bert", "MaskedLM"), targets=["the", "a"])
    annotation = said(task, ["so [MASK], [MASK]"])
    (fills,), (text,) = annotation.columns["fills"].to_pylist(), annotation.columns["text"].to_pylist()
    assert text == f"so {fills[0]['labels'][0]}, {fills[1]['labels'][0]}"


def test_top_k_counts_the_fills_of_each_mask(tiny, start):
    folder = tiny("bert", "MaskedLM")
    for options, count in (({}, 5), ({"top_k": 1}, 1), ({"top_k": 12}, 12), ({"targets": ["the", "a"]}, 2)):
        (fills,) = found(start(Fill, folder, **options), ["a [MASK] b [MASK]"])
        assert [len(each["labels"]) for each in fills] == [count, count]
        assert all(each["scores"] == sorted(each["scores"], reverse=True) for each in fills)


def test_it_computes_in_bfloat16(tiny, start):
    (fills,) = found(start(Fill, tiny("bert", "MaskedLM"), dtype="bfloat16"), ["a [MASK] b"])
    assert 0 < fills[0]["scores"][0] <= 1


def test_annotations_with_other_placeholders_share_nothing_by_mistake(tiny, start):
    folder = tiny("bert", "MaskedLM")
    texts = Texts(["a [GAP] b [MASK] c"])
    one = start(Fill, folder, mask="[GAP]").annotate(texts).columns["fills"].to_pylist()
    other = start(Fill, folder).annotate(texts).columns["fills"].to_pylist()
    assert (len(one[0]), len(other[0])) == (2, 1)
    again = start(Fill, folder).annotate(texts)
    assert again.columns["fills"].to_pylist() == other
    assert again.forward_tokens == 0


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "SequenceClassification"), ("bert", "QuestionAnswering"), ("gpt2", "CausalLM")]
)
def test_a_model_of_another_kind_is_refused(tiny, prepare, family, head):
    with pytest.raises(ModelError, match=r"is of another kind .*; fill needs a masked language model"):
        prepare(Fill, tiny(family, head))


def test_a_tokenizer_without_a_mask_is_refused(make_encoder, start):
    with pytest.raises(ModelError, match=r"annotation 'found': the tokenizer of .* has no mask token"):
        start(Fill, make_encoder("bert", "ForMaskedLM"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ["a", "b", "a"]}, "targets: 'a' stands there twice"),
        ({"targets": ["a"], "top_k": 2}, "top_k 2 is more than the 1 targets"),
        ({"targets": []}, "at least 1 item"),
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"mask": " "}, "should match pattern"),
        ({"long_text": "windows"}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        Fill.Config.model_validate({"name": "a", "task": "fill", "text": "b", "model": "c", **options})
    assert words in str(told.value)


def test_a_model_that_scores_no_vocabulary_is_refused(tiny, start):
    task = start(Fill, tiny("bert", "MaskedLM"))

    class OneNumber(torch.nn.Module):
        def get_output_embeddings(self):
            return None

        def forward(self, input_ids, **inputs):
            return SimpleNamespace(logits=torch.zeros(input_ids.shape))

    with pytest.raises(ModelError, match=r"annotation 'found': .* gives no score for each word of a vocabulary"):
        task.start(replace(task.loaded, module=OneNumber()))
