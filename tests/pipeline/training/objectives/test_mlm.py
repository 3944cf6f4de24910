import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.errors import JobError, ModelError
from pipeline.metrics.base import measure
from pipeline.metrics.perplexity import Perplexity
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.score import Score
from pipeline.training.examples import Examples
from pipeline.training.job import DataSettings, TrainingSettings
from pipeline.training.objectives import find
from pipeline.training.objectives.mlm import Mlm

FAMILIES = ["bert", "roberta", "electra", "deberta-v3", "modernbert", "distilbert", "mpnet"]
COUNTING = [" ".join(f"number {each} follows" for each in range(start, start + 3)) for start in range(40)]


@pytest.fixture
def bert(tiny):
    return tiny("bert", "MaskedLM", max_tokens=64)


@pytest.fixture
def mlm(prepare, bert):
    return prepare(Mlm, bert)


def test_it_is_found_by_its_name():
    assert find("mlm") is Mlm


@pytest.mark.parametrize("option", ["label", "text_pair"])
def test_it_learns_from_texts_alone(option):
    with pytest.raises(JobError, match=rf"data\.{option}: mlm learns from the texts alone; leave it out"):
        Mlm(Mlm.Config(name="mlm"), DataSettings.model_validate({"path": "corpus", "text": "body", option: "other"}))


def test_a_tokenizer_without_a_mask_is_refused(prepare, tiny):
    with pytest.raises(ModelError, match="has no mask token: mlm needs an encoder"):
        prepare(Mlm, tiny("gpt2", "CausalLM"))


def test_a_window_without_room_is_refused(prepare, bert):
    with pytest.raises(JobError, match=r"training\.max_tokens: 3 leaves room for 1 tokens of a text; at least 4"):
        prepare(Mlm, bert, max_tokens=3)


