"""CTranslate2 on the converted model: all texts in one call, sorted by it, a worker on each core."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jobs.bench.peer import TextPeer
from jobs.bench.workloads.writing import Writing

TOKENS = 2048
"""Tokens of a batch, padding counted."""


class CTranslate2(TextPeer[Writing]):
    """In one of its types."""

    packages = ("ctranslate2",)
    compute_type: ClassVar[str]

    @classmethod
    def obstacle(cls) -> str | None:
        """Its types depend on the processor, and on the products that its build has."""
        if (absent := super().obstacle()) is not None:
            return absent
        import ctranslate2

        if cls.compute_type not in ctranslate2.get_supported_compute_types("cpu"):
            return f"ctranslate2 {ctranslate2.__version__} computes no {cls.compute_type} on this processor"
        return None

    def load(self) -> None:
        """Convert the model, and read it back."""
        import ctranslate2
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self.setting.folder)
        self._options = _options(self.setting)
        with tempfile.TemporaryDirectory() as room:
            folder = str(Path(room, "model"))
            converter = ctranslate2.converters.TransformersConverter(self.setting.folder)
            converter.convert(folder, quantization=self.compute_type)
            self._translator = ctranslate2.Translator(
                folder, compute_type=self.compute_type, inter_threads=self.setting.cores, intra_threads=1
            )

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """One call; then the text of each best hypothesis."""
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.setting.max_tokens)["input_ids"]
        tokens = [self._tokenizer.convert_ids_to_tokens(ids) for ids in encoded]
        told = self._translator.translate_batch(tokens, max_batch_size=TOKENS, batch_type="tokens", **self._options)
        ids = [self._tokenizer.convert_tokens_to_ids(each.hypotheses[0]) for each in told]
        found: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found


class InFloat32(CTranslate2):
    """As the weights are."""

    compute_type = "float32"


class InBfloat16(CTranslate2):
    """Weights and sums in bfloat16."""

    compute_type = "bfloat16"


class InInt8(CTranslate2):
    """Weights in int8, the rest in float32."""

    compute_type = "int8"


class InInt8AndBfloat16(CTranslate2):
    """Weights in int8, the rest in bfloat16."""

    compute_type = "int8_bfloat16"


def _options(setting: Writing) -> dict[str, Any]:
    """The arguments of `generate`, or the model's own words for them, as CTranslate2 calls them."""
    from transformers import GenerationConfig

    own = GenerationConfig.from_pretrained(setting.folder)
    asked = {**{name: value for name, value in own.to_dict().items() if value is not None}, **setting.options}
    names = {
        "max_new_tokens": "max_decoding_length",
        "min_new_tokens": "min_decoding_length",
        "num_beams": "beam_size",
        "length_penalty": "length_penalty",
        "no_repeat_ngram_size": "no_repeat_ngram_size",
        "repetition_penalty": "repetition_penalty",
    }
    return {"beam_size": 1} | {theirs: asked[name] for name, theirs in names.items() if name in asked}
