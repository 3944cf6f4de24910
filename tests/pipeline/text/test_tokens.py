import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from pipeline.quarantine import Failure, Reason
from pipeline.text.tokens import TextTokenizer, Tokenized, Tokens


@pytest.fixture
def bert(make_encoder):
    return AutoTokenizer.from_pretrained(make_encoder())


def test_offsets_are_code_points_of_the_text(minilm):
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(minilm))
    text = "Café \U0001f469\u200d\U0001f4bb naïve résumé 日本"
    (found,) = tokenizer.tokens([text], most=None, offsets=True)
    assert isinstance(found, Tokens)
    assert found.offsets_T2 is not None
    words = [text[start:stop] for start, stop in found.offsets_T2]
    assert len(words) == len(found.ids_T)
    assert words[0] == "Café"
    assert "".join(words).replace("\u200d", "") == text.replace(" ", "").replace("\u200d", "")


def test_a_slow_tokenizer_has_no_offsets():
    assert not TextTokenizer(ByT5Tokenizer()).has_offsets


class Counting(TextTokenizer):
    """Tells what it is given."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.seen = []

    def tokens(self, texts, most, offsets=False):
        self.seen += texts
        return super().tokens(texts, most, offsets)


def test_each_text_is_tokenised_once(bert):
    tokenizer = Counting(bert)
    tokenized = Tokenized(tokenizer, ["ak al", "half a pair \ud800", "am"])
    first = tokenized.tokens(most=10)
    assert tokenized.tokens(most=None) == first
    assert tokenizer.seen == ["ak al", "half a pair \ud800", "am"]
    assert isinstance(first[1], Failure)
    assert first[1].reason == Reason.TOKENIZER_FAILED


def test_offsets_that_nobody_had_asked_for_are_found_later(bert):
    tokenizer = Counting(bert)
    tokenized = Tokenized(tokenizer, ["ak al"])
    tokenized.tokens(most=None)
    (found,) = tokenized.tokens(most=None, offsets=True)
    assert isinstance(found, Tokens)
    assert found.offsets_T2 is not None
    assert found.offsets_T2.tolist() == [[0, 2], [3, 5]]
    assert tokenizer.seen == ["ak al"] * 2
    assert tokenized.tokens(most=None)[0] is found


def test_a_text_of_which_the_beginning_is_known_is_tokenised_again_when_more_is_asked_for(bert):
    tokenizer = Counting(bert)
    tokenized = Tokenized(tokenizer, ["abc de fgh " * 100_000])
    (beginning,) = tokenized.tokens(most=40)
    assert isinstance(beginning, Tokens)
    assert not beginning.whole
    assert tokenized.tokens(most=100)[0] is beginning
    (whole,) = tokenized.tokens(most=None)
    assert isinstance(whole, Tokens)
    assert whole.whole
    assert whole.ids_T[: len(beginning.ids_T)].tolist() == beginning.ids_T.tolist()
    assert len(tokenizer.seen) == 2


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
    (found,) = TextTokenizer(tokenizer).tokens([text], most=38)
    assert isinstance(found, Tokens)
    assert found.ids_T.tolist() == whole[: len(found.ids_T)].tolist()
    assert found.whole == (len(found.ids_T) == len(whole))
    assert len(found.ids_T) > 38 or found.whole


def test_only_the_beginning_of_a_long_text_is_tokenised(bert):
    text = "abc de fgh " * 100_000
    (beginning,) = TextTokenizer(bert).tokens([text], most=40)
    assert isinstance(beginning, Tokens)
    assert 40 < len(beginning.ids_T) < 20_000
    assert not beginning.whole
