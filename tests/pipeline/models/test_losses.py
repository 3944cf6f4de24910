from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from pipeline.batching import TokenBudget
from pipeline.models import losses as room
from pipeline.models.engine import pad
from pipeline.models.losses import causal_losses, masked_losses, tokens_at_once

PIECES = [np.array(ids, np.int32) for ids in ([5, 7, 11, 3, 9], [8], [12, 6, 20])]


@pytest.fixture
def bert(tiny):
    return AutoModelForMaskedLM.from_pretrained(tiny("bert", "MaskedLM")).eval()


def masked(module, places, **options):
    settings = {"mask_id": 4, "token_budget": 12, "pad_id": 0, "device": "cpu", **options}
    return masked_losses(module, PIECES, np.array(places), **settings)


@pytest.mark.parametrize("chunk", [1, 10**9])
@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_losses_are_those_of_each_piece_alone_however_they_are_chunked(tiny, family, chunk, monkeypatch):
    monkeypatch.setattr(room, "_CHUNK_LOGITS", chunk)
    module = AutoModelForCausalLM.from_pretrained(tiny(family, "CausalLM")).eval()
    with torch.inference_mode():
        found = causal_losses(module, pad(PIECES, np.arange(3), 0, "cpu"))
        assert [len(losses) for losses in found] == [4, 0, 2]
        for ids, losses in zip(PIECES, found, strict=True):
            logp_LV = module(torch.tensor([ids.tolist()])).logits[0].log_softmax(-1)
            by_hand = [-logp_LV[place - 1, ids[place]].item() for place in range(1, len(ids))]
            np.testing.assert_allclose(losses, by_hand, atol=1e-5)


def test_each_token_is_masked_in_its_turn(bert):
    ran = masked(bert, [[0, 5], [0, 1], [1, 2]])
    assert ran.tokens == 5 * 5 + 1 + 3
    for ids, (start, stop), losses in zip(PIECES, [(0, 5), (0, 1), (1, 2)], ran.found_P, strict=True):
        by_hand = []
        for place in range(start, stop):
            row = torch.tensor([ids.tolist()])
            row[0, place] = 4
            with torch.inference_mode():
                by_hand.append(-bert(row).logits[0, place].log_softmax(-1)[ids[place]].item())
        np.testing.assert_allclose(losses, by_hand, atol=1e-5)


def test_a_piece_of_which_nothing_is_masked_costs_nothing(bert):
    ran = masked(bert, [[2, 2], [0, 1], [3, 3]])
    assert [len(losses) for losses in ran.found_P] == [0, 1, 0]
    assert ran.tokens == 1
    assert (
        masked_losses(bert, [], np.zeros((0, 2), np.int64), mask_id=4, token_budget=9, pad_id=0, device="cpu").found_P
        == []
    )


def test_who_listens_is_told_pieces_and_a_piece_at_fault_fails_alone(bert):
    told: list[Sequence[int]] = []
    pieces = [*PIECES[:2], np.array([5, 10**6, 5], np.int32)]
    ran = masked_losses(
        bert,
        pieces,
        np.array([[0, 5], [0, 1], [0, 3]]),
        mask_id=4,
        token_budget=64,
        pad_id=0,
        device="cpu",
        about_to_run=told.append,
    )
    assert {piece for pieces_told in told for piece in pieces_told} == {0, 1, 2}
    assert list(ran.failures) == [2]
    assert ran.failures[2].reason == "model_failed"
    assert [losses is None for losses in ran.found_P] == [False, False, True]


def test_a_loss_that_is_not_finite_fails_its_piece(bert):
    with torch.no_grad():
        bert.get_output_embeddings().bias[7] = -torch.inf
    ran = masked(bert, [[0, 5], [0, 1], [0, 3]])
    assert ran.failures[0].detail == "1 of 5 numbers that the model gave are not finite"
    assert list(ran.failures) == [0]


def test_a_pass_holds_no_more_logits_than_a_machine_should(bert, monkeypatch):
    budget = TokenBudget(64)
    assert tokens_at_once(bert, budget) is budget
    monkeypatch.setattr(room, "_LOGITS", 10 * bert.config.vocab_size)
    assert tokens_at_once(bert, budget).in_force == 10


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "deberta-v3", "modernbert", "distilbert"])
def test_only_masked_places_go_through_the_projection_and_a_model_that_hides_it_says_the_same(
    tiny, family, monkeypatch
):
    module = AutoModelForMaskedLM.from_pretrained(tiny(family, "MaskedLM")).eval()
    projected = []
    module.get_output_embeddings().register_forward_hook(
        lambda _module, given, _said: projected.append(given[0].shape[1])
    )
    places = [[0, 5], [0, 1], [1, 3]]
    picked = masked(module, places)
    assert sum(projected) == 5 + 1 + 2
    monkeypatch.setattr(module, "get_output_embeddings", lambda: None)
    for ours, whole in zip(picked.found_P, masked(module, places).found_P, strict=True):
        np.testing.assert_allclose(ours, whole, atol=1e-5)
