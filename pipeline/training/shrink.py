"""A model becomes smaller: fewer layers, narrower feed-forward parts, weights at zero; and what that gains in speed.

    keep_layers(bert, [0, 2, 5])        # of six; config.num_hidden_layers becomes 3
    keep_neurons(bert, 0.5)             # of each layer's 1,536 the 768 that weigh most; config.intermediate_size
    prune_magnitude(bert, 0.5)          # half of each layer's weights are 0 and stay so: smaller packed, no faster
    speed_beside(small, large, texts)   # Gain(tokens_per_second=61_200.0, before=32_100.0, ratio=1.91)

The first two leave an ordinary model that `from_pretrained` reads, so every reader of it is faster. Zeros spread over a
matrix gain no speed in torch, whose kernels multiply them as well. Attention heads are not cut: config.json has no word
for a layer whose heads do not fill its width. All of it happens before the training, which then mends the damage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import JobError, ModelError
from pipeline.models.device import default_budget, resolve_dtype
from pipeline.models.reference import PinnedModel
from pipeline.workers import Device

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel
    from pipeline.text.tokens import Ids
    from pipeline.training.examples import Examples

_NEURONS = ("intermediate_size", "hidden_dim")
"""What families call the width of the feed-forward part in config.json."""

TIMED_TEXTS = 256
"""Training texts on which two models are timed."""

ROUNDS = 5
"""Times that a comparison of speed goes over its texts with each model."""


# ------------------------------------------------------------------------------------------------------------ layers


def evenly(layers: int, kept: int) -> list[int]:
    """So many of a model's layers, evenly spread, its first and last among them.

    evenly(12, 6) -> [0, 2, 4, 7, 9, 11], as DistilBERT was begun (Sanh et al. 2019, arXiv:1910.01108).
    """
    assert 1 <= kept <= layers
    return [round(place) for place in np.linspace(0, layers - 1, kept).tolist()]


def keep_layers(module: nn.Module, chosen: int | Sequence[int]) -> list[int]:
    """Drop all layers but so many, evenly spread, or but these, in place; returns those that stay.

    Raises JobError: layers that the model does not have, or not in order; ModelError: a model whose layers are not a
    list of their own (ALBERT's share their weights), or that has two such lists (an encoder with a decoder).
    """
    config: Any = module.config
    holder, name = _layers_of(module)
    layers = getattr(holder, name)
    keep = _checked(chosen, len(layers))
    setattr(holder, name, nn.ModuleList([layers[place] for place in keep]))
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, list | tuple) and len(value) == len(layers):  # such as layer_types
            setattr(config, key, [value[place] for place in keep])
    config.num_hidden_layers = len(keep)
    for number, layer in enumerate(getattr(holder, name)):
        for part in layer.modules():
            for key in ("layer_idx", "layer_id"):
                if hasattr(part, key):
                    setattr(part, key, number)
    _check_described(module)
    return keep


def _checked(chosen: int | Sequence[int], count: int) -> list[int]:
    if isinstance(chosen, int):
        if not 1 <= chosen <= count:
            raise JobError(f"layers: {chosen} of them cannot be kept, the model has {count}")
        return evenly(count, chosen)
    keep = list(chosen)
    if keep != sorted(set(keep)) or not keep or keep[0] < 0 or keep[-1] >= count:
        raise JobError(f"layers: {keep} must be numbers from 0 to {count - 1}, each once, in their order")
    return keep


def _layers_of(module: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of layers, and the list's name there; lists inside a layer are none."""
    config: Any = module.config
    count = int(getattr(config, "num_hidden_layers", 0))
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    inside = {id(part) for _, _, child in found for part in child.modules() if part is not child}
    outer = [(parent, name) for parent, name, child in found if id(child) not in inside]
    if len(outer) != 1:
        raise ModelError(
            f"the layers of {type(module).__name__} cannot be told: it has {len(outer)} lists of {count} modules, and "
            "not one (layers that share their weights, or an encoder with a decoder)"
        )
    return outer[0]


def _check_described(module: nn.Module) -> None:
    """Raise ModelError where config.json would not make a module of these weights: nobody could read the folder."""
    with torch.device("meta"):
        made = type(module)(module.config)
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    for name, tensor in module.state_dict().items():
        if shapes.get(name) != tensor.shape:
            raise ModelError(f"{type(module).__name__} has no word in its config for {name} of {tuple(tensor.shape)}")


# ----------------------------------------------------------------------------------------------------------- neurons


def keep_neurons(module: nn.Module, share: float) -> int:
    """Keep of each layer's feed-forward neurons those that weigh most, in place; returns how many.

    A neuron weighs as much as its incoming and its outgoing weights are long, multiplied. All layers keep as many, a
    multiple of 8. Raises ModelError: layers without a plain feed-forward part of the width that config.json tells.
    """
    assert 0 < share <= 1
    config: Any = module.config
    key = next((each for each in _NEURONS if isinstance(getattr(config, each, None), int)), _NEURONS[0])
    width = int(getattr(config, key, 0))
    kept = min(width, max(8, round(share * width / 8) * 8))
    holder, name = _layers_of(module)
    for layer in getattr(holder, name):
        linears = [(parent, name, child) for parent in layer.modules() for name, child in parent.named_children()]
        into = [each for each in linears if isinstance(each[2], nn.Linear) and each[2].out_features == width]
        out_of = [each for each in linears if isinstance(each[2], nn.Linear) and each[2].in_features == width]
        if len(out_of) != 1 or not into or any(each in into for each in out_of):
            raise ModelError(
                f"the feed-forward part of {type(module).__name__} cannot be cut: no plain layer of {width} neurons "
                f"(config.json's {key}) is found in {type(layer).__name__}"
            )
        weights_F = out_of[0][2].weight.norm(dim=0)
        for _, _, linear in into:
            weights_F = weights_F * linear.weight.norm(dim=1)
        best = weights_F.topk(kept).indices.sort().values
        for parent, name, linear in into:
            bias = None if linear.bias is None else linear.bias[best]
            setattr(parent, name, _linear(linear.weight[best], bias))
        parent, name, linear = out_of[0]
        setattr(parent, name, _linear(linear.weight[:, best], linear.bias))
    setattr(config, key, kept)
    _check_described(module)
    return kept


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


# ----------------------------------------------------------------------------------------------------------- weights


def prune_magnitude(module: nn.Module, share: float) -> float:
    """Set the smallest weights of all the layers' matrices to zero, in place, where they stay while it is trained.

    The share is of all of them together (Han et al. 2015, arXiv:1506.02626); returns the share that is zero. A zero's
    gradient is zero, so neither AdamW nor its decay moves it; a copy of the module has lost that.
    """
    assert 0 <= share < 1
    holder, name = _layers_of(module)
    matrices = [part.weight for part in getattr(holder, name).modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        sizes = torch.cat([weight.abs().flatten() for weight in matrices])
        count = int(share * len(sizes))
        if count == 0:
            return 0.0
        bound = sizes.kthvalue(count).values
        for weight in matrices:
            kept = weight.abs() > bound
            weight.mul_(kept)
            weight.register_hook(_Masked(kept))  # type: ignore[no-untyped-call]
    return sum(int((weight == 0).sum()) for weight in matrices) / len(sizes)


class _Masked:
    """A hook that takes the gradient from what was pruned; its mask follows the model to its device."""

    def __init__(self, kept: torch.Tensor) -> None:
        self._kept = kept

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        self._kept = self._kept.to(gradient.device)
        return gradient * self._kept


# ------------------------------------------------------------------------------------------------------------- speed


@dataclass(frozen=True, slots=True)
class Gain:
    """How fast two models are on the same texts, side by side: real tokens in a second."""

    tokens_per_second: float
    before: float  # of the model that it is held against
    ratio: float  # how many times as fast: the median of the rounds, so that what else the machine does cancels out

    def to_json(self) -> Mapping[str, float]:
        """As it stands in metrics.json."""
        return {
            "tokens_per_second": round(self.tokens_per_second, 1),
            "before": round(self.before, 1),
            "ratio": round(self.ratio, 3),
        }


def gain(candidate: PinnedModel, larger: PinnedModel, needs: str, examples: "Examples", device: Device) -> Gain:
    """How many times as fast as the larger model a candidate is, timed on some of the training texts.

    Both compute as an annotate job's actor would: on one thread of a CPU, or on a GPU where this machine has one.
    """
    from pipeline.models.loading import load

    here: Device = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"
    rows = np.linspace(0, len(examples) - 1, min(len(examples), TIMED_TEXTS)).astype(np.intp)
    ids_P = [np.array(ids, np.int32) for ids in examples.rows(rows)["input_ids"].to_pylist()]
    threads = torch.get_num_threads()
    try:
        small, large = (
            load(each, needs, resolve_dtype("auto", here), here, 1, default_budget(here))
            for each in (candidate, larger)
        )
        return speed_beside(small, large, ids_P)
    finally:
        torch.set_num_threads(threads)


def speed_beside(small: "LoadedModel", large: "LoadedModel", ids_P: "Sequence[Ids]", rounds: int = ROUNDS) -> Gain:
    """Time both models' forward passes over the same pieces in this process, in turn; the median of the rounds.

    The micro-batches are those of the small one's token budget, for both; the first round, which is not counted, warms
    them up. Both must be on one device, in one number format and of one tokenizer.
    """
    assert ids_P
    pairs = [[_seconds(model, ids_P, small.token_budget) for model in (small, large)] for _ in range(rounds + 1)][1:]
    tokens = sum(map(len, ids_P))
    ours, theirs = (median(tokens / pair[at] for pair in pairs) for at in (0, 1))
    return Gain(ours, theirs, median(pair[1] / pair[0] for pair in pairs))


def _seconds(model: "LoadedModel", ids_P: "Sequence[Ids]", token_budget: int) -> float:
    from pipeline.models.engine import Padded, forward_pieces

    def forward(padded: Padded) -> torch.Tensor:
        found: torch.Tensor = model.module(**padded.inputs)[0]
        return found.flatten(1)[:, :1].float()

    done = forward_pieces(
        list(ids_P),
        forward,
        width=1,
        token_budget=token_budget,
        pad_id=model.pad_id,
        device=model.device,
        packed=model.packed,
    )
    if done.failures:
        failure = next(iter(done.failures.values()))
        raise ModelError(f"model {model.pinned.ref!r} cannot be timed: {failure.detail}")
    return done.seconds
