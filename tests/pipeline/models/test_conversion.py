"""A model is converted here or in a process apart alike; what it cannot be is told in words."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from pipeline.errors import ModelError
from pipeline.models import conversion, graphs
from pipeline.models.engines import OF_TEXTS, OUTPUTS
from pipeline.models.first_token import read_first_token
from pipeline.models.loading import load
from pipeline.models.open_vino import opened
from pipeline.models.pretrained import config_of, wide_module
from pipeline.models.reference import ModelSettings, PinnedModel, pin
from pipeline.models.rows import PackedRows
from tests.pipeline.families.factory import BERT_SIZES, DISTILBERT_SIZES

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")

Make = Callable[..., Path]


@pytest.fixture
def pinned(make_encoder: Make) -> PinnedModel:
    return pin(ModelSettings(ref=str(make_encoder())))


def test_apart_it_is_what_it_is_here_and_says_what_torch_says(
    pinned: PinnedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUSMILL_CACHE", str(tmp_path))
    (tmp_path / "pipeline.py").write_text("raise SystemExit('a module of the user with a name of ours')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('a library that prints')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    here_alone = conversion.convert
    monkeypatch.setattr(conversion, "convert", None)  # it happens elsewhere
    loaded = load(pinned, "AutoModel", "float32", "cpu", 1, 256, "openvino", apart=True)
    (told,) = tmp_path.glob("graphs/*/graph.json")
    apart, here = graphs.read(told.parent), tmp_path / "here"
    here.mkdir()
    module = wide_module(pinned, "AutoModel")
    here_alone(module, "AutoModel", here)
    graph = graphs.read(here)
    assert apart is not None
    assert graph is not None
    assert (apart.made_of, apart.layers) == (graph.made_of, graph.layers)
    assert apart.weights.read_bytes() == graph.weights.read_bytes()
    assert list(graph.said().outputs) == ["last_hidden_state"]
    for name, values in graph.said().outputs.items():
        assert np.array_equal(apart.said().outputs[name], values)

    ids_BL = torch.tensor([[2, 9, 8, 3]])
    found = loaded.module(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).last_hidden_state
    with torch.inference_mode():
        wanted = module(input_ids=ids_BL).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert loaded.pad_id == 0


def test_it_tells_what_torch_says_of_texts_of_several_lengths(pinned: PinnedModel, tmp_path: Path) -> None:
    module = wide_module(pinned, "AutoModel")
    conversion.convert(module, "AutoModel", tmp_path)
    graph = graphs.read(tmp_path)
    assert graph is not None
    said = graph.said()
    inputs = {name: torch.from_numpy(values) for name, values in said.inputs.items()}
    assert len(set(inputs["attention_mask"].sum(1).tolist())) == len(inputs["attention_mask"]) > 1
    with torch.inference_mode():
        wanted = module(**inputs).last_hidden_state
    torch.testing.assert_close(torch.from_numpy(said.outputs["last_hidden_state"]), wanted)
    layers = {name for name, part in module.named_modules() if type(part) is nn.Linear}
    assert set(graph.layers.values()) == layers


SMALL = {"vocab_size": 100, "max_position_embeddings": 42, **BERT_SIZES}
ROBERTA = {**SMALL, "pad_token_id": 1}  # positions count from 2, so texts have 40 tokens at most


@pytest.mark.parametrize(
    ("auto_class", "config", "in_rows"),
    [
        ("AutoModel", transformers.BertConfig(**SMALL), True),
        ("AutoModel", transformers.BertConfig(**SMALL, attn_implementation="eager"), False),
        ("AutoModelForSequenceClassification", transformers.BertConfig(**SMALL, num_labels=16), True),
        ("AutoModelForTokenClassification", transformers.RobertaConfig(**ROBERTA, num_labels=3), True),
        ("AutoModelForSequenceClassification", transformers.XLMRobertaConfig(**ROBERTA, num_labels=1), True),
        ("AutoModelForQuestionAnswering", transformers.ElectraConfig(**SMALL, embedding_size=16), True),
        ("AutoModelForQuestionAnswering", transformers.CamembertConfig(**ROBERTA), True),
        ("AutoModel", transformers.DistilBertConfig(vocab_size=100, **DISTILBERT_SIZES), True),
        ("AutoModel", transformers.AlbertConfig(**SMALL, embedding_size=16), False),
    ],
)
def test_a_family_that_may_becomes_a_graph_in_rows_and_says_of_texts_of_any_length_what_torch_says(
    auto_class: str, config: transformers.PreTrainedConfig, in_rows: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    how = {"attn_implementation": config._attn_implementation} if config._attn_implementation else {}
    module = getattr(transformers, auto_class).from_config(config, **how).eval()
    read_first_token(module)
    conversion.convert(module, auto_class, tmp_path)
    graph = graphs.read(tmp_path)
    assert graph is not None
    assert graph.in_rows == in_rows
    made = opened(lambda: nullcontext(graph), config, auto_class, "float32", 1)
    pad_id = int(config.pad_token_id or 0)
    for lengths in ([1], [1, 1, 1], [40, 7], [17, 16, 15, 3], [5] * 16, [33]):
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids = torch.randint(3, 100, real.shape).masked_fill(~real, pad_id)
        with torch.inference_mode():
            wanted = module(input_ids=ids, attention_mask=real.long())
        masked = made(input_ids=ids, attention_mask=real.long())
        told = made(input_ids=ids, rows=PackedRows.of(lengths, "cpu")) if in_rows else masked
        for name in OUTPUTS[auto_class]:
            some = slice(None) if auto_class in OF_TEXTS else real
            for found in (masked, told):
                torch.testing.assert_close(getattr(found, name)[some], wanted[name][some], rtol=1e-3, atol=1e-3)


def test_what_a_process_apart_refuses_is_refused_here_in_its_words(pinned: PinnedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model '.*' lacks 2 weights that BertForSequenceClassification needs"):
        conversion.convert_apart(pinned, "AutoModelForSequenceClassification", tmp_path)
    assert graphs.read(tmp_path) is None


def test_a_process_apart_that_dies_is_told(
    pinned: PinnedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho first >&2\necho last >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(ModelError, match=r"was not converted .* ended with -9: last; set `engine: torch`"):
        conversion.convert_apart(pinned, "AutoModel", tmp_path)


def test_a_process_that_cannot_be_started_or_has_no_end_is_told(
    pinned: PinnedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"was not converted to OpenVINO: .*No such file.*; set `engine: torch`"):
        conversion.convert_apart(pinned, "AutoModel", tmp_path)
    endless = tmp_path / "python"
    endless.write_text("#!/bin/sh\nexec sleep 60\n")
    endless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(endless))
    monkeypatch.setattr(conversion, "LONGEST_SECONDS", 0.2)
    with pytest.raises(ModelError, match=r"was not converted to OpenVINO: .*timed out after 0.2 seconds"):
        conversion.convert_apart(pinned, "AutoModel", tmp_path)


def test_it_ends_where_who_asked_has_ended() -> None:
    """Whose process id is another one by then."""
    code = "from pipeline.models.conversion import main; main()"
    wish = '{"asked_by": 1, "model": {}, "auto_class": "AutoModel", "folder": "none"}'
    ended = subprocess.run(
        [sys.executable, "-c", code], input=wish, capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.strip().endswith("who asked has ended")


def test_a_config_that_cannot_be_read_is_told(pinned: PinnedModel) -> None:
    odd = replace(pinned, folder=str(Path(pinned.folder) / "none"))
    with pytest.raises(ModelError, match=r"its config\.json cannot be read: "):
        config_of(odd)


def test_what_cannot_be_written_is_told_apart_from_what_cannot_be_converted(
    pinned: PinnedModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="none cannot be written"):
        conversion.convert(wide_module(pinned, "AutoModel"), "AutoModel", tmp_path / "file" / "none")


def test_a_model_that_cannot_be_converted_is_refused_in_words(
    pinned: PinnedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise RuntimeError("no rule for aten::odd\nand more")

    monkeypatch.setattr(conversion, "_graph", refuse)
    with pytest.raises(ModelError, match=r"BertModel cannot be converted .* RuntimeError: no rule for aten::odd; set"):
        conversion.convert(wide_module(pinned, "AutoModel"), "AutoModel", tmp_path)


def test_layers_of_a_model_with_a_head_are_those_of_its_body() -> None:
    config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    nodes = conversion.linear_nodes(transformers.BertForSequenceClassification(config))
    assert nodes["__module.module.bert.encoder.layer.0.output.dense"] == "encoder.layer.0.output.dense"
    assert not any("classifier" in name for name in nodes)
    assert conversion.linear_nodes(nn.Sequential(nn.Linear(2, 2))) == {}
