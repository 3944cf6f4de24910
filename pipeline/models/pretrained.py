"""Files become what transformers makes of them: a torch module with all its weights, its config, its tokenizer.

    module_of(pinned, "AutoModel", torch.bfloat16)  -> BertModel(…)
    prepared_tokenizer(pinned, threads=1)           -> BertTokenizer(…)

The files are those of the pinned digest on the node of this process. Every fault is a ModelError of one line.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.errors import ModelError
from pipeline.models import gguf
from pipeline.models.blank import blank
from pipeline.models.first_token import read_first_token
from pipeline.models.mapped import letting_go
from pipeline.models.quietly import quietly
from pipeline.models.reference import PinnedModel

# Weights that AutoModel may do without: a pooler that this checkpoint was never trained with.
_POOLER = "pooler."
# Families of encoders for which transformers has a causal class too.
_ENCODERS = frozenset(
    {"albert", "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "modernbert"}
    | {"rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)


def wide_module(pinned: PinnedModel, auto_class: str) -> Any:
    """The torch module in float32, which reads what torch alone would have it read.

    Raises ModelError as `load`.
    """
    with quietly():
        module = module_of(pinned, auto_class, torch.float32)
    read_first_token(module)
    return module


def config_of(pinned: PinnedModel) -> Any:
    """The config of a model that is on this node. Raises ModelError where it cannot be read."""
    try:
        with quietly():
            return transformers.AutoConfig.from_pretrained(pinned.folder, local_files_only=True)
    except Exception as fault:
        raise ModelError(f"model {pinned.ref!r}: its config.json cannot be read: {one_line(fault)}") from fault


def prepared_tokenizer(pinned: PinnedModel, threads: int) -> Any:
    """The tokenizer of a model that is on this node, which will use one core or as many as it likes.

    Raises ModelError where it cannot be built.
    """
    # The tokenizers library takes all cores otherwise; it reads this at every call.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    try:
        with quietly():
            return _tokenizer(pinned)
    except Exception as fault:
        gist = str(fault) if isinstance(fault, ModelError) else one_line(fault)
        raise ModelError(f"model {pinned.ref!r}: its tokenizer cannot be loaded: {gist}") from fault


def _tokenizer(pinned: PinnedModel) -> Any:
    if pinned.gguf_file is None:
        return transformers.AutoTokenizer.from_pretrained(
            pinned.folder, local_files_only=True, trust_remote_code=pinned.allow_remote_code
        )
    # AutoTokenizer would give the same after it has parsed the whole file once more.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
        pinned.folder, gguf_file=pinned.gguf_file, local_files_only=True
    )
    gguf.mend_tokenizer(tokenizer, gguf.read_header(Path(pinned.folder, pinned.gguf_file)))
    return tokenizer


def _weights(pinned: PinnedModel) -> dict[str, Any]:
    """What tells transformers where the weights are and how they are stored."""
    if pinned.gguf_file is None:
        return {"use_safetensors": True, "trust_remote_code": pinned.allow_remote_code}
    # Left packed, weights would compute in other numbers than the dtype says, and on some devices only.
    return {"gguf_file": pinned.gguf_file, "quantization_config": transformers.GgufConfig(dequantize=True)}


def module_of(
    pinned: PinnedModel,
    auto_class: str,
    dtype: torch.dtype,
    reading: Callable[[], AbstractContextManager[None]] = letting_go,
) -> Any:
    """The torch module with all its weights; inside `reading` they are read.

    Raises ModelError: weights that the class needs are missing or of another shape; a kind of model that the class does
    not know; anything else that transformers refuses.
    """
    _check_kind(pinned, auto_class)
    class_name = _class_for(pinned, auto_class)
    kind = getattr(transformers, class_name)
    try:
        with blank(), reading():
            module, told = kind.from_pretrained(
                pinned.folder,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, in words of ours
                **_weights(pinned),
            )
    except Exception as fault:
        if "Unrecognized configuration class" in str(fault):
            raise ModelError(
                f"model {pinned.ref!r} is {_kind_of(pinned)}, for which transformers has no {auto_class}: name a "
                "model of the kind that this task needs"
            ) from fault
        raise ModelError(f"model {pinned.ref!r} cannot be loaded as {auto_class}: {one_line(fault)}") from fault
    if class_name == "AutoModel" and _has_decoder(pinned):
        module = module.get_encoder()  # BART and its kin have no class for the encoder alone
    missing = sorted(told["missing_keys"])
    if missing and auto_class == "AutoModel" and all(key.startswith(_POOLER) for key in missing):
        module.pooler = None  # random numbers otherwise; no task reads it
        missing = []
    if missing:
        raise ModelError(
            f"model {pinned.ref!r} lacks {len(missing)} weights that {type(module).__name__} needs: "
            f"{_some(missing)}; they would be random. Name a model that was trained for this task"
        )
    if told["mismatched_keys"]:
        key, on_disk, needed = min(told["mismatched_keys"])
        raise ModelError(
            f"model {pinned.ref!r}: {key} has shape {tuple(on_disk)}, and config.json says {tuple(needed)} "
            f"({len(told['mismatched_keys'])} such weights)"
        )
    return module


def _class_for(pinned: PinnedModel, auto_class: str) -> str:
    """Of an encoder with a decoder, a task that wants hidden states takes the encoder alone."""
    if auto_class != "AutoModel" or not _has_decoder(pinned):
        return auto_class
    known = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    return "AutoModelForTextEncoding" if pinned.config.get("model_type") in known else auto_class


def _has_decoder(pinned: PinnedModel) -> bool:
    """Whether the model is an encoder with a decoder, or the encoder that was taken out of one."""
    architecture = str(next(iter(pinned.config.get("architectures") or []), ""))
    return bool(pinned.config.get("is_encoder_decoder", False)) or architecture.endswith("EncoderModel")


def _check_kind(pinned: PinnedModel, auto_class: str) -> None:
    """Refuse what transformers would load without a word, though it was trained for something else.

    Half of an encoder-decoder, or an encoder that sees what follows, does not continue a text.
    """
    if auto_class != "AutoModelForCausalLM":
        return
    sees_ahead = pinned.config.get("model_type") in _ENCODERS and not pinned.config.get("is_decoder", False)
    if _has_decoder(pinned) or sees_ahead:
        raise ModelError(
            f"model {pinned.ref!r} is {_kind_of(pinned)}, which was not trained to continue a text: name a causal "
            "language model (GPT-2, Llama, Qwen …)"
        )


def _kind_of(pinned: PinnedModel) -> str:
    """What the config calls the model, for a message."""
    architecture = str(next(iter(pinned.config.get("architectures") or []), "a model"))
    return f"{architecture} (model_type {pinned.config.get('model_type')!r})"


def _some(keys: list[str], most: int = 4) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest


def one_line(fault: Exception, most_chars: int = 300) -> str:
    """The gist of a message that may have many lines."""
    text = " ".join(str(fault).split()) or "no message"
    return f"{type(fault).__name__}: {text[:most_chars]}{'…' if len(text) > most_chars else ''}"
