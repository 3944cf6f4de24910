"""What all contenders compute: a model, some texts, a window; brought to their processes as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq

from pipeline.models.inspection import Pooling


@dataclass(frozen=True, slots=True)
class Setting:
    """An encoding of R texts."""

    folder: str  # of the model
    texts: str  # a Parquet file with a column `text`, without nulls
    rows: int
    max_tokens: int
    pooling: Pooling
    normalize: bool
    cores: int

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote."""
        return cls(**json.loads(path.read_text()))

    def some(self, one_in: int = 1) -> list[str]:
        """Every so-many-th text, in order: `one_in=1` is all."""
        texts: list[str] = pq.read_table(self.texts)["text"].to_pylist()
        return texts[::one_in]
