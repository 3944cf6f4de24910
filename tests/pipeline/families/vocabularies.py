"""Tokenizers in each family's own class, over vocabularies trained on the spot from `languages.SENTENCES`.

wordpiece(["[PAD]", "[UNK]"])   {"[PAD]": 0, "[UNK]": 1, "a": 2, "##e": 3, …}
sentencepiece_model()           the bytes of a `.model` file: Unigram and the map of nmt_nfkc
"""

import functools
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.pipeline.families.languages import SENTENCES, words_of

WORDPIECES = 900
BYTE_PAIRS = 600
UNIGRAMS = 700
LETTERS = 150
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def corpus() -> Iterator[str]:
    """The sentences, and each script's words by themselves."""
    for script, sentences in SENTENCES.items():
        yield from sentences
        yield " ".join(words_of(script))


def wordpiece(special: Sequence[str]) -> dict[str, int]:
    """A lower-cased WordPiece vocabulary, as BERT has it: every character at both places, then the commonest pieces.

    The library's own trainer breaks ties by the order of a hash map, another one each time.
    """
    from tokenizers import normalizers, pre_tokenizers

    plain, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = [word for line in corpus() for word, _ in split.pre_tokenize_str(plain.normalize_str(line))]
    letters = sorted({letter for word in words for letter in word})
    counted: Counter[str] = Counter()
    for word in words:
        counted.update(word[:end] for end in range(2, len(word) + 1))
        counted.update(f"##{word[start:]}" for start in range(1, len(word) - 1))
    common = sorted(counted, key=lambda piece: (-counted[piece], piece))
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *common]
    return {piece: place for place, piece in enumerate(pieces[:WORDPIECES])}


def byte_pairs(special: Sequence[str], trailing: Sequence[str] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary and its merges; `special` stands at the start, `trailing` at the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_PAIRS,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    vocabulary = _ordered(backend)
    vocabulary |= {token: len(vocabulary) + place for place, token in enumerate(trailing)}
    return vocabulary, _merges(backend)


def fallback_pairs(special: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A BPE over characters that falls back to bytes, as Llama has it: the 256 bytes follow `special`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    counted = Counter(letter for line in corpus() for letter in line.replace(" ", "▁"))
    letters = sorted(counted, key=lambda letter: (-counted[letter], letter))[:LETTERS]
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_PAIRS + 256,
        initial_alphabet=letters,
        limit_alphabet=len(letters),  # the others are for the bytes
        special_tokens=[*special, *BYTES],
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    return _ordered(backend), _merges(backend)


@dataclass(frozen=True)
class Unigrams:
    """What a `.model` file of sentencepiece holds."""

    model: bytes
    pieces: tuple[tuple[str, float], ...]  # without <unk>
    charsmap: bytes


@functools.cache
def unigrams(vocabulary: int = UNIGRAMS) -> Unigrams:
    """A Unigram model trained by sentencepiece itself, with the normaliser that T5, XLM-R, Pegasus and Marian have."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=written,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())  # type: ignore[attr-defined]
    pieces = tuple((piece.piece, piece.score) for piece in model.pieces[1:])
    return Unigrams(written.getvalue(), pieces, model.normalizer_spec.precompiled_charsmap)


def _ordered(backend: Any) -> dict[str, int]:
    vocabulary: Mapping[str, int] = backend.get_vocab()
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


def _merges(backend: Any) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]
