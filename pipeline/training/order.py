"""Which rows a step trains on, who computes them, and in which micro-batches: pure.

    order = Order(lengths_E=[5, 90, 7, 88, …], batch_rows=32, seed=0)
    order.steps(epoch=0)                  -> [array([3, 1, …]), array([0, 2, …]), …]    # rows of each step
    shared_out(rows, lengths, ranks=2)    -> [array([3, …]), array([1, …])]             # rows of each rank
    micro_batches(lengths, budget)        -> pipeline.batching

All of it hangs on the seed, the epoch and the lengths alone, so a worker that comes back, or another number of workers,
sees the same rows at the same step.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP_STEPS = 50
"""Steps whose rows are sorted by length together: near enough to a random order, and next to no padding (as the length
grouping of transformers' Trainer)."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of E examples in every epoch."""

    lengths_E: npt.NDArray[np.integer]
    batch_rows: int
    seed: int
    by_length: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every example once; the last one may have fewer, and never less than half a batch's rows."""
        return max(1, round(len(self.lengths_E) / self.batch_rows))

    def steps(self, epoch: int) -> list[npt.NDArray[np.intp]]:
        """The examples of each step of an epoch: each example once, shuffled by seed and epoch.

        With `by_length`, the rows of some steps are sorted by length and cut into steps, whose order is shuffled again.
        The longest step comes first: what does not fit into memory shows at once.
        """
        random = np.random.default_rng([self.seed, epoch])
        order_E = random.permutation(len(self.lengths_E))
        cuts = [self.batch_rows * step for step in range(1, self.steps_per_epoch)]
        if not self.by_length:
            return np.split(order_E, cuts)
        steps: list[npt.NDArray[np.intp]] = []
        for first in range(0, self.steps_per_epoch, GROUP_STEPS):
            last = min(first + GROUP_STEPS, self.steps_per_epoch)
            stop = len(order_E) if last == self.steps_per_epoch else last * self.batch_rows
            rows_G = order_E[first * self.batch_rows : stop]
            rows_G = rows_G[np.argsort(-self.lengths_E[rows_G].astype(np.int64), kind="stable")]
            steps += np.split(rows_G, [self.batch_rows * step for step in range(1, last - first)])
        longest = max(range(len(steps)), key=lambda step: int(self.lengths_E[steps[step]].sum()))
        rest = random.permutation([step for step in range(len(steps)) if step != longest])
        return [steps[longest], *(steps[step] for step in rest)]


def shared_out(
    rows_B: npt.NDArray[np.intp], lengths_E: npt.NDArray[np.integer], ranks: int
) -> list[npt.NDArray[np.intp]]:
    """The rows of one step, divided among ranks: as many rows each as can be, longest first, dealt to and fro.

    A rank may get none where there are fewer rows than ranks.
    """
    rows_B = rows_B[np.argsort(-lengths_E[rows_B].astype(np.int64), kind="stable")]
    dealt = np.arange(len(rows_B))
    turn = dealt // ranks % 2 == 1
    rank_B = np.where(turn, ranks - 1 - dealt % ranks, dealt % ranks)
    return [rows_B[rank_B == rank] for rank in range(ranks)]
