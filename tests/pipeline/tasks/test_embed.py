import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
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


WINDOW = 32


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers", reason="the reference for embeddings is not installed")


@pytest.fixture
def sentence_model(tiny, tmp_path):
    """A sentence-transformers folder of a real family, as the library of 2026 saves it."""

    def make(family, modes, normalize=False, include_prompt=True, **options):
        folder = tmp_path / f"{family}-{'-'.join(modes)}"
        shutil.copytree(tiny(family), folder)
        kinds = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
        modules = [
            {
                "idx": place,
                "name": str(place),
                "path": f"{place}_{kind}" if place else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for place, kind in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 32, "include_prompt": include_prompt, **dict.fromkeys(modes, True)}
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": WINDOW}))
        if options:
            (folder / "config_sentence_transformers.json").write_text(json.dumps(options))
        return folder

    return make


def compared(library, task, folder, texts, **options):
    """Our vectors and the library's of the texts that did not fail."""
    model = library.SentenceTransformer(str(folder), device="cpu")
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    column = task.annotate(Texts(list(texts))).columns["embedding"]
    kept = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    assert len(kept) >= len(texts) * 0.8
    theirs = model.encode([texts[row] for row in kept], show_progress_bar=False, **options)
    return np.array(column.take(pa.array(kept)).to_pylist()), theirs


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        ("gpt2", "pooling_mode_lasttoken"),
        ("llama", "pooling_mode_lasttoken"),
        ("qwen2", "pooling_mode_lasttoken"),
        ("qwen3", "pooling_mode_lasttoken"),
        ("qwen3", "pooling_mode_mean_tokens"),
        ("xlm-roberta", "pooling_mode_cls_token"),
        ("mpnet", "pooling_mode_mean_tokens"),
        ("modernbert", "pooling_mode_max_tokens"),
        ("deberta-v3", "pooling_mode_lasttoken"),
    ],
)
def test_families_have_the_vectors_of_sentence_transformers(library, sentence_model, start, texts, family, mode):
    folder = sentence_model(family, [mode], normalize=mode == "pooling_mode_lasttoken")
    ours, theirs = compared(library, start(Embed, folder, token_budget=2048), folder, texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


PROMPTS = {"query": "Ein Zug: ", "passage": "train ", "none": ""}


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize(
    ("family", "mode"),
    [
        ("bert", "pooling_mode_mean_tokens"),
        ("qwen2", "pooling_mode_mean_tokens"),
        ("roberta", "pooling_mode_max_tokens"),
        ("llama", "pooling_mode_lasttoken"),
        ("bert", "pooling_mode_cls_token"),
    ],
)
def test_the_folders_prompts_stand_before_each_text_and_count_or_not(
    library, sentence_model, start, texts, family, mode, include_prompt
):
    folder = sentence_model(
        family, [mode], include_prompt=include_prompt, prompts=PROMPTS, default_prompt_name="passage"
    )
    few = texts[::4]
    for asked, theirs in [
        ({}, {}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"prefix": "abc "}, {"prompt": "abc "}),
        ({"prefix": ""}, {"prompt": ""}),
        ({"prompt_name": "none"}, {"prompt": ""}),
    ]:
        ours, expected = compared(library, start(Embed, folder, **asked), folder, few, **theirs)
        of_text = (expected != 0).any(1)  # the library makes nothing but zeros of a text that merges with its prompt
        assert of_text.sum() >= len(of_text) - 1
        np.testing.assert_allclose(ours[of_text], expected[of_text], atol=1e-4, err_msg=str(asked))


