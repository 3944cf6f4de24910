"""Linear layers of an encoder in eight-bit integers, on a CPU: twice as many products in an instruction as bfloat16.

    with watched(wide) as ranges: …             # a float32 module computes some rows; what its layers' inputs reach
    quantize_linears(module, wide, ranges)      # in place; `module` is the same in bfloat16, and keeps all the rest

Static: each layer's input has scales that are known before (`pipeline.models.ranges`), so that no row changes another's
numbers. Inputs are divided by factors of their own as they are rounded to bytes; weights are rounded from float32. A
feed-forward layer's GELU happens inside its product, which gives the bytes that the next one takes.

The products are oneDNN's as torch has them for its compiler's x86 quantiser (MiniLM, Debian descriptions, two processes
of one thread on AVX512_VNNI: 1.4 times as fast as bfloat16, and the products alone twice as fast). Products of bytes
whose scales are found anew in each batch, where nothing is migrated, lose far more.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.activations import is_gelu
from pipeline.models.device import default_budget
from pipeline.models.linears import beside, body_of, holders, replace_linears
from pipeline.models.ranges import (
    LARGEST,
    LEAST_OF_GELU,
    Floats,
    Range,
    Ranges,
    affine,
    best_bounds,
    lost_by_bounds,
    migration,
    quantized_weights,
    symmetric,
)
from pipeline.models.rows import can_compute_in_rows

MIGRATED = 0.75
"""How much of the unlikeness of inputs goes into the weights (see `migration`)."""

_ZERO = 128
"""The byte that stands for 0 in what is rounded here."""

_WEIGHED_TOKENS = 128
"""Of a micro-batch, by which a bound is chosen: half a second in all for a small encoder."""

_WHOLE = 1.5 * 2.0**23
"""A float32 near it has no digits after the point: what is added to it is rounded, and lies in its lowest bits."""

_FEED_FORWARD = (
    ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    ("lin1", "activation", "lin2"),
)
"""What the families of `can_compute_in_rows` call the first layer, the activation and the second layer."""


class QuantizedLinear(nn.Module):
    """Linear layers of one input, as one product of bytes: values, or the bytes of another -> values in bfloat16.

    `takes`: scale and zero point of bytes that come; None: values come, and are rounded here. `gives`: scale and zero
    point of the bytes that leave, after a GELU; None: values leave.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        range_: Range,
        takes: tuple[float, int] | None = None,
        gives: tuple[float, int] | None = None,
    ) -> None:
        """Quantise the weights of layers in a format that loses nothing in float32."""
        super().__init__()
        weights_NK = torch.cat([linear.weight.detach() for linear in linears]).float().numpy()  # a copy of our own
        self._steps_K: torch.Tensor | None = None  # a value times it is a number of steps
        if takes is None:
            factors_K = migration(range_.most_K, weights_NK, MIGRATED)
            takes = (symmetric(float((range_.most_K / factors_K).max())), _ZERO)
            weights_NK *= factors_K
            self._steps_K = torch.from_numpy(1 / (factors_K * np.float32(takes[0])))
        self._scale, self._zero = takes
        self._gives = gives
        integers_NK, scales_N = quantized_weights(weights_NK)
        self._packed = torch.ops.onednn.qlinear_prepack(
            torch.from_numpy(integers_NK), [default_budget("cpu"), weights_NK.shape[1]]
        )
        self._scales_N = torch.from_numpy(scales_N)
        self._zeros_N = torch.zeros(len(scales_N), dtype=torch.int32)
        biases = [linear.bias for linear in linears]
        self._bias_N = None if biases[0] is None else torch.cat([bias.detach().float() for bias in biases])
        self.weight = torch.empty(0, dtype=torch.bfloat16)  # some families look at its type
        self.out_features, self.in_features = weights_NK.shape

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        scale, zero = (1.0, 0) if self._gives is None else self._gives
        activation, output = ("none", torch.bfloat16) if self._gives is None else ("gelu", torch.uint8)
        return cast(
            "torch.Tensor",
            torch.ops.onednn.qlinear_pointwise(
                *(self._bytes(input), self._scale, self._zero, self._packed, self._scales_N, self._zeros_N),
                *(self._bias_N, scale, zero, output, activation, [], "none"),
            ),
        )

    def added_to(self, sums: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        """`sums`, float32, to which the output is added: in place."""
        return cast(
            "torch.Tensor",
            torch.ops.onednn.qlinear_pointwise.binary(
                *(self._bytes(input), self._scale, self._zero, self._packed, self._scales_N, self._zeros_N),
                *(sums, self._bias_N, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "none"),
            ),
        )

    def _bytes(self, input: torch.Tensor) -> torch.Tensor:
        return input if self._steps_K is None else _rounded(input.float(), self._steps_K)


def _rounded(values: torch.Tensor, steps_K: torch.Tensor) -> torch.Tensor:
    """Bytes around 128 of float32: steps from 0, rounded. What is beyond the calibrated range becomes its end.

    In three passes, and in float32, in which torch's are faster than in bfloat16.
    """
    zero = _WHOLE + _ZERO
    whole = torch.addcmul(steps_K.new_full((1,), zero), values, steps_K).clamp_(zero - LARGEST, zero + LARGEST)
    return whole.view(torch.int32).to(torch.int8).view(torch.uint8)


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Range]]:
    """What the inputs of the linear layers of the body reach while the block computes with the model, by layer.

    Afterwards the range of what comes from a GELU, which nothing can be divided by, ends where least is lost.
    """
    watch = _Watch()
    body = body_of(model)
    named = [] if body is None else [each for each in body.named_modules() if type(each[1]) is nn.Linear]
    hooks = [part.register_forward_pre_hook(partial(watch.look, name)) for name, part in named]
    try:
        yield watch.found
    finally:
        for hook in hooks:
            hook.remove()
    watch.cut_off()


