"""What tasks share that take something for each token of a text: tags, spans of answers, masked words, losses.

class Tag(TokenTask):
    def take(self, padded):                              # B pieces -> for each, whatever the task keeps of it
        return as_numpy(self.loaded.module(**padded.inputs).logits.softmax(-1))

said = task.said(texts) -> Said(pieces, found_P=[array_LD, …], failures={…}, …)
"""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.quarantine import Failure
from pipeline.tasks.base import Annotation, Texts
from pipeline.tasks.window import WindowTask
from pipeline.text.pieces import Pieces

if TYPE_CHECKING:
    from pipeline.models.engine import Padded, Ran


@dataclass(frozen=True, slots=True)
class Said:
    """What the model said of R texts, piece by piece."""

    pieces: Pieces
    found_P: Sequence[Any]  # what `take` gave; None for a piece that failed
    failures: dict[int, Failure]  # by text
    forward_tokens: int  # 0 where another annotation's pass was reused
    padding_tokens: int
    model_seconds: float

    @property
    def good_R(self) -> npt.NDArray[np.bool_]:  # noqa: N802 - carries its shape
        """Texts without a failure."""
        good_R = np.ones(len(self.pieces.windows_R), np.bool_)
        good_R[list(self.failures)] = False
        return good_R

    @property
    def pieces_R(self) -> list[range]:  # noqa: N802 - carries its shape
        """The pieces of each text."""
        stops_R = np.cumsum(self.pieces.windows_R)
        return [range(stop - count, stop) for stop, count in zip(stops_R, self.pieces.windows_R, strict=True)]

    def annotation(self, columns: Mapping[str, pa.Array]) -> Annotation:
        """The annotation of these columns."""
        return Annotation(
            columns=columns,
            tokens_R=self.pieces.tokens_R,
            truncated_R=self.pieces.truncated_R,
            failures=self.failures,
            forward_tokens=self.forward_tokens,
            padding_tokens=self.padding_tokens,
            model_seconds=self.model_seconds,
        )


class TokenTask(WindowTask):
    """A task that takes more than one row of numbers from a piece."""

    @abstractmethod
    def take_key(self) -> Hashable:
        """What `take` depends on besides the model: annotations of equal keys share a pass."""

    @abstractmethod
    def take(self, padded: "Padded") -> Sequence[npt.NDArray[np.float32]]:
        """For each of B pieces an array of float32, with as many rows as the piece has tokens or as the task likes.

        A piece whose array is not all finite has failed.
        """

    def said(self, texts: Texts) -> Said:
        """What the model says of the texts, computed now or taken from an annotation that has it."""
        pieces = self.pieces(texts)
        key = ("take", self.pieces_key(), self.needs, self.loaded.computes, self.take_key())
        is_new = key not in texts.shared
        ran: Ran[npt.NDArray[np.float32]] = texts.once(key, lambda: self._run(pieces, texts))
        return Said(
            pieces,
            ran.found_P,
            pieces.failures_of(ran.failures),
            ran.tokens if is_new else 0,
            ran.padding_tokens if is_new else 0,
            ran.seconds if is_new else 0.0,
        )

    def _run(self, pieces: Pieces, texts: Texts) -> "Ran[npt.NDArray[np.float32]]":
        from pipeline.models.engine import not_finite, run_pieces

        ran = run_pieces(
            pieces.ids_P,
            self.take,
            token_budget=self.loaded.budget,
            pad_id=self.loaded.pad_id,
            device=self.loaded.device,
            types_P=pieces.types_P,
            packed=self.loaded.packed,
            about_to_run=self.journal(pieces, texts),
        )
        for piece, values in enumerate(ran.found_P):
            if values is not None and not np.isfinite(values).all():
                ran.failures[piece] = not_finite(values)
                ran.found_P[piece] = None
        return ran

    def check_model(self, padded: "Padded") -> None:
        """The model must compute."""
        self.take(padded)
