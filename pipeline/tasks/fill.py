"""What a masked language model puts where a text has a gap, best first.

{name: gap, task: fill, text: body, model: models/bert, top_k: 2}
body: "The capital of France is [MASK]."
-> gap_fills: [{start: 25, end: 31, labels: ["paris", "lyon"], scores: [0.42, 0.11]}]    # one entry a mask
   gap_text:  "The capital of France is paris."                                          # each mask by its best

`start` and `end` count code points of the row's own text, so that text[start:end] is the placeholder; every mask has
the same number of fills. `SELECT unnest(gap_fills)` gives a row a mask. Several masks of one text are filled each by
itself: their scores are no joint probabilities. Devlin et al. 2018, section 3.1, has the model's task.

R rows, P pieces, B of them in a micro-batch, L its longest, M masks, K fills of each, V vocabulary.
"""

import re
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import task_of_head
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation, AnnotationSettings, Texts
from pipeline.tasks.tokenwise import Said, TokenTask
from pipeline.text.pieces import Pieces
from pipeline.text.tokens import Ids, Tokens

if TYPE_CHECKING:
    import torch

    from pipeline.models.engine import Padded
    from pipeline.models.loading import LoadedModel

FILLS_TYPE: pa.DataType = pa.list_(
    pa.struct(
        [
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("scores", pa.list_(pa.float32())),
        ]
    )
)

DEFAULT_FILLS = 5

Word = Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"\S")]


