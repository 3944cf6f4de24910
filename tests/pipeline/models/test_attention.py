import pytest
import torch
import transformers

from pipeline.models.attention import NAME, use_plain_attention

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
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
    assert model.config._attn_implementation == NAME
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
