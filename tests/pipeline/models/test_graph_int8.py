"""Encoders whose graph is quantised: nearly the numbers of float32, products of bytes, and refusals in words."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.graph_int8 import quantize_graph
from pipeline.models.int8 import watched
from pipeline.models.ranges import Range, from_bytes, to_bytes
from tests.pipeline.families.factory import BERT_SIZES, DISTILBERT_SIZES

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")

import openvino

from pipeline.models.conversion import convert
from pipeline.models.graphs import Graph
from pipeline.models.graphs import read as graph_in
from pipeline.models.open_vino import OpenVinoModule, opened

SMALL = {"vocab_size": 100, **BERT_SIZES}
MODELS = {
    "bert": ("AutoModel", transformers.BertConfig(**SMALL)),
    "bert, another activation": ("AutoModel", transformers.BertConfig(**SMALL, hidden_act="relu")),
    "a classifier": ("AutoModelForSequenceClassification", transformers.RobertaConfig(**SMALL, num_labels=3)),
    "distilbert": (
        "AutoModel",
        transformers.DistilBertConfig(vocab_size=100, **DISTILBERT_SIZES),
    ),
}


def made(kind: str) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    auto_class, config = MODELS[kind]
    return auto_class, getattr(transformers, auto_class).from_config(config).eval()


def looked_at(module: nn.Module) -> dict[str, Range]:
    ids_BL = torch.randint(3, 100, (5, 21), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), watched(module) as ranges:
        module(input_ids=ids_BL)
    return from_bytes(to_bytes(ranges))


def converted(module: nn.Module, auto_class: str, folder: Path) -> Graph:
    convert(module, auto_class, folder)
    graph = graph_in(folder)
    assert graph is not None
    return graph


def in_int8(graph: Graph, auto_class: str, ranges: dict[str, Range]) -> OpenVinoModule:
    return opened(lambda: nullcontext(graph), None, auto_class, "int8", 1, ranges)


def as_read(graph: Graph) -> Any:
    return openvino.Core().read_model(graph.xml)


@pytest.mark.parametrize("kind", MODELS)
def test_a_quantised_graph_says_nearly_what_the_module_says(kind: str, tmp_path: Path) -> None:
    auto_class, module = made(kind)
    graph = in_int8(converted(module, auto_class, tmp_path), auto_class, looked_at(module))
    name = graph.outputs[0]
    for shape in ((1, 7), (4, 3)):
        inputs = {"input_ids": torch.randint(3, 100, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
        with torch.inference_mode():
            wanted = module(**inputs)[name].flatten(0, -2)
        found = getattr(graph(**inputs), name).flatten(0, -2)
        # A bias that does not take back what a GELU's outputs were raised by is off by five times as much.
        least = 0.999 if kind == "a classifier" else 0.9999
        assert float(nn.functional.cosine_similarity(found, wanted).min()) > least
        assert not torch.allclose(found, wanted, rtol=1e-5, atol=1e-6), "it was computed in float32"


def test_padding_is_seen_by_nobody(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = transformers.BertModel(transformers.BertConfig(**SMALL, initializer_range=0.2)).eval()  # sharp attention
    graph = in_int8(converted(module, "AutoModel", tmp_path), "AutoModel", looked_at(module))
    real = torch.arange(21) < torch.tensor([21, 2, 9])[:, None]
    inputs = {"input_ids": torch.randint(3, 100, real.shape) * real, "attention_mask": real.long()}
    with torch.inference_mode():
        wanted = module(**inputs).last_hidden_state[real]
    found = graph(**inputs).last_hidden_state[real]
    assert float(nn.functional.cosine_similarity(found, wanted).mean()) > 0.99


def test_what_reads_the_same_is_rounded_once_and_weights_are_bytes(tmp_path: Path) -> None:
    auto_class, module = made("bert")
    kept = converted(module, auto_class, tmp_path)
    graph = as_read(kept)
    layers = sum(type(part) is nn.Linear for part in module.modules()) - 1  # nobody reads what the pooler says
    assert quantize_graph(graph, kept, looked_at(module)) == layers == 12
    nodes = graph.get_ordered_ops()
    rounded = [node for node in nodes if node.get_type_name() == "FakeQuantize"]
    assert len(rounded) == 8, "of a layer: query, key and value together, and three more"
    after_gelu = [
        node for node in rounded if node.input_value(0).get_node().input_value(0).get_node().get_type_name() == "Gelu"
    ]
    bounds = {tuple(float(node.input_value(at).get_node().get_data().item()) for at in (1, 2)) for node in after_gelu}
    assert len(after_gelu) == 2
    assert len(bounds) == 1, "layers share what rounds"
    assert next(iter(bounds))[0] == 0, "no zero point"
    bytes_ = [
        node
        for node in nodes
        if node.get_type_name() == "Constant" and str(node.get_element_type()) == "<Type: 'int8_t'>"
    ]
    assert len(bytes_) == layers


def test_a_graph_compiled_anew_is_quantised_again(tmp_path: Path) -> None:
    auto_class, module = made("bert")
    graph = in_int8(converted(module, auto_class, tmp_path), auto_class, looked_at(module))
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    before = graph(**inputs).last_hidden_state
    graph._begin()
    assert torch.equal(graph(**inputs).last_hidden_state, before)


def test_layers_that_nobody_watched_stay_and_a_model_without_any_is_refused(tmp_path: Path) -> None:
    auto_class, module = made("bert")
    graph, ranges = converted(module, auto_class, tmp_path), looked_at(module)
    some = {name: each for name, each in ranges.items() if ".1." not in name}
    assert quantize_graph(as_read(graph), graph, some) == 6
    with pytest.raises(ModelError, match=r"BertModel has no linear layer that dtype: int8 could.*`engine: torch`, or"):
        in_int8(graph, auto_class, {})
    narrow = {name: Range(each.most_K[:-1], each.least, each.greatest) for name, each in ranges.items()}
    with pytest.raises(ModelError, match="what was calibrated is of another model than BertModel"):
        in_int8(graph, auto_class, narrow)
