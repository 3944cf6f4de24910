import warnings

import numpy as np
import pytest
import torch
import transformers

from pipeline.models.generation.likelihood import likelihoods
from pipeline.models.generation.loss import losses, pseudo_losses

SEQ2SEQ = ("t5", "bart", "m2m100")
SMOOTH = {"t5": {"initializer_factor": 1.0}}
HEADS = {"Seq2SeqLM": "AutoModelForSeq2SeqLM", "CausalLM": "AutoModelForCausalLM", "MaskedLM": "AutoModelForMaskedLM"}


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models only lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_text_s_loss_is_the_library_s(loaded, texts, family):
    module, tokenizer = loaded(family, "CausalLM")
    ids_P = pieces(tokenizer, texts, most=100)
    done = losses(module, ids_P, token_budget=1500, pad_id=0, device="cpu")
    assert done.failures == {}
    assert done.counted_P.tolist() == [len(ids) - 1 for ids in ids_P]
    for ids, found in zip(ids_P, done.sums_P, strict=True):
        if len(ids) == 1:
            assert found == 0
            continue
        with torch.inference_mode():
            mean = float(module(input_ids=tensor(ids), labels=tensor(ids)).loss)
        assert found == pytest.approx(mean * (len(ids) - 1), abs=1e-4, rel=1e-5)


def test_what_a_model_does_to_its_logits_counts_in_every_part(loaded, texts):
    module, tokenizer = loaded("llama", "CausalLM")

    class Capped(torch.nn.Module):
        base = module

        def get_output_embeddings(self):
            return module.get_output_embeddings()

        def forward(self, **inputs):
            told = module(**inputs)
            told.logits = torch.tanh(told.logits / 5) * 5
            return told

    ids_P = pieces(tokenizer, texts[::3], most=100)
    done = losses(Capped(), ids_P, token_budget=1500, pad_id=0, device="cpu")
    for ids, found in zip(ids_P, done.sums_P, strict=True):
        with torch.inference_mode():
            logs = Capped()(input_ids=tensor(ids)).logits[0, :-1].log_softmax(-1)
        expected = -float(logs.gather(1, tensor(ids)[0, 1:, None]).sum())
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize(("family", "stride"), [("bert", None), ("roberta", None), ("deberta-v3", None), ("bert", 4)])
def test_a_pseudo_loss_is_that_of_each_token_masked_in_turn(loaded, texts, family, stride):
    module, tokenizer = loaded(family, "MaskedLM")
    ids_P = pieces(tokenizer, texts[::12], most=20)
    special = set(tokenizer.all_special_ids)
    done = pseudo_losses(
        module,
        ids_P,
        mask_id=tokenizer.mask_token_id,
        special_ids=special,
        token_budget=300,
        pad_id=tokenizer.pad_token_id,
        device="cpu",
        stride=stride,
    )
    assert done.failures == {}
    for ids, found, counted in zip(ids_P, done.sums_P, done.counted_P, strict=True):
        places = [place for place, token in enumerate(ids) if int(token) not in special]
        passes = min(stride or len(places), len(places))
        expected = 0.0
        for first in range(passes):
            masked = ids.copy()
            masked[places[first::passes]] = tokenizer.mask_token_id
            with torch.inference_mode():
                logs = module(input_ids=tensor(masked)).logits[0].log_softmax(-1)
            expected -= sum(float(logs[place, int(ids[place])]) for place in places[first::passes])
        assert counted == len(places)
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-5)
