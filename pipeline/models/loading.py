"""Weights become a model in memory: safetensors to torch, with its tokenizer, on its device, in its number format.

    load(pinned, "AutoModel", dtype="bfloat16", device="cpu", threads=1, token_budget=2048) ->
        LoadedModel(pinned=…, module=BertModel(…), tokenizer=BertTokenizer(…), device="cpu", dtype="bfloat16", …)

Nothing is fetched: the folder of a pinned model holds all of it. Every fault is a ModelError of one line.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from pipeline.errors import ModelError
from pipeline.models.reference import PinnedModel
from pipeline.workers import Device

# Weights that AutoModel may do without: a pooler that this checkpoint was never trained with.
_POOLER = "pooler."
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to compute."""

    pinned: PinnedModel
    module: Any  # torch.nn.Module
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    device: Device
    dtype: str  # never "auto"
    threads: int
    token_budget: int  # padded tokens of one micro-batch

    @property
    def pad_id(self) -> int:
        """What fills short rows; the model's own word first: RoBERTa counts positions by it."""
        stated = [getattr(self.module.config, "pad_token_id", None), self.tokenizer.pad_token_id]
        return next((int(pad_id) for pad_id in stated if pad_id is not None), 0)


def load(
    pinned: PinnedModel, auto_class: str, dtype: str, device: Device, threads: int, token_budget: int
) -> LoadedModel:
    """Load the model as the transformers class that the task needs, and its tokenizer; torch gets its threads.

    Raises ModelError: weights that the class needs are missing or of another shape; a kind of model that the class does
    not know; a tokenizer that cannot be built; anything else that transformers refuses.
    """
    torch.set_num_threads(threads)
    # The tokenizers library takes all cores otherwise; it reads this at every call.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    with _silence():
        module = _module(pinned, auto_class, _DTYPES[dtype])
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                pinned.folder, local_files_only=True, trust_remote_code=pinned.allow_remote_code
            )
        except Exception as fault:
            raise ModelError(f"model {pinned.ref!r}: its tokenizer cannot be loaded: {_one_line(fault)}") from fault
    try:
        module = module.to(device).eval()
    except Exception as fault:
        raise ModelError(f"model {pinned.ref!r} cannot be moved to {device}: {_one_line(fault)}") from fault
    return LoadedModel(pinned, module, tokenizer, device, dtype, threads, token_budget)


def _module(pinned: PinnedModel, auto_class: str, dtype: torch.dtype) -> Any:
    """The torch module with all its weights."""
    kind = getattr(transformers, _class_for(pinned, auto_class))
    try:
        module, told = kind.from_pretrained(
            pinned.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=pinned.allow_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, in words of ours
        )
    except Exception as fault:
        raise ModelError(f"model {pinned.ref!r} cannot be loaded as {auto_class}: {_one_line(fault)}") from fault
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
    architecture = str(next(iter(pinned.config.get("architectures") or []), ""))
    with_decoder = pinned.config.get("is_encoder_decoder", False) or architecture.endswith("EncoderModel")
    return "AutoModelForTextEncoding" if auto_class == "AutoModel" and with_decoder else auto_class


def _some(keys: list[str], most: int = 4) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest


def _one_line(fault: Exception, most_chars: int = 300) -> str:
    """The gist of a message that may have many lines."""
    text = " ".join(str(fault).split()) or "no message"
    return f"{type(fault).__name__}: {text[:most_chars]}{'…' if len(text) > most_chars else ''}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Inside the block transformers neither draws bars nor warns: what matters becomes an error."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
