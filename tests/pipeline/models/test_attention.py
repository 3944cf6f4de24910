import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models import attention
from pipeline.models.attention import (
    PLAIN,
    WRITING,
    _divided_last,
    _heads_at_once,
    plain_attention,
    use_plain_attention,
    use_writing_attention,
)
from tests.pipeline.families.factory import BERT_SIZES

SMALL = {"vocab_size": 100, **BERT_SIZES}
CONFIGS = {
    "bert": transformers.BertConfig(**SMALL),
    "modernbert": transformers.ModernBertConfig(**SMALL, pad_token_id=0, local_attention=6),
    "gpt2": transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, eos_token_id=1, bos_token_id=1),
    "llama": transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    "t5": transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64),
    "bart": transformers.BartConfig(
        vocab_size=100, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", CONFIGS)
def test_values_and_gradients_are_those_of_the_model_s_own_attention(family):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[family]).eval()
    inputs = {"input_ids": torch.randint(3, 100, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    inputs["attention_mask"][1, 6:] = 0
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 100, (3, 5))
    wanted = inputs["attention_mask"].bool() if not model.config.is_encoder_decoder else torch.ones(3, 5).bool()

    def found():
        model.zero_grad()
        values = model(**inputs)[0][wanted]
        (values * torch.linspace(-1, 1, values.numel()).view(values.shape)).sum().backward()
        return values.detach(), {
            name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None
        }

    values, gradients = found()
    use_plain_attention(model)
    assert model.config._attn_implementation == PLAIN
    plain, plain_gradients = found()
    torch.testing.assert_close(plain, values, atol=1e-5, rtol=1e-4)
    assert plain_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(plain_gradients[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_long_texts_go_another_way_to_the_same_values(family, monkeypatch):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[family]).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    inputs = {"input_ids": torch.randint(3, 100, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    inputs["attention_mask"][1, 6:] = 0
    use_plain_attention(model)
    wanted = model(**inputs)[0]
    monkeypatch.setattr("pipeline.models.attention.MOST_TOKENS", 10)
    torch.testing.assert_close(model(**inputs)[0], wanted, atol=1e-5, rtol=1e-4)


def test_a_family_without_the_interface_computes_eagerly_and_a_module_of_one_s_own_is_left_alone():
    model = transformers.AutoModel.from_config(transformers.MPNetConfig(**SMALL))
    use_plain_attention(model)
    assert model.config._attn_implementation == "eager"
    model = transformers.AutoModel.from_config(transformers.MPNetConfig(**SMALL))
    before = model.config._attn_implementation
    use_plain_attention(model, or_eagerly=False)
    assert model.config._attn_implementation == before
    use_plain_attention(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("factor", [0.0, 1.0, 40.0, 4000.0])
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "bart"])
def test_without_gradients_the_softmax_divides_last_and_scores_of_any_size_give_the_same(family, factor):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[family]).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if any(part in name for part in ("query", "q_proj", "Wqkv")):
                weights *= factor
    inputs = {"input_ids": torch.randint(3, 100, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    inputs["attention_mask"][1, 6:] = 0
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        wanted = model(**inputs)[0][real]
        use_plain_attention(model)
        torch.testing.assert_close(model(**inputs)[0][real], wanted, atol=1e-4, rtol=1e-3)


@given(st.integers(1, 64), st.integers(0, 1 << 24))
def test_heads_go_together_as_far_as_their_scores_are_few_and_always_as_many(heads, bytes_each):
    at_once = _heads_at_once(heads, bytes_each)
    assert heads % at_once == 0
    assert at_once == 1 or at_once * bytes_each <= 4 << 20
    more = next((each for each in range(at_once + 1, heads + 1) if heads % each == 0), None)
    assert more is None or more * bytes_each > 4 << 20


@pytest.mark.parametrize("factor", [1.0, 400.0])
def test_how_many_heads_go_together_changes_nothing_to_the_bit(factor, monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 3, 12, 40, 32).bfloat16()
    query[1] *= factor  # beyond what exponentials hold
    mask = torch.zeros(3, 1, 1, 40)
    mask[2, ..., 30:] = torch.finfo(torch.float32).min
    found = []
    for scores_bytes in (1 << 30, 40_000, 1):
        monkeypatch.setattr(attention, "_SCORES_BYTES", scores_bytes)
        with torch.inference_mode():
            found.append(plain_attention(torch.nn.Linear(1, 1), query, key, value, mask)[0])
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_exponentials_beyond_what_numbers_hold_are_noticed():
    query = torch.full((1, 1, 2, 4), 10.0)
    value = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1).expand(1, 1, 2, 4)
    for key_size in (30.0, -30.0):  # e to the power of 1200, and of -1200
        key = torch.full((1, 1, 2, 4), key_size)
        with torch.inference_mode():
            found, _ = plain_attention(torch.nn.Linear(1, 1), query, key, value, None, 1.0)
        torch.testing.assert_close(found, torch.full((1, 2, 1, 4), 1.5))
    key = torch.tensor([0.1, 30.0]).view(1, 1, 2, 1).expand(1, 1, 2, 4)
    mask = torch.tensor([0.0, torch.finfo(torch.float32).min]).view(1, 1, 1, 2)
    seen = _divided_last(query, key, value, mask, 1.0)  # whom nobody sees may be as large as it likes
    torch.testing.assert_close(seen, torch.ones(1, 1, 2, 4))


def test_a_query_beyond_what_numbers_hold_changes_nothing_for_the_others_to_the_bit():
    torch.manual_seed(0)
    query, key, value = (torch.randn(5, 4, 40, 32).bfloat16() for _ in range(3))
    mask = torch.zeros(5, 1, 1, 40, dtype=torch.bfloat16)
    mask[1, ..., 30:] = mask[3, ..., 12:] = torch.finfo(torch.bfloat16).min
    plain = _divided_last(query, key, value, mask, 0.2)
    query[1, 2, 7] *= 900
    query[4, :, 3] = key[4, :, 9] * 500
    found = _divided_last(query, key, value, mask, 0.2)
    changed = torch.zeros(5, 4, 40, dtype=torch.bool)
    changed[1, 2, 7] = changed[4, :, 3] = True
    assert torch.equal(found[~changed], plain[~changed])
    wanted = torch.softmax((query.double() @ key.double().mT) * 0.2 + mask.double(), -1) @ value.double()
    torch.testing.assert_close(found.double(), wanted, atol=0.05, rtol=0.05)


def test_a_query_beyond_gets_the_same_whatever_stands_beside_its_text():
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 4, 90, 32).bfloat16() for _ in range(3))
    query[0, :, ::3] *= 900
    mask = torch.zeros(3, 1, 1, 90, dtype=torch.bfloat16)
    mask[0, ..., 50:] = torch.finfo(torch.bfloat16).min
    beside = _divided_last(query, key, value, mask, 0.2)[:1, :, :50]
    alone = _divided_last(query[:1, :, :50], key[:1, :, :50], value[:1, :, :50], None, 0.2)
    assert torch.equal(beside, alone)


@pytest.mark.parametrize("longest", [22, 31, 47, 258, 300])
def test_a_text_gets_the_same_to_the_bit_however_long_the_texts_beside_it(longest):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, longest, 32).bfloat16() for _ in range(3))
    mask = torch.zeros(2, 1, 1, longest, dtype=torch.bfloat16)
    mask[0, ..., 21:] = torch.finfo(torch.bfloat16).min
    with torch.inference_mode():
        beside = _divided_last(query, key, value, mask, 0.2)[:1, :, :21]
        alone = _divided_last(query[:1, :, :21], key[:1, :, :21], value[:1, :, :21], None, 0.2)
    assert torch.equal(beside, alone)


