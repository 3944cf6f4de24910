"""Tiny encoders of random weights, built once: real architectures, only small. And texts for them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.families import factory, languages

WORDS = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]


def _tokenizer(folder: Path, roberta: bool, max_tokens: int) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    start, pad, end, unknown = ("<s>", "<pad>", "</s>", "<unk>") if roberta else ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
    order = [start, pad, end, unknown] if roberta else [pad, unknown, start, end]
    vocabulary = {word: number for number, word in enumerate([*order, *WORDS, *[f"##{word}" for word in WORDS]])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = BertNormalizer()
    backend.pre_tokenizer = BertPreTokenizer()
    special = [(start, vocabulary[start]), (end, vocabulary[end])]
    backend.post_processor = TemplateProcessing(single=f"{start} $A {end}", special_tokens=special)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token=start,
        sep_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a model folder: `make_encoder("roberta", "ForSequenceClassification", num_labels=3)`."""
    made: dict[str, Path] = {}

    def make(kind: str = "bert", head: str = "Model", max_tokens: int = 64, **options: Any) -> Path:
        import torch
        import transformers

        key = repr((kind, head, max_tokens, sorted(options.items())))
        if key in made:
            return made[key]
        roberta = kind == "roberta"
        name = "Roberta" if roberta else "Bert"
        config = getattr(transformers, f"{name}Config")(
            vocab_size=4 + 2 * len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=max_tokens + (2 if roberta else 0),
            initializer_range=0.4,
            pad_token_id=1 if roberta else 0,
            **options,
        )
        torch.manual_seed(7)
        folder = tmp_path_factory.mktemp(kind)
        transformers.logging.disable_progress_bar()
        getattr(transformers, f"{name}{head}")(config).save_pretrained(folder)
        _tokenizer(folder, roberta, max_tokens)
        made[key] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Forty texts of 1 to 50 words, no two of one length side by side."""
    return [
        " ".join(WORDS[(row * 17 + word * 7) % len(WORDS)] for word in range(row * 23 % 50 + 1)) for row in range(40)
    ]


@pytest.fixture(scope="session")
def families() -> Mapping[str, Sequence[str]]:
    """The heads that `tiny` can make of each family."""
    return {name: family.heads for name, family in factory.FAMILIES.items()}


WHOLE = frozenset({"bert", "roberta", "xlm-roberta", "t5", "gpt2"})
"""One family of each kind of tokenizer: these are proven on every text, their like on every fourth."""


@pytest.fixture(scope="session")
def texts_of(texts: list[str]) -> Callable[[str], list[str]]:
    """The texts on which a family is proven: all for one of each kind of tokenizer, every fourth for the others."""
    return lambda family: texts if family in WHOLE else texts[::4]


@pytest.fixture(scope="session")
def least_of() -> Callable[[str], int]:
    """So many of them have to be compared at least; the others have no token for some family."""
    return lambda family: 200 if family in WHOLE else 45


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some 230 texts of 0 to 5,000 characters in many scripts, the same each time."""
    return languages.texts()
