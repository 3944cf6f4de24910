"""Smaller models: what stays of them is what was there, their folders are read as ever, and zeros stay zeros."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError, ModelError
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.training.shrink import Gain, evenly, keep_layers, keep_neurons, prune_magnitude, speed_beside

LAYERED = ["bert", "roberta", "distilbert", "mpnet", "modernbert", "electra", "xlm-roberta", "deberta-v2", "deberta-v3"]
LAYERS = 4
IDS = torch.tensor([[5, 9, 11, 12, 13, 7], [5, 8, 7, 1, 1, 1]])


@pytest.fixture
def model_of(tiny: Callable[..., Path]) -> Callable[..., Any]:
    def make(family: str, head: str = "SequenceClassification") -> Any:
        sizes = {"n_layers": LAYERS} if family == "distilbert" else {"num_hidden_layers": LAYERS}
        folder = tiny(family, head, **sizes)
        model: Any = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder)
        return model.eval()

    return make


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    found, told = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())
    return found.eval()


def test_half_of_twelve_layers_are_those_that_distilbert_began_with() -> None:
    assert evenly(12, 6) == [0, 2, 4, 7, 9, 11]
    assert evenly(6, 3) == [0, 2, 5]


@given(st.integers(1, 48).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_chosen_layers_are_in_order_and_begin_and_end_as_the_model_does(asked: tuple[int, int]) -> None:
    layers, kept = asked
    found = evenly(layers, kept)
    assert found == sorted(set(found))
    assert len(found) == kept
    assert found[0] == 0
    assert kept == 1 or found[-1] == layers - 1
    gaps = np.diff(found)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("family", LAYERED)
def test_a_model_of_fewer_layers_is_read_from_its_folder_as_it_was_in_memory(
    model_of: Callable[..., Any], tmp_path: Path, family: str
) -> None:
    model = model_of(family)
    before = logits(model)
    assert keep_layers(model, [0, 1, 2, 3]) == [0, 1, 2, 3]
    assert torch.equal(logits(model), before)
    assert keep_layers(model, 2) == [0, 3]
    assert model.config.num_hidden_layers == 2
    after = logits(model)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(logits(reloaded(model, tmp_path)), after)


def test_the_layers_that_stay_are_the_chosen_ones(model_of: Callable[..., Any]) -> None:
    model = model_of("bert")
    layers = list(model.bert.encoder.layer)
    keep_layers(model, [1, 3])
    assert list(model.bert.encoder.layer) == [layers[1], layers[3]]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (5, "layers: 5 of them cannot be kept, the model has 4"),
        (0, "layers: 0 of them cannot be kept"),
        ([2, 1], r"layers: \[2, 1\] must be numbers from 0 to 3, each once, in their order"),
        ([1, 1], r"layers: \[1, 1\] must be"),
        ([0, 4], r"layers: \[0, 4\] must be"),
        ([-1, 2], r"layers: \[-1, 2\] must be"),
        ([], r"layers: \[\] must be"),
    ],
)
def test_layers_that_the_model_does_not_have_are_told(
    model_of: Callable[..., Any], chosen: int | list[int], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        keep_layers(model_of("bert"), chosen)


def test_a_model_without_one_list_of_layers_is_refused(tiny: Callable[..., Path]) -> None:
    t5 = transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny("t5", "Seq2SeqLM"))
    with pytest.raises(ModelError, match="it has 2 lists of 2 modules, and not one"):
        keep_layers(t5, 1)
    albert = transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        )
    )
    with pytest.raises(ModelError, match="it has 0 lists of 2 modules"):
        keep_layers(albert, 1)


@pytest.mark.parametrize("family", [name for name in LAYERED if name != "modernbert"])
def test_a_model_of_fewer_neurons_is_read_from_its_folder_as_it_was_in_memory(
    model_of: Callable[..., Any], tmp_path: Path, family: str
) -> None:
    model = model_of(family)
    before, weights = logits(model), sum(each.numel() for each in model.parameters())
    assert keep_neurons(model, 1.0) == 48
    torch.testing.assert_close(logits(model), before)
    assert keep_neurons(model, 0.5) == 24
    assert sum(each.numel() for each in model.parameters()) == weights - LAYERS * 24 * (32 + 32 + 1)
    torch.testing.assert_close(logits(reloaded(model, tmp_path)), logits(model))


def test_neurons_that_weigh_nothing_are_the_first_to_go(model_of: Callable[..., Any]) -> None:
    model = model_of("bert")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, ::2] = 0
    before = logits(model)
    keep_neurons(model, 0.5)
    torch.testing.assert_close(logits(model), before)


def test_a_feed_forward_part_of_another_build_is_refused(model_of: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="no plain layer of 48 neurons"):
        keep_neurons(model_of("modernbert"), 0.5)


def test_the_smallest_weights_become_zero_and_stay_so_in_training(model_of: Callable[..., Any]) -> None:
    model = model_of("bert")
    untouched = model.bert.embeddings.word_embeddings.weight.clone()
    matrices = [part.weight for part in model.bert.encoder.modules() if isinstance(part, torch.nn.Linear)]
    sizes = torch.cat([weight.detach().abs().flatten() for weight in matrices])
    assert prune_magnitude(model, 0.6) == pytest.approx(0.6, abs=1e-3)
    zeros = [weight == 0 for weight in matrices]
    kept = torch.cat([weight[weight != 0] for weight in matrices]).abs()
    assert kept.min() >= sizes.quantile(0.6) - 1e-6
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, untouched)
    model.to(torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    matrices = [part.weight for part in model.bert.encoder.modules() if isinstance(part, torch.nn.Linear)]
    before = [weight.clone() for weight in matrices]
    for _ in range(3):
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for weight, zero, old in zip(matrices, zeros, before, strict=True):
        assert bool((weight[zero] == 0).all())
        assert not torch.equal(weight, old)


def test_pruning_nothing_changes_nothing(model_of: Callable[..., Any]) -> None:
    model = model_of("bert")
    before = logits(model)
    assert prune_magnitude(model, 0.0) == 0.0
    assert torch.equal(logits(model), before)


def test_a_gain_is_of_the_same_tokens_and_says_how_many_times_as_fast() -> None:
    gain = Gain(tokens_per_second=300.0, before=200.0, ratio=1.5)
    assert gain.to_json() == {"tokens_per_second": 300.0, "before": 200.0, "ratio": 1.5}


def test_two_models_are_timed_on_the_same_micro_batches(tiny: Callable[..., Path]) -> None:
    head = "AutoModelForSequenceClassification"
    folders = [tiny("bert", "SequenceClassification", num_hidden_layers=layers) for layers in (1, 4)]
    small, large = (load(pin(ModelSettings(ref=str(each))), head, "float32", "cpu", 1, 64) for each in folders)
    seen: list[tuple[int, tuple[int, ...]]] = []
    for which, each in enumerate((small, large)):
        each.module.register_forward_pre_hook(
            lambda _m, _a, named, which=which: seen.append((which, tuple(named["input_ids"].shape))), with_kwargs=True
        )
    ids_P = [np.arange(5, 5 + length, dtype=np.int32) for length in (3, 9, 17, 9, 4)]
    gain = speed_beside(small, large, ids_P, rounds=2)
    assert [shape for which, shape in seen if which == 0] == [shape for which, shape in seen if which == 1]
    assert len(seen) == 2 * 3 * 2  # models, rounds with the one that warms up, micro-batches
    assert gain.tokens_per_second > 0
    assert gain.before > 0
    assert gain.ratio > 0


def test_a_model_that_fails_on_a_text_is_not_timed(tiny: Callable[..., Path]) -> None:
    pinned = pin(ModelSettings(ref=str(tiny("bert", "SequenceClassification"))))
    loaded = load(pinned, "AutoModelForSequenceClassification", "float32", "cpu", 1, 64)
    with pytest.raises(ModelError, match="cannot be timed: IndexError: index out of range"):
        speed_beside(loaded, loaded, [np.array([10**6], np.int32)], rounds=1)
