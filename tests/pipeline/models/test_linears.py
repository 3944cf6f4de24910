import weakref

import pytest
import torch
import transformers
from torch import nn

from pipeline.models.linears import OneOfSeveral, PreparedLinear, beside, prepare_linears, replace_linears
from tests.pipeline.families.factory import BERT_SIZES

SMALL = {"vocab_size": 100, **BERT_SIZES}


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """As two sums of bfloat16 products in another order are."""
    torch.testing.assert_close(found.float(), wanted.float(), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7, 64, 2048])
def test_a_prepared_layer_gives_what_the_layer_gave(tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 24, bias=bias, dtype=torch.bfloat16)
    values = torch.randn(2, tokens, 48, dtype=torch.bfloat16)
    with torch.inference_mode():
        wanted = linear(values)
        prepared = PreparedLinear([linear])
        close(prepared(values), wanted)
        close(prepared(values[:, ::2]), wanted[:, ::2])  # not side by side in memory
    assert (prepared.in_features, prepared.out_features) == (48, 24)


@pytest.mark.parametrize(
    "config",
    [
        transformers.BertConfig(**SMALL),
        transformers.DistilBertConfig(vocab_size=100, dim=32, hidden_dim=64, n_layers=2, n_heads=4),
        transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64),
        transformers.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_says_what_it_said(config: transformers.PretrainedConfig) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval().bfloat16()
    model = model.get_encoder() if config.is_encoder_decoder else model
    ids = torch.randint(3, 100, (3, 11))
    with torch.inference_mode():
        wanted = model(input_ids=ids).last_hidden_state
        prepare_linears(model)
        close(model(input_ids=ids).last_hidden_state, wanted)
        close(model(input_ids=ids).last_hidden_state, wanted)
    assert not any(type(part) is nn.Linear for part in model.modules())


def test_layers_that_were_replaced_are_not_held_until_all_are() -> None:
    model = transformers.BertModel(transformers.BertConfig(**SMALL))
    replaced: list[weakref.ref[nn.Linear]] = []
    for holder, several in beside(model):
        assert sum(linear() is not None for linear in replaced) <= 3  # of the layer before, or of this one
        replace_linears(holder, several, lambda _: nn.Identity())
        replaced += [weakref.ref(linear) for linear in several.values()]
    assert len(replaced) > 12


WRITERS = {
    "t5": transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64, pad_token_id=0),
    "bart": transformers.BartConfig(
        vocab_size=100,
        d_model=32,
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
    ),
}


@pytest.mark.parametrize("family", WRITERS)
def test_a_writer_says_what_it_said_step_by_step(family: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(WRITERS[family]).eval().bfloat16()
    ids, first, second = (torch.randint(3, 100, (3, tokens)) for tokens in (11, 1, 1))

    def steps() -> list[torch.Tensor]:
        one = model(input_ids=ids, decoder_input_ids=first, use_cache=True)
        states = transformers.modeling_outputs.BaseModelOutput(one.encoder_last_hidden_state)
        two = model(encoder_outputs=states, decoder_input_ids=second, past_key_values=one.past_key_values)
        return [one.logits, two.logits]

    with torch.inference_mode():
        wanted = steps()
        prepare_linears(model)
        for found, right in zip(steps(), wanted, strict=True):
            close(found, right)
    across = [part for name, part in model.named_modules() if name.endswith(("EncDecAttention", "encoder_attn"))]
    assert len(across) == 2
    for part in across:  # a query is not of the encoder's states, and is computed at each step by itself
        kinds = [type(layer) for name, layer in part.named_children() if name in ("q", "k", "v", "q_proj", "k_proj")]
        assert kinds.count(PreparedLinear) == 1
        assert OneOfSeveral in kinds


def test_layers_that_read_the_same_are_one_product_whoever_is_asked_first() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SMALL)).eval().bfloat16()
    attention = model.encoder.layer[0].attention.self
    layers = {name: getattr(attention, name) for name in ("query", "key", "value")}
    values, others = torch.randn(2, 1, 5, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        wanted = {name: (layer(values), layer(others)) for name, layer in layers.items()}
        prepare_linears(model)
        assert all(isinstance(getattr(attention, name), OneOfSeveral) for name in layers)
        for order in (["value", "query", "key"], ["key"], ["query", "key", "value"]):
            for name in order:
                close(getattr(attention, name)(values), wanted[name][0])
        for name in ("key", "query"):  # two inputs in turn, as in attention to another text
            close(getattr(attention, name)(others), wanted[name][1])
            close(getattr(attention, name)(values), wanted[name][0])


def test_a_head_may_compute_with_its_weights_and_stays() -> None:
    torch.manual_seed(0)
    config = transformers.MobileBertConfig(**SMALL, embedding_size=16, intra_bottleneck_size=16)
    model = transformers.MobileBertForMaskedLM(config).eval().bfloat16()
    ids = torch.randint(3, 100, (3, 11))
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits
        prepare_linears(model)
        torch.testing.assert_close(model(input_ids=ids).logits.float(), wanted.float(), atol=0.1, rtol=0.05)
    assert any(isinstance(part, PreparedLinear) for part in model.mobilebert.modules())
    assert not any(isinstance(part, PreparedLinear) for part in model.cls.modules())


def test_code_that_is_not_of_transformers_and_other_numbers_stay() -> None:
    own = nn.Sequential(nn.Linear(8, 8, dtype=torch.bfloat16))
    prepare_linears(own)
    wide = transformers.BertModel(transformers.BertConfig(**SMALL))
    prepare_linears(wide)
    assert type(own[0]) is nn.Linear
    assert not any(isinstance(part, PreparedLinear | OneOfSeveral) for part in wide.modules())
