"""Words are hidden and guessed: an encoder gets used to the language of a corpus.

objective: mlm                           data: {text: description, …}
objective: {name: mlm, share: 0.15, packed: true}

Of each example round(share x words) tokens are chosen anew in each step, at least one: 8 of 10 become the mask, 1 a
random token, 1 stays (Devlin et al. 2019, arXiv:1810.04805). Masks are drawn in each epoch anew (Liu et al. 2019,
arXiv:1907.11692). Packed texts follow each other with a separator between them.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import ModelError
from pipeline.models.reference import PinnedModel
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import Ids
from pipeline.training.objectives._packing import Part
from pipeline.training.objectives._texts import TextsObjective, special_ids
from pipeline.training.objectives._tokenwise import IGNORED
from pipeline.training.objectives.base import Learned

if TYPE_CHECKING:
    import torch
    from torch import nn

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask, and a random token; the others stay."""


class Mlm(TextsObjective):
    """Cross entropy of the hidden tokens."""

    needs = "AutoModelForMaskedLM"

    class Config(TextsObjective.Config):
        """How much is hidden."""

        share: float = Field(default=0.15, gt=0, le=0.9)
        """Share of an example's tokens that are to be guessed, up to 0.9."""

    def start(self, tokenizer: Any, model: PinnedModel, max_tokens: int) -> None:
        """Take the tokenizer. Raises ModelError: it has no mask."""
        if tokenizer.mask_token_id is None:
            raise ModelError(f"the tokenizer of {model.ref!r} has no mask token: mlm needs an encoder such as BERT")
        self._special = special_ids(tokenizer)
        known = min(len(tokenizer), int(model.config.get("vocab_size") or len(tokenizer)))
        self._words = np.setdiff1d(np.arange(known), self._special)
        super().start(tokenizer, model, max_tokens)

    def _around(self, maker: PieceMaker) -> tuple[Ids, Ids, Ids]:
        separator = next(
            (each for each in (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id) if each is not None), None
        )
        gap = maker.frame.after if len(maker.frame.after) or separator is None else np.array([separator], np.int32)
        return maker.frame.before, gap, maker.frame.after

    def _ends(self, part: Part, tokens: int) -> bool:  # noqa: ARG002
        return True

    def _targets(self, ids: Ids) -> int:
        return int(self._chosen(np.array([(~np.isin(ids, self._special)).sum()]))[0])

    def _chosen(self, words_B: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """How many tokens of an example are to be guessed."""
        return np.where(words_B > 0, np.maximum(1, np.rint(self.config.share * words_B)), 0).astype(np.int64)

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":  # noqa: ARG002
        """Ids, of which some are hidden, mask, and targets_BL: what was hidden."""
        import torch

        tensors = self.tensors(examples)
        ids_BL = tensors["input_ids"].numpy()
        hidden_BL, targets_BL = self._hidden(ids_BL, tensors["attention_mask"].numpy() > 0, random)
        return tensors | {"input_ids": torch.from_numpy(hidden_BL), "target": torch.from_numpy(targets_BL)}

    def _hidden(
        self, ids_BL: npt.NDArray[np.int64], real_BL: npt.NDArray[np.bool_], random: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        words_BL = real_BL & ~np.isin(ids_BL, self._special)
        lot_BL = np.where(words_BL, random.random(ids_BL.shape), 2.0)
        place_BL = lot_BL.argsort(1).argsort(1)
        chosen_BL = place_BL < self._chosen(words_BL.sum(1))[:, None]
        way_BL, word_BL = random.random(ids_BL.shape), random.choice(self._words, ids_BL.shape)
        hidden_BL = np.where(chosen_BL & (way_BL < MASKED), self.tokenizer.mask_token_id, ids_BL)
        replaced_BL = chosen_BL & (way_BL >= MASKED) & (way_BL < MASKED + RANDOM)
        return np.where(replaced_BL, word_BL, hidden_BL), np.where(chosen_BL, ids_BL, IGNORED)

    def asked(
        self,
        model: "nn.Module",  # noqa: ARG002
        batch: "dict[str, torch.Tensor]",
    ) -> "tuple[dict[str, Any], torch.Tensor]":
        """The hidden tokens stand where they are guessed."""
        return {name: values for name, values in batch.items() if name != "target"}, batch["target"]
