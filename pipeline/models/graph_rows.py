"""What a graph in rows takes: texts side by side, and where each token stands in the one row that its layers compute.

    laid_out({"input_ids": ids_BL, …}, lengths_B=[3, 5], most_tokens=512, pad_id=0) ->
        {"input_ids": (2, 16), "attention_mask": (2, 16), …, "places_N": (32,), "places_T": (32,)}

Products of a layer take the real tokens of all texts, one text after another: no padding is computed, and micro-batches
that are full have as many rows, for which OpenVINO has made its code before. Attention alone takes texts side by side,
each padded to a multiple of 16 tokens: over 127 its scores and sums take 1.9 times as long as over 128 (MiniLM in
OpenVINO 2026.4, one thread of AVX512), which is a tenth of the whole.

Shapes: B texts of at most L tokens; N = B x the padded length; T real tokens, filled up. Pure, without torch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

ATTENTION_GRAIN = 16
"""Tokens that a text is padded to a multiple of, where attention computes it."""

ROWS_GRAIN = 32
"""Rows that products are filled up to a multiple of: 16 more on average, of 1,024."""

PLACES_N, PLACES_T = "places_N", "places_T"

Integers = npt.NDArray[np.integer]


def laid_out(
    inputs_BL: Mapping[str, Integers], lengths_B: Integers | Sequence[int], most_tokens: int | None, pad_id: int
) -> dict[str, npt.NDArray[np.int64]]:
    """The inputs padded for attention, with the mask, which row each place of them takes, and which place each row.

    `inputs_BL` are right-padded ids and token types; `lengths_B` the real tokens of each text, at least one in all.
    No text becomes longer than `most_tokens`, which is what a model has positions for. Padding stands in the row of its
    text's first token: a text whose numbers are none spoils no other. Rows that fill up hold what nobody reads.
    """
    lengths = np.asarray(lengths_B)
    tokens = int(lengths.max())
    padded = -(-tokens // ATTENTION_GRAIN) * ATTENTION_GRAIN
    if most_tokens is not None:
        padded = max(tokens, min(padded, most_tokens))
    real_BL = np.arange(padded) < lengths[:, None]
    found = {}
    for name, values_BL in inputs_BL.items():
        wide_BL = np.full(real_BL.shape, pad_id if name == "input_ids" else 0, np.int64)
        wide_BL[:, :tokens] = values_BL[:, :tokens]
        found[name] = wide_BL
    places = np.flatnonzero(real_BL)
    places_N = np.repeat(np.cumsum(lengths) - lengths, padded)
    places_N[places] = np.arange(len(places))
    places_T = np.zeros(-(-len(places) // ROWS_GRAIN) * ROWS_GRAIN, np.int64)
    places_T[: len(places)] = places
    return found | {"attention_mask": real_BL.astype(np.int64), PLACES_N: places_N, PLACES_T: places_T}