class _Watch:
    """What was seen of each layer's input."""

    def __init__(self) -> None:
        self.found: dict[str, Range] = {}
        self._lost: dict[str, Floats] = {}  # for each bound, of layers whose input may come from a GELU

    def look(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002
        values_TK = inputs[0].detach().flatten(0, -2).float()
        least_K, greatest_K = values_TK.amin(0), values_TK.amax(0)  # `aminmax` takes ten times as long
        if not (least_K.isfinite().all() and greatest_K.isfinite().all()):
            values_TK = values_TK[values_TK.isfinite().all(1)]  # a row that overflows is no measure for others
            if len(values_TK) == 0:
                return
            least_K, greatest_K = values_TK.amin(0), values_TK.amax(0)
        seen = Range(
            torch.maximum(-least_K, greatest_K).clamp_min(0).numpy(), float(least_K.min()), float(greatest_K.max())
        )
        self.found[name] = self.found[name].with_(seen) if name in self.found else seen
        if self.found[name].least < LEAST_OF_GELU:
            self._lost.pop(name, None)
            return
        # Every so many tokens would meet the first one of each text, or none: texts of a micro-batch are as long.
        chosen = torch.randperm(len(values_TK), generator=torch.Generator().manual_seed(0))[:_WEIGHED_TOKENS]
        lost_G = lost_by_bounds(values_TK[chosen].numpy())
        self._lost[name] = self._lost[name] + lost_G if name in self._lost else lost_G

    def cut_off(self) -> None:
        """Each range of a GELU's outputs at the bound that loses least."""
        for name, bound in best_bounds(self._lost).items():
            self.found[name] = replace(self.found[name], least=LEAST_OF_GELU, greatest=bound)


def quantize_linears(
    model: nn.Module, wide: nn.Module, ranges: Ranges, done_with: Callable[[torch.Tensor], None] | None = None
) -> int:
    """Quantise the linear layers of the body of a transformers model that `ranges` know, in place; how many they are.

    `wide` is the same model as it was trained: in float32, or in a format that loses nothing there. `done_with` is told
    each of its weights that is needed no more. Raises ModelError: no such layer; ranges that are of another model.
    """
    body, wide_body = body_of(model), body_of(wide)
    if body is None or wide_body is None:
        raise ModelError(f"{type(model).__name__} is no model of transformers, whose layers dtype: int8 quantises")
    places = {holder: place for place, holder in holders(body)}
    before = sum(type(part) is nn.Linear for part in body.modules())

    def quantized(paths: Sequence[str], **around: tuple[float, int]) -> QuantizedLinear:
        linears = [cast("nn.Linear", wide_body.get_submodule(path)) for path in paths]
        product = QuantizedLinear(linears, ranges[paths[0]], **around)
        if done_with is not None:
            for linear in linears:
                done_with(linear.weight)
        return product

    try:
        if can_compute_in_rows(model):
            _quantize_feed_forward(body, ranges, quantized)
        for holder, several in beside(body):
            paths = [".".join(filter(None, [places[holder], name])) for name in several]
            if all(path in ranges for path in paths):
                replace_linears(holder, several, partial(_already, quantized(paths)))
    except (ValueError, AttributeError) as fault:
        raise ModelError(f"what was calibrated is of another model than {type(model).__name__}: {fault}") from fault
    done = before - sum(type(part) is nn.Linear for part in body.modules())
    if not done:
        raise ModelError(f"{type(model).__name__} has no linear layer that dtype: int8 could quantise")
    return done


def _already(product: nn.Module, _: Sequence[nn.Linear]) -> nn.Module:
    return product


def _quantize_feed_forward(body: nn.Module, ranges: Ranges, quantized: Callable[..., QuantizedLinear]) -> None:
    """The pairs of layers with a GELU between."""
    for path, holder in holders(body):
        for first, activation, second in _FEED_FORWARD:
            parts = [_part(holder, name) for name in (first, activation, second)]
            linear = type(parts[0]) is nn.Linear and type(parts[2]) is nn.Linear
            inside = [f"{path}.{name}" for name in (first, second)]
            if not linear or not is_gelu(parts[1]) or not all(name in ranges for name in inside):
                continue
            between = affine(ranges[inside[1]].least, ranges[inside[1]].greatest)
            holder.set_submodule(first, quantized(inside[:1], gives=between))
            holder.set_submodule(activation, nn.Identity())
            holder.set_submodule(second, quantized(inside[1:], takes=between))


def _part(holder: nn.Module, path: str) -> nn.Module | None:
    try:
        return holder.get_submodule(path)
    except AttributeError:
        return None


@cache
def can_quantize() -> bool:
    """Whether this torch has oneDNN's products of bytes: its builds for other processors may not."""
    try:
        with torch.inference_mode():
            linear, seen = nn.Linear(32, 32), Range(np.ones(32, np.float32), -1.0, 1.0)
            QuantizedLinear([linear], seen)(torch.zeros(1, 32, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True
