"""Weights become a model in memory: safetensors to torch, with its tokenizer, on its device, in its number format.

    load(pinned, "AutoModel", dtype="bfloat16", device="cpu", threads=1, token_budget=2048, engine="torch") ->
        LoadedModel(pinned=…, module=BertModel(…), tokenizer=BertTokenizer(…), device="cpu", dtype="bfloat16", …)

The files are those of the pinned digest on the node of this process. Every fault is a ModelError of one line.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.batching import TokenBudget
from pipeline.errors import ModelError
from pipeline.models.activations import activate_in_place, use_fused_activations
from pipeline.models.attention import can_pack, use_packed_attention, use_plain_attention, use_writing_attention
from pipeline.models.device import WRITING, settle
from pipeline.models.engines import OPENVINO, TORCH
from pipeline.models.first_token import read_first_token
from pipeline.models.layers import fuse_layers
from pipeline.models.libraries import let_go_of_code
from pipeline.models.linears import prepare_linears
from pipeline.models.mapped import as_stored, let_go_of_file, mappings
from pipeline.models.pretrained import config_of, module_of, one_line, prepared_tokenizer, wide_module
from pipeline.models.quietly import quietly
from pipeline.models.ranges import digest_of, from_bytes
from pipeline.models.reference import PinnedModel, on_this_node
from pipeline.models.rows import can_compute_in_rows, compute_in_rows, head_size
from pipeline.models.t5 import use_t5_layers
from pipeline.workers import Device

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}
"""Of int8, what all but the linear layers compute in."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to compute."""

    pinned: PinnedModel
    module: Any  # torch.nn.Module, or what another engine made of it, which is called like it
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    device: Device
    dtype: str  # never "auto"
    threads: int
    token_budget: int  # of one micro-batch: padded tokens, or real ones where it is packed
    packed: bool = False  # it computes the real tokens alone, where a micro-batch tells it which they are
    engine: str = TORCH  # never "auto"
    calibration: str | None = None  # the sha256 of what its layers in int8 are quantised by
    budget: TokenBudget = field(init=False)  # the same, lowered where memory ran out

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", TokenBudget(self.token_budget))

    @property
    def computes(self) -> Hashable:
        """How it computes: annotations that share a forward pass of a model agree in it."""
        return (self.engine, self.dtype, self.calibration, self.token_budget)

    @property
    def pad_id(self) -> int:
        """What fills short rows; the model's own word first: RoBERTa counts positions by it."""
        config = getattr(self.module, "config", None)  # a module of the user's own may have none
        stated = [getattr(config, "pad_token_id", None), self.tokenizer.pad_token_id]
        return next((int(pad_id) for pad_id in stated if pad_id is not None), 0)


def load(
    pinned: PinnedModel,
    auto_class: str,
    dtype: str,
    device: Device,
    threads: int,
    token_budget: int,
    engine: str = TORCH,
    calibration: bytes | None = None,
    apart: bool = False,
) -> LoadedModel:
    """Load the model as the transformers class that the task needs, and its tokenizer; the engine gets its threads.

    A model whose folder is on another node is brought to this one first. Raises ModelError: no files of the pinned
    digest here; weights that the class needs are missing or of another shape; a kind of model that the class does not
    know; a tokenizer that cannot be built; one that the engine cannot compute; anything else that transformers refuses.

    `calibration`: what the linear layers are quantised by, where the dtype is int8. `apart`: what takes much memory
    for a moment happens in another process.
    """
    settle(device, threads)
    pinned = on_this_node(pinned)
    if engine == OPENVINO:
        return _load_openvino(pinned, auto_class, dtype, threads, token_budget, calibration, apart)
    with quietly():
        module = module_of(pinned, auto_class, dtype_named(dtype))
    read_first_token(module)
    if dtype == "int8":
        assert calibration is not None, "a model in int8 was calibrated before"
        _quantize(module, pinned, auto_class, calibration)
    packed = False
    if device == "cpu" and dtype in ("bfloat16", "int8") and auto_class not in WRITING:
        use_plain_attention(module, or_eagerly=False)
        in_rows = compute_in_rows(module)
        if in_rows:
            activate_in_place(module)
        prepare_linears(module)
        if in_rows:
            fuse_layers(module)
    elif device == "cpu" and auto_class == "AutoModelForSeq2SeqLM":
        if dtype == "bfloat16":
            use_writing_attention(module)
            use_fused_activations(module)
            prepare_linears(module)
        use_t5_layers(module)
    elif device == "cuda" and auto_class not in WRITING and can_compute_in_rows(module):
        packed = can_pack(dtype_named(dtype), head_size(module)) and pack(module)
    tokenizer = prepared_tokenizer(pinned, threads)
    try:
        module = module.to(device).eval()
    except Exception as fault:
        raise ModelError(f"model {pinned.ref!r} cannot be moved to {device}: {one_line(fault)}") from fault
    digest = None if calibration is None else digest_of(calibration)
    return LoadedModel(pinned, module, tokenizer, device, dtype, threads, token_budget, packed, calibration=digest)


def _quantize(module: Any, pinned: PinnedModel, auto_class: str, calibration: bytes) -> None:
    """The linear layers of the module's body become int8, in place: rounded from what the files have.

    So it is loaded once more, of which each layer's weights are in memory only while they are rounded.
    """
    from pipeline.models.int8 import can_quantize, quantize_linears

    if not can_quantize():
        raise ModelError(
            f"model {pinned.ref!r}: this torch ({torch.__version__}) has no products of int8 for this processor: set "
            "`dtype: bfloat16`"
        )
    with quietly():
        wide = module_of(pinned, auto_class, torch.float32, reading=as_stored)
    files = mappings()
    try:
        quantize_linears(
            module,
            wide,
            from_bytes(calibration),
            done_with=lambda weight: let_go_of_file(weight.data_ptr(), weight.nbytes, files),
        )
    except ModelError as fault:
        raise ModelError(f"model {pinned.ref!r}: {fault}: set `dtype: bfloat16`") from fault


def _load_openvino(
    pinned: PinnedModel,
    auto_class: str,
    dtype: str,
    threads: int,
    token_budget: int,
    calibration: bytes | None,
    apart: bool,
) -> LoadedModel:
    from pipeline.models import graphs
    from pipeline.models.conversion import convert, convert_apart
    from pipeline.models.open_vino import opened

    def make(folder: Path) -> None:
        if apart:
            convert_apart(pinned, auto_class, folder)
        else:
            convert(wide_module(pinned, auto_class), auto_class, folder)

    tokenizer = prepared_tokenizer(pinned, threads)
    if apart:  # beside what compiling holds for a moment, what was for starting until now
        let_go_of_code()
    try:
        ranges = None if calibration is None else from_bytes(calibration)
        kept = partial(graphs.kept, pinned.digest, auto_class, make)
        module = opened(kept, config_of(pinned), auto_class, dtype, threads, ranges)
    except ModelError as fault:
        told = str(fault) if repr(pinned.ref) in str(fault) else f"model {pinned.ref!r}: {fault}"
        raise ModelError(told) from fault.__cause__
    digest = None if calibration is None else digest_of(calibration)
    return LoadedModel(pinned, module, tokenizer, "cpu", dtype, threads, token_budget, module.in_rows, OPENVINO, digest)


def pack(module: Any) -> bool:
    """Have an encoder compute real tokens alone, in place; False where its family cannot, and it stays as it was."""
    if not can_compute_in_rows(module) or not use_packed_attention(module):
        return False
    return compute_in_rows(module)


def dtype_named(dtype: str) -> torch.dtype:
    """The torch format of a job's word for it."""
    return _DTYPES[dtype]
