"""Vectors in fewer bytes: pure. Each row is quantised by itself, so that no other row changes it.

    values_RD = [[0.6, -0.8, 0.0, …]]
    float16    [[0.6001, -0.8, 0.0, …]]     2 bytes a number; what is beyond 65,504 becomes 65,504
    int8       [[76, -102, 0, …]]           1 byte: round(127 x), for numbers from -1 to 1
    ubinary    [[0b10010111, …]]            1 bit: x > 0, the first number the highest bit
    binary     [[0b10010111 - 128, …]]      the same in signed bytes, less 128

`int8` has a scale of its own instead of ranges that are found by looking at other vectors: zero stays zero, a number
is at most half a step (1/254) off, and the cosine of two vectors is that of their integers. `quantize_embeddings` of
sentence-transformers with ranges of -1 to 1 has steps of 2/255, rounds down and makes -1 of zero: its integers are 0 to
2 less than these.
`binary` and `ubinary` are bit for bit what it gives (Yamada et al. 2021, arXiv:2106.00882, compare their Hamming
distances).
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Output = Literal["float32", "float16", "int8", "binary", "ubinary"]

BITS = 8
_LARGEST_HALF = np.float32(65_504)
_INT8_SCALE = np.float32(127)
_TYPES: dict[Output, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}


def is_packed(output: Output) -> bool:
    """Whether eight numbers become one byte."""
    return output in ("binary", "ubinary")


def list_type(output: Output, dims: int) -> pa.DataType:
    """The column's type for vectors of so many numbers, which bits need a multiple of 8 of."""
    assert not is_packed(output) or dims % BITS == 0
    return pa.list_(_TYPES[output], dims // BITS if is_packed(output) else dims)


def quantized(values_RD: npt.NDArray[np.float32], output: Output) -> npt.NDArray[Any]:
    """The rows as they are kept; `int8` takes numbers from -1 to 1, and cuts off what is beyond."""
    kept_RD: npt.NDArray[Any] = values_RD
    if output == "float16":
        kept_RD = np.clip(values_RD, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
    if output == "int8":
        kept_RD = np.rint(np.clip(values_RD, -1, 1) * _INT8_SCALE).astype(np.int8)
    if output == "ubinary":
        kept_RD = np.packbits(values_RD > 0, axis=1)
    if output == "binary":
        kept_RD = (np.packbits(values_RD > 0, axis=1).astype(np.int16) - 128).astype(np.int8)
    return kept_RD


def column(values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_], output: Output) -> pa.Array:
    """A fixed-size list for each row; null where it is not in `good_R`."""
    good = bool(good_R.all())
    kept = quantized(values_RD if good else np.where(good_R[:, None], values_RD, np.float32(0)), output)
    flat = pa.array(kept.reshape(-1), _TYPES[output])
    return pa.FixedSizeListArray.from_arrays(flat, kept.shape[1], mask=None if good else pa.array(~good_R))
