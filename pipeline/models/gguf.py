"""GGUF: a whole model in one file, whose header tells all but the weights.

    "GGUF", version 3, 272 tensors, 33 entries
    general.architecture  "llama"        llama.context_length   8192       tokenizer.ggml.pre       "smollm"
    general.file_type     3              llama.embedding_length 576        tokenizer.chat_template  "{% for message …"
    blk.0.ffn_up.weight   (576, 1536)    type 3 (Q4_1)          offset 51_380_224

The header is read here, without any package. Weights and tokenizer are read by transformers, which needs `gguf` and
`accelerate` for it. Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import importlib.util
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import ModelError
from pipeline.models.inspection import LFS_POINTER

_PACKAGES = ("gguf", "accelerate")
_VERSIONS = (2, 3)
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_F32_BYTES = 4

# Type -> (numbers in a block, bytes of a block); the end of a tensor of another type is not checked.
_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 30: (1, 2),  # F32, F16, BF16
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),  # Q2_K … Q6_K
}  # fmt: skip

# Key behind the architecture's name -> the name that config.json has for it.
_CONFIG_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_TOKEN_KEYS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
    "unknown_token_id": "unk_token_id",
}
_ARCHITECTURES = {"t5": "T5ForConditionalGeneration", "t5encoder": "T5EncoderModel"}

# How byte-level vocabularies split text before they merge bytes, by `tokenizer.ggml.pre`. transformers splits all that
# it does not know as GPT-2 does, which is right for the first of these and wrong for the second.
_AS_GPT2 = frozenset({"gpt-2", "mpt", "olmo", "roberta-bpe", "phi-2", "jais"})
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    metadata: Mapping[str, Any]  # an array is told by its length alone
    parameters: int

    @property
    def config(self) -> dict[str, Any]:
        """The part of a config.json that tasks look at."""
        architecture = str(self.metadata.get("general.architecture", ""))
        known = _ARCHITECTURES.get(architecture, f"{architecture.capitalize()}ForCausalLM")
        config: dict[str, Any] = {"model_type": architecture, "architectures": [known]}
        config["is_encoder_decoder"] = architecture == "t5"
        named = {f"{architecture}.{key}": name for key, name in _CONFIG_KEYS.items()}
        named |= {f"tokenizer.ggml.{key}": name for key, name in _TOKEN_KEYS.items()}
        config |= {name: self.metadata[key] for key, name in named.items() if key in self.metadata}
        vocabulary = self.metadata.get(f"{architecture}.vocab_size", self.metadata.get("tokenizer.ggml.tokens"))
        return config if vocabulary is None else {**config, "vocab_size": vocabulary}

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights in memory, unpacked to float32."""
        return self.parameters * _F32_BYTES


def check_file(path: Path) -> Header:
    """Refuse what could not be loaded; gives the header.

    Raises ModelError: a package that reads such files is not installed; no GGUF, damaged, truncated; one of several
    parts; no tokenizer inside.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(
            f"{path.name} is a GGUF file, and {' and '.join(missing)} to read it with is not installed: "
            'pip install "corpusmill[gguf]"'
        )
    header = read_header(path)
    if int(header.metadata.get("split.count", 1)) > 1:
        raise ModelError(f"{path} is one of {header.metadata['split.count']} parts: merge them with llama-gguf-split")
    if "tokenizer.ggml.tokens" not in header.metadata:
        raise ModelError(f"{path} holds no tokenizer: name a GGUF file of a whole model")
    return header


def read_header(path: Path) -> Header:
    """The metadata and the count of parameters. Raises ModelError: no GGUF, of another version, damaged, truncated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in that repository")
        if start[:4] != b"GGUF":
            raise ModelError(f"{path} is no GGUF file: it does not begin with GGUF")
        file.seek(4)
        try:
            version, tensors, entries = _unpack(file, "<IQQ")
            if version not in _VERSIONS:
                raise ModelError(f"{path} is GGUF version {version}; versions 2 and 3 can be read")
            metadata = {}
            for _ in range(entries):
                key = _string(file, size)
                metadata[key] = _value(file, _unpack(file, "<I")[0], size)
            shapes = [_tensor(file, size) for _ in range(tensors)]
        except (struct.error, EOFError, UnicodeDecodeError, KeyError) as problem:
            raise ModelError(
                f"{path} is damaged or truncated: its header cannot be read at byte {file.tell()} of {size} "
                f"({type(problem).__name__}); fetch it again"
            ) from None
        end = file.tell()
        alignment = int(metadata.get("general.alignment") or 32)
        begin = -(-end // alignment) * alignment
    promised = max((begin + offset + length for _, offset, length in shapes), default=end)
    if promised > size:
        raise ModelError(
            f"{path} is truncated: it has {size} bytes, and its header promises {promised}; fetch it again"
        )
    return Header(metadata, sum(count for count, _, _ in shapes))


def mend_tokenizer(tokenizer: Any, header: Header) -> None:
    """Make transformers' tokenizer of a GGUF file split text as its vocabulary was learned, and know its chat template.

    Raises ModelError where the file names a way of splitting that neither transformers nor we know.
    """
    metadata = header.metadata
    split = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") == "gpt2" and split is not None:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        if split in _DIGITS_APART:
            from tokenizers import pre_tokenizers

            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            )
        elif split not in _AS_GPT2 and split not in GGUF_PRE_TOKENIZER_SPLITS:
            raise ModelError(
                f"its tokenizer splits text as {split!r}, which is not known here, so tokens would be wrong: take the "
                "model's safetensors"
            )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = metadata.get("tokenizer.chat_template")


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO, size: int) -> str:
    return _bytes(file, size).decode()


def _bytes(file: BinaryIO, size: int) -> bytes:
    (length,) = _unpack(file, "<Q")
    if length > size - file.tell():
        raise EOFError
    return file.read(length)


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    if kind == _STRING:
        return _string(file, size)
    if kind != _ARRAY:
        return _unpack(file, _FORMATS[kind])[0]
    element, count = _unpack(file, "<IQ")
    if count > size:
        raise EOFError
    if element in _FORMATS:
        file.seek(count * struct.calcsize(_FORMATS[element]), 1)
    else:
        for _ in range(count):
            # Strings are stepped over: a vocabulary of them is not needed here.
            _bytes(file, size) if element == _STRING else _value(file, element, size)
    return count


def _tensor(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Numbers, offset and bytes of the next tensor of the table."""
    _string(file, size)
    (dimensions,) = _unpack(file, "<I")
    if dimensions > _MOST_DIMENSIONS:
        raise EOFError
    count = prod(_unpack(file, f"<{dimensions}Q"))
    kind, offset = _unpack(file, "<IQ")
    numbers, block_bytes = _BLOCKS.get(kind, (1, 0))
    return count, offset, count // numbers * block_bytes
