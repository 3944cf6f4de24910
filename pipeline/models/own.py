"""A module of the user's own takes its weights from a model folder: safetensors, every tensor where it belongs.

    load_own(TinySummarizer(vocabulary=8000), pinned, dtype="float32", …) -> LoadedModel(module=TinySummarizer(…), …)

Names and shapes must be the module's own, so that nothing stays random; tensors that the module shares with itself
stand once in the file.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.device import settle
from pipeline.models.inspection import weight_files
from pipeline.models.loading import LoadedModel, dtype_named
from pipeline.models.pretrained import prepared_tokenizer
from pipeline.models.reference import PinnedModel, on_this_node
from pipeline.workers import Device


def load_own(
    module: nn.Module, pinned: PinnedModel, dtype: str, device: Device, threads: int, token_budget: int
) -> LoadedModel:
    """Fill the module from the folder's weights, bring it to its device and number format, and load the tokenizer.

    Raises ModelError: weights that the module has and the folder lacks, or the other way round; other shapes; a GGUF
    file; a tokenizer that cannot be built.
    """
    if pinned.gguf_file is not None:
        # Safetensors may lie beside it, which the pinned digest does not count.
        raise ModelError(f"model {pinned.ref!r} is a GGUF file, and a module of one's own is filled from safetensors")
    settle(device, threads)
    pinned = on_this_node(pinned)
    _fill(module, pinned)
    tokenizer = prepared_tokenizer(pinned, threads)
    ready = module.to(device=device, dtype=dtype_named(dtype)).eval()
    return LoadedModel(pinned, ready, tokenizer, device, dtype, threads, token_budget)


def _fill(module: nn.Module, pinned: PinnedModel) -> None:
    state = module.state_dict()
    places = {name: tensor.data_ptr() for name, tensor in state.items()}
    filled: set[int] = set()
    unknown: list[str] = []
    with torch.no_grad():
        for path in weight_files(Path(pinned.folder)):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    if name not in state:
                        unknown.append(name)
                        continue
                    tensor = file.get_tensor(name)
                    if tensor.shape != state[name].shape:
                        raise ModelError(
                            f"model {pinned.ref!r}: {name} has shape {tuple(tensor.shape)}, and "
                            f"{type(module).__name__} wants {tuple(state[name].shape)}"
                        )
                    state[name].copy_(tensor)
                    filled.add(places[name])
    lacking = [name for name, place in places.items() if place not in filled]
    if lacking or unknown:
        told = [f"the folder lacks {', '.join(lacking[:4])} ({len(lacking)} tensors)"] if lacking else []
        told += [f"the module lacks {', '.join(unknown[:4])} ({len(unknown)} tensors)"] if unknown else []
        raise ModelError(f"model {pinned.ref!r} does not fit {type(module).__name__}: {'; '.join(told)}")
