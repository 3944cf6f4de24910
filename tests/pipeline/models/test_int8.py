import copy

import pytest
import torch
import transformers
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.attention import use_plain_attention
from pipeline.models.int8 import QuantizedLinear, can_quantize, quantize_linears, watched
from pipeline.models.linears import prepare_linears
from pipeline.models.ranges import BOUNDS, LEAST_OF_GELU, from_bytes, to_bytes
from pipeline.models.rows import compute_in_rows
from tests.pipeline.families.factory import BERT_SIZES

pytestmark = pytest.mark.skipif(not can_quantize(), reason="this torch has no products of int8 for this processor")

SMALL = {"vocab_size": 100, **BERT_SIZES}
CONFIGS = [
    transformers.BertConfig(**SMALL),
    transformers.BertConfig(**SMALL, hidden_act="gelu_new"),
    transformers.DistilBertConfig(vocab_size=100, dim=32, hidden_dim=64, n_layers=2, n_heads=4),
    transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64),
    transformers.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
]


def made(config):
    torch.manual_seed(0)
    wide = transformers.AutoModel.from_config(config).eval()
    return wide.get_encoder() if config.is_encoder_decoder else wide


def looked_at(wide, ids):
    with torch.inference_mode(), watched(wide) as ranges:
        hidden = wide(input_ids=ids).last_hidden_state
    return ranges, hidden


def cosine(found, wanted):
    return float(nn.functional.cosine_similarity(found.float().flatten(0, 1), wanted.flatten(0, 1)).min())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_quantised_model_says_nearly_what_it_said_in_float32(config):
    wide = made(config)
    model = copy.deepcopy(wide).bfloat16()
    ids = torch.randint(3, 100, (3, 11))
    ranges, wanted = looked_at(wide, ids)
    count = sum(type(part) is nn.Linear for part in model.modules())
    with torch.inference_mode():
        assert quantize_linears(model, wide, from_bytes(to_bytes(ranges))) == count
        use_plain_attention(model, or_eagerly=False)
        compute_in_rows(model)
        prepare_linears(model)
        assert cosine(model(input_ids=ids).last_hidden_state, wanted) > 0.999
        again = model(input_ids=ids[:1]).last_hidden_state
        assert cosine(again, wanted[:1]) > 0.999  # static: who stands beside a text decides nothing
    assert not any(type(part) is nn.Linear for part in model.modules())


def test_a_gelu_happens_inside_the_product_before_it():
    wide = made(CONFIGS[0])
    ranges, _ = looked_at(wide, torch.randint(3, 100, (3, 11)))
    model = copy.deepcopy(wide).bfloat16()
    quantize_linears(model, wide, ranges)
    layer = model.encoder.layer[0]
    assert isinstance(layer.intermediate.intermediate_act_fn, nn.Identity)
    values = torch.randn(2, 5, 32)
    with torch.inference_mode():
        between = layer.intermediate.dense(values.bfloat16())
        assert between.dtype == torch.uint8
        exact = wide.encoder.layer[0]
        wanted = exact.output.dense(exact.intermediate(values))
        assert cosine(layer.output.dense(between), wanted) > 0.99


def test_one_large_input_does_not_take_the_steps_of_the_others():
    torch.manual_seed(0)
    wide = made(CONFIGS[0])
    linear, values = wide.encoder.layer[0].attention.output.dense, torch.randn(64, 32)
    with torch.inference_mode(), watched(wide) as ranges:
        values[:, 3] *= 300
        linear.weight[:, 3] /= 300
        wanted = linear(values)
        (found,) = ranges.values()
        got = QuantizedLinear([linear], found)(values.bfloat16())
        assert float((got.float() - wanted).norm() / wanted.norm()) < 0.05
        one_step = float(found.most_K.max()) / 127
        coarse = linear((values / one_step).round() * one_step)
        assert float((coarse - wanted).norm() / wanted.norm()) > 0.3


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_the_outputs_of_a_gelu_end_at_one_bound_and_other_ranges_stay_whole(activation):
    wide = made(transformers.BertConfig(**SMALL, hidden_act=activation))
    with torch.inference_mode():
        for layer in wide.encoder.layer:  # to where a GELU is at its least, and beyond
            layer.intermediate.dense.weight.mul_(20)
    ranges, _ = looked_at(wide, torch.randint(3, 100, (3, 11)))
    cut = {name: each for name, each in ranges.items() if name.endswith("output.dense") and "attention" not in name}
    assert len(cut) == 2
    assert {each.least for each in cut.values()} == {LEAST_OF_GELU}
    (bound,) = {each.greatest for each in cut.values()}
    assert bound in BOUNDS
    assert all(
        each.least == -each.most_K.max() or each.greatest == each.most_K.max()
        for name, each in ranges.items()
        if name not in cut
    )


def test_what_is_beyond_the_calibrated_range_becomes_its_end():
    wide = made(CONFIGS[0])
    ranges, _ = looked_at(wide, torch.randint(3, 100, (3, 11)))
    linear = wide.encoder.layer[0].attention.output.dense
    most = torch.from_numpy(ranges["encoder.layer.0.attention.output.dense"].most_K)
    quantized = QuantizedLinear([linear], ranges["encoder.layer.0.attention.output.dense"])
    with torch.inference_mode():
        torch.testing.assert_close(quantized((most * 50).bfloat16()), quantized(most.bfloat16()), atol=0.02, rtol=0.02)


def test_layers_that_nobody_watched_stay_and_a_model_without_any_is_refused():
    wide = made(CONFIGS[0])
    ranges, _ = looked_at(wide, torch.randint(3, 100, (3, 11)))
    model = copy.deepcopy(wide).bfloat16()
    some = {name: each for name, each in ranges.items() if ".1." not in name}
    quantize_linears(model, wide, some)
    assert type(model.encoder.layer[1].output.dense) is nn.Linear
    with pytest.raises(ModelError, match="BertModel has no linear layer that dtype: int8 could quantise"):
        quantize_linears(copy.deepcopy(wide).bfloat16(), wide, {})
    with pytest.raises(ModelError, match="Sequential is no model of transformers"):
        quantize_linears(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4)), ranges)