def test_keys_are_filled_up_to_what_is_summed_at_once(monkeypatch):
    for tiles, filled in ((True, [32, 32, 96, 288]), (False, [8, 32, 72, 272])):
        monkeypatch.setattr(attention, "_has_tiles", lambda tiles=tiles: tiles)
        assert [attention._filled_up(keys) for keys in (1, 32, 70, 257)] == filled


def test_exponentials_whose_sum_can_be_held_and_their_products_with_values_cannot():
    query, key = torch.full((1, 1, 1, 4), 9.4).bfloat16(), torch.full((1, 1, 2, 4), 2.35).bfloat16()  # a score of 88
    for size in (3.0, 1e4):
        value = torch.full((1, 1, 2, 4), size).bfloat16()
        found = _divided_last(query, key, value, None, 1.0)
        torch.testing.assert_close(found, value[:, :, :1], atol=0, rtol=1e-2)


def test_a_bias_that_layers_share_is_added_to_the_mask_that_is_given_with_it():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    bias = torch.randn(1, 4, 7, 7)
    masks = [torch.zeros(2, 1, 1, 7).index_fill_(3, torch.tensor(unseen), -1e30) for unseen in ([6], [0, 1], [6])]
    with torch.inference_mode():
        for mask in masks:
            wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias + mask, scale=1.0)
            for _ in range(2):
                found, _ = plain_attention(torch.nn.Identity().eval(), query, key, value, mask, 1.0, position_bias=bias)
                torch.testing.assert_close(found.transpose(1, 2), wanted)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_writer_s_steps_over_what_it_keeps_are_those_of_its_own_attention(family):
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS[family]).eval()
    ids, answer = torch.randint(3, 100, (3, 11)), torch.randint(3, 100, (3, 4))
    mask = (torch.arange(11) < torch.tensor([[11], [5], [8]])).long()

    def logits():
        states = model.get_encoder()(input_ids=ids, attention_mask=mask)
        kept, found = None, []
        for token in answer.split(1, 1):
            told = model(
                encoder_outputs=states,
                attention_mask=mask,
                decoder_input_ids=token,
                past_key_values=kept,
                use_cache=True,
            )
            kept = told.past_key_values
            found.append(told.logits)
        return torch.cat(found, 1)

    with torch.inference_mode():
        wanted = logits()
        use_writing_attention(model)
        assert model.config._attn_implementation == WRITING
        torch.testing.assert_close(logits(), wanted, atol=1e-4, rtol=1e-4)
