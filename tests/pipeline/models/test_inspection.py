import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError
from pipeline.models.inspection import (
    check_folder,
    modules_of,
    normalizes,
    pooling_of,
    read_config,
    task_of_head,
    tensor_names,
    weight_files,
    weights_bytes,
    window_tokens,
)

INDEX = "model.safetensors.index.json"


def refused(folder, message, allow_remote_code=False):
    with pytest.raises(ModelError, match=message):
        check_folder(folder, allow_remote_code)


def test_a_whole_folder_gives_its_config(make_model):
    assert check_folder(make_model(), allow_remote_code=False)["model_type"] == "bert"


def test_names_and_shapes_come_from_the_header(make_model):
    assert tensor_names(make_model()) == {"embeddings.weight": (6, 4), "pooler.bias": (4,)}


def test_names_and_shapes_of_shards_are_joined(make_model, make_shards):
    folder = make_model()
    whole = tensor_names(folder)
    make_shards(folder)
    assert tensor_names(folder) == whole
    assert [path.name[:11] for path in weight_files(folder)] == ["model-00001", "model-00002"]


def test_weights_bytes_are_those_of_the_files(make_model, make_shards):
    folder = make_model()
    assert weights_bytes(folder) == (folder / "model.safetensors").stat().st_size
    make_shards(folder)
    assert weights_bytes(folder) == sum(path.stat().st_size for path in folder.glob("model-*"))


def test_what_the_library_writes_is_read(make_model):
    from safetensors.numpy import save_file

    folder = make_model()
    save_file({"a": np.zeros((2, 3), np.float16), "scalar": np.ones((), np.float32)}, folder / "model.safetensors")
    assert tensor_names(folder) == {"a": (2, 3), "scalar": ()}


def test_no_config(make_model, tmp_path):
    folder = make_model()
    (folder / "config.json").unlink()
    refused(folder, "no config.json in .*model, so it is no model folder$")
    refused(tmp_path, "no config.json")


def test_no_config_but_one_inside_is_told(make_model, tmp_path):
    make_model("inner")
    refused(tmp_path, "no config.json in .*; inner inside it has one$")


@pytest.mark.parametrize(("text", "told"), [("{", "config.json is not JSON: "), ("[]", "holds a list, not an object")])
def test_config_that_is_no_object(make_model, text, told):
    folder = make_model()
    (folder / "config.json").write_text(text)
    refused(folder, told)


def test_pickle_weights_only(make_model):
    folder = make_model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"pickle \(pytorch_model.bin\).*only safetensors are read.*transformers.BertModel.from_pretrained")


def test_training_state_is_no_weights(make_model):
    folder = make_model()
    (folder / "model.safetensors").rename(folder / "optimizer.pt")
    refused(folder, "no weights in .*neither model.safetensors nor model.safetensors.index.json$")


def test_weights_of_another_name(make_model):
    folder = make_model()
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    refused(folder, "no weights in .*weights.safetensors has a name that transformers does not look for")


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_truncated_weights(make_model, keep):
    path = make_model() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(path.parent, "is truncated")


def test_truncated_data_tells_both_sizes(make_model):
    path = make_model() / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-8])
    refused(path.parent, f"truncated: it has {size - 8} bytes, and its header promises {size}; fetch it again")


def test_weights_with_bytes_behind_their_end(make_model):
    path = make_model() / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    refused(path.parent, "is damaged: it has")


@pytest.mark.parametrize("header", [b"no json", b"[1]", b'{"a": 1}', b'{"a": {"shape": [1], "data_offsets": []}}'])
def test_a_header_that_cannot_be_read(make_model, header):
    path = make_model() / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(path.parent, "is no safetensors file: its header cannot be read")


def test_a_git_lfs_pointer(make_model):
    path = make_model() / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:53aa\nsize 90868376\n")
    refused(path.parent, "is a Git LFS pointer, not the weights: run `git lfs pull`")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_otherwise(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError):
        tensor_names(folder)


def test_a_missing_shard(make_model, make_shards):
    folder = make_model()
    make_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "names 2 files, of which 1 are missing: model-00002-of-00002.safetensors")


def test_a_shard_that_lacks_a_promised_tensor(make_model, make_shards, write_weights):
    folder = make_model()
    make_shards(folder)
    write_weights(folder / "model-00002-of-00002.safetensors", {"other": (4,)})
    refused(folder, r"promises 'pooler.bias' \(1 such tensors\), which no shard holds")


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"metadata": {}}, "has no weight_map"),
        ({"weight_map": {"a": 1}}, "has no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, "shards lie beside their index"),
    ],
)
def test_an_index_that_makes_no_sense(make_model, make_shards, index, told):
    folder = make_model()
    make_shards(folder)
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, told)


def test_no_tokenizer(make_model):
    folder = make_model()
    (folder / "vocab.txt").unlink()
    refused(folder, "no tokenizer in .*tokenizer.json.*must be there")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json"},
        {"spiece.model"},
        {"sentencepiece.bpe.model"},
        {"tokenizer.model"},
        {"vocab.json", "merges.txt"},
        {"vocab.json", "source.spm", "target.spm"},
    ],
)
def test_every_kind_of_tokenizer_is_known(make_model, files):
    folder = make_model()
    (folder / "vocab.txt").unlink()
    for name in files:
        (folder / name).touch()
    check_folder(folder, allow_remote_code=False)
    (folder / min(files)).unlink()
    refused(folder, "no tokenizer")


