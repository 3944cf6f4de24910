"""How unlikely a language model finds a corpus, from the loss of each text.

    quality_loss  quality_tokens     Perplexity(loss="quality_loss", tokens="quality_tokens")
    3.0           10                 -> loss 3.1, perplexity 22.2
    3.2           10

exp(sum of loss * tokens / sum of tokens): every token weighs the same, whatever text it stands in. `quality_tokens` of
`task: score` counts what the model saw; where each text has tokens among these that were not judged (its first one,
where none stands before it; [CLS] and [SEP] of a masked model), `unjudged_tokens` says how many. Rows without a loss
are left out, and told.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.metrics.base import Found, Kind, Value
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.columns import numbers
from pipeline.metrics.counts import ratio


@dataclass(frozen=True, slots=True)
class Perplexity(Kind):
    """Which columns hold the mean loss of a text's tokens, in nats, and how many tokens it has."""

    loss: str
    tokens: str
    unjudged_tokens: int = 0  # of each text's `tokens`

    main = "perplexity"
    figures = ("perplexity", "loss")

    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Rows without a loss, and those without a judged token.

        Raises JobError: a column that is not there, or of another type.
        """
        judged_R = numbers(table, self.tokens) - self.unjudged_tokens
        return {
            f"{self.loss} is null or not finite": ~np.isfinite(numbers(table, self.loss)),
            f"{self.tokens} has no judged token": ~(judged_R > 0),
        }

    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """perplexity, and loss: the mean of a token in nats."""
        tokens_R = numbers(table, self.tokens) - self.unjudged_tokens
        losses_R = numbers(table, self.loss) * tokens_R
        sums = bootstrap.sums({"losses": losses_R[:, None], "tokens": tokens_R[:, None]})
        loss, loss_B = float(losses_R.sum() / tokens_R.sum()), ratio(sums["losses"], sums["tokens"])[:, 0]
        with np.errstate(over="ignore"):
            perplexity = Value(float(np.exp(loss)), np.exp(loss_B), len(table))
        return Found(
            {"perplexity": perplexity, "loss": Value(loss, loss_B, len(table))}, {"judged_tokens": int(tokens_R.sum())}
        )
