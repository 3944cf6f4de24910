"""An encoder's layers over one row of tokens, whose number is one of few.

    compute_in_rows(model)      # BERT and its like, DistilBERT: on a CPU, where nothing is trained

B texts of L tokens are B x L rows of a layer's products, and nearly every micro-batch of a unit has another number of
them. oneDNN makes a product anew for each number that it meets: 30 ms for those of MiniLM, a fifth of the time in the
first seconds of an actor. Filled up to the next multiple of 64, the numbers come again; only attention looks at texts.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from pipeline.models.attention import NAME

GRAIN = 64
"""Rows are filled up to a multiple of it: 32 more on average, of 2,048."""

_LAYERS = {
    "BertModel": "encoder",
    "RobertaModel": "encoder",
    "XLMRobertaModel": "encoder",
    "ElectraModel": "encoder",
    "CamembertModel": "encoder",
    "DistilBertModel": "transformer",
}
"""Where the layers of a family lie. They pass on what they do not know to their attention."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens of B texts of L tokens as T rows, the last of them of no text."""

    texts: int
    tokens: int  # of each text

    @property
    def count(self) -> int:
        """T."""
        return -(-self.texts * self.tokens // GRAIN) * GRAIN

    def joined(self, values_BLX: torch.Tensor) -> torch.Tensor:
        """values_1TX; those of no text are 0. Of one token of each text: values_1BX."""
        texts, tokens, *rest = values_BLX.shape
        if tokens < self.tokens:
            return values_BLX.reshape(1, texts * tokens, *rest)
        joined_1TX = values_BLX.new_empty(1, self.count, *rest)
        joined_1TX[0, : texts * tokens].view(values_BLX.shape).copy_(values_BLX)
        joined_1TX[0, texts * tokens :] = 0
        return joined_1TX

    def split(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """values_BLX; of values_1BX of one token of each text: values_B1X."""
        held = values_1TX.shape[1]
        taken = held if held == self.texts else self.texts * self.tokens
        return values_1TX[0, :taken].view(self.texts, -1, *values_1TX.shape[2:])

    def first(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """The first token of each text: values_1BX."""
        return self.split(values_1TX)[:, 0][None]


def compute_in_rows(model: nn.Module) -> bool:
    """Compute so from now on, in place; False where the model is of another family, and stays."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or not type(base).__module__.startswith("transformers."):
        return False
    config: Any = base.config
    where = _LAYERS.get(type(base).__name__)
    if where is None or config._attn_implementation != NAME or getattr(config, "is_decoder", False):
        return False
    layers: Any = getattr(base, where)
    layers.forward = MethodType(_in_rows, layers)
    return True


def _in_rows(
    layers: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
) -> Any:
    forward = type(layers).forward
    masks_keys_alone = attention_mask is None or attention_mask.shape[1:3] == (1, 1)
    # Of texts of one token the first cannot be told from all of them.
    if torch.is_grad_enabled() or not masks_keys_alone or hidden_states.shape[1] == 1:
        return forward(layers, hidden_states, attention_mask, **options)
    rows = Rows(*hidden_states.shape[:2])
    found = forward(layers, rows.joined(hidden_states), attention_mask, rows=rows, **options)
    found.last_hidden_state = rows.split(found.last_hidden_state)
    return found
