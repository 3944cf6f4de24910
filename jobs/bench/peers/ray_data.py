"""`map_batches` of Ray Data with a sentence-transformers model in each actor, as its documentation shows it."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded_in_order
from jobs.bench.peer import BATCH, Peer, Vectors
from jobs.bench.peers.sentence_transformers import InFloat32
from jobs.bench.setting import Setting


class _Encoder:
    """The class that `map_batches` makes in each actor."""

    def __init__(self, setting: Setting) -> None:
        self._peer = InFloat32(setting)
        self._peer.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["vector"] = self._peer.vectors(batch["text"].tolist())
        return batch


class RayData(Peer):
    """In float32, batches of 32 in the order of the texts, an actor for each core."""

    packages = ("sentence_transformers",)
    one_in = 2

    def load(self) -> None:
        """Ray; the model comes with the actors."""
        import ray

        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        self.seconds: float | None = None

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """All texts; `seconds` are those since the actors gave their first batches, as if these had cost nothing."""
        import ray

        rows = ray.data.from_items([{"place": place, "text": text} for place, text in enumerate(texts)])
        pool = ray.data.ActorPoolStrategy(size=self.setting.cores)
        encoded = rows.repartition(max(2 * self.setting.cores, len(texts) // (4 * BATCH))).map_batches(
            _Encoder, fn_constructor_args=(self.setting,), compute=pool, batch_size=BATCH
        )
        found: dict[int, Any] = {}
        began, first_rows = 0.0, 0
        for batch in encoded.iter_batches(batch_size=None):
            if not found:
                began, first_rows = time.perf_counter(), len(batch["place"])
            found.update(zip(batch["place"].tolist(), batch["vector"], strict=True))
        rest = len(texts) - first_rows
        self.seconds = (time.perf_counter() - began) * len(texts) / rest if rest else None
        return np.stack([found[place] for place in range(len(texts))]).astype(np.float32)

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """In the order of the texts."""
        return padded_in_order(lengths_R, BATCH)
