"""Attention as a graph of OpenVINO has it: texts side by side, taken from the row that layers compute and put back.

    with graph_attention_of(model) as can: …        # families that take transformers' attention interface

N = B x L places of texts, T rows, H heads, D numbers of a head.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from pipeline.models.quietly import quietly

if TYPE_CHECKING:
    from pipeline.models.rows import LaidRows

GRAPH = "corpusmill_graph"

_UNSEEN = torch.finfo(torch.bfloat16).min
"""Added to the score of a key that nobody sees: the most that is a number in any format that OpenVINO computes in."""


def graph_attention(
    module: nn.Module,  # noqa: ARG001 - the interface
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    rows: "LaidRows",
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """values_1THD of queries_1HTD over keys_1HTD, each text among its own; one query a text may be asked, 1HBD.

    `attention_mask` is added to the scores: mask_B11L.
    """
    query, key, value = (rows.split(each.transpose(1, 2)).transpose(1, 2) for each in (query, key, value))
    found_BHQD = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
    return rows.joined(found_BHQD.transpose(1, 2)), None


def _key_mask(*, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
    """mask_B11L of a mask_BL with 1 where a token is real; the same operations for any.

    Computed from the mask as a number, by a factor, OpenVINO would take it for something quantised.
    """
    mask_BL = torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill(attention_mask == 0, _UNSEEN)
    return mask_BL[:, None, None]


@contextlib.contextmanager
def graph_attention_of(model: nn.Module) -> Iterator[bool]:
    """Compute with it inside the block; False where the family does not ask the interface, and nothing changes."""
    AttentionInterface.register(GRAPH, graph_attention)
    AttentionMaskInterface.register(GRAPH, _key_mask)
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    changed = False
    try:
        if before == "sdpa":  # eager ones do something of their own with their scores
            with contextlib.suppress(ValueError, AttributeError), quietly():
                model.set_attn_implementation(GRAPH)  # type: ignore[operator]
                changed = True
        yield changed
    finally:
        if changed:
            with quietly():
                model.set_attn_implementation(before)  # type: ignore[operator]
