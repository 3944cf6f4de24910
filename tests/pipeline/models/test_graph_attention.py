"""A module that computes as its graph will says what it says of texts side by side, and is as it was afterwards."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers

from pipeline.models.first_token import read_first_token
from pipeline.models.graph_attention import graph_attention_of
from pipeline.models.graph_rows import laid_out
from pipeline.models.rows import LaidRows, compute_in_rows, compute_side_by_side
from tests.pipeline.models.test_rows import FAMILIES, HEADS, SMALL

LENGTHS = [13, 6, 1, 19]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_says_in_laid_rows_what_it_says_of_texts(family: str, head: str) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(deepcopy(FAMILIES[family])).eval()
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(3, 100, real.shape) * real
    inputs = {
        name: torch.from_numpy(values)
        for name, values in laid_out({"input_ids": ids.numpy()}, np.array(LENGTHS), None, 0).items()
    }
    rows = LaidRows(inputs["attention_mask"], inputs["places_N"], inputs["places_T"])
    rows_seen: set[tuple[int, ...]] = set()
    layers = model.base_model.transformer.layer if family == "distilbert" else model.base_model.encoder.layer
    layers[0].register_forward_hook(lambda _module, given, _found: rows_seen.add(tuple(given[0].shape[:2])))
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=real.long())[0]
        read_first_token(model)
        with graph_attention_of(model) as can:
            assert can
            assert compute_in_rows(model)
            found = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], rows=rows)[0]
            compute_side_by_side(model)
        again = model(input_ids=ids, attention_mask=real.long())[0]
    of_texts = head == "AutoModelForSequenceClassification"
    said = torch.ones(len(LENGTHS), dtype=torch.bool) if of_texts else real
    some = found if of_texts else found[:, : max(LENGTHS)]
    torch.testing.assert_close(some[said], wanted[said], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again[said], wanted[said], atol=1e-5, rtol=1e-4)
    assert rows_seen == {(1, 64), tuple(real.shape)}  # 39 real tokens, filled up; and side by side


def test_what_computes_its_attention_in_its_own_way_stays() -> None:
    eager = transformers.BertModel._from_config(transformers.BertConfig(**SMALL), attn_implementation="eager")
    with graph_attention_of(eager) as can:
        assert not can
        assert eager.config._attn_implementation == "eager"
    with graph_attention_of(torch.nn.Linear(2, 2)) as can:
        assert not can


def test_it_is_as_it_was_where_something_fails() -> None:
    model = transformers.BertModel(transformers.BertConfig(**SMALL))
    with pytest.raises(ZeroDivisionError), graph_attention_of(model):
        _fail()
    assert model.config._attn_implementation == "sdpa"


def _fail() -> None:
    raise ZeroDivisionError
