"""Weights become a model in memory: safetensors to torch, with its tokenizer, on its device, in its number format.

    load(pinned, "AutoModel", dtype="bfloat16", device="cpu", threads=1, token_budget=2048, engine="torch") ->
        LoadedModel(pinned=…, module=BertModel(…), tokenizer=BertTokenizer(…), device="cpu", dtype="bfloat16", …)

The files are those of the pinned digest on the node of this process. Every fault is a ModelError of one line.
"""

import os
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.batching import TokenBudget
from pipeline.errors import ModelError
from pipeline.models import gguf
from pipeline.models.activations import activate_in_place, use_fused_activations
from pipeline.models.attention import can_pack, use_packed_attention, use_plain_attention, use_writing_attention
from pipeline.models.blank import blank
from pipeline.models.device import WRITING, settle
from pipeline.models.engines import OPENVINO, TORCH
from pipeline.models.first_token import read_first_token
from pipeline.models.layers import fuse_layers
from pipeline.models.libraries import let_go_of_code
from pipeline.models.linears import prepare_linears
from pipeline.models.mapped import as_stored, let_go_of_file, letting_go, mappings
from pipeline.models.quietly import quietly
from pipeline.models.ranges import digest_of, from_bytes
from pipeline.models.reference import PinnedModel, on_this_node
from pipeline.models.rows import can_compute_in_rows, compute_in_rows, head_size
from pipeline.models.t5 import use_t5_layers
from pipeline.workers import Device

# Weights that AutoModel may do without: a pooler that this checkpoint was never trained with.
_POOLER = "pooler."
# Families of encoders for which transformers has a causal class too.
_ENCODERS = frozenset(
    {"albert", "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "modernbert"}
    | {"rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
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
    token_budget: int  # padded tokens of one micro-batch
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
        module = _module(pinned, auto_class, dtype_named(dtype))
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
        raise ModelError(f"model {pinned.ref!r} cannot be moved to {device}: {_one_line(fault)}") from fault
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
        wide = _module(pinned, auto_class, torch.float32, reading=as_stored)
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
        module = opened(kept, _config(pinned), auto_class, dtype, threads, ranges)
    except ModelError as fault:
        told = str(fault) if repr(pinned.ref) in str(fault) else f"model {pinned.ref!r}: {fault}"
        raise ModelError(told) from fault.__cause__
    digest = None if calibration is None else digest_of(calibration)
    return LoadedModel(pinned, module, tokenizer, "cpu", dtype, threads, token_budget, module.in_rows, OPENVINO, digest)


def _config(pinned: PinnedModel) -> Any:
    try:
        with quietly():
            return transformers.AutoConfig.from_pretrained(pinned.folder, local_files_only=True)
    except Exception as fault:
        raise ModelError(f"model {pinned.ref!r}: its config.json cannot be read: {_one_line(fault)}") from fault


def wide_module(pinned: PinnedModel, auto_class: str) -> Any:
    """The torch module in float32, which reads what torch alone would have it read.

    Raises ModelError as `load`.
    """
    with quietly():
        module = _module(pinned, auto_class, torch.float32)
    read_first_token(module)
    return module


def pack(module: Any) -> bool:
    """Have an encoder compute real tokens alone, in place; False where its family cannot, and it stays as it was."""
    if not can_compute_in_rows(module) or not use_packed_attention(module):
        return False
    return compute_in_rows(module)


def dtype_named(dtype: str) -> torch.dtype:
    """The torch format of a job's word for it."""
    return _DTYPES[dtype]


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
        gist = str(fault) if isinstance(fault, ModelError) else _one_line(fault)
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


def _module(
    pinned: PinnedModel,
    auto_class: str,
    dtype: torch.dtype,
    reading: Callable[[], AbstractContextManager[None]] = letting_go,
) -> Any:
    """The torch module with all its weights; inside `reading` they are read."""
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
        raise ModelError(f"model {pinned.ref!r} cannot be loaded as {auto_class}: {_one_line(fault)}") from fault
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


def _one_line(fault: Exception, most_chars: int = 300) -> str:
    """The gist of a message that may have many lines."""
    text = " ".join(str(fault).split()) or "no message"
    return f"{type(fault).__name__}: {text[:most_chars]}{'…' if len(text) > most_chars else ''}"
