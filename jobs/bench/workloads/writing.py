"""`summarize` and `translate`: an encoder-decoder writes a text for each text, and agrees where both are the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.bench.workload import ANNOTATION, Agreement, TextWorkload
from pipeline.errors import JobError
from pipeline.tasks.writer import DECODING

COLUMNS = {"summarize": "summary", "translate": "translation"}
"""What a task calls what it writes."""


@dataclass(frozen=True, slots=True)
class Writing(TextWorkload):
    """What the model writes after a prefix and a text."""

    name = "writing"
    peers: ClassVar[Mapping[str, str]] = {
        "transformers.generate": "transformers_generate:InFloat32",
        "transformers.generate bf16": "transformers_generate:InBfloat16",
        "CTranslate2 float32": "c_translate2:InFloat32",
        "CTranslate2 bfloat16": "c_translate2:InBfloat16",
        "CTranslate2 int8": "c_translate2:InInt8",
        "CTranslate2 int8_bfloat16": "c_translate2:InInt8AndBfloat16",
    }
    reference = "transformers_generate:Alone"
    agreement = Agreement("same", "same_share", "share of the texts that are, letter by letter, those of float32")
    ours_alone = ("source", "target", "language", "early_stopping", "method")
    auto_class = "AutoModelForSeq2SeqLM"

    column: str
    prefix: str
    options: Mapping[str, Any]
    """Arguments of `generate`; what is missing is the model's own word."""

    @classmethod
    def of(cls, task: Any, rows: int, texts: str, cores: int) -> Self:
        """Raises JobError: sentences that are kept, texts that are taken apart, no bound of what is written."""
        settings = task.config
        place = f"annotation {settings.name!r}"
        if task.needs != cls.auto_class:
            raise JobError(f"{place}: bench compares what encoder-decoders write, and this job keeps sentences")
        if settings.max_new_tokens is None:
            raise JobError(f"{place}: set max_new_tokens, so that all contenders write as much at most")
        if getattr(settings, "split", "none") != "none":
            raise JobError(f"{place}: peers do not take texts apart: set `split: none`")
        options = {name: value for name in sorted(DECODING) if (value := getattr(settings, name)) is not None}
        column = COLUMNS[settings.task]
        return cls(task.pinned.folder, rows, task.window_tokens, cores, texts, column, task.prefix, options)

    def some(self, one_in: int = 1) -> list[str]:
        """With what stands before each."""
        return [self.prefix + text for text in super(Writing, self).some(one_in)]

    def our_outputs(self, part: pa.Table) -> list[Any]:
        """Texts."""
        found: list[Any] = part[f"{ANNOTATION}_{self.column}"].to_pylist()
        return found

    def flop(self, _: npt.NDArray[np.int64]) -> float | None:
        """Nobody has counted a decoder's, whose steps differ from text to text."""
        return None
