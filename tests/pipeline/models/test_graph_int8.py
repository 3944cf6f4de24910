"""Encoders whose graph is quantised: nearly the numbers of float32, products of bytes, and refusals in words."""

from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.graph_int8 import quantize_graph
from pipeline.models.int8 import watched
from pipeline.models.quietly import quietly
from pipeline.models.ranges import Range, from_bytes, to_bytes
from tests.pipeline.families.factory import BERT_SIZES, DISTILBERT_SIZES

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")

from pipeline.models import open_vino


@pytest.fixture(autouse=True)
def _as_it_is_loaded() -> Iterator[None]:
    with quietly():
        yield


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


@pytest.mark.parametrize("kind", MODELS)
def test_a_quantised_graph_says_nearly_what_the_module_says(kind: str) -> None:
    auto_class, module = made(kind)
    graph = open_vino.converted(lambda: module, auto_class, "int8", 1, looked_at(module))
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


def test_what_reads_the_same_is_rounded_once_and_weights_are_bytes() -> None:
    auto_class, module = made("bert")
    graph = open_vino._graph_of(module, auto_class, None)
    layers = sum(type(part) is nn.Linear for part in module.modules()) - 1  # nobody reads what the pooler says
    assert quantize_graph(graph, module, looked_at(module)) == layers == 12
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


def test_a_graph_compiled_anew_is_quantised_again() -> None:
    auto_class, module = made("bert")
    graph = open_vino.converted(lambda: module, auto_class, "int8", 1, looked_at(module))
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    before = graph(**inputs).last_hidden_state
    graph._begin()
    assert torch.equal(graph(**inputs).last_hidden_state, before)


def test_layers_that_nobody_watched_stay_and_a_model_without_any_is_refused() -> None:
    auto_class, module = made("bert")
    ranges = looked_at(module)
    some = {name: each for name, each in ranges.items() if ".1." not in name}
    assert quantize_graph(open_vino._graph_of(module, auto_class, None), module, some) == 6
    with pytest.raises(ModelError, match=r"BertModel has no linear layer that dtype: int8 could.*`engine: torch`, or"):
        open_vino.converted(lambda: module, auto_class, "int8", 1, {})
    narrow = {name: Range(each.most_K[:-1], each.least, each.greatest) for name, each in ranges.items()}
    with pytest.raises(ModelError, match="what was calibrated is of another model than BertModel"):
        open_vino.converted(lambda: module, auto_class, "int8", 1, narrow)
