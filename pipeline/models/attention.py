"""Attention: plain on a CPU, packed on a GPU.

    use_plain_attention(model)      # families that take transformers' attention interface; others compute eagerly
    use_writing_attention(model)    # the same families, an encoder-decoder that writes
    use_packed_attention(model)     # the same families; texts one after another, without padding

Plain: two batched products with the mask and the scale in the first, softmax between. The fused kernel of torch took a
third of an encoder's time there at a twentieth of its arithmetic (heads of 32 numbers, bfloat16), and four times as
long on the way back at 128 tokens; transformers' own plain attention casts every score to float32 and back: twice the
time of this. The softmax of bfloat16 scores adds up in float32 inside the kernel, as it does everywhere in torch.
Scores of long texts would not fit into memory: those go through the fused kernel.

Where nothing is trained, the softmax divides last: exponentials of the scores as they are, times the values beside a
column of ones, whose product is what to divide by. Torch's softmax looks for each row's maximum first, which took
longer than both products; without it exponentials may overflow or vanish, which the divisors tell: for those queries,
and with scores that carry more than a mask of keys, softmax is as above.

Packed: torch's flash kernel over the real tokens of all texts, told where each begins.

B texts, H heads, Q queries, S keys, D numbers of a head; N = B x H; T tokens of all texts together.
"""

import contextlib
import math
import weakref
from collections.abc import MutableMapping
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, eager_mask, sdpa_mask

from pipeline.models.quietly import quietly

if TYPE_CHECKING:
    from pipeline.models.rows import FilledRows, PackedRows

PLAIN = "corpusmill_plain"
WRITING = "corpusmill_writing"
PACKED = "corpusmill_packed"

MOST_TOKENS = 1024
"""Of a text whose scores are held at once: 24 MB of bfloat16 where twelve heads go together."""

_TILE_KEYS = 32
"""The matrix unit sums so many products at once. Keys are filled up to a multiple of it: the sums over a text's tokens
are then the same to the bit, however long the longest text beside it is."""

_VECTOR_KEYS, _MANY_VECTOR_KEYS, _MANY = 8, 16, 256
"""The same where vectors are summed, two products at once; of more than 256 keys the second. MiniLM's attention over 70
to 110 tokens takes 12 to 19% less time than with 32, over 300 to 490 4 to 8% (Zen 4)."""

_SCORES_BYTES = 4 << 20
"""Of scores that are held at once. No slower than all of them at once; with a quarter of it, 5% of an attention's
time."""

_LEAST_DIVISOR = 1e-30
"""Below it the greatest exponential of a row has come near to the smallest numbers, which have fewer digits."""

_MOST_DIVISOR = 1e30
"""Above it the exponentials' products with the values may be more than the largest number, though their sum is not."""


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    rows: "FilledRows | None" = None,
    cached: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """values_BLHD of queries_BHLD over keys_BHSD; mask (0, or very negative) and bias are added to the scores.

    With `rows`, queries and keys are those of all texts in one: queries_1HTD, keys_1HTD -> values_1THD. `cached`: keys
    of a single query come again at the next step, and are not laid out for it.
    """
    if rows is not None:
        query, key, value = (rows.split(each.transpose(1, 2)).transpose(1, 2) for each in (query, key, value))
    if (groups := query.shape[1] // key.shape[1]) > 1:  # one key serves several queries
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else _sum(position_bias, attention_mask)
    dropped = dropout if module.training else 0.0
    lays_out = not (cached and query.shape[2] == 1)
    masks_keys_alone = position_bias is None and (attention_mask is None or attention_mask.shape[1:3] == (1, 1))
    if key.shape[2] > MOST_TOKENS:
        mask = None if attention_mask is None else attention_mask.to(query.dtype)
        found = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropped, scale=scale)
    elif masks_keys_alone and lays_out and not torch.is_grad_enabled():
        found = _of_some_heads_at_once(query, key, value, attention_mask, scale)
    else:
        found = _divided_first(query, key, value, attention_mask, scale, dropped)
    found = found.transpose(1, 2)
    return found.contiguous() if rows is None else rows.joined(found), None


