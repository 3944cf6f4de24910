"""What is right: the model in float32, a text at a time, without padding. In no table; all are held against it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.peers.sorted_loop import Compiled, SortedLoop


class Reference(SortedLoop):
    """No contender."""

    one_in = 8
    attention = "eager"

    def compiled(self, model: Any, _: Mapping[str, Any]) -> Compiled:
        """The model itself."""
        import torch

        module = model.float()

        def compute(inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
            with torch.inference_mode():
                first = module(**{name: torch.from_numpy(values) for name, values in inputs.items()})[0]
            found: npt.NDArray[np.float32] = first.numpy()
            return found

        return compute

    def batches(self, lengths_R: npt.NDArray[np.int64]) -> list[npt.NDArray[np.intp]]:
        """Each text alone."""
        return np.split(np.arange(len(lengths_R)), len(lengths_R))
