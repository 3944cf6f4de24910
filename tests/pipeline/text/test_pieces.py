import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer

from pipeline.errors import JobError, ModelError
from pipeline.quarantine import Reason
from pipeline.text.pieces import PieceMaker, longest_first
from pipeline.text.tokens import TextTokenizer


@pytest.fixture
def bert(make_encoder):
    return AutoTokenizer.from_pretrained(make_encoder())


@pytest.fixture
def bert_pairs(tiny):
    return AutoTokenizer.from_pretrained(tiny("bert", "Model"))


@pytest.fixture
def roberta(make_encoder):
    return AutoTokenizer.from_pretrained(make_encoder("roberta"))


def lists(pieces):
    return [ids.tolist() for ids in pieces.ids_P]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pieces_are_what_the_library_truncates_to(kind, request, sentences):
    tokenizer = request.getfixturevalue(kind)
    theirs = tokenizer(sentences, truncation=True, max_length=20)["input_ids"]
    found = PieceMaker(TextTokenizer(tokenizer), 20).pieces(sentences)
    assert lists(found) == theirs
    assert found.tokens_R.tolist() == [len(ids) for ids in theirs]
    assert found.truncated_R.tolist() == [len(tokenizer(text)["input_ids"]) > 20 for text in sentences]
    assert found.failures == {}


def test_what_the_tokenizer_file_says_of_truncation_and_padding_does_not_count(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 128
    found = PieceMaker(TextTokenizer(tokenizer), 256).pieces(["word " * 400, "one"])
    assert found.tokens_R.tolist() == [256, 3]


def test_windows_are_those_of_the_library(bert, sentences):
    theirs = bert(sentences, truncation=True, max_length=12, stride=4, return_overflowing_tokens=True)
    found = PieceMaker(TextTokenizer(bert), 12, stride=4).pieces(sentences)
    assert lists(found) == theirs["input_ids"]
    assert found.row_P.tolist() == theirs["overflow_to_sample_mapping"]
    assert not found.truncated_R.any()


def test_pieces_cut_side_by_side_are_those_cut_one_by_one(bert, sentences):
    maker = PieceMaker(TextTokenizer(bert), 12)
    together, one_by_one = maker.pieces(sentences), maker.pieces([*sentences, "\u200b"])  # which is no piece
    assert lists(together) == lists(one_by_one)
    assert together.types_P is one_by_one.types_P is None
    for name in ("spans_P2", "leads_P", "row_P"):
        assert np.array_equal(getattr(together, name), getattr(one_by_one, name))
    for name in ("windows_R", "tokens_R", "truncated_R"):
        assert np.array_equal(getattr(together, name), getattr(one_by_one, name)[:-1])
        assert getattr(together, name).dtype == getattr(one_by_one, name).dtype
    assert together.failures == {}


def test_a_text_without_tokens_fails_alone(bert):
    found = PieceMaker(TextTokenizer(bert), 12).pieces(["ak al", "\u200b\u200b", "am"])
    assert found.windows_R.tolist() == [1, 0, 1]
    assert found.failures[1].reason == Reason.NO_TOKENS
    assert found.failures[1].detail == "the tokenizer finds no token in 2 characters"


def test_a_text_that_the_tokenizer_refuses_fails_alone(bert):
    found = PieceMaker(TextTokenizer(bert), 12).pieces(["ak al", "half a pair \ud800", "am"])
    assert found.windows_R.tolist() == [1, 0, 1]
    assert found.failures[1].reason == Reason.TOKENIZER_FAILED
    assert "TextEncodeInput" in found.failures[1].detail


class PanicException(BaseException):
    """As the Rust library raises it: no Exception."""


class Fragile:
    """A slow tokenizer that panics at one word."""

    is_fast = False

    def encode(self, text, add_special_tokens):
        if "boom" in text:
            raise PanicException("index out of bounds")
        return [len(word) for word in text.split()]

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [101, *self.encode(text, False), 102]}


def test_a_panic_in_the_tokenizer_is_the_fault_of_its_text_alone():
    found = PieceMaker(TextTokenizer(Fragile()), 12).pieces(["one two", "boom", "three"])
    assert lists(found) == [[101, 3, 3, 102], [101, 5, 102]]
    assert found.failures[1].detail == "PanicException: index out of bounds"


class Interrupted(Fragile):
    """Somebody presses Ctrl-C while it works."""

    def encode(self, text, add_special_tokens):
        if "boom" in text:
            raise KeyboardInterrupt
        return [1]


def test_an_interrupt_is_nobodys_fault():
    with pytest.raises(KeyboardInterrupt):
        PieceMaker(TextTokenizer(Interrupted()), 12).pieces(["boom"])


def test_a_slow_tokenizer_works():
    tokenizer = ByT5Tokenizer()
    texts = ["grüße", "a" * 100]
    found = PieceMaker(TextTokenizer(tokenizer), 30).pieces(texts)
    assert lists(found) == tokenizer(texts, truncation=True, max_length=30)["input_ids"]
    assert found.truncated_R.tolist() == [False, True]


