"""The last layer of an encoder, computed for the first token alone, where a head reads nothing else of it.

    read_first_token(model)       # BERT, RoBERTa, XLM-R, ELECTRA, CamemBERT with a head for classification

The head takes the last layer's output at [CLS]. That output needs keys and values of every token, and query, output and
feed-forward of one: five sixths of a layer's arithmetic are for numbers that nobody reads. What the model says, and
every gradient, stays as it was.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from pipeline.models.rows import Rows

_FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Electra", "Camembert")
_CLASSES = frozenset(f"{family}ForSequenceClassification" for family in _FAMILIES)


def read_first_token(model: nn.Module) -> bool:
    """Compute the last layer so from now on, in place; False where the model is of another kind, and stays."""
    if type(model).__name__ not in _CLASSES or not type(model).__module__.startswith("transformers."):
        return False
    if getattr(model.config, "is_decoder", False) or getattr(model.config, "add_cross_attention", False):
        return False
    layer = getattr(model, str(model.base_model_prefix)).encoder.layer[-1]
    attention = layer.attention
    attention.self.forward = MethodType(_of_first_token, attention.self)
    attention.output.register_forward_pre_hook(partial(_beside_first_token, attention.self))
    return True


def _beside_first_token(
    attention: Any,
    module: nn.Module,  # noqa: ARG001
    inputs: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """What attention found, and the layer's input that it is added to, both of the first token."""
    found, input_BLD = inputs
    return found, _first(input_BLD, attention.rows)


def _first(values_BLD: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    """values_B1D of the first tokens; where all texts are one row, values_1BD."""
    return values_BLD[:, :1] if rows is None else rows.first(values_BLD)


def _of_first_token(
    attention: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,  # noqa: ARG001 - an encoder has none
    rows: Rows | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """The family's own attention (they share it), with one query a text."""
    attention.rows = rows
    batch, length = hidden_states.shape[:2]
    size = attention.attention_head_size
    first = _first(hidden_states, rows)
    query_BHQD = attention.query(first).view(batch, first.shape[1], -1, size).transpose(1, 2)
    key_BHLD = attention.key(hidden_states).view(batch, length, -1, size).transpose(1, 2)
    value_BHLD = attention.value(hidden_states).view(batch, length, -1, size).transpose(1, 2)
    if attention_mask is not None and attention_mask.ndim == 4:
        attention_mask = attention_mask[:, :, :1]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    found_BQHD, shares = attend(
        attention,
        query_BHQD,
        key_BHLD,
        value_BHLD,
        attention_mask,
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
        **options | ({} if rows is None else {"rows": rows}),
    )
    return found_BQHD.reshape(*first.shape[:2], -1).contiguous(), shares
