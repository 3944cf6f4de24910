import pytest
import torch
import transformers

from tests.pipeline.families.factory import FAMILIES
from tests.pipeline.families.languages import SENTENCES

CASES = [(family, head) for family, made in FAMILIES.items() for head in made.heads]


@pytest.mark.parametrize(("family", "head"), CASES)
def test_a_model_loads_and_every_logit_is_finite(tiny, family, head):
    folder = tiny(family, head)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = getattr(transformers, "AutoModel" if head == "Model" else f"AutoModelFor{head}")
    module, loading = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    lines = [line for sentences in SENTENCES.values() for line in sentences]
    for line in lines:
        inputs = tokenizer(line, truncation=True, max_length=128, return_tensors="pt")
        if module.config.is_encoder_decoder and head in ("Model", "Seq2SeqLM", "TokenClassification"):
            inputs["decoder_input_ids"] = torch.tensor([[module.config.decoder_start_token_id]])
        with torch.inference_mode():
            out = module.eval()(**inputs)
        assert all(torch.isfinite(value).all() for value in out.values() if isinstance(value, torch.Tensor))
