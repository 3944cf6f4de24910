import importlib.util
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError
from pipeline.models import gguf
from pipeline.models.gguf import check_file, read_header
from pipeline.models.reference import ModelSettings, pin

INSTALLED = all(importlib.util.find_spec(package) for package in ("gguf", "accelerate"))
needs_packages = pytest.mark.skipif(not INSTALLED, reason='GGUF is not installed: pip install "corpusmill[gguf]"')

TOKENS = ["<s>", "</s>", *(chr(ord("a") + letter) for letter in range(13)), "ab"]
METADATA = {"general.architecture": "llama", "llama.context_length": 64, "tokenizer.ggml.tokens": TOKENS}
Q4_1 = 3


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(content):
    match content:
        case bool():
            return struct.pack("<I?", 7, content)
        case int():
            return struct.pack("<Iq", 11, content)
        case float():
            return struct.pack("<Id", 12, content)
        case str():
            return struct.pack("<I", 8) + string(content)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(string, content))
        case _:
            return struct.pack(f"<IIQ{len(content)}i", 9, 5, len(content), *content)


def write(path, metadata=METADATA, tensors=(), version=3):
    """A GGUF file by hand, as its specification has it; a tensor is (name, shape, type, bytes)."""
    table, data = b"", b""
    for name, shape, kind, content in tensors:
        table += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += content + bytes(-len(content) % 32)
    entries = b"".join(string(key) + value(content) for key, content in metadata.items())
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + entries + table
    path.write_bytes(header + bytes(-len(header) % 32) + data if tensors else header)
    return path


def refused(path, message, check=read_header):
    with pytest.raises(ModelError, match=message):
        check(path)


def test_the_config_comes_from_the_header(tmp_path):
    ids = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0, "llama.embedding_length": 32}
    header = read_header(write(tmp_path / "m.gguf", METADATA | ids, [("w", (32, 2), Q4_1, bytes(40))]))
    assert header.config == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "is_encoder_decoder": False,
        "max_position_embeddings": 64,
        "hidden_size": 32,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "vocab_size": len(TOKENS),
    }
    assert (header.parameters, header.weights_bytes) == (64, 256)


@settings(max_examples=60, deadline=None)
@given(
    metadata=st.dictionaries(
        st.text(max_size=9),
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.text(max_size=9)
        | st.lists(st.text(max_size=5), min_size=1, max_size=4)
        | st.lists(st.integers(0, 99), max_size=4),
        max_size=6,
    )
)
def test_every_kind_of_value_is_read_and_arrays_by_their_length(tmp_path_factory, metadata):
    path = write(tmp_path_factory.mktemp("gguf") / "m.gguf", metadata)
    told = {key: len(content) if isinstance(content, list) else content for key, content in metadata.items()}
    assert read_header(path).metadata == told


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path):
    whole = write(tmp_path / "whole.gguf", tensors=[("w", (32, 2), Q4_1, bytes(40))]).read_bytes()
    cut = tmp_path / "cut.gguf"
    for keep in range(4, len(whole) - 24):  # the last block is padded to 32 bytes
        cut.write_bytes(whole[:keep])
        refused(cut, "cut.gguf is (damaged or )?truncated")
    cut.write_bytes(whole[: len(whole) - 24])
    assert read_header(cut).parameters == 64


def test_what_is_no_gguf_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04")
    refused(path, "is no GGUF file: it does not begin with GGUF")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, "is a Git LFS pointer, not the weights")
    refused(write(path, version=1), "is GGUF version 1; versions 2 and 3 can be read")


@needs_packages
def test_a_part_of_a_file_and_a_file_without_tokenizer_are_refused(tmp_path):
    refused(write(tmp_path / "m.gguf", METADATA | {"split.count": 3}), "one of 3 parts: merge them", check_file)
    refused(write(tmp_path / "m.gguf", {"general.architecture": "llama"}), "holds no tokenizer", check_file)


def test_without_the_packages_the_extra_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "_PACKAGES", ("no_such_package",))
    refused(
        write(tmp_path / "m.gguf"),
        r'm.gguf is a GGUF file, and no_such_package to read it .* pip install "corpusmill\[gguf\]"',
        check_file,
    )


