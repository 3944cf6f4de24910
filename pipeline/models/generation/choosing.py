"""Logits become the next token of each row, as for the row alone.

    Chooser(model).next_tokens(batch) -> [1045, 2, Failure(non_finite_output), …]

In float32 a batch's logits are those of a row alone but for rounding. Where that could decide (two best scores nearer
than `_NOISE`, a token at the edge of top-k or top-p), the row goes through the model once more by itself, without
padding or cache, and these logits decide: the same row gets the same token in any batch. In bfloat16 rounding is a
thousand times greater and no such promise is made.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.models.engine import not_finite
from pipeline.models.generation.decoding import ids_so_far
from pipeline.models.generation.drawing import Filters, RowNoise, Scores, draw
from pipeline.models.generation.live import Batch, Model, Row
from pipeline.quarantine import Failure

# Of the greatest logit: what batching may change in float32. Measured: 5e-7 to 4e-6, 4e-5 in an ill-conditioned model.
_NOISE = 2e-5


class Chooser:
    """Greedy or by drawing, after the logits processors."""

    def __init__(self, model: Model) -> None:
        """Take the options from the model's rules."""
        self._model = model
        self.rules = model.rules
        config = model.rules.config
        self._samples = model.rules.samples
        self._filters = Filters(
            1.0 if config.temperature is None else float(config.temperature),
            config.top_k or None,
            config.top_p,
            config.min_p,
        )
        self._is_exact = model.module.dtype == torch.float32
        self.alone = 0  # tokens that a row by itself decided

    def next_tokens(self, batch: Batch) -> list[int | Failure]:
        """One for each row; spends the batch's scores."""
        scores_BV = self._processed(batch.scores_BV.float(), batch.rows)
        tokens_B = _argmax(scores_BV)
        best_B = scores_BV.gather(1, tokens_B[:, None])[:, 0]
        chosen: list[int | Failure | None] = list(tokens_B.tolist())
        slack_B = self._slack(best_B)
        if self._samples:
            scores = scores_BV.cpu().numpy()
            chosen = [self._drawn(row, scores[at], slack_B[at]) for at, row in enumerate(batch.rows)]
        elif self._is_exact:
            second_B = scores_BV.scatter(1, tokens_B[:, None], -torch.inf).amax(1)
            for at in np.flatnonzero((best_B - second_B).cpu().numpy() <= 2 * slack_B):
                chosen[at] = None
        for at in np.flatnonzero(~torch.isfinite(best_B).cpu().numpy()):
            chosen[at] = not_finite(scores_BV[at].cpu().numpy())
        return [self._alone(row) if token is None else token for row, token in zip(batch.rows, chosen, strict=True)]

    def _slack(self, best_B: torch.Tensor) -> Scores:
        if not self._is_exact:
            return np.zeros(len(best_B), np.float32)
        slack_B: Scores = (best_B.abs().clamp(min=1.0) * _NOISE).cpu().numpy()
        return slack_B

    def _drawn(self, row: Row, scores_V: Scores, slack: float) -> int | None:
        if not np.isfinite(scores_V.max()):
            return 0  # the row fails
        if row.noise is None:
            row.noise = RowNoise(self.rules.decoding.seed, row.prompt_ids)
        return draw(scores_V, row.noise.at(len(row.answer), len(scores_V)), self._filters, float(slack))

    def _alone(self, row: Row) -> int | Failure:
        """The token that the row by itself gets."""
        self.alone += 1
        scores_1V = self._processed(self._model.logits_alone(row), [row])
        if not torch.isfinite(scores_1V.max()):
            return not_finite(scores_1V[0].cpu().numpy())
        if not self._samples:
            return int(scores_1V[0].argmax())
        token = self._drawn(row, scores_1V[0].cpu().numpy(), 0.0)
        assert token is not None
        return token

    def _processed(self, scores_BV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """scores_BV after the logits processors; rows that share them and are of one length go together."""
        alike: dict[tuple[int, int], list[int]] = {}
        for number, row in enumerate(rows):
            if row.processors is not None:
                alike.setdefault((id(row.processors), len(row.answer)), []).append(number)
        for numbers in alike.values():
            some = [rows[number] for number in numbers]
            processors = some[0].processors
            assert processors is not None
            ids_BL = ids_so_far([row.prompt_ids for row in some], [row.answer for row in some], self.rules.start_id)
            index_B = torch.tensor(numbers, device=scores_BV.device)
            scores_BV[index_B] = processors(ids_BL.to(scores_BV.device), scores_BV[index_B])
        return scores_BV


def _argmax(scores_BV: torch.Tensor) -> torch.Tensor:
    """tokens_B: the first of the greatest, or the first that is not a number; torch is slow on a CPU."""
    return torch.from_numpy(scores_BV.numpy().argmax(1)) if scores_BV.device.type == "cpu" else scores_BV.argmax(1)