class Fill(TokenTask):
    """The most probable tokens at each mask, of the whole vocabulary or of some words.

    Whatever a text's length, every mask is read: in windows laid around the masks, each mask from the one in which it
    stands farthest from an edge. `_truncated` tells that some of the text stood in none.
    """

    needs = "AutoModelForMaskedLM"

    class Config(AnnotationSettings):
        """What marks a gap, and what may stand there."""

        mask: Word = "[MASK]"
        """What stands for a gap in the corpus's texts, 1 to 1,000 characters; the model's own mask token does too."""

        top_k: int | None = Field(default=None, ge=1, le=1_000)
        """Keep the so many best fills of each mask, best first; default 5, or all targets where they are fewer."""

        targets: Annotated[list[Word], Field(min_length=1, max_length=10_000)] | None = None
        """Choose among these words; each must be one token of the model, with the blank before it where the model's
        tokens have one (" great" for RoBERTa). Scores stay those among the whole vocabulary."""

        @model_validator(mode="after")
        def _targets_make_sense(self) -> Self:
            targets = self.targets or []
            doubled = sorted({word for word in targets if targets.count(word) > 1})
            if doubled:
                raise ValueError(f"targets: {doubled[0]!r} stands there twice")
            if self.targets is not None and self.top_k is not None and self.top_k > len(targets):
                raise ValueError(f"top_k {self.top_k} is more than the {len(targets)} targets")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Refuse a model of another kind.

        Raises ModelError: a head for something else; JobError as every task with a window does.
        """
        super().__init__(config, model)
        head = task_of_head(self.pinned.config)
        architecture = next(iter(self.pinned.config.get("architectures") or []), "")
        if head in ("sequence_classification", "token_classification", "causal") or architecture.endswith("Answering"):
            raise ModelError(
                f"model {self.pinned.ref!r} is of another kind ({architecture}); fill needs a masked language model "
                "(…ForMaskedLM)"
            )

    def fields(self) -> list[pa.Field]:
        """`fills`, an entry for each mask, and `text`."""
        return [pa.field("fills", FILLS_TYPE), pa.field("text", pa.string())]

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model, and find its mask and the targets among its tokens.

        Raises ModelError: a tokenizer without a mask token, a model that cannot compute; JobError: a target that is not
        one token, or the same token as another.
        """
        tokenizer = loaded.tokenizer
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"annotation {self.config.name!r}: the tokenizer of {self.pinned.ref!r} has no mask token; fill needs "
                "a masked language model (…ForMaskedLM)"
            )
        self._mask_token, self._mask_id = str(tokenizer.mask_token), int(tokenizer.mask_token_id)
        # The longer first: one may begin with the other.
        marks = sorted({self.config.mask, self._mask_token}, key=len, reverse=True)
        self._mark = re.compile("|".join(re.escape(mark) for mark in marks))
        self._words = _Words(tokenizer, self.config.targets)
        try:
            self._targets = self._words.target_ids
        except JobError as fault:
            raise JobError(f"annotation {self.config.name!r}: {fault}") from None
        super().start(loaded)

    def stride(self) -> int | None:
        """Windows lie around masks and do not follow one another."""
        return None

    def pieces_key(self) -> Hashable:
        """What marks a gap, too."""
        return (super().pieces_key(), "masks", self.config.mask)

    def take_key(self) -> Hashable:
        """Which fills are kept."""
        return ("fills", self.config.top_k, None if self._targets is None else tuple(self._targets))

    def take(self, padded: "Padded") -> Sequence[npt.NDArray[np.float32]]:
        """For each of B pieces found_M2K: of its M masks the ids of the K best tokens, and their probabilities.

        An id is exact in float32 below 2**24. The scores stand over the whole vocabulary, also where targets are asked.
        """
        import torch

        from pipeline.models.engine import as_numpy

        mask_BL = (padded.input_ids_BL == self._mask_id) & padded.attention_mask_BL.bool()
        scores_MV = self._logits(padded, mask_BL).float().softmax(1)
        if self._targets is None:
            best = scores_MV.topk(min(self.config.top_k or DEFAULT_FILLS, scores_MV.shape[1]))
            ids_MK = best.indices
        else:
            targets_C = torch.tensor(self._targets, device=scores_MV.device)
            best = scores_MV[:, targets_C].topk(min(self.config.top_k or DEFAULT_FILLS, len(self._targets)))
            ids_MK = targets_C[best.indices]
        found_M2K = as_numpy(torch.stack([ids_MK.float(), best.values], 1))
        stops_B = np.cumsum(mask_BL.sum(1).cpu().numpy())
        return np.split(found_M2K, stops_B[:-1])

    def check_model(self, padded: "Padded") -> None:
        """The model must give logits for each token; whether it gives them for masks alone is found out.

        Raises ModelError: logits of another shape.
        """
        import torch

        masked = replace(padded, input_ids_BL=torch.full_like(padded.input_ids_BL, self._mask_id))
        everywhere_BL = torch.ones_like(masked.input_ids_BL, dtype=torch.bool)
        everywhere_BL[:, 0] = False
        self._gathers = False
        logits_MV = self._logits(masked, everywhere_BL)
        if logits_MV.ndim != 2:
            raise ModelError(f"model {self.pinned.ref!r} gives no score for each word of a vocabulary")
        try:
            self._gathers = True
            gathered_MV = self._logits(masked, everywhere_BL)
            self._gathers = gathered_MV.shape == logits_MV.shape and torch.allclose(
                gathered_MV.float(), logits_MV.float(), rtol=1e-2, atol=1e-2
            )
        except Exception:  # noqa: BLE001 - whatever a head does with fewer rows, it then gets all of them
            self._gathers = False

    def _logits(self, padded: "Padded", mask_BL: "torch.Tensor") -> "torch.Tensor":
        """logits_MV at the masks: where the model's head can do with fewer rows, no B x L x V numbers stand in memory.

        The last layer (of DeBERTa v2's own head: the first) is given the masks' hidden states alone.
        """
        module = self.loaded.module
        last = module.get_output_embeddings() if self._gathers else None
        if last is None:
            logits: torch.Tensor = module(**padded.inputs).logits[mask_BL]
            return logits
        hook = last.register_forward_pre_hook(lambda _, given: (given[0][mask_BL], *given[1:]))
        try:
            gathered: torch.Tensor = module(**padded.inputs).logits
            return gathered
        finally:
            hook.remove()

    def annotate(self, texts: Texts) -> Annotation:
        """Masks, windows around them, forward pass, columns."""
        said, gaps_R = self.said(texts), self._gaps(texts)
        good = np.flatnonzero(said.good_R).tolist()
        found_of = {row: nearest_reading(said, row, self._mask_id) for row in good}
        fills_R: list[list[dict[str, Any]] | None] = [None] * len(texts.values)
        texts_R: list[str | None] = [None] * len(texts.values)
        for row in good:
            found_M2K = found_of[row]
            ids_MK = found_M2K[:, 0].astype(np.int64)
            fills_R[row] = [
                {
                    "start": start,
                    "end": end,
                    "labels": [self._words.label(token) for token in ids_K],
                    "scores": scores_K,
                }
                for (start, end), ids_K, scores_K in zip(
                    gaps_R[row], ids_MK.tolist(), found_M2K[:, 1].tolist(), strict=True
                )
            ]
            texts_R[row] = self._words.filled(texts.values[row], gaps_R[row], ids_MK[:, 0].tolist())
        return said.annotation({"fills": pa.array(fills_R, FILLS_TYPE), "text": pa.array(texts_R, pa.string())})

    def tokenise(self, texts: Texts) -> None:
        """Nothing ahead: it reads the texts with the model's masks in them."""

    def _gaps(self, texts: Texts) -> list[list[tuple[int, int]]]:
        """[start, end) of each placeholder of each text."""
        return texts.once(
            ("gaps", self._mark.pattern),
            lambda: [[match.span() for match in self._mark.finditer(text)] for text in texts.values],
        )

    def _pieces(self, texts: Texts) -> Pieces:
        gaps_R = self._gaps(texts)
        # A text without a gap fails: nothing of it is tokenised.
        masked = [
            self._mark.sub(lambda _: self._mask_token, text) if gaps else ""
            for text, gaps in zip(texts.values, gaps_R, strict=True)
        ]
        failures: dict[int, Failure] = {}
        windows_R: list[list[tuple[int, int]]] = []
        ids_R: list[Ids] = []
        for row, found in enumerate(self._tokenizer.tokens(masked, most=None)):
            ids_T = found.ids_T if isinstance(found, Tokens) else np.zeros(0, np.int32)
            masks_M = np.flatnonzero(ids_T == self._mask_id)
            if not gaps_R[row]:
                failures[row] = Failure(Reason.NO_MASK, f"the text holds no {self._called}")
            elif isinstance(found, Failure):
                failures[row] = found
            elif len(masks_M) != len(gaps_R[row]):
                detail = f"the text holds {len(gaps_R[row])} of {self._called}, and the tokenizer finds {len(masks_M)}"
                failures[row] = Failure(Reason.TOKENIZER_FAILED, detail)
            ids_R.append(ids_T)
            windows_R.append([] if row in failures else windows_around(masks_M.tolist(), len(ids_T), self.maker.room))
        return self._cut(ids_R, windows_R, failures)

    def _cut(
        self, ids_R: Sequence[Ids], windows_R: Sequence[list[tuple[int, int]]], failures: dict[int, Failure]
    ) -> Pieces:
        """The pieces of these windows."""
        parts = [
            Tokens(ids_T[start:stop])
            for ids_T, windows in zip(ids_R, windows_R, strict=True)
            for start, stop in windows
        ]
        each = self.maker.cut(parts, [""] * len(parts))
        counts_R = np.array([len(windows) for windows in windows_R], np.int64)
        row_P = np.repeat(np.arange(len(counts_R)), counts_R)
        tokens_R = np.zeros(len(counts_R), np.int32)
        np.add.at(tokens_R, row_P, each.tokens_R)
        return replace(
            each,
            spans_P2=np.array([span for windows in windows_R for span in windows], np.int64).reshape(-1, 2),
            windows_R=counts_R,
            tokens_R=tokens_R,
            truncated_R=np.array(
                [
                    bool(windows) and not _cover(windows, len(ids_T))
                    for ids_T, windows in zip(ids_R, windows_R, strict=True)
                ],
                np.bool_,
            ),
            failures=failures,
        )

    @property
    def _called(self) -> str:
        marks = dict.fromkeys([self.config.mask, self._mask_token])
        return " or ".join(repr(mark) for mark in marks)


