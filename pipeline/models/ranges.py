"""What the inputs of linear layers reach, and the scales that follow: pure, without torch.

    ranges = {"encoder.layer.0.output.dense": Range(most_K=[0.7, 12.1, …], least=-0.17, greatest=12.1), …}
    migration(most_K, weights_NK) -> factors_K      # what each input is divided by, and its weights multiplied
    affine(-0.17, 12.1)           -> (0.0481, 4)    # a real number is 0.0481 x (its byte - 4)

Some inputs of an encoder's layers are a hundred times as large as the others, always the same ones. One scale for all
would leave the others a few steps; dividing each input by a factor of its own, which its weights are multiplied by,
changes nothing of the product and makes inputs alike (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).

K inputs and N outputs of a layer.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LARGEST = 127
"""Of a symmetric eight-bit integer."""

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
    weight_K = np.maximum(np.abs(weights_NK).max(0), _TINY)
    factors_K: Floats = np.maximum(most_K, _TINY) ** share / weight_K ** (1 - share)
    return factors_K.astype(np.float32)


def symmetric(most: float) -> float:
    """The scale by which numbers of at most this magnitude fill -127 to 127."""
    return max(most, float(_TINY)) / LARGEST


def affine(least: float, greatest: float) -> tuple[float, int]:
    """Scale and zero point by which numbers of this range fill a byte; zero is a whole number of steps."""
    low, high = min(least, 0.0), max(greatest, 0.0)
    scale = max(high - low, float(_TINY)) / _BYTES
    return scale, min(_BYTES, round(-low / scale))


def quantized_weights(weights_NK: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Integers_NK and the scale of each output: scales_N."""
    scales_N: Floats = (np.maximum(np.abs(weights_NK).max(1), _TINY) / LARGEST).astype(np.float32)
    integers_NK = np.clip(np.rint(weights_NK / scales_N[:, None]), -LARGEST, LARGEST).astype(np.int8)
    return integers_NK, scales_N


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
