"""What objectives share that predict tokens: cross entropy at the places that have a target, and perplexity.

    targets_BL  [[-100, -100, 7592, -100], [2088, …]]     -> logits of these places alone go through the language head

The projection to the vocabulary is often most of a small model's work, so hidden states are picked before it. B
examples, L tokens of the longest, N targets of all of them, V the vocabulary.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.training.objectives.base import Learned, Objective

if TYPE_CHECKING:
    import torch
    from torch import nn

IGNORED = -100
"""The target of a place that has none."""


class TokenObjective(Objective):
    """Cross entropy of tokens; an example weighs as many as it has targets."""

    figures: ClassVar[Mapping[str, bool]] = {"perplexity": False}

    @abstractmethod
    def asked(self, model: "nn.Module", batch: "dict[str, torch.Tensor]") -> "tuple[dict[str, Any], torch.Tensor]":
        """What the model takes of a batch, and targets_BL beside its output; IGNORED where there is none."""

    @property
    def label_smoothing(self) -> float:
        """Share of the target that is spread over the vocabulary (Szegedy et al. 2016)."""
        return 0.0

    def loss(self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned) -> "torch.Tensor":  # noqa: ARG002
        """Summed over the targets."""
        import torch.nn.functional as functional

        inputs, targets_BL = self.asked(model, batch)
        places_BL = targets_BL != IGNORED
        return functional.cross_entropy(
            logits_at(model, inputs, places_BL),
            targets_BL[places_BL],
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def judge(
        self,
        model: "nn.Module",
        batch: "dict[str, torch.Tensor]",
        learned: Learned,  # noqa: ARG002
    ) -> "tuple[torch.Tensor, npt.NDArray[Any]]":
        """Of each example: the loss of its targets in nats, without smoothing, and how many it has."""
        import torch
        import torch.nn.functional as functional

        inputs, targets_BL = self.asked(model, batch)
        places_BL = targets_BL != IGNORED
        losses_BL = torch.zeros(targets_BL.shape, device=targets_BL.device)
        logits_NV, targets_N = logits_at(model, inputs, places_BL), targets_BL[places_BL]
        losses_BL[places_BL] = functional.cross_entropy(logits_NV, targets_N, reduction="none")
        kept_B2 = torch.stack([losses_BL.sum(1), places_BL.sum(1)], 1)
        if not self.label_smoothing:
            return losses_BL.sum(), kept_B2.cpu().numpy()
        smoothed = functional.cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=self.label_smoothing)
        return smoothed, kept_B2.cpu().numpy()

    def score(self, judged_EK: npt.NDArray[Any], learned: Learned) -> dict[str, float]:  # noqa: ARG002
        """The exponential of the mean loss of a target."""
        loss, targets = judged_EK.astype(np.float64).sum(0)
        with np.errstate(over="ignore"):
            return {"perplexity": float(np.exp(loss / targets))}


def bare(model: "nn.Module") -> Any:
    """The model itself, within what distributes it."""
    module: Any = model
    while hasattr(module, "module") and not hasattr(module, "get_output_embeddings"):
        module = module.module
    return module


def logits_at(model: "nn.Module", inputs: Mapping[str, Any], places_BL: "torch.Tensor") -> "torch.Tensor":
    """logits_NV in float32, at these places of the output alone, row by row."""
    head = bare(model).get_output_embeddings()
    picked = False

    def pick(_: Any, given: "tuple[torch.Tensor, ...]") -> "tuple[torch.Tensor, ...]":
        nonlocal picked
        if given[0].dim() != 3 or given[0].shape[:2] != places_BL.shape:
            return given
        picked = True
        return (given[0][places_BL][None], *given[1:])

    hook = None if head is None else head.register_forward_pre_hook(pick)
    try:
        found: torch.Tensor = model(**inputs).logits
    finally:
        if hook is not None:
            hook.remove()
    return (found[0] if picked else found[places_BL]).float()