@dataclass
class _Words:
    """Ids as words, and words as ids."""

    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    targets: Sequence[str] | None

    def __post_init__(self) -> None:
        self._labels: dict[int, str] = {}
        self._endings: dict[int, str | None] = {}

    @cached_property
    def target_ids(self) -> list[int] | None:
        """The token of each target; JobError where one has none to itself."""
        if self.targets is None:
            return None
        vocabulary: Mapping[str, int] = self.tokenizer.get_vocab()
        words: dict[int, str] = {}
        for word in self.targets:
            ids = [vocabulary[word]] if word in vocabulary else self._plain(word)
            if len(ids) != 1:
                pieces = " ".join(self.tokenizer.convert_ids_to_tokens(ids))
                raise JobError(
                    f"targets: {word!r} is {len(ids)} tokens of the model ({pieces}), and a mask stands for one; name "
                    "words of its vocabulary"
                )
            if ids[0] == self.tokenizer.unk_token_id:
                raise JobError(f"targets: {word!r} is unknown to the model; name words of its vocabulary")
            if ids[0] in words:
                raise JobError(f"targets: {words[ids[0]]!r} and {word!r} are the same token of the model")
            words[ids[0]] = word
        self._labels |= words
        return list(words)

    def label(self, token: int) -> str:
        """The word of a token: the job's own where it is a target, else as the tokenizer writes it."""
        if token not in self._labels:
            self._labels[token] = self.tokenizer.decode([token])
        return self._labels[token]

    def filled(self, text: str, gaps: Sequence[tuple[int, int]], tokens: Sequence[int]) -> str:
        """The text with a token in each gap; one that goes on with the word before it swallows the blank between."""
        pieces: list[str] = []
        done = 0
        for (start, end), token in zip(gaps, tokens, strict=True):
            ending = self._ending(token)
            before = text[done:start]
            pieces += [before, self.label(token).strip()] if ending is None else [before.rstrip(), ending]
            done = end
        return "".join([*pieces, text[done:]])

    def _ending(self, token: int) -> str | None:
        """What the tokenizer writes of the token right behind a word; None where it puts a blank between."""
        if token not in self._endings:
            word = self._plain("a")
            alone, both = (
                self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (word, [*word, token])
            )
            added = both[len(alone) :] if both.startswith(alone) else ""
            self._endings[token] = added if added[:1].strip() else None
        return self._endings[token]

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def windows_around(masks: Sequence[int], tokens: int, room: int) -> list[tuple[int, int]]:
    """[start, stop) of windows of `room` tokens, so that each of the masks stands well inside one.

    A mask alone stands in the middle. Masks within half a window of one another share one, in which each has at least
    a quarter of the room on both sides, or the text's own beginning or end.
    """
    if tokens <= room:
        return [(0, tokens)]
    windows: list[tuple[int, int]] = []
    first = 0
    while first < len(masks):
        after = bisect_right(masks, masks[first] + room // 2)
        middle = (masks[first] + masks[after - 1] + 1) // 2
        start = min(max(0, middle - room // 2), tokens - room)
        windows.append((start, start + room))
        first = after if start + room < tokens else len(masks)
    return windows


def nearest_reading(said: Said, row: int, mask_id: int) -> npt.NDArray[np.float32]:
    """found_M2K of a text's M masks in order, each from the window in which it stands farthest from an edge."""
    pieces = said.pieces
    places: list[npt.NDArray[np.int64]] = []
    depths: list[npt.NDArray[np.int64]] = []
    for piece in said.pieces_R[row]:
        start, stop = pieces.spans_P2[piece]
        place_M = np.flatnonzero(pieces.ids_P[piece] == mask_id) - pieces.leads_P[piece] + start
        places.append(place_M)
        depths.append(np.minimum(place_M - start, stop - 1 - place_M))
    found_X2K = np.concatenate([said.found_P[piece] for piece in said.pieces_R[row]])
    place_X = np.concatenate(places)
    order_X = np.lexsort((-np.concatenate(depths), place_X))
    _, first_M = np.unique(place_X[order_X], return_index=True)
    nearest: npt.NDArray[np.float32] = found_X2K[order_X[first_M]]
    return nearest


def _cover(windows: Sequence[tuple[int, int]], tokens: int) -> bool:
    """Whether every token of a text stands in one of its windows, which are in order."""
    reached = 0
    for start, stop in windows:
        if start > reached:
            return False
        reached = stop
    return reached == tokens
