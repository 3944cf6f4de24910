"""What tasks with an encoder share: texts -> pieces -> forward -> one row of numbers for each text -> columns.

    class Embed(PooledTask):
        def fields(self): …                                  # on the driver: no torch, no weights
        def finish(self, values_RD, good_R): return {"embedding": …}

Annotations over the same texts share pieces where model and window are the same, and the forward pass where what they
take from the model is the same too: an `embed` beside a `zero_shot` runs the model once.
"""

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import model_validator

from pipeline.errors import ModelError
from pipeline.models.inspection import Pooling, modules_of, pooling_of
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure
from pipeline.tasks.base import Annotation, Texts
from pipeline.tasks.window import WindowSettings, WindowTask
from pipeline.text import windows
from pipeline.text.pieces import Pieces

if TYPE_CHECKING:
    import torch

    from pipeline.models.engine import Forwarded, Padded

_WIDTH_KEYS = ("hidden_size", "d_model", "dim", "n_embd")
_POOLED_MODULES = frozenset({"Transformer", "Pooling", "Normalize", "Dropout"})


class EncoderSettings(WindowSettings):
    """Options of every task that takes one row of numbers for a text."""

    window_pooling: windows.WindowPooling | None = None
    """How the values of a text's windows become one: mean (default; every window weighs the same) or max."""

    @model_validator(mode="after")
    def _pooling_is_asked_for(self) -> Self:
        if self.long_text == "truncate" and self.window_pooling is not None:
            raise ValueError("window_pooling needs `long_text: windows`; with truncate there is one window")
        return self


@dataclass(frozen=True, slots=True)
class Rows:
    """What the model said of R texts, D numbers each; a failed one holds NaN."""

    values_RD: npt.NDArray[np.float32]
    pieces: Pieces
    failures: dict[int, Failure]
    forward_tokens: int  # 0 where another annotation's pass was reused
    padding_tokens: int
    model_seconds: float


class EncoderTask(WindowTask):
    """A task that takes a fixed row of numbers from one pass of an encoder."""

    Config = EncoderSettings
    only_calls = True

    @abstractmethod
    def width(self) -> int:
        """D: how many numbers `forward` gives for a piece."""

    @abstractmethod
    def forward_key(self) -> Hashable:
        """What `forward` depends on besides the model: annotations of equal keys share a pass."""

    @abstractmethod
    def forward(self, padded: "Padded") -> "torch.Tensor":
        """values_BD in float32 for B pieces."""

    @abstractmethod
    def finish(self, values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        """The columns of R texts; a row that is not in `good_R` holds NaN and becomes null."""

    def annotate(self, texts: Texts) -> Annotation:
        """Tokens, forward pass, pooling of windows, columns."""
        rows = self.rows(texts)
        good_R = np.ones(len(texts.values), np.bool_)
        good_R[list(rows.failures)] = False
        return Annotation(
            columns=self.finish(rows.values_RD, good_R),
            tokens_R=rows.pieces.tokens_R,
            truncated_R=rows.pieces.truncated_R,
            failures=rows.failures,
            forward_tokens=rows.forward_tokens,
            padding_tokens=rows.padding_tokens,
            model_seconds=rows.model_seconds,
        )

    def rows(self, texts: Texts) -> Rows:
        """One row of numbers for each text, computed now or taken from an annotation that has it."""
        pieces = self.pieces(texts)
        pass_key = (
            "forward",
            self.pieces_key(),
            self.needs,
            self.loaded.computes,
            self.forward_key(),
        )
        is_new = pass_key not in texts.shared
        done = texts.once(pass_key, lambda: self._forward(pieces, texts))
        failures = pieces.failures_of(done.failures)
        values_RD = windows.pool(done.values_PD, pieces.windows_R, self.config.window_pooling or "mean")
        return Rows(
            values_RD,
            pieces,
            failures,
            done.tokens if is_new else 0,
            done.padding_tokens if is_new else 0,
            done.seconds if is_new else 0.0,
        )

    def _forward(self, pieces: Pieces, texts: Texts) -> "Forwarded":
        from pipeline.models.engine import forward_pieces

        return forward_pieces(
            pieces.ids_P,
            self.forward,
            width=self.width(),
            token_budget=self.loaded.budget,
            pad_id=self.loaded.pad_id,
            device=self.loaded.device,
            types_P=pieces.types_P,
            packed=self.loaded.packed,
            about_to_run=self.journal(pieces, texts),
        )

    def check_model(self, padded: "Padded") -> None:
        """One row of `width` numbers must come."""
        shape = tuple(self.forward(padded).shape)
        if shape != (1, self.width()):
            raise ModelError(
                f"model {self.pinned.ref!r} gives {shape[-1]} numbers for a text, and config.json says {self.width()}"
            )


class PooledSettings(EncoderSettings):
    """Options of tasks that want one vector for a text."""

    pooling: Pooling | None = None
    """How token vectors become one: mean, cls (the first), max or last; default: what the model's folder says, else
    mean."""


class PooledTask(EncoderTask):
    """A task that takes one pooled vector for each text."""

    Config = PooledSettings
    needs = "AutoModel"

    def __init__(self, config: PooledSettings, model: PinnedModel | None) -> None:
        """Find pooling and width.

        Raises ModelError: a folder with layers after the pooling; no width in config.json.
        """
        super().__init__(config, model)
        folder = Path(self.pinned.folder)
        further = [kind for kind, _ in modules_of(folder) if kind not in _POOLED_MODULES]
        if further:
            raise ModelError(
                f"model {self.pinned.ref!r} has modules that are not supported: {', '.join(further)}; supported: "
                f"{', '.join(sorted(_POOLED_MODULES))}"
            )
        self.pooling: Pooling = config.pooling or pooling_of(folder) or "mean"
        self._hidden = _hidden_width(self.pinned)

    def width(self) -> int:
        """Numbers in the vector of a token."""
        return self._hidden

    def forward_key(self) -> Hashable:
        """How tokens are pooled."""
        return ("pooled", self.pooling)

    def forward(self, padded: "Padded") -> "torch.Tensor":
        """Pooled hidden states."""
        from pipeline.models.pooling import pool

        output = self.loaded.module(**padded.inputs)
        return pool(output.last_hidden_state, padded.attention_mask_BL, self.pooling)


def _hidden_width(pinned: PinnedModel) -> int:
    """Numbers in a token's vector; config.json calls it by several names."""
    for key in _WIDTH_KEYS:
        if isinstance(width := pinned.config.get(key), int):
            return width
    raise ModelError(f"model {pinned.ref!r}: config.json tells no width; looked for {', '.join(_WIDTH_KEYS)}")


_ROWS_AT_ONCE = 1024
"""Their numbers stay in the processor's cache from one pass over them to the next."""


def normalized(values_RD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each row brought to length 1."""
    scaled_RD = np.empty_like(values_RD)
    for start in range(0, len(values_RD), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        lengths_R1 = np.linalg.norm(values_RD[some], axis=1, keepdims=True)
        np.divide(values_RD[some], np.maximum(lengths_R1, np.float32(1e-12)), out=scaled_RD[some])
    return scaled_RD
