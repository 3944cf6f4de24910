"""The numbers of a classification head, the same for a row alone and beside others.

    logits(bert_with_three_classes, padded) -> tensor([[0.3, -1.2, 0.8], [2.1, 0.4, -0.6]])

Heads of decoders (GPT-2, Llama, Qwen) read the last token that is not the padding token of config.json, and refuse more
than one row where config.json has none. Such a model gets, for each micro-batch, one that no row of it holds.
"""

from typing import Any

import torch

from pipeline.models.engine import Padded


def logits(module: Any, padded: Padded) -> torch.Tensor:
    """logits_BK in float32: K classes for each of B pieces."""
    inputs = padded.inputs
    config = module.config.get_text_config()
    found: torch.Tensor
    if getattr(config, "pad_token_id", None) is not None or len(padded.lengths_B) == 1:
        found = module(**inputs).logits
        return found.float()
    ids_BL, mask_BL = padded.input_ids_BL, padded.attention_mask_BL
    unused = _id_not_among(ids_BL)
    config.pad_token_id = unused
    try:
        found = module(**{**inputs, "input_ids": ids_BL.masked_fill(mask_BL == 0, unused)}).logits
    finally:
        config.pad_token_id = None
    return found.float()


def _id_not_among(ids_BL: torch.Tensor) -> int:
    """The smallest token id that no row holds: at most the number of all tokens."""
    held = torch.unique(ids_BL).tolist()
    return next((place for place, held_id in enumerate(held) if place != held_id), len(held))
