"""A number for each text: how well a pair belongs together, or how unlikely a language model finds a text.

{name: rank, task: score, text: question, text_pair: passage, model: models/cross-encoder}
-> rank_score: 0.83                                  # a cross-encoder's one output
{name: quality, task: score, text: body, model: models/gpt2}
-> quality_score: 41.7, quality_loss: 3.73           # perplexity; mean loss of a token in nats

Without a second text the model's kind decides. Causal: the perplexity of the text, its special tokens not judged but
seen: a text whose tokenizer puts a start token before it is judged from its first token on, another from its second.
Masked: the pseudo-perplexity of Salazar et al. 2020 (arXiv:1910.14659), each token masked in its turn: a text of N
tokens goes through the model N times. A text longer than `max_tokens` is cut, or with `long_text: windows` read in
windows, where each token is judged once: causal, in the first window that holds it, so that `stride` tokens before it
are the least that it is judged by; masked, in the window where it stands farther from an edge.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import JobError, ModelError
from pipeline.models.classes import check_classifies, class_names
from pipeline.models.inspection import read_optional, task_of_head
from pipeline.models.reference import PinnedModel
from pipeline.perplexity import own_spans, perplexities
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation, Comparison, Input, TextInput, Texts
from pipeline.tasks.tokenwise import Said
from pipeline.tasks.window import WindowSettings, WindowTask
from pipeline.text.pieces import Pieces

if TYPE_CHECKING:
    from pipeline.models.engine import Padded, Ran
    from pipeline.models.loading import LoadedModel

Activation = Literal["sigmoid", "none"]
Kind = Literal["pair", "causal", "masked"]

_AUTO_CLASSES: Mapping[Kind, str] = {
    "pair": "AutoModelForSequenceClassification",
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
}
# As sentence-transformers writes them into a cross-encoder's config.json.
_ACTIVATIONS: Mapping[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "none"}


class Score(WindowTask):
    """The one output of a cross-encoder, or the perplexity under a language model."""

    needs = "AutoModelForSequenceClassification"

    class Config(WindowSettings):
        """The second text, and what becomes of a pair's number."""

        text_pair: str | None = Field(default=None, min_length=1)
        """The second text of each pair: a column, a template, or words that are the same for every row (so may `text`
        be beside it). Where both do not fit into `max_tokens`, the longer one is cut first."""

        activation: Activation | None = None
        """Of a pair's number: sigmoid (0 to 1), or none, as the model gives it; default: what config.json says, else
        sigmoid, as sentence-transformers' CrossEncoder."""

        @model_validator(mode="after")
        def _pairs_alone(self) -> Self:
            if self.text_pair is not None and self.long_text == "windows":
                raise ValueError("text_pair needs `long_text: truncate`; a pair is read in one window")
            if self.text_pair is None and self.activation is not None:
                raise ValueError("activation needs a `text_pair`; without one the score is a perplexity")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find what kind of model it is.

        Raises ModelError: of no kind that gives this score; a head of several classes; an activation that is not known.
        """
        super().__init__(config, model)
        self._kind: Kind = _kind_of(self.pinned, pairs=config.text_pair is not None)
        self.needs = _AUTO_CLASSES[self._kind]
        self.only_calls = self._kind == "pair"
        if self._kind == "pair":
            count = len(class_names(self.pinned))
            if count != 1:
                raise ModelError(
                    f"model {self.pinned.ref!r} gives {count} numbers for a pair, and a score is one; `task: classify` "
                    "with this `text_pair` gives its labels"
                )
            self._activation = config.activation or _activation_of(self.pinned)

    def inputs(self) -> Mapping[str, Input]:
        """The text, and the second one of a pair."""
        pair: str | None = self.config.text_pair
        if pair is None:
            return super().inputs()
        return {
            "text": TextInput(self.config.text, may_be_words=True),
            "text_pair": TextInput(pair, may_be_words=True),
        }

    def second_input(self) -> str | None:
        """The second text of a pair."""
        return None if self.config.text_pair is None else "text_pair"

    def fields(self) -> list[pa.Field]:
        """`score`; of a perplexity also `loss`."""
        names = ["score"] if self._kind == "pair" else ["score", "loss"]
        return [pa.field(name, pa.float32()) for name in names]

    def compared(self) -> Comparison | None:
        """Numbers, of pairs; a perplexity is right by nobody's word."""
        return Comparison("numbers", {"predicted": "score"}) if self._kind == "pair" else None

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model.

        Raises ModelError: it cannot compute, or its tokenizer has no mask; JobError: windows that share nothing, where
        the first token of one would have nothing before it.
        """
        super().start(loaded)
        place = f"annotation {self.config.name!r}"
        if self._kind == "masked" and loaded.tokenizer.mask_token_id is None:
            raise ModelError(
                f"{place}: the tokenizer of {self.pinned.ref!r} has no mask token, and each token is masked"
            )
        if self._kind == "causal" and self.stride() == 0 and not len(self.maker.frame.before):
            raise JobError(
                f"{place}: stride: 0 leaves the first token of a window nothing to be judged by, as the tokenizer of "
                f"{self.pinned.ref!r} puts none before a text; at least 1"
            )

    def check_model(self, padded: "Padded") -> None:
        """One number must come for a pair, one for each word of the vocabulary otherwise."""
        logits = self.loaded.module(**padded.inputs).logits
        if self._kind == "pair" and tuple(logits.shape) != (1, 1):
            raise ModelError(
                f"model {self.pinned.ref!r} gives {logits.shape[-1]} numbers for a pair, and a score is one"
            )

    def annotate(self, texts: Texts) -> Annotation:
        """What the model says of each piece, and what that comes to for each text."""
        pieces = self.pieces(texts)
        key = ("score", self.pieces_key(), self.needs, self.loaded.computes, self._forward_key())
        is_new = key not in texts.shared
        ran = texts.once(key, lambda: self._run(pieces, texts))
        said = Said(
            pieces,
            ran.found_P,
            pieces.failures_of(ran.failures),
            ran.tokens if is_new else 0,
            ran.padding_tokens if is_new else 0,
            ran.seconds if is_new else 0.0,
        )
        return said.annotation(self._values(said) if self._kind == "pair" else _perplexities(said))

    def _forward_key(self) -> Hashable:
        return self._activation if self._kind == "pair" else self._kind

    def _run(self, pieces: Pieces, texts: Texts) -> "Ran[npt.NDArray[np.float32]]":
        """For each piece its number, or the losses of the tokens that it judges."""
        from pipeline.models import losses
        from pipeline.models.engine import not_finite, run_pieces

        loaded, journal = self.loaded, self.journal(pieces, texts)
        own_P2 = own_spans(pieces.spans_P2, pieces.windows_R, both_sides=self._kind == "masked")
        places_P2 = own_P2 - pieces.spans_P2[:, :1] + pieces.leads_P[:, None]
        if self._kind == "masked":
            return losses.masked_losses(
                loaded.module,
                pieces.ids_P,
                places_P2,
                mask_id=loaded.tokenizer.mask_token_id,
                token_budget=loaded.budget,
                pad_id=loaded.pad_id,
                device=loaded.device,
                types_P=pieces.types_P,
                about_to_run=journal,
            )
        is_pair = self._kind == "pair"
        ran: Ran[npt.NDArray[np.float32]] = run_pieces(
            pieces.ids_P,
            self._pair_values if is_pair else lambda padded: losses.causal_losses(loaded.module, padded),
            token_budget=loaded.budget if is_pair else losses.tokens_at_once(loaded.module, loaded.budget),
            pad_id=loaded.pad_id,
            device=loaded.device,
            types_P=pieces.types_P,
            packed=is_pair and loaded.packed,
            about_to_run=journal,
        )
        for piece, found in enumerate(ran.found_P):
            if found is None:
                continue
            kept = found if is_pair else found[max(0, places_P2[piece, 0] - 1) : places_P2[piece, 1] - 1]
            ran.found_P[piece] = kept
            if not np.isfinite(kept).all():
                ran.failures[piece] = not_finite(kept)
                ran.found_P[piece] = None
        return ran

    def _pair_values(self, padded: "Padded") -> list[npt.NDArray[np.float32]]:
        from pipeline.models.engine import as_numpy
        from pipeline.models.heads import logits

        found_B1 = logits(self.loaded.module, padded)
        return list(as_numpy(found_B1.sigmoid() if self._activation == "sigmoid" else found_B1))

    @staticmethod
    def _values(said: Said) -> Mapping[str, pa.Array]:
        """The score of each pair: its one piece's."""
        scores = [
            None if row in said.failures else float(said.found_P[pieces.start][0])
            for row, pieces in enumerate(said.pieces_R)
        ]
        return {"score": pa.array(scores, pa.float32())}


