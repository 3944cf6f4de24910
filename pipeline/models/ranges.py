"""What the inputs of linear layers reach, and the scales that follow: pure, without torch.

    ranges = {"encoder.layer.0.output.dense": Range(most_K=[0.7, 12.1, …], least=-0.17, greatest=12.1), …}
    migration(most_K, weights_NK) -> factors_K      # what each input is divided by, and its weights multiplied
    affine(-0.17, 12.1)           -> (0.0481, 4)    # a real number is 0.0481 x (its byte - 4)
    best_bounds({"a": lost_G, …}) -> {"a": 8.0, …}  # where a GELU's outputs are cut off

Some inputs of an encoder's layers are a hundred times as large as the others, always the same ones. One scale for all
would leave the others a few steps; dividing each input by a factor of its own, which its weights are multiplied by,
changes nothing of the product and makes inputs alike (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).

After a GELU nothing can be divided. What is large there is large in one token of a text, the first or the last one:
MiniLM's reaches 25 and all others 6. So what is lost is measured token by token, of each token's own length, for
several bounds; by the squares alone that one token would take all the steps.

K inputs and N outputs of a layer, T tokens, G bounds.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LARGEST = 127
"""Of a symmetric eight-bit integer."""

LEAST_OF_GELU = -0.1705
"""It gives -0.16997 at its least, and by the tanh -0.17004."""

BOUNDS: tuple[float, ...] = tuple(2 ** (half / 2 - 2) for half in range(19))
"""From a quarter to 128: where the outputs of a GELU may be cut off."""

_ONE_FOR_ALL = 1.5
"""How much more may be lost by one bound for all layers than by the best for each: OpenVINO makes the code that rounds
for each bound and each shape, six milliseconds a shape where six layers have six bounds."""

_BYTES = 255
_TINY = np.float32(1e-6)


@dataclass(frozen=True, slots=True)
class Range:
    """What the K inputs of a layer reached while it was looked at."""

    most_K: Floats  # the largest magnitude of each
    least: float  # of all
    greatest: float

    def with_(self, other: "Range") -> "Range":
        """Of both."""
        return Range(
            np.maximum(self.most_K, other.most_K), min(self.least, other.least), max(self.greatest, other.greatest)
        )


Ranges = Mapping[str, Range]
"""By the name of the layer in the model's body."""


def migration(most_K: Floats, weights_NK: Floats, share: float) -> Floats:
    """The factor of each input: `share` 1 makes all inputs alike, 0 makes all columns of weights alike."""
    weight_K = np.maximum(_largest(weights_NK, 0), _TINY)
    factors_K = np.maximum(most_K, _TINY) ** share / weight_K ** (1 - share)
    return factors_K.astype(np.float32)


def symmetric(most: float) -> float:
    """The scale by which numbers of at most this magnitude fill -127 to 127."""
    return max(most, float(_TINY)) / LARGEST


def affine(least: float, greatest: float) -> tuple[float, int]:
    """Scale and zero point by which numbers of this range fill a byte; zero is a whole number of steps."""
    low, high = min(least, 0.0), max(greatest, 0.0)
    scale = max(high - low, float(_TINY)) / _BYTES
    return scale, min(_BYTES, round(-low / scale))


def lost_by_bounds(values_TK: Floats) -> Floats:
    """What rounding a GELU's outputs to bytes loses for each bound, summed over the tokens: lost_G.

    Of a token the squared length of what it loses, as a share of its own.
    """
    lengths_T = np.square(values_TK).sum(1) + _TINY
    lost = np.zeros(len(BOUNDS), np.float32)
    for number, bound in enumerate(BOUNDS):
        scale, zero = affine(LEAST_OF_GELU, bound)
        steps_TK = np.rint(values_TK * np.float32(1 / scale))
        np.clip(steps_TK, -zero, _BYTES - zero, out=steps_TK)
        steps_TK *= np.float32(scale)
        steps_TK -= values_TK
        lost[number] = (np.einsum("tk,tk->t", steps_TK, steps_TK) / lengths_T).sum()
    return lost


def best_bounds(lost_by_layer: Mapping[str, Floats]) -> dict[str, float]:
    """Where each layer's input is cut off: all at the same bound, where that loses little more than each at its own."""
    if not lost_by_layer:
        return {}
    total_G = np.sum(list(lost_by_layer.values()), axis=0)
    if total_G.min() <= _ONE_FOR_ALL * sum(float(lost_G.min()) for lost_G in lost_by_layer.values()):
        return dict.fromkeys(lost_by_layer, BOUNDS[int(total_G.argmin())])
    return {name: BOUNDS[int(lost_G.argmin())] for name, lost_G in lost_by_layer.items()}


def quantized_weights(weights_NK: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Integers_NK and the scale of each output: scales_N."""
    scales_N: Floats = (np.maximum(_largest(weights_NK, 1), _TINY) / LARGEST).astype(np.float32)
    steps_NK = weights_NK / scales_N[:, None]
    np.rint(steps_NK, out=steps_NK)
    np.clip(steps_NK, -LARGEST, LARGEST, out=steps_NK)
    return steps_NK.astype(np.int8), scales_N


def _largest(weights_NK: Floats, axis: int) -> Floats:
    """The largest magnitude along an axis, without another array of so many numbers."""
    found: Floats = np.maximum(weights_NK.max(axis), -weights_NK.min(axis))
    return found


def to_bytes(ranges: Ranges) -> bytes:
    """A safetensors file: the same ranges give the same bytes."""
    from safetensors.numpy import save

    tensors = {}
    for name, each in sorted(ranges.items()):
        tensors[f"{name}.most"] = each.most_K.astype(np.float32)
        tensors[f"{name}.range"] = np.array([each.least, each.greatest], np.float32)
    return bytes(save(tensors))


def from_bytes(data: bytes) -> dict[str, Range]:
    """What was written."""
    from safetensors.numpy import load

    tensors = load(data)
    names = [key.removesuffix(".most") for key in tensors if key.endswith(".most")]
    found = {}
    for name in names:
        least, greatest = tensors[f"{name}.range"].tolist()
        found[name] = Range(tensors[f"{name}.most"], least, greatest)
    return found


def digest_of(data: bytes) -> str:
    """The sha256 of a file of ranges."""
    return hashlib.sha256(data).hexdigest()
