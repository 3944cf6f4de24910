"""A pinned model becomes something to train, parts of it stay as they are, and what was trained is found again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from pipeline.errors import JobError, ModelError
from pipeline.models.reference import ModelSettings, pin
from pipeline.training import rows as training_rows
from pipeline.training.job import LoraSettings, TrainingSettings
from pipeline.training.loading import freeze, load_checkpoint, pretrained, save
from tests.pipeline.training.conftest import MakeJob

MakeEncoder = Callable[..., Path]
LABELS = {"id2label": {0: "games", 1: "mail", 2: "web"}, "label2id": {"games": 0, "mail": 1, "web": 2}}
HEAD = "AutoModelForSequenceClassification"


def _pretrained(folder: Path, **training: object) -> torch.nn.Module:
    return pretrained(pin(ModelSettings(ref=str(folder))), HEAD, LABELS, TrainingSettings(**training))  # type: ignore[arg-type]


def _trainable(module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _input() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(4, 16).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


def test_the_body_is_the_models_and_the_head_is_the_seeds(make_encoder: MakeEncoder) -> None:
    first, same, other = (_pretrained(make_encoder(), seed=seed) for seed in (1, 1, 2))
    body = safetensors.torch.load_file(make_encoder() / "model.safetensors")
    found = first.state_dict()
    assert all(torch.equal(found[f"bert.{name}"], weights) for name, weights in body.items())
    assert torch.equal(found["classifier.weight"], same.state_dict()["classifier.weight"])
    assert not torch.equal(found["classifier.weight"], other.state_dict()["classifier.weight"])
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float32}


def test_weights_that_the_body_lacks_are_an_error(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(make_encoder())
    model.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    gone = [name for name in weights if name.startswith("encoder.layer.1.")]
    safetensors.torch.save_file(
        {name: each for name, each in weights.items() if name not in gone},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((make_encoder() / name).read_bytes())
    with pytest.raises(ModelError, match=rf"lacks {len(gone)} weights of its own body: bert\.encoder\.layer\.1\."):
        _pretrained(tmp_path)


def test_a_class_that_the_model_has_not_is_told(make_encoder: MakeEncoder) -> None:
    with pytest.raises(ModelError, match="cannot be trained as AutoModelForSeq2SeqLM: "):
        pretrained(pin(ModelSettings(ref=str(make_encoder()))), "AutoModelForSeq2SeqLM", {}, TrainingSettings())


def test_dropout_is_what_the_job_says(make_encoder: MakeEncoder) -> None:
    module = _pretrained(make_encoder(), dropout=0.25)
    shares = {name: each.p for name, each in module.named_modules() if isinstance(each, torch.nn.Dropout)}
    assert {share for name, share in shares.items() if "attention.self" not in name} == {0.25}
    assert {share for name, share in shares.items() if "attention.self" in name} == {0.0}


# ------------------------------------------------------------------------------------------------------------- freeze


def test_nothing_is_frozen_unasked(make_encoder: MakeEncoder) -> None:
    module = _pretrained(make_encoder())
    assert _trainable(module) == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize(
    ("parts", "frozen"),
    [
        (["embeddings"], "bert.embeddings."),
        (["encoder"], "bert."),
        (["encoder.layer.0"], "bert.encoder.layer.0."),
        (["bert.pooler"], "bert.pooler."),
        (["classifier"], "classifier."),
    ],
)
def test_a_part_stays_as_it_is(parts: list[str], frozen: str, make_encoder: MakeEncoder) -> None:
    module = _pretrained(make_encoder(), freeze=parts)
    names = {name for name, _ in module.named_parameters()}
    assert _trainable(module) == {name for name in names if not name.startswith(frozen)}


def test_a_part_that_is_not_there_is_told_with_those_that_are(make_encoder: MakeEncoder) -> None:
    with pytest.raises(JobError, match="the model has no 'decoder'; its parts: classifier, embeddings, encoder, pool"):
        freeze(_pretrained(make_encoder()), ["decoder"])


def test_something_must_be_left_to_train(make_encoder: MakeEncoder) -> None:
    with pytest.raises(JobError, match=r"training\.freeze leaves nothing to train"):
        _pretrained(make_encoder(), freeze=["encoder", "classifier"])


# --------------------------------------------------------------------------------------------------------------- LoRA


def test_lora_trains_its_updates_and_the_new_head(make_encoder: MakeEncoder) -> None:
    module = _pretrained(make_encoder(), lora=LoraSettings(rank=4))
    trainable = _trainable(module)
    assert trainable
    assert all("lora_" in name or "classifier" in name for name in trainable)
    assert sum(parameter.numel() for name, parameter in module.named_parameters() if name in trainable) < 0.5 * sum(
        parameter.numel() for parameter in module.parameters()
    )


def test_what_is_frozen_gets_no_updates_either(make_encoder: MakeEncoder) -> None:
    module = _pretrained(make_encoder(), lora=LoraSettings(rank=4), freeze=["encoder.layer.0"])
    updated = [name for name in _trainable(module) if "lora_" in name]
    assert updated
    assert not any("layer.0." in name for name in updated)


def test_modules_that_lora_does_not_find_are_told(make_encoder: MakeEncoder) -> None:
    with pytest.raises(JobError, match=r"training\.lora: .*nowhere"):
        _pretrained(make_encoder(), lora=LoraSettings(targets=["nowhere"]))


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_checkpoint_is_found_again_and_saved_as_a_model(
    lora: dict[str, int] | None, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(training={"lora": lora})
    objective = training_rows.started(job, pin(job.model), 64, training_rows.plan_rows(job)[0][0].read.schema)
    learned = {"labels": ["games", "mail", "web"], "counts": [1, 1, 1], "rows": 3}
    module = objective.build(learned, job.training)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    checkpoint = tmp_path / "checkpoint"
    module.save_pretrained(checkpoint)  # type: ignore[operator]  # as transformers' Trainer does
    wanted = module.eval()(**_input()).logits.detach()

    found = load_checkpoint(objective, learned, job.training, str(checkpoint))
    torch.testing.assert_close(found.eval()(**_input()).logits.detach(), wanted, rtol=0, atol=0)

    folder = tmp_path / "saved"
    save(found, objective.tokenizer, str(folder), 32)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(loaded.eval()(**_input()).logits.detach(), wanted, rtol=1e-4, atol=1e-4)
    assert loaded.config.id2label == {0: "games", 1: "mail", 2: "web"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 32
    assert objective.tokenizer.model_max_length != 32
    assert not (folder / "training_args.bin").exists()