def _perplexities(said: Said) -> Mapping[str, pa.Array]:
    """Perplexity and mean loss of each text; a text of which no token was judged is told in `failures`."""
    losses_R, scores_R = perplexities(said.found_P, said.pieces.windows_R)
    for row in np.flatnonzero(~np.isfinite(scores_R)).tolist():
        why = (
            Failure(Reason.NO_TOKENS, "the text is one token, and nothing stands before it that it could be judged by")
            if np.isnan(scores_R[row])
            else Failure(Reason.NON_FINITE_OUTPUT, f"a mean loss of {losses_R[row]:g} nats is more than exp can take")
        )
        said.failures.setdefault(row, why)
    mask = ~said.good_R
    return {
        "score": pa.array(scores_R, pa.float32(), mask=mask),
        "loss": pa.array(losses_R, pa.float32(), mask=mask),
    }


def _kind_of(pinned: PinnedModel, pairs: bool) -> Kind:
    """How this model gives a score; ModelError where it cannot."""
    if pairs:
        check_classifies(pinned, "score with a `text_pair`")
        return "pair"
    architecture = str(next(iter(pinned.config.get("architectures") or []), "no architecture"))
    if architecture.endswith("ForMaskedLM"):
        return "masked"
    head = task_of_head(pinned.config)
    if head == "causal":
        return "causal"
    hint = (
        "; a second text, `text_pair`, makes pairs for it, and `task: classify` gives its value of a single text"
        if head == "sequence_classification"
        else ""
    )
    raise ModelError(
        f"model {pinned.ref!r} is no language model ({architecture}), and perplexity needs one that continues a text "
        f"(…ForCausalLM) or fills in masks (…ForMaskedLM){hint}"
    )


def _activation_of(pinned: PinnedModel) -> Activation:
    """What the cross-encoder's folder says, in the order in which CrossEncoder reads it; else sigmoid."""
    own = read_optional(Path(pinned.folder) / "config_sentence_transformers.json").get("activation_fn")
    stated = (
        own
        or (pinned.config.get("sentence_transformers") or {}).get("activation_fn")
        or pinned.config.get("sbert_ce_default_activation_function")
    )
    if stated is None:
        return "sigmoid"
    known = _ACTIVATIONS.get(str(stated).rpartition(".")[2]) if str(stated).startswith("torch.") else None
    if known is None:
        raise ModelError(
            f"model {pinned.ref!r} asks for the activation {stated}; known are torch's Sigmoid and Identity: say which "
            "with `activation:`"
        )
    return known
