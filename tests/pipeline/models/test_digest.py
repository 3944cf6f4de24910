import hashlib
import json
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError
from pipeline.models.digest import digest_files, digest_of, file_digests, tokenizer_digest


def names(folder):
    return [path.relative_to(folder).as_posix() for path in digest_files(folder)]


def test_weights_config_and_tokenizer_count(make_model):
    assert names(make_model()) == ["config.json", "model.safetensors", "vocab.txt"]


def test_shards_count_with_their_index(make_model, make_shards):
    folder = make_model()
    make_shards(folder)
    assert names(folder) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "vocab.txt",
    ]


@pytest.mark.parametrize(
    "other", ["README.md", ".gitattributes", "onnx/model.onnx", "pytorch_model.bin", "other.safetensors", "run.py"]
)
def test_what_decides_nothing_does_not_count(make_model, other):
    folder = make_model()
    before = digest_of(file_digests(folder))
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_text("anything")
    assert digest_of(file_digests(folder)) == before


@pytest.mark.parametrize(
    "counted", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.txt", "config.json"]
)
def test_what_decides_the_output_counts(make_model, counted):
    folder = make_model()
    before = digest_of(file_digests(folder))
    (folder / counted).write_text('{"a": 1}')
    assert digest_of(file_digests(folder)) != before


def test_the_parts_of_a_sentence_model_count(make_model):
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    folder = make_model(modules=modules)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    assert names(folder) == ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "vocab.txt"]


def test_code_counts_where_an_auto_map_runs_it(make_model):
    folder = make_model(config={"auto_map": {"AutoModel": "mine.Mine"}})
    (folder / "mine.py").write_text("class Mine: ...")
    assert "mine.py" in names(folder)


def test_the_digest_is_what_sha256sum_tells(make_model):
    folder = make_model()
    by_hand = subprocess.run(
        f"sha256sum {' '.join(names(folder))} | sha256sum", shell=True, cwd=folder, capture_output=True, check=True
    )
    assert digest_of(file_digests(folder)) == by_hand.stdout.decode().split()[0]


def test_the_folders_place_does_not_count(make_model):
    assert digest_of(file_digests(make_model("here"))) == digest_of(file_digests(make_model("there")))


def test_a_file_of_several_chunks_is_hashed_whole(make_model):
    folder = make_model()
    (folder / "vocab.txt").write_bytes(b"0123456789" * 500_000)
    assert file_digests(folder)["vocab.txt"] == hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest()


files = st.dictionaries(
    st.text(min_size=1, max_size=8), st.binary(max_size=4).map(lambda b: hashlib.sha256(b).hexdigest())
)


@settings(max_examples=50, deadline=None)
@given(files=files, other=files)
def test_the_digest_depends_on_the_files_and_not_on_their_order(files, other):
    assert digest_of(dict(reversed(list(files.items())))) == digest_of(files)
    assert (digest_of(files) == digest_of(other)) == (files == other)


def test_the_official_sentence_model(minilm):
    files = file_digests(minilm)
    assert files["model.safetensors"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert json.dumps(sorted(files)) == json.dumps(list(files))
    assert "README.md" not in files
    assert len(digest_of(files)) == 64


def test_of_a_gguf_model_the_file_alone_counts(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert file_digests(tmp_path, "m.gguf") == {"m.gguf": hashlib.sha256(b"GGUF").hexdigest()}


def test_a_file_that_changed_is_hashed_again(make_model):
    folder = make_model()
    before = file_digests(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nword\nmore\n")
    assert file_digests(folder)["vocab.txt"] != before["vocab.txt"]


TOKENIZER = {"normalizer": {"type": "BertNormalizer"}, "model": {"vocab": {"a": 0, "b": 1}}}


def test_models_of_equal_tokenizers_share_a_tokenizer_digest(make_model):
    first = make_model("first", tokenizer=TOKENIZER, tokenizer_config={"tokenizer_class": "BertTokenizer"})
    second = make_model(
        "second",
        config={"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
        tokenizer={
            "truncation": {"max_length": 128},
            "padding": {"strategy": {"Fixed": 128}},
            "model": {"vocab": {"b": 1, "a": 0}},
            "normalizer": {"type": "BertNormalizer"},
        },
        tokenizer_config={
            "model_max_length": 512, "name_or_path": "x/y", "tokenizer_class": "BertTokenizer",
            "padding_side": "left", "clean_up_tokenization_spaces": True,
        },
    )  # fmt: skip
    (second / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes()[:-1] + b"1")
    assert digest_of(file_digests(first)) != digest_of(file_digests(second))
    assert tokenizer_digest(first) == tokenizer_digest(second)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\nother\n"),
        ("merges.txt", "a b\n"),
        ("other.spm", "sentencepiece"),
        ("added_tokens.json", '{"x": 9}'),
        ("chat_template.jinja", "{{ messages }}"),
        ("tokenizer.json", json.dumps(TOKENIZER | {"normalizer": None})),
        ("tokenizer.json", json.dumps(TOKENIZER | {"model": {"vocab": {"a": 1, "b": 0}}})),
        ("tokenizer_config.json", '{"do_lower_case": false}'),
        ("config.json", '{"model_type": "roberta"}'),
    ],
)
def test_what_may_change_tokens_changes_the_tokenizer_digest(make_model, name, content):
    folder = make_model(tokenizer=TOKENIZER)
    before = tokenizer_digest(folder)
    (folder / name).write_text(content)
    assert tokenizer_digest(folder) != before


def test_code_in_a_subfolder_decides_tokens_too(make_model):
    folder = make_model(config={"auto_map": {"AutoModel": "code.mine.Mine"}})
    (folder / "code").mkdir()
    for name in ("mine.py", "code/mine.py"):
        (folder / name).write_text("first = 1\n")
    before = tokenizer_digest(folder)
    (folder / "code/mine.py").write_text("second = 2\n")
    changed = tokenizer_digest(folder)
    (folder / "mine.py").unlink()
    assert len({before, changed, tokenizer_digest(folder)}) == 3


def test_a_tokenizer_file_that_is_no_json_is_told(make_model):
    folder = make_model()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer.json is not JSON"):
        tokenizer_digest(folder)


def test_two_real_tokenizers_differ(minilm, repository):
    other = repository.parent / "shared/models/minilm-pii-ner"
    if not other.is_dir():
        pytest.skip("needs the development model ../shared/models/minilm-pii-ner")
    assert tokenizer_digest(minilm) != tokenizer_digest(other)
