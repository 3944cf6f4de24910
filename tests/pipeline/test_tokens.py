import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from pipeline.errors import JobError, ModelError
from pipeline.quarantine import Reason
from pipeline.tokens import PieceMaker


@pytest.fixture
def bert(make_encoder):
    return AutoTokenizer.from_pretrained(make_encoder())


@pytest.fixture
def roberta(make_encoder):
    return AutoTokenizer.from_pretrained(make_encoder("roberta"))


def lists(pieces):
    return [ids.tolist() for ids in pieces.ids_P]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pieces_are_what_the_library_truncates_to(kind, request, sentences):
    tokenizer = request.getfixturevalue(kind)
    theirs = tokenizer(sentences, truncation=True, max_length=20)["input_ids"]
    found = PieceMaker(tokenizer, 20).pieces(sentences)
    assert lists(found) == theirs
    assert found.tokens_R.tolist() == [len(ids) for ids in theirs]
    assert found.truncated_R.tolist() == [len(tokenizer(text)["input_ids"]) > 20 for text in sentences]
    assert found.failures == {}


def test_what_the_tokenizer_file_says_of_truncation_and_padding_does_not_count(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 128
    found = PieceMaker(tokenizer, 256).pieces(["word " * 400, "one"])
    assert found.tokens_R.tolist() == [256, 3]


def test_windows_are_those_of_the_library(bert, sentences):
    theirs = bert(sentences, truncation=True, max_length=12, stride=4, return_overflowing_tokens=True)
    found = PieceMaker(bert, 12, stride=4).pieces(sentences)
    assert lists(found) == theirs["input_ids"]
    assert found.row_P.tolist() == theirs["overflow_to_sample_mapping"]
    assert not found.truncated_R.any()


def test_a_text_without_tokens_fails_alone(bert):
    found = PieceMaker(bert, 12).pieces(["ak al", "\u200b\u200b", "am"])
    assert found.windows_R.tolist() == [1, 0, 1]
    assert found.failures[1].reason == Reason.NO_TOKENS
    assert found.failures[1].detail == "the tokenizer finds no token in 2 characters"


def test_a_text_that_the_tokenizer_refuses_fails_alone(bert):
    found = PieceMaker(bert, 12).pieces(["ak al", "half a pair \ud800", "am"])
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
    found = PieceMaker(Fragile(), 12).pieces(["one two", "boom", "three"])
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
        PieceMaker(Interrupted(), 12).pieces(["boom"])


def test_a_slow_tokenizer_works():
    tokenizer = ByT5Tokenizer()
    texts = ["grüße", "a" * 100]
    found = PieceMaker(tokenizer, 30).pieces(texts)
    assert lists(found) == tokenizer(texts, truncation=True, max_length=30)["input_ids"]
    assert found.truncated_R.tolist() == [False, True]


def test_one_word_of_300_000_characters(bert, minilm):
    for tokenizer in (bert, AutoTokenizer.from_pretrained(minilm)):
        found = PieceMaker(tokenizer, 64).pieces(["x" * 300_000, "ak"])
        assert found.failures == {}
        assert found.windows_R.tolist() == [1, 1]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2 and RoBERTa have it: blanks belong to the word behind them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def metaspace() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa and T5 have it: pieces of a unigram model between blanks."""
    pieces = [("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "abcdefghij"), ("ab", -2.5), ("cab", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A <unk>", special_tokens=[("<unk>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("kind", ["bert", "byte_level", "metaspace"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("abc de  fgh\n\nij. " * 20_000, id="words"),
        pytest.param("a" * 150_000 + " bc" * 100_000, id="a long word first"),
        pytest.param("\u200b" * 100_000 + " abc de" * 30_000, id="nothing visible first"),
        pytest.param("abc" + " " * 200_000 + "de fgh", id="blanks"),
        pytest.param("ab\tcd\t" * 50_000, id="tabs alone"),
    ],
)
def test_cutting_a_long_text_before_it_is_tokenised_changes_nothing(kind, text, bert):
    tokenizer = bert if kind == "bert" else globals()[kind]()
    whole = np.array(tokenizer.encode(text, add_special_tokens=False))
    maker = PieceMaker(tokenizer, 40)
    special = maker.pieces([text]).ids_P[0]
    assert special.tolist() == tokenizer(text, truncation=True, max_length=40)["input_ids"]
    beginning = maker._beginning(text)
    assert beginning is None or beginning.tolist() == whole[: len(beginning)].tolist()


def test_only_the_beginning_of_a_long_text_is_tokenised(bert):
    text = "abc de fgh " * 100_000
    beginning = PieceMaker(bert, 40)._beginning(text)
    assert beginning is not None
    assert 40 < len(beginning) < 20_000
    assert PieceMaker(bert, 40).pieces([text]).truncated_R.tolist() == [True]


def test_a_window_without_room_is_refused(bert):
    with pytest.raises(JobError, match="max_tokens: 2 leaves no room: 2 are special; at least 3"):
        PieceMaker(bert, 2)


def test_an_overlap_without_room_is_refused(bert):
    with pytest.raises(
        JobError, match=r"stride: 10 tokens of overlap leave no room .* holds 10 besides 2 .* at most 9"
    ):
        PieceMaker(bert, 12, stride=10)


class Meddling(Fragile):
    """With special tokens, it drops a text's own."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [101, 999, 102]}


class Typed(Fragile):
    """Its last token has a type of its own, as XLNet's has."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [*self.encode(text, False), 102], "token_type_ids": [0, 0, 2]}


@pytest.mark.parametrize(
    ("tokenizer", "words"), [(Meddling(), "changes the text's own tokens"), (Typed(), "token types other than 0")]
)
def test_a_tokenizer_that_does_more_than_put_tokens_around_a_text_is_refused(tokenizer, words):
    with pytest.raises(ModelError, match=words):
        PieceMaker(tokenizer, 12)