def test_one_word_of_300_000_characters(bert, minilm):
    for tokenizer in (bert, AutoTokenizer.from_pretrained(minilm)):
        found = PieceMaker(TextTokenizer(tokenizer), 64).pieces(["x" * 300_000, "ak"])
        assert found.failures == {}
        assert found.windows_R.tolist() == [1, 1]


def test_a_window_without_room_is_refused(bert):
    with pytest.raises(JobError, match="max_tokens: 2 leaves no room: 2 are special; at least 3"):
        PieceMaker(TextTokenizer(bert), 2)


def test_an_overlap_without_room_is_refused(bert):
    with pytest.raises(
        JobError, match=r"stride: 10 tokens of overlap leave no room .* holds 10 besides 2 .* at most 9"
    ):
        PieceMaker(TextTokenizer(bert), 12, stride=10)


class Meddling(Fragile):
    """With special tokens, it drops a text's own."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [101, 999, 102]}


def test_a_tokenizer_that_does_more_than_put_tokens_around_a_text_is_refused():
    with pytest.raises(ModelError, match="changes the text's own tokens"):
        PieceMaker(TextTokenizer(Meddling()), 12)


class Typed(Fragile):
    """Its last token has a type of its own, as XLNet's has."""

    def __call__(self, text, add_special_tokens):
        ids = self.encode(text, False)
        return {"input_ids": [*ids, 102], "token_type_ids": [*([0] * len(ids)), 2]}


def test_token_types_of_the_tokenizer_go_along():
    found = PieceMaker(TextTokenizer(Typed()), 12).pieces(["one two three"])
    assert [types.tolist() for types in found.types_P or ()] == [[0, 0, 0, 2]]


# -------------------------------------------------------------------------------------------------------------- pairs


FAMILIES = ["bert", "roberta", "t5", "deberta-v2"]
PAIRS = [("one two three four", "five"), ("six", "one two three four five six"), ("one two", "three four")]


def pair(tokenizer, firsts, seconds, window, cut="longest", stride=None):
    maker = PieceMaker(TextTokenizer(tokenizer), window, stride, pairs=True)
    first, second = (list(maker.tokenizer.tokens(texts, None)) for texts in (firsts, seconds))
    return maker.pair(first, second, firsts, seconds, cut)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("cut", "theirs"), [("longest", "longest_first"), ("first", "only_first"), ("second", "only_second")]
)
def test_pairs_are_what_the_library_makes_of_them(family, cut, theirs, tiny, texts):
    tokenizer = AutoTokenizer.from_pretrained(tiny(family, "Model"))
    firsts = [text for text in texts if text.strip() and len(text) < 300][:60]
    seconds = firsts[::-1]
    found = pair(tokenizer, firsts, seconds, 120, cut)
    assert len(found.failures) < 40
    for row in set(range(len(firsts))) - set(found.failures):
        expected = tokenizer(firsts[row], seconds[row], truncation=theirs, max_length=120)
        piece = found.row_P.tolist().index(row)
        assert found.ids_P[piece].tolist() == expected["input_ids"]
        types = [0] * len(found.ids_P[piece]) if found.types_P is None else found.types_P[piece].tolist()
        assert types == expected.get("token_type_ids", [0] * len(types))


def test_windows_of_a_pair_are_those_of_the_library(bert_pairs):
    questions, contexts = ["a b", "c", "d e f"], ["g h i j k l m n o p q r s t", "a", "b " * 40]
    found = pair(bert_pairs, questions, contexts, 16, "second", stride=3)
    theirs = bert_pairs(
        questions,
        contexts,
        truncation="only_second",
        max_length=16,
        stride=3,
        return_overflowing_tokens=True,
    )
    assert lists(found) == theirs["input_ids"]
    assert found.row_P.tolist() == theirs["overflow_to_sample_mapping"]
    assert found.windows_R.max() > 3
    for (start, stop), lead, ids, row in zip(found.spans_P2, found.leads_P, found.ids_P, found.row_P, strict=True):
        context = bert_pairs.encode(contexts[row], add_special_tokens=False)
        assert ids[lead : lead + stop - start].tolist() == context[start:stop]


def test_a_text_kept_whole_that_leaves_no_room_fails_its_pair_alone(bert_pairs):
    found = pair(bert_pairs, ["a " * 30, "a"], ["b", "b"], 16, "second")
    assert found.failures[0].reason == Reason.NO_ROOM
    assert found.failures[0].detail == (
        "the text that is kept whole has 30 tokens, which leaves room for 0 of the other in a window of 16"
    )
    assert found.windows_R.tolist() == [0, 1]


@given(st.integers(0, 80), st.integers(0, 80), st.integers(2, 60))
def test_the_longer_of_a_pair_gives_way(first, second, room):
    kept_first, kept_second = longest_first(first, second, room)
    assert kept_first <= first
    assert kept_second <= second
    assert kept_first + kept_second == min(room, first + second) or first + second <= room
    if kept_first < first and kept_second < second:
        assert abs(kept_first - kept_second) <= 1
