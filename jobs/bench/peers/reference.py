"""What is right: the model in float32, a text at a time, without padding. In no table; all are held against it."""

from collections.abc import Sequence

import numpy as np

from jobs.bench.peer import Peer, Vectors, pooled

ONE_IN = 8


class Reference(Peer):
    """No contender."""

    one_in = ONE_IN

    def load(self) -> None:
        """Model and tokenizer."""
        from transformers import AutoModel, AutoTokenizer

        self._model = AutoModel.from_pretrained(self.setting.folder).float().eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self.setting.folder)

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """One by one."""
        import torch

        found = []
        for text in texts:
            inputs = self._tokenizer(text, truncation=True, max_length=self.setting.max_tokens, return_tensors="pt")
            with torch.no_grad():
                hidden_1LD = self._model(**inputs).last_hidden_state.numpy()
            found.append(pooled(hidden_1LD, inputs["attention_mask"].numpy(), self.setting)[0])
        return np.stack(found)
