import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import metrics
from pipeline.errors import JobError, ModelError
from pipeline.metrics.base import measure
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.tasks.base import Texts
from pipeline.tasks.score import Score
from pipeline.training.job import DataSettings, TrainingSettings
from pipeline.training.objectives import find
from pipeline.training.objectives.clm import Clm

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3"]
COUNTING = [" ".join(f"number {each} follows" for each in range(start, start + 3)) for start in range(40)]


@pytest.fixture
def gpt2(tiny):
    return tiny("gpt2", "CausalLM", max_tokens=64)


def test_it_is_found_by_its_name():
    assert find("clm") is Clm


def test_it_learns_from_texts_alone():
    with pytest.raises(JobError, match=r"data\.label: clm learns from the texts alone"):
        Clm(Clm.Config(name="clm"), DataSettings(path="corpus", text="body", label="other"))


@pytest.mark.parametrize(("family", "head"), [("bert", "MaskedLM"), ("t5", "Seq2SeqLM")])
def test_a_model_that_does_not_continue_texts_is_refused(prepare, tiny, family, head):
    with pytest.raises(ModelError, match=r"is of another kind .*clm needs a causal language model"):
        prepare(Clm, tiny(family, head))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_texts_end_and_begin_as_the_tokenizer_has_it(family, prepare, tiny):
    clm = prepare(Clm, tiny(family, "CausalLM"))
    texts = ["the cat", "a dog"]
    encoded = clm.encode({"text": texts})
    end = clm.tokenizer.eos_token_id
    wanted = [each for text in texts for each in [*clm.tokenizer(text)["input_ids"], end]]
    assert encoded.examples["input_ids"].to_pylist() == [wanted]
    assert encoded.examples["weight"].to_pylist() == [len(wanted) - 1]
    assert encoded.tokens == len(wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_over_the_window_goes_on_in_the_next_sequence_and_ends_once(family, prepare, tiny):
    clm = prepare(Clm, tiny(family, "CausalLM"), max_tokens=16)
    text = " ".join(COUNTING[:4])
    own = clm.tokenizer.encode(text, add_special_tokens=False)
    before = clm.tokenizer(text)["input_ids"][: -len(own)]
    examples = clm.encode({"text": [text]}).examples["input_ids"].to_pylist()
    assert [each for ids in examples for each in ids[len(before) :]] == [*own, clm.tokenizer.eos_token_id]
    assert all(ids[: len(before)] == before for ids in examples)
    assert max(map(len, examples)) <= 16


def test_without_packing_a_text_is_cut_and_does_not_end_there(prepare, gpt2):
    clm = prepare(Clm, gpt2, packed=False, max_tokens=16)
    long, short = " ".join(COUNTING[:4]), "the cat"
    encoded = clm.encode({"text": [long, short]})
    end = clm.tokenizer.eos_token_id
    ids = [clm.tokenizer.encode(text) for text in (long, short)]
    assert encoded.examples["input_ids"].to_pylist() == [ids[0][:15], [*ids[1], end]]
    assert encoded.truncated_rows == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_summed_over_the_targets(family, prepare, tiny, batch_of):
    clm = prepare(Clm, tiny(family, "CausalLM"), packed=False)
    examples = clm.encode({"text": [*COUNTING[:5], "the cat"]}).examples
    module = clm.build({}, TrainingSettings()).eval()
    batch = batch_of(clm, examples, {})
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    weight = sum(examples["weight"].to_pylist())
    ours = clm.loss(module, batch, {})
    theirs = module(**batch, labels=labels).loss
    torch.testing.assert_close(ours / weight, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        loss, kept = clm.judge(module, batch, {})
    torch.testing.assert_close(loss, ours.detach())
    assert kept[:, 1].tolist() == examples["weight"].to_pylist()
    assert clm.score(kept, {})["perplexity"] == pytest.approx(math.exp(theirs.item()), rel=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_some_steps_lower_the_perplexity_that_the_score_task_finds(family, prepare, tiny, trained, tmp_path):
    clm = prepare(Clm, tiny(family, "CausalLM"), max_tokens=64)
    module, losses = trained(clm, {"text": COUNTING[::2]}, steps=60)
    assert losses[-1] < 0.5 * losses[0]
    clm.save(clm.finish(module, {}), str(tmp_path / "model"))
    prediction = clm.prediction("said")
    found = []
    for folder in (clm.model.folder, str(tmp_path / "model")):
        model = ModelSettings(ref=folder)
        task = Score(Score.Config.model_validate({**prediction.annotations[0], "model": model}), pin(model))
        task.start(load(pin(model), task.needs, dtype="float32", device="cpu", threads=1, token_budget=512))
        annotation = task.annotate(Texts(COUNTING[1::8]))
        table = {f"said_{name}": column for name, column in annotation.columns.items()}
        kind = metrics.find(prediction.kind)(**prediction.columns, **prediction.options)
        measured = measure(kind, pa.table(table | {"said_tokens": annotation.tokens_R}), resamples=0)
        own = [len(clm.tokenizer.encode(text, add_special_tokens=False)) for text in COUNTING[1::8]]
        has_start = len(clm.tokenizer("a")["input_ids"]) > len(clm.tokenizer.encode("a", add_special_tokens=False))
        assert measured.tables["judged_tokens"] == sum(own) - (0 if has_start else len(own))
        found.append(measured.figures["perplexity"].value)
    assert found[1] < 0.5 * found[0]


def test_no_text_is_lost_in_a_unit_of_many(prepare, gpt2, texts):
    clm = prepare(Clm, gpt2, max_tokens=32)
    good = [text for text in texts if text.strip()]
    encoded = clm.encode({"text": good})
    assert not encoded.failures
    own = np.concatenate([clm.tokenizer.encode(text) for text in good])
    ours = np.concatenate(encoded.examples["input_ids"].to_pylist())
    end = clm.tokenizer.eos_token_id
    assert sorted(ours[ours != end].tolist()) == sorted(own[own != end].tolist())
    assert (ours == end).sum() == len(good) + (own == end).sum()
