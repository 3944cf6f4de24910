"""`transformers.pipeline("feature-extraction")`, as its documentation shows it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded_in_order
from jobs.bench.peer import BATCH, Peer, Vectors, pooled


class TransformersPipeline(Peer):
    """In float32, batches of 32 in the order of the texts."""

    one_in = 8

    def load(self) -> None:
        """Model and tokenizer."""
        from transformers import pipeline

        self._extract = pipeline("feature-extraction", model=self.setting.folder, tokenizer=self.setting.folder)

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """It gives the numbers of each token, which are pooled here."""
        options = {"truncation": True, "max_length": self.setting.max_tokens}
        found: list[Vectors] = []
        for (tokens,) in self._extract(list(texts), batch_size=BATCH, tokenize_kwargs=options):
            # Padding of its batch stands at the end of a text's tokens.
            ids = self._extract.tokenizer(texts[len(found)], **options)["input_ids"]
            hidden_1LD = np.array(tokens, np.float32)[None, : len(ids)]
            found.append(pooled(hidden_1LD, np.ones(hidden_1LD.shape[:2], np.int64), self.setting)[0])
        return np.stack(found)

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """In the order of the texts."""
        return padded_in_order(lengths_R, BATCH)
