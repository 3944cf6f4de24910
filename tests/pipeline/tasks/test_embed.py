import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from pipeline.errors import JobError, ModelError
from pipeline.tasks.base import Texts
from pipeline.tasks.embed import Embed


def vectors(task, texts):
    column = task.annotate(Texts(list(texts))).columns["embedding"]
    assert column.type == task.fields()[0].type
    return np.array(column.to_pylist(), np.float32)


def by_library(folder, texts, pooling, max_tokens, attention="sdpa"):
    """One text at a time, by transformers alone, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    found = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.inference_mode():
            hidden_LD = module(**inputs).last_hidden_state[0]
        pooled = {"mean": hidden_LD.mean(0), "cls": hidden_LD[0], "max": hidden_LD.amax(0), "last": hidden_LD[-1]}
        found.append(pooled[pooling].numpy())
    return np.stack(found)


def unit(values_RD):
    return values_RD / np.linalg.norm(values_RD, axis=1, keepdims=True)


@pytest.fixture
def sentence_folder(make_encoder, tmp_path):
    """A sentence-transformers folder: pooling by the first token, then length 1."""
    folder = tmp_path / "sentence"
    shutil.copytree(make_encoder(), folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (folder / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_vectors_are_the_librarys_whatever_the_neighbours(make_encoder, start, sentences, kind, pooling):
    folder = make_encoder(kind)
    expected = by_library(folder, sentences, pooling, 40)
    for token_budget in (1, 100, 4000):
        task = start(Embed, folder, token_budget=token_budget, pooling=pooling, max_tokens=40)
        np.testing.assert_allclose(vectors(task, sentences), expected, atol=1e-5)


def test_minilm_in_float32_is_the_library_and_in_bfloat16_the_direction_stays(minilm, start, sample):
    import pyarrow.parquet as pq

    texts = pq.read_table(next(sample.rglob("*.parquet")), columns=["description"])["description"].to_pylist()[:40]
    expected = unit(by_library(minilm, texts, "mean", 256))
    np.testing.assert_allclose(vectors(start(Embed, minilm, token_budget=2048), texts), expected, atol=1e-5)
    halved = vectors(start(Embed, minilm, dtype="bfloat16", token_budget=2048), texts)
    assert (halved * expected).sum(1).min() >= 0.999


def test_a_second_pass_gives_the_same_bits(make_encoder, start, sentences):
    task = start(Embed, make_encoder(), dtype="bfloat16")
    np.testing.assert_array_equal(vectors(task, sentences), vectors(task, sentences))


def test_a_plain_encoder_is_pooled_by_mean_and_keeps_its_length(make_encoder, start, sentences):
    expected = by_library(make_encoder(), sentences, "mean", 64)
    np.testing.assert_allclose(vectors(start(Embed, make_encoder()), sentences), expected, atol=1e-5)


def test_a_sentence_transformers_folder_says_how_it_pools_and_whether_it_normalizes(sentence_folder, start, sentences):
    expected = by_library(sentence_folder, sentences, "cls", 64)
    np.testing.assert_allclose(vectors(start(Embed, sentence_folder), sentences), unit(expected), atol=1e-5)
    asked = start(Embed, sentence_folder, pooling="max", normalize=False)
    expected = by_library(sentence_folder, sentences, "max", 64)
    np.testing.assert_allclose(vectors(asked, sentences), expected, atol=1e-5)


def test_cut_vectors_are_normalized_after_the_cut(make_encoder, start, sentences):
    task = start(Embed, make_encoder(), truncate_dim=8, normalize=True)
    expected = unit(by_library(make_encoder(), sentences, "mean", 64)[:, :8])
    np.testing.assert_allclose(vectors(task, sentences), expected, atol=1e-5)
    assert task.fields() == [pa.field("embedding", pa.list_(pa.float32(), 8))]


def test_a_prefix_stands_before_each_text(make_encoder, start, sentences):
    task = start(Embed, make_encoder(), prefix="ak bl: ")
    expected = by_library(make_encoder(), [f"ak bl: {text}" for text in sentences], "mean", 64)
    np.testing.assert_allclose(vectors(task, sentences), expected, atol=1e-5)


def test_one_token_window_is_the_shortest(make_encoder, start, sentences):
    assert vectors(start(Embed, make_encoder(), max_tokens=3), sentences).shape == (40, 32)


def test_a_failed_text_is_null(make_encoder, start):
    column = start(Embed, make_encoder(), normalize=True).annotate(Texts(["ak", "\u200b", "al"])).columns["embedding"]
    assert column.is_null().to_pylist() == [False, True, False]


def test_a_cut_over_the_width_is_refused(make_encoder, prepare):
    with pytest.raises(JobError, match="annotation 'found': truncate_dim: 33 is more than the 32 numbers that"):
        prepare(Embed, make_encoder(), truncate_dim=33)


def test_layers_after_the_pooling_are_refused(sentence_folder, prepare):
    modules = json.loads((sentence_folder / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense", "path": "3_Dense"})
    (sentence_folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        ModelError, match="has modules that are not supported: Dense; supported: Dropout, Normalize, Pool"
    ):
        prepare(Embed, sentence_folder)


@pytest.mark.parametrize("key", ["hidden_size", "d_model", "dim"])
def test_the_width_is_told_under_several_names(make_encoder, prepare, tmp_path, key):
    folder = tmp_path / "copy"
    shutil.copytree(make_encoder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config[key] = config.pop("hidden_size")
    (folder / "config.json").write_text(json.dumps(config))
    assert prepare(Embed, folder).fields()[0].type.list_size == 32


def test_a_model_that_tells_no_width_is_refused(make_encoder, prepare, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(make_encoder(), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="tells no width; looked for hidden_size, d_model, dim, n_embd"):
        prepare(Embed, folder)


def test_the_driver_knows_the_columns_of_every_task_without_torch():
    code = (
        "import sys; from pipeline import tasks; [tasks.find(name) for name in ('embed', 'classify', 'zero_shot')]; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
