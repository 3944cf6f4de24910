"""Attention on a CPU: two batched products with the mask and the scale in the first, softmax between.

    use_plain_attention(model)      # families that take transformers' attention interface; others compute eagerly

The fused kernel of torch took a third of an encoder's time there at a twentieth of its arithmetic (heads of 32 numbers,
bfloat16), and four times as long on the way back at 128 tokens; transformers' own plain attention casts every score to
float32 and back: twice the time of this. The softmax of bfloat16 scores adds up in float32 inside the kernel, as it
does everywhere in torch. Scores of long texts would not fit into memory: those go through the fused kernel.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from pipeline.models.quietly import quietly

NAME = "corpusmill_plain"

MOST_TOKENS = 1024
"""Of a text whose scores are held at once: 24 MB of bfloat16 with twelve heads."""


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """values_BLHD of queries_BHLD over keys_BHSD; mask (0, or very negative) and bias are added to the scores."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if groups > 1:  # one key serves several queries
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    size = key.shape[2]
    query_NLD, key_NSD, value_NSD = (each.reshape(batch * heads, -1, width) for each in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else position_bias + attention_mask
    if size > MOST_TOKENS:
        found = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            None if attention_mask is None else attention_mask.to(query.dtype),
            dropout if module.training else 0.0,
            scale=scale,
        )
        return found.transpose(1, 2).contiguous(), None
    if attention_mask is None:
        scores_NLS = torch.bmm(query_NLD * scale, key_NSD.transpose(1, 2))
    else:
        wide = attention_mask.shape[2]  # 1 where all queries see the same keys
        added = attention_mask.to(query.dtype).expand(batch, heads, wide, size).reshape(batch * heads, wide, size)
        scores_NLS = torch.baddbmm(added, query_NLD, key_NSD.transpose(1, 2), alpha=scale)
    shares_NLS = nn.functional.dropout(torch.softmax(scores_NLS, -1), dropout, module.training)
    found = torch.bmm(shares_NLS, value_NSD).view(batch, heads, length, width)
    return found.transpose(1, 2).contiguous(), None


def use_plain_attention(model: nn.Module, or_eagerly: bool = True) -> None:
    """Compute with it from now on, in place; where the family does not ask the interface, eagerly or as before."""
    AttentionInterface.register(NAME, plain_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    bends = getattr(getattr(model, "config", None), "attn_logit_softcapping", None)  # scores, before the softmax
    ways = ([] if bends else [NAME]) + (["eager"] if or_eagerly else [])
    for way in ways:
        try:
            with quietly():
                model.set_attn_implementation(way)  # type: ignore[operator]
        except (ValueError, AttributeError):  # a module of one's own has none
            continue
        return
