"""`answer` against the model's own logits: one window at a time, without padding, every span tried."""

import functools
import inspect
import shutil
import types
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import processors
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedTokenizerFast

from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.inputs import SameWords, compile_inputs
from pipeline.quarantine import Reason
from pipeline.tasks.answer import Answer, best_span, visible
from pipeline.tasks.base import Texts

FAMILIES = (
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "deberta-v2",
    "deberta-v3",
    "xlm-roberta",
    "mpnet",
    "modernbert",
    "gpt2",  # it puts nothing around its texts: the question's first token is the null
)
QUESTIONS = (
    "Where is the station?",
    "Wo ist der nächste Bahnhof?",
    "Где вокзал?",
    "最近的车站在哪里？",
    "أين أقرب محطة؟",
    "who 👩🏿‍🔬 e\u0301?",
)
WINDOW, STRIDE, LONGEST = 96, 24, 8
NEAR = 1e-4


class Reference(NamedTuple):
    """What the logits of one text say."""

    spans: dict[tuple[int, int], tuple[float, float]]  # by start and end: the logits' sum and the score, near the best
    best: tuple[int, int]
    null_logit: float
    null_score: float

    @property
    def best_logit(self):
        return self.spans[self.best][0]


def stripped(text, start, end):
    """The place without white space around it."""
    said = text[start:end]
    return end - len(said.lstrip()), start + len(said.rstrip())