def test_a_tokenizer_of_bytes_needs_no_vocabulary(make_model):
    folder = make_model(tokenizer_config={"tokenizer_class": "ByT5Tokenizer"})
    (folder / "vocab.txt").unlink()
    check_folder(folder, allow_remote_code=False)


@pytest.mark.parametrize("name", ["config", "tokenizer_config"])
def test_remote_code_needs_its_key(make_model, name):
    folder = make_model()
    (folder / f"{name}.json").write_text(json.dumps({"auto_map": {"AutoModel": "mine.Mine"}}))
    refused(folder, f"{name}.json has an auto_map.*set `allow_remote_code: true`")
    check_folder(folder, allow_remote_code=True)


def test_code_of_another_repository_is_refused_even_where_code_is_allowed(make_model):
    folder = make_model(config={"auto_map": {"AutoModel": "else/where--mine.Mine"}})
    refused(folder, "takes code from another repository", allow_remote_code=True)


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "config", "window"),
    [
        (256, 512, {"model_type": "bert", "max_position_embeddings": 512}, 256),
        (None, 512, {"model_type": "bert", "max_position_embeddings": 512}, 512),
        (None, None, {"model_type": "bert", "max_position_embeddings": 512}, 512),
        (None, 10**30, {"model_type": "bert", "max_position_embeddings": 512}, 512),
        (None, 1e30, {"model_type": "t5"}, None),
        (1024, None, {"model_type": "bert", "max_position_embeddings": 512}, 512),
        (None, 512, {"model_type": "t5"}, 512),
        (None, None, {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        (None, None, {"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        (None, None, {"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        (None, None, {"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
        (None, None, {}, None),
        (None, 10**30, {"model_type": "gpt2", "n_positions": 1024}, 1024),
        (None, 10**30, {"model_type": "t5", "n_positions": 512}, None),
    ],
)
def test_the_window_is_the_sentence_models_else_the_tokenizers_within_the_positions(
    tmp_path, sentence, tokenizer, config, window
):
    if sentence is not None:
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": sentence}))
    if tokenizer is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokenizer}))
    assert window_tokens(tmp_path, config) == window


def sentence_model(folder, pooling, *kinds):
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"2_{kind}", kind) for kind in kinds)]
    entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("options", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"embedding_dimension": 384, "pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_pooling_is_what_the_sentence_model_says(tmp_path, options, pooling):
    sentence_model(tmp_path, options)
    assert pooling_of(tmp_path) == pooling


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "pooling_mode_weightedmean_tokens"),
        ({"pooling_mode": ["mean", "cls"]}, "mean + cls"),
        ({}, "none"),
    ],
)
def test_a_pooling_that_is_not_known(tmp_path, options, asked):
    sentence_model(tmp_path, options)
    with pytest.raises(ModelError, match=re.escape(f"asks for pooling {asked}; known are mean, cls, max, last")):
        pooling_of(tmp_path)


def test_a_plain_folder_says_nothing_of_pooling(make_model):
    assert pooling_of(make_model()) is None
    assert modules_of(make_model("other")) == []


def test_normalizing_is_a_module(tmp_path):
    sentence_model(tmp_path, {"pooling_mode": "mean"}, "Normalize")
    assert normalizes(tmp_path)
    assert modules_of(tmp_path) == [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


def test_without_that_module_nothing_is_normalized(tmp_path):
    sentence_model(tmp_path, {"pooling_mode": "mean"}, "Dense")
    assert not normalizes(tmp_path)


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ({"a": 1}, "is no list of modules"),
        ([{"path": "1_Pooling"}], "is no list of modules"),
        ([{"path": "../x", "type": "a.Pooling"}], "outside the model's folder"),
    ],
)
def test_a_list_of_modules_that_makes_no_sense(tmp_path, modules, told):
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=told):
        modules_of(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "encoder_decoder", "head"),
    [
        ("BertModel", False, "encoder"),
        ("BertForMaskedLM", False, "encoder"),
        ("T5EncoderModel", True, "encoder"),
        ("DistilBertForSequenceClassification", False, "sequence_classification"),
        ("BartForSequenceClassification", True, "sequence_classification"),
        ("BertForTokenClassification", False, "token_classification"),
        ("T5ForConditionalGeneration", True, "seq2seq"),
        ("PegasusForConditionalGeneration", False, "seq2seq"),
        ("MarianMTModel", True, "seq2seq"),
        ("LlamaForCausalLM", False, "causal"),
        ("GPT2LMHeadModel", False, "causal"),
        ("BertForQuestionAnswering", False, None),
    ],
)
def test_the_head_is_told_by_the_architecture(architecture, encoder_decoder, head):
    assert task_of_head({"architectures": [architecture], "is_encoder_decoder": encoder_decoder}) == head


def test_a_config_without_architectures_tells_no_head():
    assert task_of_head({}) is None
    assert task_of_head({"architectures": None}) is None


def test_the_official_sentence_model(minilm):
    config = check_folder(minilm, allow_remote_code=False)
    assert read_config(minilm) == config
    assert tensor_names(minilm)["embeddings.word_embeddings.weight"] == (30522, 384)
    assert weights_bytes(minilm) == 90_868_376
    assert window_tokens(minilm, config) == 256
    assert (pooling_of(minilm), normalizes(minilm), task_of_head(config)) == ("mean", True, "encoder")
