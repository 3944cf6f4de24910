import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.models import int8
from pipeline.models.int8 import can_quantize, watched
from pipeline.models.loading import load
from pipeline.models.memory import give_back
from pipeline.models.ranges import quantized_weights, to_bytes
from pipeline.models.reference import ModelSettings, pin


def loaded(folder, auto_class="AutoModel", dtype="float32", calibration=None):
    pinned = pin(ModelSettings(ref=str(folder)))
    return load(pinned, auto_class, dtype, device="cpu", threads=1, token_budget=512, calibration=calibration)


def calibrated(folder, **inputs):
    module = loaded(folder).module
    with torch.inference_mode(), watched(module) as ranges:
        module(**inputs)
    return to_bytes(ranges)


def test_a_model_comes_with_all_that_computing_needs(make_encoder):
    model = loaded(make_encoder("roberta"))
    assert (model.device, model.dtype, model.threads, model.token_budget, model.pad_id) == ("cpu", "float32", 1, 512, 1)
    assert not model.module.training
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_told(make_encoder):
    with pytest.raises(ModelError, match=r"cannot be moved to cuda: \w+: "):
        load(
            pin(ModelSettings(ref=str(make_encoder()))),
            "AutoModel",
            dtype="float32",
            device="cuda",
            threads=1,
            token_budget=512,
        )


def test_a_model_whose_files_changed_since_the_plan_is_not_loaded(make_encoder, copy_of):
    folder = copy_of(make_encoder())
    pinned = pin(ModelSettings(ref=str(folder)))
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ModelError, match="and the run was planned with"):
        load(pinned, "AutoModel", dtype="float32", device="cpu", threads=1, token_budget=64)


# --------------------------------------------------------------------------------------------------------------- int8

of_int8 = pytest.mark.skipif(not can_quantize(), reason="this torch has no products of int8 for this processor")


@of_int8
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_are_rounded_to_int8_from_what_the_file_has(make_encoder, copy_of, tmp_path, stored):
    """In bfloat16 first, they would lose digits that the file has."""

    def shorten(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(stored)

    def widen(tensors):
        for name in tensors:
            tensors[name] = tensors[name].float()

    inputs = {"input_ids": torch.arange(3, 25).view(2, 11)}
    short = copy_of(make_encoder(), shorten)
    shutil.copytree(short, tmp_path / "wide")
    tensors = load_file(short / "model.safetensors")
    widen(tensors)
    save_file(tensors, tmp_path / "wide/model.safetensors", metadata={"format": "pt"})
    calibration = calibrated(short, **inputs)
    with torch.inference_mode():
        found, wanted = (
            loaded(folder, dtype="int8", calibration=calibration).module(**inputs).last_hidden_state
            for folder in (short, tmp_path / "wide")
        )
    assert torch.equal(found, wanted)


@of_int8
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what is mapped")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_model_that_becomes_int8_is_not_held_in_float32_too(make_encoder, tmp_path, monkeypatch, stored):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=100, **sizes))  # 25.2 million weights of layers
    model.to(stored).save_pretrained(tmp_path)
    shutil.copy(make_encoder() / "tokenizer.json", tmp_path)
    calibration = calibrated(tmp_path, input_ids=torch.arange(3, 25).view(2, 11))
    held = []

    def resident():
        status = Path("/proc/self/status").read_text()
        return sum(int(each) * 1024 for each in re.findall(r"Rss(?:Anon|File):\s+(\d+) kB", status))

    def looked(weights_NK):
        held.append(resident())
        return quantized_weights(weights_NK)

    monkeypatch.setattr(int8, "quantized_weights", looked)
    give_back()
    before = resident()
    loaded(tmp_path, dtype="int8", calibration=calibration)
    assert len(held) == 33
    # In float32 they alone are 100 MB, and 50 in bfloat16 beside it; other tests leave holes in this process's memory.
    assert max(held) - before < 125_000_000
