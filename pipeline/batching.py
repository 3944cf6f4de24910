"""Lengths become micro-batches under a budget of padded tokens: pure, without torch.

    lengths_R = [5, 90, 7, 88], budget_tokens = 200
    micro_batches -> [[1, 3], [2, 0]]        # 2 x 90 and 2 x 7 padded tokens
    padding       -> 4                       # 2 in the first, 2 in the second

Which texts share a micro-batch depends on the unit's lengths and the budget alone, so that a repeated run adds up the
same numbers in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class TokenBudget:
    """The token budget of one model in one actor: as planned, until memory ran out; what was lowered stays so."""

    planned: int  # padded tokens of one micro-batch
    of: "TokenBudget | None" = None  # a larger one, which is lowered with it
    in_force: int = field(init=False)
    _least: int = field(init=False)

    def __post_init__(self) -> None:
        assert self.planned > 0
        self.in_force = self._least = self.planned

    def within(self, tokens: int) -> "TokenBudget":
        """This one where it is no more than so many, else one of so many: memory that it runs out of lowers both."""
        return self if self.in_force <= tokens else TokenBudget(tokens, of=self)

    def lower(self, tokens: int) -> None:
        """From now on at most so many, at least 1."""
        self.in_force = max(1, min(self.in_force, tokens))
        self.met(self.in_force)
        if self.of is not None:
            self.of.lower(tokens)

    def met(self, tokens: int) -> None:
        """Some micro-batches had to be of so many."""
        self._least = max(1, min(self._least, tokens))
        if self.of is not None:
            self.of.met(tokens)

    def told(self) -> int | None:
        """The fewest since this was asked last; None where all was as planned."""
        least, self._least = self._least, self.in_force
        return least if least < self.planned else None


def in_force(token_budget: int | TokenBudget) -> int:
    """Padded tokens of a micro-batch now."""
    return token_budget if isinstance(token_budget, int) else token_budget.in_force


def micro_batches(
    lengths_R: npt.NDArray[np.integer], budget_tokens: int, packed: bool = False, fixed_tokens: int | None = None
) -> list[npt.NDArray[np.intp]]:
    """Rows sorted by length, longest first, and cut so that rows x longest stays within `budget_tokens`.

    `packed`: for a model whose layers compute real tokens alone, so that these may be as many; rows x longest, which it
    has for a moment before and after its layers, stays within twice the budget.

    `fixed_tokens`: what a micro-batch costs besides its tokens, as so many tokens more. It then ends where it has the
    most real tokens for its cost: before texts so much shorter that their padding would cost more than a micro-batch of
    their own. None: each is filled up to the budget.

    Rows of one length keep their order. A single row over the budget goes alone. Longest first: memory peaks at the
    beginning, and the first row of a micro-batch tells its width.
    """
    assert budget_tokens > 0
    order_R = np.argsort(-lengths_R.astype(np.int64), kind="stable")
    real_R1 = np.concatenate([[0], np.cumsum(np.maximum(1, lengths_R[order_R]), dtype=np.int64)])
    batches: list[npt.NDArray[np.intp]] = []
    start = 0
    while start < len(order_R):
        longest = max(1, int(lengths_R[order_R[start]]))
        stop = start + max(1, (2 if packed else 1) * budget_tokens // longest)
        if packed:
            within = int(np.searchsorted(real_R1, real_R1[start] + budget_tokens, "right")) - 1
            stop = min(stop, max(start + 1, within))
        elif fixed_tokens is not None:
            real_B = real_R1[start + 1 : stop + 1] - real_R1[start]
            worth_B = real_B / (longest * np.arange(1, len(real_B) + 1) + fixed_tokens)
            stop = start + len(worth_B) - int(worth_B[::-1].argmax())  # of equals the largest
        batches.append(order_R[start:stop])
        start = stop
    return batches


def padding(lengths_R: npt.NDArray[np.integer], batches: Sequence[npt.NDArray[np.intp]]) -> int:
    """Tokens of padding that these micro-batches carry."""
    padded = sum(len(batch) * int(lengths_R[batch].max()) for batch in batches)
    return padded - sum(int(lengths_R[batch].sum()) for batch in batches)
