import warnings

import numpy as np
import pytest
import torch
import transformers

from pipeline.models.generation.decoding import Decoding
from pipeline.models.generation.generate import End, generate

NEAR = 1e-4
SEQ2SEQ = ("t5", "bart", "pegasus", "marian", "m2m100", "nllb")
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3")
SMOOTH = {"t5": {"initializer_factor": 1.0}}  # the fixture's own spread blows rounding up a thousandfold
GREEDY = {"num_beams": 1, "do_sample": False}


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models only lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded(tiny):
    """Load a tiny model of a family: its module and tokenizer."""

    def load(family, **options):
        seq2seq = family in SEQ2SEQ
        folder = tiny(family, "Seq2SeqLM" if seq2seq else "CausalLM", **SMOOTH.get(family, {}), **options)
        kind = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Marian recommends a package that it does not need
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return kind.from_pretrained(folder).eval(), tokenizer

    return load


@pytest.fixture(scope="module")
def prompts(texts):
    """Prompts of 1 to `most` tokens of every text that has any."""

    def make(tokenizer, most=64, every=1):
        ids = [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in texts[::every]]
        return [np.array(each, np.int32) for each in ids if each]

    return make


def alone(module, ids, **options):
    """What the library gives for one row by itself, and how far its two best scores lie apart at each step."""
    input_ids = torch.tensor(ids.astype(np.int64))[None]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = module.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    begin = 1 if module.config.is_encoder_decoder else len(ids)
    gaps = [float(-scores[0].topk(2).values.diff()) for scores in told.scores]
    return told.sequences[0, begin:].tolist(), gaps


def near_ties(module, prompts_P, found_P, **options):
    """Rows that differ from the library's; each must part from it at a near tie."""
    parted = 0
    for ids, found in zip(prompts_P, found_P, strict=True):
        expected, gaps = alone(module, ids, **options)
        if found.tolist() != expected:
            pairs = zip(found.tolist(), expected, strict=False)
            step = next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(found), len(expected)))
            assert gaps[step] < NEAR, (expected, found, step)
            parted += 1
    return parted


@pytest.mark.parametrize("family", SEQ2SEQ + CAUSAL)
def test_greedy_answers_are_those_of_each_row_alone(loaded, prompts, family):
    module, tokenizer = loaded(family)
    prompts_P = prompts(tokenizer)
    decoding = Decoding(max_new_tokens=16, **GREEDY)
    done = generate(module, prompts_P, decoding, token_budget=512, device="cpu")
    assert done.failures == {}
    parted = near_ties(module, prompts_P, done.ids_P, max_new_tokens=16, **GREEDY)
    assert parted <= 2
    lengths = {len(ids) for ids in done.ids_P}
    assert len(lengths) > 3  # rows left at different steps
    assert {End.EOS, End.LENGTH} == set(done.ends_P)
    assert done.tokens == sum(map(len, prompts_P))
    assert done.generated_tokens == sum(map(len, done.ids_P))


@pytest.mark.parametrize("family", ["t5", "bart", "m2m100", "llama"])
def test_beams_give_what_each_row_alone_gets(loaded, prompts, family):
    module, tokenizer = loaded(family)
    prompts_P = prompts(tokenizer, most=24, every=5)
    options = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False, "length_penalty": 0.8}
    done = generate(module, prompts_P, Decoding(**options), token_budget=512, device="cpu")
    assert done.failures == {}
    expected = [alone(module, ids, **options)[0] for ids in prompts_P]
    assert sum(found.tolist() != each for found, each in zip(done.ids_P, expected, strict=True)) <= 1


@pytest.mark.parametrize("family", ["t5", "llama", "qwen3"])
def test_a_drawn_answer_depends_on_seed_and_prompt_alone(loaded, prompts, family):
    module, tokenizer = loaded(family)
    prompts_P = prompts(tokenizer, most=32, every=6)
    decoding = Decoding(max_new_tokens=12, do_sample=True, temperature=1.5, top_k=40, top_p=0.95, seed=5)

    def drawn(some, budget, asked=decoding):
        done = generate(module, some, asked, token_budget=budget, device="cpu")
        assert done.failures == {}
        return [ids.tolist() for ids in done.ids_P]

    together = drawn(prompts_P, 2048)
    assert drawn(prompts_P[::-1], 64)[::-1] == together
    assert [drawn([ids], 512)[0] for ids in prompts_P] == together
    assert drawn(prompts_P, 2048, Decoding(**{**decoding.options(), "seed": 6})) != together
