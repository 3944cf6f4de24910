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
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline import windows
from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import Pooling, modules_of, pooling_of, positions_tokens, window_tokens
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure
from pipeline.tasks.base import Annotation, AnnotationSettings, Task, Texts
from pipeline.tokens import PieceMaker, Pieces

if TYPE_CHECKING:
    import torch

    from pipeline.models.engine import Forwarded
    from pipeline.models.loading import LoadedModel

DEFAULT_WINDOW_TOKENS = 512
"""Where neither the model nor its tokenizer knows a limit."""

_WIDTH_KEYS = ("hidden_size", "d_model", "dim", "n_embd")
_POOLED_MODULES = frozenset({"Transformer", "Pooling", "Normalize", "Dropout"})


class EncoderSettings(AnnotationSettings):
    """Options of every task that reads a text through an encoder."""

    long_text: Literal["truncate", "windows"] = "truncate"
    """A text longer than `max_tokens`: cut off, which `<name>_truncated` tells, or read in several windows."""

    stride: int | None = Field(default=None, ge=0)
    """Tokens that neighbouring windows share, fewer than a window holds; default: an eighth of `max_tokens`."""

    window_pooling: windows.WindowPooling | None = None
    """How the values of a text's windows become one: mean (default; every window weighs the same) or max."""

    @model_validator(mode="after")
    def _windows_are_asked_for(self) -> Self:
        if self.long_text == "windows":
            if self.stride is not None and self.max_tokens is not None and self.stride >= self.max_tokens:
                raise ValueError(f"stride {self.stride} must be less than max_tokens {self.max_tokens}")
            return self
        for option in ("stride", "window_pooling"):
            if getattr(self, option) is not None:
                raise ValueError(f"{option} needs `long_text: windows`; with truncate there is one window")
        return self


@dataclass(frozen=True, slots=True)
class Rows:
    """What the model said of R texts, D numbers each; a failed one holds NaN."""

    values_RD: npt.NDArray[np.float32]
    pieces: Pieces
    failures: dict[int, Failure]
    forward_tokens: int  # 0 where another annotation's pass was reused
    padding_tokens: int


class EncoderTask(Task):
    """A task that takes a fixed row of numbers from one pass of an encoder."""

    Config = EncoderSettings

    def __init__(self, config: EncoderSettings, model: PinnedModel | None) -> None:
        """Find the window. Raises JobError: no model; a window that the model has no positions for."""
        super().__init__(config, model)
        if model is None:
            raise JobError(f"annotation {config.name!r}: the task {config.task!r} needs a `model`")
        self.pinned = model
        self.window_tokens = self._window()

    @abstractmethod
    def width(self) -> int:
        """D: how many numbers `forward` gives for a piece."""

    @abstractmethod
    def forward_key(self) -> Hashable:
        """What `forward` depends on besides the model: annotations of equal keys share a pass."""

    @abstractmethod
    def forward(self, input_ids_BL: "torch.Tensor", attention_mask_BL: "torch.Tensor") -> "torch.Tensor":
        """values_BD in float32 for B pieces."""

    @abstractmethod
    def finish(self, values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        """The columns of R texts; a row that is not in `good_R` holds NaN and becomes null."""

    def prefix(self) -> str:
        """What stands before every text."""
        return ""

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model and try it once.

        Raises ModelError: the model cannot compute, or gives other numbers than config.json says; JobError: windows
        that leave no room for a text's own tokens.
        """
        self.loaded = loaded
        try:
            self._maker = PieceMaker(loaded.tokenizer, self.window_tokens, self._stride())
            self._try_model()
        except JobError as fault:
            raise type(fault)(f"annotation {self.config.name!r}: {fault}") from fault.__cause__

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
        )

    def rows(self, texts: Texts) -> Rows:
        """One row of numbers for each text, computed now or taken from an annotation that has it."""
        prefix = self.prefix()
        key: Hashable = (self.pinned.digest, self.window_tokens, self._stride(), prefix)
        pieces = texts.once(
            ("pieces", key),
            lambda: self._maker.pieces([prefix + text for text in texts.values] if prefix else texts.values),
        )
        pass_key = ("forward", key, self.needs, self.loaded.dtype, self.loaded.token_budget, self.forward_key())
        is_new = pass_key not in texts.shared
        done = texts.once(pass_key, lambda: self._forward(pieces, texts))
        row_P = pieces.row_P
        failures = dict(pieces.failures)
        for piece, failure in done.failures.items():
            failures.setdefault(int(row_P[piece]), failure)
        values_RD = windows.pool(done.values_PD, pieces.windows_R, self.config.window_pooling or "mean")
        return Rows(values_RD, pieces, failures, done.tokens if is_new else 0, done.padding_tokens if is_new else 0)

    def _forward(self, pieces: Pieces, texts: Texts) -> "Forwarded":
        from pipeline.models.engine import forward_pieces

        row_P, running = pieces.row_P, texts.running
        return forward_pieces(
            pieces.ids_P,
            self.forward,
            width=self.width(),
            token_budget=self.loaded.token_budget,
            pad_id=self.loaded.pad_id,
            device=self.loaded.device,
            about_to_run=None if running is None else lambda batch: running(np.unique(row_P[batch]).tolist()),
        )

    def _window(self) -> int:
        asked: int | None = self.config.max_tokens
        bound = positions_tokens(self.pinned.config)
        if asked is not None and bound is not None and asked > bound:
            raise JobError(
                f"annotation {self.config.name!r}: max_tokens: {asked} is more than the {bound} positions of "
                f"{self.pinned.ref!r}; for longer texts there is `long_text: windows`"
            )
        own = window_tokens(Path(self.pinned.folder), self.pinned.config)
        return asked or own or DEFAULT_WINDOW_TOKENS

    def _stride(self) -> int | None:
        if self.config.long_text == "truncate":
            return None
        stride: int | None = self.config.stride
        return self.window_tokens // 8 if stride is None else stride

    def _try_model(self) -> None:
        import torch

        ids = torch.from_numpy(self._maker.pieces(["a b"]).ids_P[0].astype(np.int64))[None].to(self.loaded.device)
        try:
            with torch.inference_mode():
                shape = tuple(self.forward(ids, torch.ones_like(ids)).shape)
        except Exception as fault:
            hint = "" if self.loaded.dtype == "float32" else f"; it may need float32 (dtype is {self.loaded.dtype})"
            raise ModelError(
                f"model {self.pinned.ref!r} cannot compute: {type(fault).__name__}: {fault}{hint}"
            ) from fault
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

    def forward(self, input_ids_BL: "torch.Tensor", attention_mask_BL: "torch.Tensor") -> "torch.Tensor":
        """Pooled hidden states."""
        from pipeline.models.pooling import pool

        output = self.loaded.module(input_ids=input_ids_BL, attention_mask=attention_mask_BL)
        return pool(output.last_hidden_state, attention_mask_BL, self.pooling)


def _hidden_width(pinned: PinnedModel) -> int:
    """Numbers in a token's vector; config.json calls it by several names."""
    for key in _WIDTH_KEYS:
        if isinstance(width := pinned.config.get(key), int):
            return width
    raise ModelError(f"model {pinned.ref!r}: config.json tells no width; looked for {', '.join(_WIDTH_KEYS)}")


def normalized(values_RD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each row brought to length 1."""
    lengths_R1 = np.linalg.norm(values_RD, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = values_RD / np.maximum(lengths_R1, np.float32(1e-12))
    return scaled
