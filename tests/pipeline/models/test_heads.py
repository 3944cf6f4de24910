import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pipeline.models.engine import pad
from pipeline.models.heads import logits

PIECES = [np.array(ids, np.int32) for ids in ([5, 7, 0], [3], [0, 0, 0, 0, 0], [9, 1, 2, 0])]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "bert"])
def test_a_row_alone_and_beside_others_has_the_same_numbers_and_the_config_stays(tiny, family):
    module = AutoModelForSequenceClassification.from_pretrained(tiny(family, "SequenceClassification")).eval()
    before = module.config.pad_token_id
    with torch.inference_mode():
        alone = torch.cat([module(torch.tensor([ids.tolist()])).logits for ids in PIECES])
        together = logits(module, pad(PIECES, np.arange(4), before or 0, "cpu"))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert module.config.pad_token_id == before


def test_a_model_that_fails_keeps_its_config_too(tiny):
    module = AutoModelForSequenceClassification.from_pretrained(tiny("gpt2", "SequenceClassification")).eval()
    beyond = [np.array([10**6], np.int32), np.array([1, 2], np.int32)]
    with torch.inference_mode(), pytest.raises(IndexError):
        logits(module, pad(beyond, np.arange(2), 0, "cpu"))
    assert module.config.pad_token_id is None
