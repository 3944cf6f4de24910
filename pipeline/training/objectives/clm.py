r"""Each token is guessed from those before it: a causal language model gets used to the language of a corpus.

objective: clm                           data: {text: "{summary}\n\n{description}", …}
objective: {name: clm, packed: false}

A text ends with the tokenizer's end of a sequence, so that the model learns to end. Packed texts follow each other,
and what stands before a text in its sequence is seen (Brown et al. 2020, arXiv:2005.14165, section 2.3).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ModelError
from pipeline.models.inspection import task_of_head
from pipeline.models.reference import PinnedModel
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import Ids
from pipeline.training.objectives._packing import Part
from pipeline.training.objectives._texts import TextsObjective
from pipeline.training.objectives._tokenwise import IGNORED
from pipeline.training.objectives.base import Learned

if TYPE_CHECKING:
    import torch
    from torch import nn


class Clm(TextsObjective):
    """Cross entropy of every token but a sequence's first."""

    needs = "AutoModelForCausalLM"

    class Config(TextsObjective.Config):
        """How texts become examples."""

    def start(self, tokenizer: Any, model: PinnedModel, max_tokens: int) -> None:
        """Take the tokenizer. Raises ModelError: a model that was not made to continue a text."""
        if task_of_head(model.config) not in (None, "causal"):
            named = next(iter(model.config.get("architectures") or []), "")
            raise ModelError(
                f"model {model.ref!r} is of another kind ({named}); clm needs a causal language model (…ForCausalLM: "
                "GPT-2, Llama, Qwen …), and mlm is for encoders"
            )
        super().start(tokenizer, model, max_tokens)

    def _around(self, maker: PieceMaker) -> tuple[Ids, Ids, Ids]:
        end = self.tokenizer.eos_token_id
        after = maker.frame.after if len(maker.frame.after) or end is None else np.array([end], np.int32)
        return maker.frame.before, np.concatenate([after, maker.frame.before]), after

    def _ends(self, part: Part, tokens: int) -> bool:
        return part.stop == tokens

    def _targets(self, ids: Ids) -> int:
        return len(ids) - 1

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":  # noqa: ARG002
        """Ids and mask; the ids are the targets too."""
        return self.tensors(examples)

    def asked(
        self,
        model: "nn.Module",  # noqa: ARG002
        batch: "dict[str, torch.Tensor]",
    ) -> "tuple[dict[str, Any], torch.Tensor]":
        """The target of a place is the token behind it."""
        import torch

        following_BL = torch.where(batch["attention_mask"] > 0, batch["input_ids"], IGNORED)[:, 1:]
        targets_BL = torch.nn.functional.pad(following_BL, (0, 1), value=IGNORED)
        return batch | {"use_cache": False}, targets_BL

    def _unjudged(self, maker: PieceMaker) -> int:
        """Special tokens, and the first one of a text that none stands before."""
        return maker.frame.special + (0 if len(maker.frame.before) else 1)
