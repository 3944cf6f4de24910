import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.models.generation.decoding import Decoding, Rules
from pipeline.models.generation.generate import generate
from pipeline.models.generation.live import Model, Row, Seq2SeqBatch
from pipeline.models.generation.t5_batch import T5Batch
from pipeline.models.t5 import layers_of, use_t5_layers
from pipeline.quarantine import Reason

LENGTHS = [300, 120, 90, *range(1, 40)]  # several shelves, and more rows than are filled up to


@pytest.fixture(scope="module")
def model(tiny):
    """A tiny T5 that writes as transformers has it."""
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny("t5", "Seq2SeqLM", initializer_factor=1.0)).eval()


@pytest.fixture(scope="module")
def quick(model):
    """The same with layers called straight."""
    other = copy.deepcopy(model)
    use_t5_layers(other)
    return other


@pytest.fixture(scope="module")
def prompts(model):
    draw = np.random.default_rng(1)
    return [draw.integers(3, model.config.vocab_size, length).astype(np.int32) for length in LENGTHS]


def layers(model):
    found = layers_of(model)
    assert found is not None
    return found


def test_each_step_gives_what_transformers_gives_while_rows_leave(model, quick, prompts):
    held = Model(quick, Rules(quick, Decoding(max_new_tokens=30)), 512)
    rows = [Row(ids, 30, None) for ids in prompts]
    leave = np.random.default_rng(2)
    with torch.inference_mode():
        theirs, ours = Seq2SeqBatch(held, rows), T5Batch(held, layers(quick), rows)
        for step in range(30):
            place = {id(row): number for number, row in enumerate(theirs.rows)}
            same = [place[id(row)] for row in ours.rows]
            torch.testing.assert_close(ours.scores_BV, theirs.scores_BV[same], atol=1e-4, rtol=1e-4)
            if step % 3 == 0:
                stays = [number for number in range(len(same)) if leave.random() > 0.25] or [0]
                ours.keep(stays)
                same = [same[number] for number in stays]
                theirs.keep(same)
                same = list(range(len(same)))
            tokens = leave.integers(3, 50, len(same))
            place = dict(zip(same, tokens.tolist(), strict=True))
            ours.step(tokens.tolist())
            theirs.step([place[number] for number in range(len(same))])
    assert len(ours.rows) < 8


def test_mt5_is_of_the_family():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 3, "d_ff": 64}
    config = transformers.MT5Config(vocab_size=100, **sizes, decoder_start_token_id=0)
    model = transformers.MT5ForConditionalGeneration(config).eval()
    use_t5_layers(model)
    held = Model(model, Rules(model, Decoding(max_new_tokens=3)), 64)
    with torch.inference_mode():
        rows = [Row(np.arange(3, length, dtype=np.int32), 3, None) for length in (30, 9, 5)]  # the longest first
        theirs, ours = Seq2SeqBatch(held, rows), T5Batch(held, layers(model), rows)
        for tokens in ([4, 5, 6], [7, 8, 9]):
            torch.testing.assert_close(ours.scores_BV, theirs.scores_BV, atol=1e-4, rtol=1e-4)
            ours.step(tokens)
            theirs.step(tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "min_new_tokens": 6, "no_repeat_ngram_size": 2},
        {"do_sample": True, "temperature": 1.5, "top_k": 40, "seed": 5},
    ],
    ids=["greedy", "with rules", "drawn"],
)
def test_answers_are_those_of_any_family_s_way(model, quick, prompts, options):
    asked: dict[str, Any] = {"token_budget": 256, "device": "cpu"}
    decoding = Decoding(max_new_tokens=12, num_beams=1, **options)
    theirs = generate(model, prompts, decoding, **asked)
    ours = generate(quick, prompts, decoding, **asked)
    assert ours.failures == theirs.failures == {}
    for mine, other in zip(ours.ids_P, theirs.ids_P, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (ours.ends_P, ours.tokens, ours.generated_tokens) == (theirs.ends_P, theirs.tokens, theirs.generated_tokens)


def test_a_row_whose_scores_are_not_finite_fails_alone(model, prompts):
    broken = copy.deepcopy(model)
    poison = max(set(range(model.config.vocab_size)) - {int(token) for ids in prompts for token in ids})
    broken.encoder.embed_tokens = copy.deepcopy(broken.encoder.embed_tokens)  # the decoder's and the head's stay
    with torch.no_grad():
        broken.encoder.embed_tokens.weight[poison] = torch.nan
    use_t5_layers(broken)
    some_P = [*prompts[:5], np.array([5, poison, 7], np.int32), *prompts[5:]]
    done = generate(broken, some_P, Decoding(max_new_tokens=4, num_beams=1), token_budget=256, device="cpu")
    assert {row: failure.reason for row, failure in done.failures.items()} == {5: Reason.NON_FINITE_OUTPUT}
    assert [ids is None for ids in done.ids_P] == [row == 5 for row in range(len(some_P))]
