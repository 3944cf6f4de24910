"""Hidden states of tokens become one vector for each text, as sentence-transformers does it; in float32."""

import torch

from pipeline.models.inspection import Pooling


def pool(hidden_BLD: torch.Tensor, mask_BL: torch.Tensor, how: Pooling, left_out_tokens: int = 0) -> torch.Tensor:
    """values_BD over the real tokens, special ones included: their mean or maximum, the first, or the last.

    `left_out_tokens` at the beginning of each row do not count; of a row without others there is no mean or maximum,
    but numbers that are not finite.
    """
    hidden_BLD = hidden_BLD.float()
    if how == "last":
        rows_B = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
        return hidden_BLD[rows_B, mask_BL.sum(1) - 1]
    hidden_BLD, mask_BL = hidden_BLD[:, left_out_tokens:], mask_BL[:, left_out_tokens:]
    if how == "cls":
        return hidden_BLD[:, 0]
    real_BL1 = mask_BL.unsqueeze(-1).bool()
    if how == "max":
        return hidden_BLD.masked_fill(~real_BL1, -torch.inf).amax(1)
    return hidden_BLD.masked_fill(~real_BL1, 0.0).sum(1) / mask_BL.sum(1, keepdim=True)