def test_minilm_is_quantised_as_by_sentence_transformers(library, minilm, start, texts):
    few = [text[:400] for text in texts][::5]
    exact, theirs = compared(library, start(Embed, minilm, token_budget=2048), minilm, few)
    np.testing.assert_allclose(exact, theirs, atol=1e-5)

    def quantised(output):
        task = start(Embed, minilm, token_budget=2048, output=output)
        column = task.annotate(Texts(few)).columns["embedding"]
        assert column.type == task.fields()[0].type
        return np.array([row for row in column.to_pylist() if row is not None])

    np.testing.assert_allclose(quantised("float16"), theirs, atol=1e-3)

    ours = quantised("int8")
    np.testing.assert_array_equal(ours, np.rint(exact.astype(np.float32) * np.float32(127)))
    ranges = np.array([[-1.0] * 384, [1.0] * 384], np.float32)
    far = ours - library.util.quantize_embeddings(theirs, "int8", ranges=ranges)
    assert (far.min(), far.max()) >= (0, 1)
    assert far.max() <= 2
    assert (unit(ours.astype(np.float32)) * theirs).sum(1).min() > 0.995

    # A bit of a number near 0 may fall either way; three of MiniLM's are always so.
    clear = np.packbits(np.abs(theirs) > 1e-5, axis=1) == 255
    assert clear.mean() > 0.9
    for output in ("binary", "ubinary"):
        expected = library.util.quantize_embeddings(theirs, output)
        np.testing.assert_array_equal(quantised(output)[clear], expected[clear], err_msg=output)


def test_quantised_vectors_come_after_cut_and_length(make_encoder, start, sentences):
    exact = vectors(start(Embed, make_encoder(), truncate_dim=16, normalize=True), sentences)
    task = start(Embed, make_encoder(), truncate_dim=16, normalize=True, output="int8")
    assert task.fields() == [pa.field("embedding", pa.list_(pa.int8(), 16))]
    np.testing.assert_array_equal(vectors(task, sentences), np.rint(exact * np.float32(127)))
    task = start(Embed, make_encoder(), truncate_dim=16, output="ubinary")
    assert task.fields() == [pa.field("embedding", pa.list_(pa.uint8(), 2))]
    np.testing.assert_array_equal(vectors(task, sentences), np.packbits(exact > 0, axis=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"output": "binary", "truncate_dim": 12},
            "packs 8 numbers into a byte, and 12 is no .*`truncate_dim: 8`",
        ),
        ({"output": "ubinary", "truncate_dim": 3}, "and 3 is no multiple of 8: set `truncate_dim: 8`"),
        ({"output": "int8"}, "the vectors of .* are not brought to length 1: set `normalize: true`"),
    ],
)
def test_an_output_that_these_vectors_cannot_have_is_refused(make_encoder, prepare, options, words):
    with pytest.raises(JobError, match=f"annotation 'found': output: .*{words}"):
        prepare(Embed, make_encoder(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "a", "prompt_name": "b"}, "prefix and prompt_name exclude each other"),
        ({"output": "int8", "normalize": False}, "output: int8 keeps numbers from -1 to 1, so it needs vectors of len"),
        ({"output": "int4"}, "Input should be 'float32', 'float16', 'int8', 'binary' or 'ubinary'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        Embed.Config.model_validate({"name": "a", "task": "embed", "text": "b", "model": "c", **options})
    assert words in str(told.value)


def test_a_prompt_that_the_folder_has_not_is_refused(sentence_model, make_encoder, prepare):
    folder = sentence_model("bert", ["pooling_mode_cls_token"], prompts=PROMPTS)
    with pytest.raises(JobError, match="no prompt 'qeury'; did you mean 'query'\\? it has query, passage, none"):
        prepare(Embed, folder, prompt_name="qeury")
    with pytest.raises(JobError, match="no prompt 'query'; it has none"):
        prepare(Embed, make_encoder(), prompt_name="query")
    folder = sentence_model("bert", ["pooling_mode_mean_tokens"], prompts={}, default_prompt_name="passage")
    with pytest.raises(ModelError, match="has no prompt 'passage', its default_prompt_name: say with `prefix:`"):
        prepare(Embed, folder)
    assert prepare(Embed, folder, prefix="a").prefix() == "a"


def test_a_prompt_that_leaves_no_room_or_that_windows_would_lack_is_refused(sentence_model, start):
    folder = sentence_model("bert", ["pooling_mode_mean_tokens"], include_prompt=False)
    with pytest.raises(
        JobError, match=r"the prompt 'a a a .* has 40 tokens, which leaves no room for a text in a window"
    ):
        start(Embed, folder, prefix="a " * 40)
    with pytest.raises(JobError, match=r"the prompt 'a ' must not be pooled, as .* says, and only the first window"):
        start(Embed, folder, prefix="a ", long_text="windows")