_SUMS: MutableMapping[torch.Tensor, Any] = WeakTensorKeyDictionary()
"""By a bias, as long as it lives: the mask that was added last, and the sum."""


def _sum(bias: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Bias and mask; a model's layers share both, and the first that asks adds them."""
    if torch.is_grad_enabled():
        return bias + mask
    before = _SUMS.get(bias)
    if before is None or before[0]() is not mask:
        before = _SUMS[bias] = (weakref.ref(mask), bias + mask)
    found: torch.Tensor = before[1]
    return found


@cache
def _has_tiles() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def _filled_up(keys: int) -> int:
    """How many keys are laid out for so many."""
    at_once = _TILE_KEYS if _has_tiles() else _VECTOR_KEYS if keys <= _MANY else _MANY_VECTOR_KEYS
    return -(-keys // at_once) * at_once


_UNSEEN: MutableMapping[torch.Tensor, tuple[torch.Tensor, ...]] = WeakTensorKeyDictionary()
"""By a mask, as long as it lives, which a model's layers share."""


def _unseen(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Which keys nobody sees: their texts, and their places there."""
    found = _UNSEEN.get(mask)
    if found is None:
        found = _UNSEEN[mask] = (mask[:, 0, 0] != 0).nonzero(as_tuple=True)
    return found


def _divided_first(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropped: float,
) -> torch.Tensor:
    """values_BHQD by torch's softmax; `mask` is added to the scores: mask_B1QS, mask_BHQS or with Q of 1."""
    batch, heads, queries, width = query.shape
    size = key.shape[2]
    query_NQD, key_NSD, value_NSD = (each.reshape(batch * heads, -1, width) for each in (query, key, value))
    if mask is None:
        scores_NQS = torch.bmm(query_NQD * scale, key_NSD.transpose(1, 2))
    else:
        wide = mask.shape[2]  # 1 where all queries see the same keys
        added = mask.to(query.dtype).expand(batch, heads, wide, size).reshape(batch * heads, wide, size)
        scores_NQS = torch.baddbmm(added, query_NQD, key_NSD.transpose(1, 2), alpha=scale)
    shares_NQS = nn.functional.dropout(torch.softmax(scores_NQS, -1), dropped, dropped > 0)
    return torch.bmm(shares_NQS, value_NSD).view(batch, heads, queries, width)


def _of_some_heads_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """values_BHQD as `_divided_last` gives them, of so few heads at once that their scores take little room."""
    batch, heads, queries, width = query.shape
    at_once = _heads_at_once(heads, batch * queries * key.shape[2] * query.element_size())
    if at_once == heads:
        return _divided_last(query, key, value, mask, scale)
    found_BHQD = query.new_empty(batch, queries, heads, width).transpose(1, 2)  # as whoever asks lays them out
    for start in range(0, heads, at_once):
        some = slice(start, start + at_once)
        found_BHQD[:, some] = _divided_last(query[:, some], key[:, some], value[:, some], mask, scale)
    return found_BHQD


def _heads_at_once(heads: int, bytes_each: int) -> int:
    """As many as may be, and always as many: oneDNN makes a product anew for each number that it meets."""
    parts = max(1, -(-heads * bytes_each // _SCORES_BYTES))
    return heads // next((part for part in range(parts, heads) if heads % part == 0), heads)


def _divided_last(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """values_BHQD; by torch's softmax for those queries whose exponentials are beyond what numbers can hold.

    `mask` is 0 for the keys that all queries see, and very negative for the others: mask_B11S. What a query gets
    depends on its own text alone, to the bit: others that are beyond change nothing for it.
    """
    batch, heads, queries, width = query.shape
    real, size = key.shape[2], _filled_up(key.shape[2])
    plain_BHSD = key.new_empty(batch, heads, size, width)
    wide_BHSD = value.new_empty(batch, heads, size, width + 1)
    plain_BHSD[:, :, :real] = key
    wide_BHSD[:, :, :real, :width] = value
    wide_BHSD[:, :, :real, width] = 1
    for each in (plain_BHSD, wide_BHSD):
        each[:, :, real:] = 0
        if mask is not None:
            # Keys that nobody sees get scores of 0: theirs might be infinite, and infinity times 0 is no number.
            each.transpose(1, 2)[_unseen(mask)] = 0
    query_NQD = query.reshape(batch * heads, queries, width)
    key_NDS = plain_BHSD.view(batch * heads, size, width).transpose(1, 2)
    nothing = query.new_empty(1, 1, 1)  # baddbmm with beta=0 is bmm with a factor
    exponentials_NQS = torch.baddbmm(nothing, query_NQD, key_NDS, beta=0, alpha=scale * math.log2(math.e)).exp2_()
    sums_NQD = torch.bmm(exponentials_NQS, wide_BHSD.view(batch * heads, size, width + 1))
    sums_BHQD = sums_NQD.view(batch, heads, queries, width + 1)
    divisors_BHQ1 = sums_BHQD[..., width:]
    least, most = divisors_BHQ1.float().aminmax()
    found_BHQD = sums_BHQD[..., :width] / divisors_BHQ1
    if least > _LEAST_DIVISOR and most < _MOST_DIVISOR:  # not a number is neither
        return found_BHQD
    del exponentials_NQS, sums_NQD  # as large as what comes
    beyond_BHQ1 = ~((divisors_BHQ1.float() > _LEAST_DIVISOR) & (divisors_BHQ1.float() < _MOST_DIVISOR))
    texts_E = beyond_BHQ1.flatten(1).any(1).nonzero()[:, 0]
    unseen_ES = torch.ones(len(texts_E), size, dtype=torch.bool, device=query.device)
    unseen_ES[:, :real] = False if mask is None else mask[texts_E, 0, 0] != 0
    added_E11S = query.new_zeros(unseen_ES.shape).masked_fill_(unseen_ES, torch.finfo(query.dtype).min)[:, None, None]
    for text, added_11S in zip(texts_E.tolist(), added_E11S, strict=True):  # few, and each as large as it is
        this = slice(text, text + 1)
        by_softmax = _divided_first(
            *(query[this], plain_BHSD[this], wide_BHSD[this][..., :width], added_11S[None], scale, 0.0)
        )
        found_BHQD[this] = torch.where(beyond_BHQ1[this], by_softmax, found_BHQD[this])
    return found_BHQD


def _key_mask(**asked: Any) -> torch.Tensor | None:
    """What transformers asks an attention's mask of: mask_B11S where each query sees every real token, none at all
    where all are real; else its own mask_B1QS.
    """
    mask_BS = asked.get("attention_mask")
    alike = asked["mask_function"] is bidirectional_mask_function and not asked.get("kv_offset")
    if mask_BS is None or not alike or mask_BS.shape != (asked["batch_size"], asked["kv_length"]):
        found: torch.Tensor | None = eager_mask(**asked)
        return found
    real_BS = mask_BS.bool()
    if asked.get("allow_is_bidirectional_skip") and bool(real_BS.all()):
        return None
    dtype = asked.get("dtype", torch.float32)
    return torch.zeros_like(real_BS, dtype=dtype).masked_fill_(~real_BS, torch.finfo(dtype).min)[:, None, None]


def use_plain_attention(model: nn.Module, or_eagerly: bool = True) -> None:
    """Compute with it from now on, in place; where the family does not ask the interface, eagerly or as before."""
    AttentionInterface.register(PLAIN, plain_attention)
    AttentionMaskInterface.register(PLAIN, _key_mask)
    bends = getattr(getattr(model, "config", None), "attn_logit_softcapping", None)  # scores, before the softmax
    ways = ([] if bends else [PLAIN]) + (["eager"] if or_eagerly else [])
    for way in ways:
        try:
            with quietly():
                model.set_attn_implementation(way)  # type: ignore[operator]
        except (ValueError, AttributeError):  # a module of one's own has none
            continue
        return


def use_writing_attention(model: nn.Module) -> None:
    """The same of an encoder-decoder whose decoder keeps keys and values, in place; a family without the interface
    stays. At a single query torch's fused kernel took five to ten times as long.
    """
    AttentionInterface.register(WRITING, partial(plain_attention, cached=True))
    AttentionMaskInterface.register(WRITING, _key_mask)
    with contextlib.suppress(ValueError, AttributeError), quietly():
        model.set_attn_implementation(WRITING)  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------------------ packed


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows: "PackedRows | None" = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """values_1THD of queries_1HTD over keys_1HTD, each text among its own; one query a text may be asked, 1HBD.

    Without `rows`, texts stand side by side as ever: transformers' own attention computes them.
    """
    if rows is None:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found, None
    query_QHD, key_THD, value_THD = (each[0].transpose(0, 1) for each in (query, key, value))
    starts_B1, longest = rows.starts_B1, rows.tokens
    asked_B1 = starts_B1
    if len(query_QHD) < len(key_THD):
        asked_B1, longest = torch.arange(rows.texts + 1, dtype=torch.int32, device=query.device), 1
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        found_QHD = _flash(query_QHD, key_THD, value_THD, asked_B1, starts_B1, longest, rows.tokens, scale)
    else:
        found_QHD = _text_by_text(query_QHD, key_THD, value_THD, asked_B1, starts_B1, scale)
    return found_QHD[None], None


def _flash(
    query_QHD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    asked_B1: torch.Tensor,
    starts_B1: torch.Tensor,
    most_queries: int,
    most_keys: int,
    scale: float,
) -> torch.Tensor:
    """Torch's kernel for texts of several lengths (Dao 2023)."""
    found: torch.Tensor = torch.ops.aten._flash_attention_forward(
        *(query_QHD, key_THD, value_THD, asked_B1, starts_B1, most_queries, most_keys, 0.0, False, False), scale=scale
    )[0]
    return found


def _text_by_text(
    query_QHD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    asked_B1: torch.Tensor,
    starts_B1: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """What the kernel computes, where there is none."""
    asked, starts = asked_B1.tolist(), starts_B1.tolist()
    queries = [query_QHD[start:stop].transpose(0, 1) for start, stop in pairwise(asked)]
    keys, values = ([of[start:stop].transpose(0, 1) for start, stop in pairwise(starts)] for of in (key_THD, value_THD))
    texts = [
        nn.functional.scaled_dot_product_attention(query_HQD, key_HSD, value_HSD, scale=scale).transpose(0, 1)
        for query_HQD, key_HSD, value_HSD in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(texts)


def can_pack(dtype: torch.dtype, head_size: int) -> bool:
    """Whether this process's GPU has the kernel for heads of so many numbers of this type."""
    if dtype not in (torch.bfloat16, torch.float16) or head_size % 8:
        return False
    try:
        with torch.inference_mode():
            some_THD = torch.zeros(2, 1, head_size, dtype=dtype, device="cuda")
            starts_B1 = torch.tensor([0, 1, 2], dtype=torch.int32, device="cuda")
            _flash(some_THD, some_THD, some_THD, starts_B1, starts_B1, 1, 1, 1.0)
            torch.cuda.synchronize()
    except (AttributeError, RuntimeError, TypeError):  # a torch without it, or a GPU from before 2020
        return False
    return True


def use_packed_attention(model: nn.Module) -> bool:
    """Compute with it from now on, in place; False where the family does not ask the interface, and stays."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before != "sdpa":  # eager ones do something of their own with their scores
        return False
    try:
        with quietly():
            model.set_attn_implementation(PACKED)  # type: ignore[operator]
    except (ValueError, AttributeError):
        return False
    return True
