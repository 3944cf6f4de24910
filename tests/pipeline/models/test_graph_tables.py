"""Large tables of a graph are halved where their numbers fit, and a graph says nearly the same with them."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.models.conversion import convert
from pipeline.models.graph_tables import halve_tables
from pipeline.models.graphs import read
from tests.pipeline.families.factory import BERT_SIZES

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")

import openvino
from openvino import opset13

from pipeline.models import open_vino

Change = Callable[[torch.Tensor], Any]


def converted(folder: Path, change: Change = lambda _: None) -> tuple[torch.nn.Module, Any]:
    """A model whose words take more than 1 MB, and its graph."""
    torch.manual_seed(0)
    module = transformers.BertModel(transformers.BertConfig(vocab_size=10_000, **BERT_SIZES)).eval()
    with torch.no_grad():
        change(module.embeddings.word_embeddings.weight)
    convert(module, "AutoModel", folder)
    graph = read(folder)
    assert graph is not None
    return module, graph


def tables(model: Any) -> list[str]:
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    return [str(each.get_element_type()) for each in constants if list(each.get_output_shape(0))[:1] == [10_000]]


def test_words_are_halved_and_nothing_else(tmp_path: Path) -> None:
    _, graph = converted(tmp_path)
    model = openvino.Core().read_model(graph.xml)
    assert tables(model) == ["<Type: 'float32'>"]
    assert halve_tables(model) == 1
    assert tables(model) == ["<Type: 'float16'>"]
    assert halve_tables(model) == 0


@pytest.mark.parametrize("value", [65_600.0, -65_600.0, float("inf"), float("nan")])
def test_what_float16_cannot_say_stays(tmp_path: Path, value: float) -> None:
    _, graph = converted(tmp_path, lambda words_VD: words_VD[9_999].fill_(value))
    model = openvino.Core().read_model(graph.xml)
    assert halve_tables(model) == 0
    assert tables(model) == ["<Type: 'float32'>"]


def test_numbers_too_small_for_float16_stay(tmp_path: Path) -> None:
    _, graph = converted(tmp_path, lambda words_VD: words_VD.mul_(1e-3))
    model = openvino.Core().read_model(graph.xml)
    assert halve_tables(model) == 0


def test_a_table_is_halved_once_for_all_who_take_rows_and_not_where_more_is_done_with_it() -> None:
    values = np.ones((10_000, 64), np.float32)
    for more in (False, True):
        table, ids = opset13.constant(values), opset13.parameter([-1], np.int64)
        rows = [opset13.gather(table, ids, np.int64(0)) for _ in range(2)]
        sums = opset13.add(*rows)
        ends = [sums, opset13.matmul(sums, table, False, True)] if more else [sums]
        model = openvino.Model(ends, [ids])
        assert halve_tables(model) == (not more)
        assert tables(model) == (["<Type: 'float32'>"] if more else ["<Type: 'float16'>"])


@pytest.mark.parametrize(("dtype", "halved"), [("float32", False), ("bfloat16", True)])
def test_a_graph_takes_its_words_from_it_where_it_computes_in_fewer_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, halved: bool
) -> None:
    seen = []

    def looked(model: Any) -> int:
        seen.append(halve_tables(model))
        return seen[-1]

    monkeypatch.setattr(open_vino, "halve_tables", looked)
    module, graph = converted(tmp_path)
    made = open_vino.opened(lambda: nullcontext(graph), None, "AutoModel", dtype, 1)
    assert seen == [1] * halved
    ids_BL = torch.tensor([[5, 9_998, 4_321], [17, 8, 9]])
    found = made(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).last_hidden_state
    with torch.inference_mode():
        wanted = module(input_ids=ids_BL).last_hidden_state
    cosines = torch.nn.functional.cosine_similarity(found, wanted, dim=-1)
    assert float(cosines.min()) > (0.9999 if halved else 0.999999)
