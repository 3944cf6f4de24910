"""`map_batches` of Ray Data with a sentence-transformers model in each actor, as its documentation shows it."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded_in_order
from jobs.bench.peer import BATCH, TextPeer
from jobs.bench.peers.sentence_transformers import InFloat32
from jobs.bench.workloads.encoding import Encoding


class _Encoder:
    """The class that `map_batches` makes in each actor."""

    def __init__(self, setting: Encoding) -> None:
        self._peer = InFloat32(setting)
        self._peer.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        began = time.time()
        batch["vector"] = self._peer.outputs(batch["text"].tolist())
        batch["began"], batch["ended"] = (np.full(len(batch["text"]), at) for at in (began, time.time()))
        return batch


class RayData(TextPeer[Encoding]):
    """In float32, batches of 32 in the order of the texts, an actor for each core."""

    packages = ("sentence_transformers",)
    one_in = 2

    def load(self) -> None:
        """Ray; the model comes with the actors."""
        import ray

        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """All texts; `seconds` are those from the first batch to the last: actors are there by then."""
        import ray

        items = [{"place": place, "text": text} for place, text in enumerate(texts)]
        # Blocks of their own from the start: actors have all CPUs, and a task that divided them would wait without end.
        blocks = min(len(items), max(2 * self.setting.cores, len(items) // (4 * BATCH)))
        encoded = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            _Encoder,
            fn_constructor_args=(self.setting,),
            compute=ray.data.ActorPoolStrategy(size=self.setting.cores),
            batch_size=BATCH,
        )
        batches = list(encoded.iter_batches(batch_size=None))
        self.seconds = float(
            max(each["ended"].max() for each in batches) - min(each["began"].min() for each in batches)
        )
        order_R = np.argsort(np.concatenate([each["place"] for each in batches]))
        return list(np.concatenate([np.stack(each["vector"]) for each in batches])[order_R].astype(np.float32))

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """In the order of the texts."""
        return padded_in_order(lengths_R, BATCH)