@needs_packages
def test_a_file_is_pinned_by_its_path_or_inside_a_package(tmp_path, monkeypatch):
    (tmp_path / "site/shelf").mkdir(parents=True)
    path = write(tmp_path / "site/shelf/small.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site/shelf/__init__.py").touch()
    by_path, by_wheel = pin(ModelSettings(ref=str(path))), pin(ModelSettings(ref="wheel:shelf/small.gguf"))
    assert by_path.digest == by_wheel.digest == by_path.tokenizer_digest
    assert (by_path.folder, by_path.gguf_file) == (by_wheel.folder, by_wheel.gguf_file) == (str(path.parent), path.name)
    with pytest.raises(ModelError, match=r"with a config.json: wheel:shelf/small.gguf$"):
        pin(ModelSettings(ref="wheel:shelf/smal.gguf"))
    with pytest.raises(ModelError, match=r"expects 0+, the model has .*, its small.gguf [0-9a-f]{64}"):
        pin(ModelSettings(ref=str(path), sha256="0" * 64))


@needs_packages
def test_a_file_of_a_hub_model_comes_alone(tmp_path, hub):
    content = write(tmp_path / "m.gguf").read_bytes()
    commit = hub.publish("org/quants", {"m.gguf": content, "other.gguf": content, "README.md": b"#"})
    code = (
        "import json, sys\n"
        "from pipeline.errors import ModelError\n"
        "from pipeline.models.reference import ModelSettings, at_commit, pin\n"
        "pinned = pin(ModelSettings(ref='hub:org/quants@main/m.gguf'))\n"
        "again = pin(ModelSettings(ref=at_commit(pinned.ref, pinned.revision)))\n"
        "try:\n"
        "    pin(ModelSettings(ref='hub:org/quants@main/n.gguf'))\n"
        "except ModelError as fault:\n"
        "    print(json.dumps([pinned.revision, pinned.gguf_file, again.digest == pinned.digest, str(fault)]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(tmp_path / "home"), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    revision, name, same, fault = json.loads(run.stdout)
    assert (revision, name, same) == (commit, "m.gguf", True)
    assert f"org/quants has no file 'n.gguf' at {commit}; GGUF files there: m.gguf, other.gguf" in fault
    assert hub.downloads() == {"m.gguf": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny Llama, and the GGUF file that llama.cpp's converter would make of it: rows of q and k are reordered."""
    pytest.importorskip("gguf", reason='pip install "corpusmill[gguf]"')
    pytest.importorskip("accelerate", reason='pip install "corpusmill[gguf]"')
    import torch
    import transformers
    from gguf import GGUFWriter, TokenType

    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
        "model.layers.": "blk.",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        weights = tensor.numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads is not None:
            rows, columns = weights.shape
            weights = weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, np.ascontiguousarray(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, path


def load(path, dtype, auto_class="AutoModelForCausalLM"):
    from pipeline.models import loading

    return loading.load(pin(ModelSettings(ref=str(path))), auto_class, dtype, "cpu", threads=1, token_budget=64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_file_computes_what_the_model_computed_that_it_was_made_of(tiny, dtype, capfd):
    import torch

    model, path = tiny
    loaded = load(path, dtype)
    assert {weights.dtype for weights in loaded.module.parameters()} == {getattr(torch, dtype)}
    ids = torch.tensor([[3, 4, 5, 6, 7, 2]])
    with torch.inference_mode():
        expected, logits = model(ids).logits, loaded.module(ids).logits.float()
    assert torch.allclose(logits, expected, atol=1e-5 if dtype == "float32" else 2e-2)
    assert (loaded.pad_id, loaded.tokenizer.chat_template) == (1, "{{ messages[0]['content'] }}")
    assert capfd.readouterr() == ("", "")


def test_a_file_may_serve_as_an_encoder(tiny):
    assert type(load(tiny[1], "float32", "AutoModel").module).__name__ == "LlamaModel"


def test_a_way_of_splitting_that_nobody_knows_is_refused(tiny, tmp_path):
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny[1].read_bytes().replace(string("smollm"), string("smolln")))
    with pytest.raises(ModelError, match="its tokenizer splits text as 'smolln', which is not known here"):
        load(path, "float32")
