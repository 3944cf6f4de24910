import copy

import pytest
import torch
import transformers
from torch import nn

from pipeline.errors import RunError
from pipeline.models.activations import activate_in_place
from pipeline.models.attention import use_plain_attention
from pipeline.models.first_token import read_first_token
from pipeline.models.int8 import can_quantize, quantize_linears, watched
from pipeline.models.layers import FusedLayer, fuse_layers
from pipeline.models.linears import prepare_linears
from pipeline.models.rows import compute_in_rows, layers_of
from tests.pipeline.families.factory import BERT_SIZES

pytestmark = pytest.mark.skipif(not can_quantize(), reason="this torch has no products of int8 for this processor")

SMALL = {"vocab_size": 100, **BERT_SIZES}
DISTILBERT = transformers.DistilBertConfig(vocab_size=100, dim=32, hidden_dim=64, n_layers=3, n_heads=4)
CONFIGS = [
    transformers.BertConfig(**SMALL),
    transformers.BertConfig(**SMALL, hidden_act="gelu_new"),
    transformers.RobertaConfig(**SMALL),
    DISTILBERT,
]
LENGTHS = (11, 7, 11)


def inputs():
    torch.manual_seed(1)
    ids = torch.randint(3, 100, (len(LENGTHS), max(LENGTHS)))
    mask = torch.tensor([[1] * length + [0] * (max(LENGTHS) - length) for length in LENGTHS])
    return {"input_ids": ids, "attention_mask": mask}


def made(config, auto=transformers.AutoModel):
    torch.manual_seed(0)
    wide = auto.from_config(config).eval()
    for part in wide.modules():  # as of a model that was trained: no two layers normalise alike
        if isinstance(part, nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return wide


def prepared(wide, dtype):
    """As an actor's, but for the fusing."""
    model = copy.deepcopy(wide).bfloat16()
    if dtype == "int8":
        with torch.inference_mode(), watched(wide) as ranges:
            wide(**inputs())
        quantize_linears(model, wide, ranges)
    use_plain_attention(model, or_eagerly=False)
    assert compute_in_rows(model)
    activate_in_place(model)
    prepare_linears(model)
    return model


def hidden(model, **given):
    with torch.inference_mode():
        return model(**given).last_hidden_state


def cosines(found, wanted):
    return nn.functional.cosine_similarity(found.float(), wanted.float(), dim=-1)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("config", CONFIGS, ids=["bert", "gelu_new", "roberta", "distilbert"])
def test_fused_layers_say_nearly_what_the_model_says_in_float32(config, dtype):
    wide = made(config)
    model = prepared(wide, dtype)
    real = inputs()["attention_mask"].bool()
    wanted = hidden(wide, **inputs())[real]
    before = cosines(hidden(model, **inputs())[real], wanted).min()
    count = len(layers_of(model))
    assert fuse_layers(model) == count
    found = hidden(model, **inputs())
    assert found.dtype == torch.bfloat16  # what a head takes
    after = cosines(found[real], wanted).min()
    assert after > {"bfloat16": 0.9999, "int8": 0.999}[dtype]
    assert after > before - 0.0005
    assert not any(type(part) is nn.Linear for part in layers_of(model).modules())


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_text_s_numbers_do_not_depend_on_the_texts_beside_it(dtype):
    model = prepared(made(DISTILBERT), dtype)
    fuse_layers(model)
    together = hidden(model, **inputs())
    for text, length in enumerate(LENGTHS):
        alone = hidden(model, input_ids=inputs()["input_ids"][text : text + 1, :length])
        assert torch.equal(together[text, :length], alone[0])
    assert torch.equal(hidden(model, **inputs()), together)  # what a layer overwrites is nobody else's


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_texts_of_one_token_stand_side_by_side(dtype):
    wide = made(DISTILBERT)
    model = prepared(wide, dtype)
    fuse_layers(model)
    ids = torch.arange(3, 8)[:, None]
    assert cosines(hidden(model, input_ids=ids), hidden(wide, input_ids=ids)).min() > 0.999


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_last_layer_that_reads_the_first_token_alone_stays_and_takes_what_comes(dtype):
    wide = made(transformers.BertConfig(**SMALL, num_labels=3), transformers.AutoModelForSequenceClassification)
    plain = copy.deepcopy(wide)
    read_first_token(wide)  # what is watched is what is computed
    model = prepared(wide, dtype)
    read_first_token(model)
    count = len(layers_of(model))
    assert fuse_layers(model) == count - 1
    assert not isinstance(layers_of(model)[-1], FusedLayer)
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs()).logits.float(), plain(**inputs()).logits, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("config", [*CONFIGS[:1], DISTILBERT], ids=["bert", "distilbert"])
def test_hidden_states_are_of_texts_and_refused_where_layers_overwrite_them(config, dtype):
    wide = made(config)
    model = prepared(wide, dtype)
    with torch.inference_mode():
        wanted = wide(**inputs(), output_hidden_states=True).hidden_states
        found = model(**inputs(), output_hidden_states=True).hidden_states
    for one, other in zip(found, wanted, strict=True):
        assert cosines(one, other)[inputs()["attention_mask"].bool()].min() > 0.99
    fuse_layers(model)
    with pytest.raises(RunError, match=r"output_hidden_states: True, and .* set `dtype: float32`, or read last_"):
        model(**inputs(), output_hidden_states=True)
    assert torch.equal(hidden(model, **inputs()), hidden(model, **inputs(), output_hidden_states=False))


def test_layers_of_which_some_products_stay_in_another_format_stay():
    wide = made(DISTILBERT)
    model = copy.deepcopy(wide).bfloat16()
    with torch.inference_mode(), watched(wide) as ranges:
        wide(**inputs())
    quantize_linears(model, wide, {name: each for name, each in ranges.items() if "layer.1.ffn" not in name})
    use_plain_attention(model, or_eagerly=False)
    compute_in_rows(model)
    prepare_linears(model)
    assert fuse_layers(model) == 2
    assert [isinstance(layer, FusedLayer) for layer in layers_of(model)] == [True, False, True]
    assert cosines(hidden(model, **inputs()), hidden(wide, **inputs()))[0].min() > 0.999