def test_packed_texts_follow_each_other_with_a_separator_between_them(mlm):
    texts = ["the cat", "a dog", "two birds"]
    encoded = mlm.encode({"text": texts})
    own = [mlm.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    start, end = mlm.tokenizer.cls_token_id, mlm.tokenizer.sep_token_id
    assert encoded.examples["input_ids"].to_pylist() == [[start, *own[0], end, *own[1], end, *own[2], end]]
    words = sum(map(len, own))
    assert encoded.examples["weight"].to_pylist() == [max(1, round(0.15 * words))]
    assert encoded.tokens == words + 4
    assert encoded.truncated_rows == 0


def test_without_packing_an_example_is_what_annotate_reads(prepare, bert, texts):
    mlm = prepare(Mlm, bert, packed=False, max_tokens=16)
    good = [text for text in texts if text.strip()][:60]
    encoded = mlm.encode({"text": good})
    pieces = mlm.pieces({"text": good})
    kept = [row for row in range(len(good)) if row not in encoded.failures]
    assert encoded.examples["input_ids"].to_pylist() == [pieces.ids_P[row].tolist() for row in kept]
    assert encoded.truncated_rows == int(pieces.truncated_R[kept].sum()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_keeps_every_token_of_every_text(family, prepare, tiny, texts_of):
    mlm = prepare(Mlm, tiny(family, "MaskedLM"), max_tokens=24)
    texts = [text for text in texts_of(family) if text.strip()]
    encoded = mlm.encode({"text": texts})
    assert {failure.reason for failure in encoded.failures.values()} <= {Reason.NO_TOKENS}
    lengths = encoded.examples["input_ids"].combine_chunks().value_lengths().to_pylist()
    assert max(lengths) == 24
    assert encoded.tokens == sum(lengths)
    special = set(mlm.tokenizer.all_special_ids)
    ours = Counter(each for ids in encoded.examples["input_ids"].to_pylist() for each in ids if each not in special)
    read = [text for row, text in enumerate(texts) if row not in encoded.failures]
    own = (mlm.tokenizer.encode(text, add_special_tokens=False) for text in read)
    assert ours == Counter(each for ids in own for each in ids if each not in special)


def test_a_text_of_nothing_but_unknown_words_is_left_out(mlm):
    unknown = mlm.tokenizer.unk_token
    encoded = mlm.encode({"text": [f"{unknown} {unknown}", "\u200b", "the cat"]})
    assert {row: each.reason for row, each in encoded.failures.items()} == {0: Reason.NO_TOKENS, 1: Reason.NO_TOKENS}
    assert "nothing to predict among 2 tokens" in encoded.failures[0].detail
    assert len(encoded.examples) == 1


@given(
    words=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.02, 0.15, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_as_many_tokens_are_hidden_as_the_weight_says_and_only_words(made, words, seed, share):
    made.config = made.config.model_copy(update={"share": share})
    word = made.tokenizer.encode("cat", add_special_tokens=False)[0]
    text = made.tokenizer.decode([word])
    examples = made.encode({"text": [" ".join([text] * count) for count in words]}).examples
    batch = made.batch(examples, {}, np.random.default_rng(seed))
    weights = examples["weight"].to_pylist()
    assert (batch["target"] != -100).sum(1).tolist() == weights
    assert weights == [max(1, round(share * count)) for count in words]
    original = made.tensors(examples)["input_ids"]
    hidden = batch["target"] != -100
    assert (batch["target"][hidden] == original[hidden]).all()
    assert (batch["input_ids"][~hidden] == original[~hidden]).all()
    special = torch.tensor(made.tokenizer.all_special_ids)
    assert not torch.isin(original[hidden], special).any()


@pytest.fixture(scope="module")
def made(tiny):
    from pipeline.models.pretrained import prepared_tokenizer

    folder = tiny("bert", "MaskedLM", max_tokens=64)
    objective = Mlm(Mlm.Config(name="mlm", packed=False), DataSettings(path="corpus", text="body"))
    pinned = pin(ModelSettings(ref=str(folder)))
    objective.start(prepared_tokenizer(pinned, 1), pinned, 64)
    return objective


def test_of_the_hidden_tokens_eight_in_ten_are_masked_and_one_in_ten_is_random(mlm):
    examples = mlm.encode({"text": COUNTING * 8}).examples
    original = mlm.tensors(examples)["input_ids"]
    masked = replaced = kept = 0
    for seed in range(10):
        batch = mlm.batch(examples, {}, np.random.default_rng(seed))
        hidden = batch["target"] != -100
        became = batch["input_ids"][hidden]
        masked += int((became == mlm.tokenizer.mask_token_id).sum())
        kept += int((became == original[hidden]).sum())
        others = became[(became != mlm.tokenizer.mask_token_id) & (became != original[hidden])]
        replaced += len(others)
        assert not torch.isin(others, torch.tensor(mlm.tokenizer.all_special_ids)).any()
    total = masked + replaced + kept
    assert total > 5_000
    assert masked / total == pytest.approx(0.8, abs=0.02)
    assert replaced / total == pytest.approx(0.1, abs=0.02)
    assert kept / total == pytest.approx(0.1, abs=0.02)


def test_a_step_hides_the_same_tokens_each_time_and_another_step_others(mlm, batch_of):
    examples = mlm.encode({"text": COUNTING}).examples
    one, same, other = (batch_of(mlm, examples, {}, seed) for seed in (1, 1, 2))
    assert torch.equal(one["input_ids"], same["input_ids"])
    assert not torch.equal(one["target"], other["target"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_summed_and_only_targets_go_through_the_head(
    family, prepare, tiny, batch_of, monkeypatch
):
    mlm = prepare(Mlm, tiny(family, "MaskedLM"))
    examples = mlm.encode({"text": COUNTING[:9]}).examples
    module = mlm.build({}, TrainingSettings()).eval()
    batch = batch_of(mlm, examples, {})
    inputs = {name: values for name, values in batch.items() if name != "target"}
    seen = []
    module.get_output_embeddings().register_forward_hook(
        lambda _module, given, _said: seen.append(given[0].shape[:-1].numel())
    )
    ours = mlm.loss(module, batch, {})
    weight = sum(examples["weight"].to_pylist())
    assert seen == [weight]
    theirs = module(**inputs, labels=batch["target"]).loss
    torch.testing.assert_close(ours / weight, theirs, rtol=1e-4, atol=1e-4)

    (ours / weight).backward()
    gradients = {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}
    module.zero_grad()
    theirs.backward()
    for name, each in module.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(gradients[name], each.grad, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(module, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(mlm.loss(module, batch, {}), ours)


def test_a_validation_tells_the_perplexity_of_the_hidden_tokens(mlm, batch_of):
    examples = mlm.encode({"text": COUNTING}).examples
    module = mlm.build({}, TrainingSettings()).eval()
    halves = [examples.slice(0, 3), examples.slice(3)]
    with torch.no_grad():
        found = [mlm.judge(module, batch_of(mlm, half, {}, seed), {}) for seed, half in enumerate(halves)]
        losses = [mlm.loss(module, batch_of(mlm, half, {}, seed), {}) for seed, half in enumerate(halves)]
    kept = np.concatenate([each for _, each in found])
    assert len(kept) == len(examples)
    assert kept[:, 1].tolist() == examples["weight"].to_pylist()
    for (loss, _), wanted in zip(found, losses, strict=True):
        torch.testing.assert_close(loss, wanted)
    mean = sum(loss.item() for loss in losses) / sum(examples["weight"].to_pylist())
    assert mlm.score(kept, {}) == {"perplexity": pytest.approx(math.exp(mean), rel=1e-4)}
    assert list(mlm.figures.items()) == [("perplexity", False)]


def test_a_body_without_a_language_head_gets_a_new_one(prepare, tiny, batch_of):
    mlm = prepare(Mlm, tiny("bert", "Model"))
    module = mlm.build({}, TrainingSettings())
    examples = mlm.encode({"text": COUNTING}).examples
    assert torch.isfinite(mlm.loss(module, batch_of(mlm, examples, {}), {}))


def test_losses_are_in_float32_where_the_model_computes_in_bfloat16(mlm, batch_of):
    module = mlm.build({}, TrainingSettings()).to(torch.bfloat16)
    loss = mlm.loss(module, batch_of(mlm, mlm.encode({"text": COUNTING}).examples, {}), {})
    assert loss.dtype == torch.float32


def test_some_steps_lower_the_perplexity_that_the_score_task_finds(mlm, trained, tmp_path):
    rows = {"text": COUNTING[::2]}
    module, losses = trained(mlm, rows, steps=60, learning_rate=3e-3)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    mlm.save(mlm.finish(module, {}), str(tmp_path / "model"))
    prediction = mlm.prediction("said")
    assert prediction.kind == "perplexity"
    assert prediction.annotations[0]["max_tokens"] == 64

    found = []
    for folder in (mlm.model.folder, str(tmp_path / "model")):
        model = ModelSettings(ref=folder)
        task = Score(Score.Config.model_validate({**prediction.annotations[0], "model": model}), pin(model))
        task.start(load(pin(model), task.needs, dtype="float32", device="cpu", threads=1, token_budget=512))
        annotation = task.annotate(Texts(COUNTING[1::8]))
        table = {f"said_{name}": column for name, column in annotation.columns.items()}
        table["said_tokens"] = annotation.tokens_R
        kind = metrics.find(prediction.kind)(**prediction.columns, **prediction.options)
        measured = measure(kind, pa.table(table), resamples=0)
        own = [len(mlm.tokenizer.encode(text, add_special_tokens=False)) for text in COUNTING[1::8]]
        assert measured.tables["judged_tokens"] == sum(own)
        found.append(measured.figures["perplexity"].value)
    assert found[1] < 0.5 * found[0]


def test_a_baseline_knows_how_often_each_token_stands_in_the_training_rows(mlm, tmp_path):
    trained_on, judged = ["the cat the cat the dog"], ["the dog", "the unseen", ""]
    path = tmp_path / "train.arrow"
    encoded = mlm.encode({"text": trained_on}).examples
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, encoded.schema) as writer:
        writer.write_table(encoded)
    special = set(mlm.tokenizer.all_special_ids)
    seen = Counter(each for ids in encoded["input_ids"].to_pylist() for each in ids if each not in special)
    total = sum(seen.values()) + len(mlm.tokenizer) - len(special)

    found = mlm.baselines({}, pa.table({"text": judged}), Examples([str(path)]))["unigram"]
    own = [mlm.tokenizer.encode(text, add_special_tokens=False) for text in judged[:2]]
    expected = [np.mean([math.log(total / (seen[token] + 1)) for token in ids if token not in special]) for ids in own]
    assert found["loss"].to_pylist() == [pytest.approx(expected[0]), pytest.approx(expected[1]), None]
    assert measure(Perplexity("loss", "tokens", **mlm.prediction("said").options), found, resamples=0).figures[
        "loss"
    ].value == pytest.approx(np.average(expected, weights=[sum(each not in special for each in ids) for ids in own]))


def test_before_it_has_a_tokenizer_the_prediction_asks_no_window():
    prediction = Mlm(Mlm.Config(name="mlm"), DataSettings(path="corpus", text="body")).prediction("said")
    assert prediction.annotations == [{"name": "said", "task": "score", "text": "body"}]
    assert prediction.columns == {"loss": "said_loss", "tokens": "said_tokens"}
