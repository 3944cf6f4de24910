import warnings

import numpy as np
import pytest
import torch
import transformers

from pipeline.models.generation.likelihood import likelihoods

SEQ2SEQ = ("t5", "bart", "m2m100")
SMOOTH = {"t5": {"initializer_factor": 1.0}}
HEADS = {"Seq2SeqLM": "AutoModelForSeq2SeqLM", "CausalLM": "AutoModelForCausalLM", "MaskedLM": "AutoModelForMaskedLM"}


@pytest.fixture
def loaded(tiny):
    """Load a tiny model of a family: its module and tokenizer."""

    def load(family, head):
        folder = tiny(family, head, **SMOOTH.get(family, {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return getattr(transformers, HEADS[head]).from_pretrained(folder).eval(), tokenizer

    return load


def pieces(tokenizer, texts, most=40):
    ids = [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in texts]
    return [np.array(each, np.int32) for each in ids if each]


def tensor(ids):
    return torch.tensor(np.asarray(ids, np.int64))[None]


@pytest.mark.parametrize("family", [*SEQ2SEQ, "gpt2", "llama", "qwen3"])
def test_a_continuation_is_as_likely_as_by_a_full_pass(loaded, texts, family):
    seq2seq = family in SEQ2SEQ
    module, tokenizer = loaded(family, "Seq2SeqLM" if seq2seq else "CausalLM")
    prompts_P = pieces(tokenizer, texts[::4])
    random = np.random.default_rng(0)
    choices_P = [
        [random.integers(5, 60, size).astype(np.int32) for size in random.integers(1, 6, 1 + number % 4)]
        for number in range(len(prompts_P))
    ]
    done = likelihoods(module, prompts_P, choices_P, token_budget=256, device="cpu")
    assert done.failures == {}
    for prompt, choices, sums, means in zip(prompts_P, choices_P, done.sums_P, done.means_P, strict=True):
        assert sums is not None
        assert means is not None
        for choice, found, mean in zip(choices, sums, means, strict=True):
            with torch.inference_mode():
                if seq2seq:
                    start = module.generation_config.decoder_start_token_id
                    logits = module(input_ids=tensor(prompt), decoder_input_ids=tensor([start, *choice[:-1]])).logits
                else:
                    logits = module(input_ids=tensor([*prompt, *choice[:-1]])).logits
            logs = logits[0, -len(choice) :].log_softmax(-1)
            expected = float(logs[torch.arange(len(choice)), torch.tensor(choice.astype(np.int64))].sum())
            assert found == pytest.approx(expected, abs=1e-4, rel=1e-5)
            assert mean == pytest.approx(expected / len(choice), abs=1e-4, rel=1e-5)
