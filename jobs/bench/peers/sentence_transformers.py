"""`SentenceTransformer.encode`, which sorts texts by their characters; in float32 and in bfloat16."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded_in_order
from jobs.bench.peer import BATCH, TextPeer
from jobs.bench.workloads.encoding import Encoding


class InFloat32(TextPeer[Encoding]):
    """As it comes."""

    packages = ("sentence_transformers",)
    dtype: ClassVar[str] = "float32"

    def load(self) -> None:
        """The model folder, with the setting's pooling where it names none."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        words = Transformer(self.setting.folder, model_kwargs={"dtype": self.dtype})
        words.max_seq_length = self.setting.max_tokens
        mode = {"last": "lasttoken"}.get(self.setting.pooling, self.setting.pooling)
        layers: list[Any] = [words, Pooling(words.get_embedding_dimension(), pooling_mode=mode)]
        self._model = SentenceTransformer(modules=layers, device="cpu")

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """One call."""
        options: dict[str, Any] = {"batch_size": BATCH, "normalize_embeddings": self.setting.normalize}
        found: Any = self._model.encode(list(texts), convert_to_tensor=True, **options)
        return list(np.asarray(found.float().numpy(), np.float32))

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:
        """Longest first, by characters."""
        order_R = np.argsort([-len(text) for text in texts], kind="stable")
        return padded_in_order(lengths_R[order_R], BATCH)


class InBfloat16(InFloat32):
    """With its weights in bfloat16."""

    dtype = "bfloat16"