def by_hand(folder, questions, texts, longest=LONGEST, window=WINDOW, stride=STRIDE):
    """A Reference of each text: windows by the tokenizer itself, spans one by one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    wanted = set(inspect.signature(module.forward).parameters)
    return [
        _reference(tokenizer, module, wanted, question, text, longest, window, stride)
        for question, text in zip(questions, texts, strict=True)
    ]


def _reference(tokenizer, module, wanted, question, text, longest, window, stride):
    encoded = tokenizer(
        question,
        text,
        truncation="only_second",
        max_length=window,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    spans: dict[tuple[int, int], tuple[float, float]] = {}
    nulls = []
    for number, ids in enumerate(encoded["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in encoded and "token_type_ids" in wanted:
            inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][number]])
        with torch.inference_mode():
            output = module(**inputs)
        starts, ends = output.start_logits[0].double().numpy(), output.end_logits[0].double().numpy()
        own = [place for place, side in enumerate(encoded.sequence_ids(number)) if side == 1]
        among = [0, *own]  # [CLS] stands first in all these families
        start_all, end_all = np.exp(starts[among]).sum(), np.exp(ends[among]).sum()
        nulls.append((starts[0] + ends[0], np.exp(starts[0]) / start_all * np.exp(ends[0]) / end_all))
        offsets = encoded["offset_mapping"][number]
        seen = {place for place in own if text[slice(*offsets[place])].strip()}
        for first in own:
            for last in range(first, min(first + longest, own[-1] + 1)):
                if first in seen and last in seen:
                    place = stripped(text, offsets[first][0], offsets[last][1])
                    score = np.exp(starts[first]) / start_all * np.exp(ends[last]) / end_all
                    spans[place] = max(spans.get(place, (-np.inf, 0.0)), (starts[first] + ends[last], score))
    best = max(spans, key=lambda place: spans[place][0])
    near = {place: found for place, found in spans.items() if found[0] >= spans[best][0] - NEAR}
    return Reference(near, best, *min(nulls))


@pytest.fixture(scope="session")
def contexts(texts):
    """Texts that hold something, mostly short: every span of them is tried."""
    good = [text for text in texts if any(letter.isalnum() for letter in text) or "😀" in text]
    made = [text if place % 25 == 0 else text[:240] for place, text in enumerate(good)]
    return [text for text in made if any(letter.isalnum() for letter in text) or "😀" in text]


@pytest.fixture(scope="session")
def questions(contexts):
    return [QUESTIONS[place % len(QUESTIONS)] for place in range(len(contexts))]


@pytest.fixture(scope="session")
def references(tiny, contexts, questions):
    """The references of a family, found once."""
    return functools.cache(
        lambda family: by_hand(tiny(family, "QuestionAnswering", max_tokens=WINDOW), questions, contexts)
    )


@pytest.fixture
def answerer(tiny, start):
    def make(family="bert", max_tokens=WINDOW, **options):
        folder = tiny(family, "QuestionAnswering", max_tokens=max_tokens)
        return start(Answer, folder, **{"question": "q", "stride": STRIDE, "max_answer_tokens": LONGEST, **options})

    return make


def said(task, questions, texts):
    if isinstance(questions, str):
        questions = [questions] * len(texts)
    annotation = task.annotate(Texts(list(texts), {"text": list(texts), "question": list(questions)}))
    assert [pa.field(name, column.type) for name, column in annotation.columns.items()] == task.fields()
    return annotation


def rows(annotation):
    return pa.RecordBatch.from_pydict(dict(annotation.columns)).to_pylist()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_best_spans_of_the_models_logits(answerer, references, contexts, questions, family):
    expected = references(family)
    assert len(contexts) >= 200
    annotation = said(answerer(family, token_budget=1024), questions, contexts)
    assert annotation.failures == {}
    assert not annotation.truncated_R.any()
    exact = 0
    for text, found, reference in zip(contexts, rows(annotation), expected, strict=True):
        place = found["start"], found["end"]
        assert place in reference.spans, text
        assert found["answer"] == text[slice(*place)]
        assert found["answer"].strip() == found["answer"] != ""
        np.testing.assert_allclose(found["score"], reference.spans[place][1], atol=1e-4)
        exact += place == reference.best
    assert exact >= len(contexts) - 5


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "gpt2"])
def test_no_answer_is_told_by_the_null_token_over_all_windows(answerer, references, contexts, questions, family):
    expected = references(family)
    overhang_R = np.array([each.null_logit - each.best_logit for each in expected])
    threshold = float(np.median(overhang_R))  # so that it decides, whatever the random weights
    task = answerer(family, no_answer=True, threshold=threshold)
    found_R = rows(said(task, questions, contexts))
    without = 0
    for found, reference, overhang in zip(found_R, expected, overhang_R, strict=True):
        if abs(overhang - threshold) < NEAR:
            continue
        if overhang > threshold:
            without += 1
            assert (found["answer"], found["start"], found["end"]) == (None, None, None)
            np.testing.assert_allclose(found["score"], reference.null_score, atol=1e-4)
        else:
            assert (found["start"], found["end"]) in reference.spans
    assert len(contexts) // 3 < without < 2 * len(contexts) // 3


def test_a_null_token_that_is_not_above_the_best_span_is_an_answer(answerer, references, contexts, questions):
    expected = references("bert")
    found_R = rows(said(answerer(no_answer=True), questions, contexts))
    for found, reference in zip(found_R, expected, strict=True):
        if abs(reference.null_logit - reference.best_logit) > NEAR:
            assert (found["answer"] is None) == (reference.null_logit > reference.best_logit)
    assert all(found["answer"] is not None for found in rows(said(answerer(), questions, contexts)))


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "xlm-roberta"])
def test_neighbours_and_budget_change_nothing(answerer, references, contexts, questions, family):
    one = rows(said(answerer(family, token_budget=8192), questions, contexts))
    task = answerer(family, token_budget=96)
    for text, question, together, reference in zip(contexts, questions, one, references(family), strict=True):
        (alone,) = rows(said(task, [question], [text]))
        np.testing.assert_allclose(alone["score"], together["score"], atol=1e-4)
        if len(reference.spans) == 1:
            assert (alone["answer"], alone["start"], alone["end"]) == (
                together["answer"],
                together["start"],
                together["end"],
            )


@given(st.data())
def test_the_best_span_is_that_of_trying_all(data):
    tokens = data.draw(st.integers(1, 12))
    most = data.draw(st.integers(1, 14))
    logits_T2 = np.array(
        data.draw(st.lists(st.tuples(*[st.integers(-4, 4)] * 2), min_size=tokens, max_size=tokens)), np.float64
    )
    null_2 = np.array(data.draw(st.tuples(*[st.integers(-4, 4)] * 2)), np.float64)
    allowed_T = np.array(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    found, null = best_span(logits_T2, null_2, allowed_T, most)
    spans = [
        (first, last)
        for first in range(tokens)
        for last in range(first, min(first + most, tokens))
        if allowed_T[first] and allowed_T[last]
    ]
    norm_2 = np.exp(logits_T2).sum(0) + np.exp(null_2)
    assert null.logit == null_2.sum()
    np.testing.assert_allclose(null.score, np.prod(np.exp(null_2) / norm_2))
    if not spans:
        assert found is None
        return
    assert found is not None
    best = max(spans, key=lambda span: logits_T2[span[0], 0] + logits_T2[span[1], 1])  # the first of equal ones
    assert (found.first, found.last) == best
    assert found.logit == logits_T2[best[0], 0] + logits_T2[best[1], 1]
    np.testing.assert_allclose(
        found.score, np.exp(logits_T2[best[0], 0]) / norm_2[0] * np.exp(logits_T2[best[1], 1]) / norm_2[1]
    )


def test_great_logits_do_not_overflow():
    found, null = best_span(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([-1e4, -1e4]), np.ones(2, np.bool_), 5)
    assert found is not None
    assert (found.first, found.last, found.score) == (0, 1, 1.0)
    assert null.score == 0.0


@given(st.text(st.characters(), max_size=20), st.data())
def test_visible_tokens_are_those_that_strip_leaves_something_of(text, data):
    places = st.integers(0, len(text))
    offsets = [sorted(pair) for pair in data.draw(st.lists(st.tuples(places, places), min_size=1))]
    seen = visible(text, np.array(offsets))
    assert seen.tolist() == [bool(text[start:end].strip()) for start, end in offsets]


def test_a_null_token_behind_the_texts_is_found(tiny, tmp_path, start):
    folder = tmp_path / "behind"
    shutil.copytree(tiny("bert", "QuestionAnswering"), folder)
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    special = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(  # as XLNet puts them
        single="$A [SEP] [CLS]", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:1", special_tokens=special
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    text, question = "the train leaves at seven", "When?"
    task = start(Answer, folder, question="q", no_answer=True, threshold=-1e6)
    (found,) = rows(said(task, question, [text]))
    tokenizer, module = AutoTokenizer.from_pretrained(folder), task.loaded.module
    encoded = tokenizer(question, text, return_tensors="pt")
    with torch.inference_mode():
        output = module(**encoded)
    among = [place for place, side in enumerate(encoded.sequence_ids(0)) if side == 1] + [-1]
    expected = [logits[0, among].softmax(0)[-1] for logits in (output.start_logits, output.end_logits)]
    assert found["answer"] is None
    np.testing.assert_allclose(found["score"], expected[0] * expected[1], atol=1e-5)


def test_long_texts_are_read_in_windows_unless_the_job_cuts_them(answerer):
    text = "the train leaves at seven " * 60
    whole, cut = (
        said(answerer(stride=None, long_text=how), "Where?", [text, "short text"]) for how in ("windows", "truncate")
    )
    assert whole.truncated_R.tolist() == [False, False]
    assert cut.truncated_R.tolist() == [True, False]
    assert cut.tokens_R[0] == WINDOW
    assert whole.tokens_R[0] > 3 * WINDOW
    assert rows(cut)[1] == rows(whole)[1]


def test_a_cut_text_answers_as_its_beginning_does(tiny, answerer, contexts):
    task, question = answerer(stride=None, long_text="truncate"), QUESTIONS[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny("bert", "QuestionAnswering", max_tokens=WINDOW))
    for text in [text for text in contexts if len(text) > 500]:
        encoded = tokenizer(question, text, truncation="only_second", max_length=WINDOW, return_offsets_mapping=True)
        stop = max(
            end for (_, end), side in zip(encoded["offset_mapping"], encoded.sequence_ids(), strict=True) if side
        )
        annotation = said(task, question, [text, text[:stop]])
        assert annotation.failures == {}
        one, beginning = rows(annotation)
        assert (one["start"], one["end"]) == (beginning["start"], beginning["end"])


@pytest.mark.parametrize(
    ("window", "longest", "overlap"), [(512, 30, 64), (128, 30, 29), (64, 30, 16), (128, 1, 16), (512, 200, 128)]
)
def test_by_default_windows_overlap_by_the_longest_answer_within_reason(tiny, prepare, window, longest, overlap):
    folder = tiny("bert", "QuestionAnswering", max_tokens=512)
    assert prepare(Answer, folder, question="q", max_tokens=window, max_answer_tokens=longest).stride() == overlap


def test_a_question_that_leaves_no_room_fails_its_row_alone(answerer):
    task = answerer()
    questions = ["Where?", "where is it " * 40, "Where?"]
    annotation = said(task, questions, ["the train", "the train", "\u200b"])
    assert {row: failure.reason for row, failure in annotation.failures.items()} == {
        1: Reason.NO_ROOM,
        2: Reason.NO_TOKENS,
    }
    assert [found["answer"] is None for found in rows(annotation)] == [False, True, True]
    assert [found["score"] is None for found in rows(annotation)] == [False, True, True]


def test_a_text_whose_tokens_are_all_white_space_fails(answerer):
    task = answerer("gpt2")
    annotation = said(task, "Where?", ["   \n\n ", "the train"])
    assert annotation.failures[0].reason == Reason.NO_TOKENS
    assert "white space" in annotation.failures[0].detail
    assert rows(annotation)[1]["answer"] is not None


def test_numbers_that_are_not_finite_fail_the_row(answerer):
    task = answerer()
    with torch.no_grad():
        task.loaded.module.qa_outputs.bias.fill_(float("nan"))
    assert said(task, "Where?", ["the train"]).failures[0].reason == Reason.NON_FINITE_OUTPUT


def test_it_computes_in_bfloat16(answerer):
    (found,) = rows(said(answerer(dtype="bfloat16"), "Where?", ["the train leaves at seven"]))
    assert 0 < found["score"] <= 1


def test_annotations_with_other_questions_share_the_texts_tokens_and_no_answers(answerer):
    text = "the train leaves at seven in the morning"
    texts = Texts([text], {"text": [text], "question": ["Where is the station?"]})
    first = answerer(question="Where is the station?").annotate(texts)
    again = answerer(question="Where is the station?", no_answer=True).annotate(texts)
    assert (first.forward_tokens > 0, again.forward_tokens) == (True, 0)
    other = Texts([text], {"text": [text], "question": ["when does it leave"]}, texts.shared)
    fresh = Texts([text], {"text": [text], "question": ["when does it leave"]})
    task = answerer(question="when does it leave")
    shared = task.annotate(other)
    assert shared.forward_tokens > 0
    assert rows(shared) == rows(task.annotate(fresh))


@pytest.mark.parametrize(("question", "same"), [("Where is it?", True), ("asked", False), ("{asked}?", False)])
def test_the_question_is_a_column_a_template_or_words(tiny, prepare, question, same):
    task = prepare(Answer, tiny("bert", "QuestionAnswering"), question=question)
    (reads,) = compile_inputs([task], [task.fields()], pa.schema([("body", pa.string()), ("asked", pa.string())]))
    assert list(reads.sources) == ["text", "question"]
    assert isinstance(reads.sources["question"], SameWords) == same


def test_a_question_that_is_no_column_is_told(tiny, prepare):
    task = prepare(Answer, tiny("bert", "QuestionAnswering"), question="askd")
    with pytest.raises(CorpusError, match="askd"):
        compile_inputs([task], [task.fields()], pa.schema([("body", pa.string()), ("asked", pa.string())]))


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "SequenceClassification"), ("bert", "MaskedLM"), ("gpt2", "CausalLM")]
)
def test_a_model_of_another_kind_is_refused(tiny, prepare, family, head):
    with pytest.raises(ModelError, match=r"is of another kind .*; answer needs one with a head for extractive quest"):
        prepare(Answer, tiny(family, head), question="q")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Field required"),
        ({"question": " "}, "should match pattern"),
        ({"question": "q", "threshold": 1.0}, "threshold needs `no_answer: true`"),
        ({"question": "q", "no_answer": True, "threshold": float("inf")}, "finite number"),
        ({"question": "q", "max_answer_tokens": 0}, "greater than or equal to 1"),
        ({"question": "q", "long_text": "truncate", "stride": 3}, "stride needs `long_text: windows`"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        Answer.Config.model_validate({"name": "a", "task": "answer", "text": "b", "model": "c", **options})
    assert words in str(told.value)


def test_windows_without_room_are_refused(answerer):
    with pytest.raises(JobError, match="annotation 'found': stride: 93 tokens of overlap leave no room"):
        answerer(stride=93)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 92}, "max_tokens: 96 and the windows' overlap leave no room for a pair of two words: .* has 2 tok"),
        ({"stride": None, "max_tokens": 5}, "max_tokens: 5 and the windows' overlap leave no room .* room for 0 of"),
    ],
)
def test_windows_that_a_question_of_two_words_fills_are_refused(tiny, start, options, words):
    folder = tiny("bert", "QuestionAnswering", max_tokens=WINDOW)
    with pytest.raises(JobError, match=f"annotation 'found': {words}"):
        start(Answer, folder, question="q", **options)


def test_a_head_that_does_not_give_two_numbers_for_each_token_is_refused(answerer):
    task = answerer()
    shorter = types.SimpleNamespace(start_logits=torch.zeros(1, 2), end_logits=torch.zeros(1, 2))
    loaded = replace(task.loaded, module=lambda **inputs: shorter)
    with pytest.raises(ModelError, match=r"annotation 'found': .* does not give two numbers for each of \d tokens"):
        task.start(loaded)
