"""What the hardware can: number formats, budgets, GPUs.

    resolve_dtype("auto", "cpu") -> "bfloat16"      # the CPU has AVX512_BF16 or AMX
    default_budget("cpu")        -> 2048            # padded tokens of one micro-batch

The driver asks this while it plans, so torch is imported only where a GPU is meant.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import JobError, PlacementError
from pipeline.models.engines import OPENVINO, TORCH
from pipeline.workers import Device

CPU_INFO = Path("/proc/cpuinfo")

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is what ARM calls it
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_NEEDS = {"bfloat16": (_BF16_FLAGS,), "int8": (_INT8_FLAGS, _BF16_FLAGS)}
_ALLOWED: dict[Device, tuple[str, ...]] = {
    "cpu": ("auto", "float32", "bfloat16", "int8"),
    "cuda": ("auto", "float32", "bfloat16", "float16"),
}
# Padded tokens. On a CPU a micro-batch should stay in the caches: of 512 to 8192, 2048 was the fastest with MiniLM in
# bfloat16 on AMX, and larger ones cost a tenth to a third. A GPU needs more to be busy, and more again so that the
# processor, which asks for them, is not: MiniLM on an H100 took 0.20 s for 1.7 million tokens by 32,768, of which the
# processor worked 0.17 s; by 131,072 it took 0.19 s and 0.07 s, in 1.2 GiB. Those are packed texts: other encoders hold
# a mask or scores for each pair of tokens, and writers a cache.
_BUDGET_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 32_768}
_PACKED_TOKENS = 131_072
_OPENVINO_TOKENS = 1024
"""For each thread, up to the most of `_BUDGET_TOKENS`: 3% more of MiniLM's tokens a second than with 2,048 and 12% more
than with 4,096, new shapes counted (Zen 4, bfloat16 and int8, one thread; what is between two layers stays in the
caches)."""
WRITING = frozenset({"AutoModelForCausalLM", "AutoModelForSeq2SeqLM"})
"""Classes of models that write."""

PACKED_TYPES = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
"""Families whose layers may compute packed texts, by `model_type` (see `pipeline.models.rows`)."""
# What a step costs besides its tokens is paid with each micro-batch (its gradients are added to those before). MiniLM,
# 32 rows of 80 tokens, one process of two threads: 4,470 tokens/s with 1,024, 5,040 to 5,340 with 2,048, and 5,040 to
# 6,380 with 8,192 and more.
_TRAINING_TOKENS: dict[Device, int] = {"cpu": 8192, "cuda": 32_768}


def resolve_dtype(dtype: str, device: Device, cpu_info: Path = CPU_INFO) -> str:
    """The number format that `dtype` means on this device.

    `auto` is bfloat16 where the hardware computes in it, else float32. On a driver that sees no GPU itself, the GPUs of
    the cluster are taken to have it: all since 2020 do. Raises JobError for a format that the device does not have;
    int8 needs bfloat16 too, for all but the linear layers.
    """
    if dtype not in _ALLOWED[device]:
        raise JobError(f"dtype: {dtype} is not available on {device}; allowed there: {', '.join(_ALLOWED[device])}")
    if dtype == "int8" and (needed := lacks(dtype, device, cpu_info)) is not None:
        raise JobError(f"dtype: int8 needs a processor with {needed} ({cpu_info} tells): set `dtype: auto`")
    if dtype != "auto":
        return dtype
    has_bf16 = bool(_BF16_FLAGS & _cpu_flags(cpu_info)) if device == "cpu" else _gpu_has_bf16()
    return "bfloat16" if has_bf16 else "float32"


def lacks(dtype: str, device: Device, cpu_info: Path | None = None) -> str | None:
    """What a number format needs that this node's processor lacks: `one of avx512_vnni, …`; None: nothing, or on a GPU.

    Without it torch computes bfloat16 all the same, but slowly, and int8 with sums that saturate. A plan is made by the
    driver's node, and others may be unlike it.
    """
    needed = _NEEDS.get(dtype, ()) if device == "cpu" else ()
    flags = _cpu_flags(cpu_info or CPU_INFO) if needed else set()
    if all(flags & each for each in needed):
        return None
    return " and ".join(f"one of {', '.join(sorted(each))}" for each in needed)


def default_budget(device: Device, packs: bool = False, engine: str = TORCH, threads: int = 1) -> int:
    """Padded tokens of one micro-batch; `packs`: of a model that may compute packed texts on a GPU."""
    if engine == OPENVINO:
        return min(_OPENVINO_TOKENS * threads, _BUDGET_TOKENS[device])
    return _PACKED_TOKENS if packs and device == "cuda" else _BUDGET_TOKENS[device]


def may_pack(needs: str | None, config: Mapping[str, Any]) -> bool:
    """Whether a model that is loaded as the class `needs` is of a family that may compute packed texts."""
    reads = needs is not None and needs.startswith("AutoModel") and needs not in WRITING
    return reads and config.get("model_type") in PACKED_TYPES and not config.get("is_decoder", False)


def training_budget(device: Device) -> int:
    """Padded tokens that a worker computes at once while it trains."""
    return _TRAINING_TOKENS[device]


def settle(device: Device, threads: int) -> None:
    """Tell torch what suits our work in this process: its threads, and on a GPU no attention of cuDNN's.

    That one makes a plan for each shape that it meets, a tenth of a second or more on an H100, and nearly every
    micro-batch has another: a fine-tuning of MiniLM spent 91% of its first half minute so. Flash and memory-efficient
    attention take any shape at once.
    """
    import torch

    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def require_gpus(asked: float, whose: str, option: str) -> None:
    """Raises PlacementError where torch sees fewer GPUs on this machine than are asked for.

    `whose`: "2 actors"; `option`: what the job sets to 0 to do without.
    """
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen >= asked:
        return
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"this torch ({torch.__version__}) is built for the CPU alone: install a CUDA build"
    else:
        why = "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
    raise PlacementError(
        f"cluster: {whose} need {asked:g} GPUs, but torch sees {seen} here; {why}, or set {option} to 0"
    )


def _cpu_flags(cpu_info: Path) -> set[str]:
    """What the CPU can; nothing where the system does not tell (macOS)."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(flags.lower().split())


def _gpu_has_bf16() -> bool:
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
