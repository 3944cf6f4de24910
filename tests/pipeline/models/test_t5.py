import numpy as np
import pytest
import torch
import transformers

from pipeline.models.activations import use_fused_activations
from pipeline.models.linears import prepare_linears
from pipeline.models.t5 import layers_of, use_t5_layers

SIZES = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 3, "d_ff": 64, "pad_token_id": 0}
FAMILIES = {
    "t5": transformers.T5Config(**SIZES, scale_decoder_outputs=True, relative_attention_max_distance=20),
    "t5 1.1": transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu", relative_attention_num_buckets=8),
    "mt5": transformers.MT5Config(**SIZES, tie_word_embeddings=False),
}


def made(family, dtype=torch.float32):
    torch.manual_seed(0)
    return transformers.AutoModelForSeq2SeqLM.from_config(FAMILIES[family]).eval().to(dtype)


def of_lengths(*lengths):
    draw = np.random.default_rng(0)
    return [draw.integers(3, 100, length).astype(np.int32) for length in lengths]


def alone(model, ids):
    """The encoder's states of one text by itself."""
    return model.encoder(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_beside_each_other_get_what_transformers_gives_each_alone(family):
    model, texts = made(family), of_lengths(40, 7, 8, 1, 29, 1100)  # the last is computed in pieces
    with torch.inference_mode():
        wanted = [alone(model, ids) for ids in texts]
        use_t5_layers(model)
        layers = layers_of(model)
        assert layers is not None
        found = layers.encoded(texts)
        for start, length, states_LD in zip(found.starts, found.lengths, wanted, strict=True):
            torch.testing.assert_close(found.states_TD[start : start + length], states_LD, atol=1e-5, rtol=1e-4)
    assert found.lengths == [len(ids) for ids in texts]
    assert found.padding_tokens == len(found.states_TD) - sum(found.lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_prepared_layers_in_bfloat16_are_no_further_from_float32_than_transformers_are(family):
    texts = of_lengths(40, 7, 8, 29)
    model, wide = made(family, torch.bfloat16), made(family).bfloat16().float()
    with torch.inference_mode():
        right = torch.cat([alone(wide, ids) for ids in texts])
        theirs = torch.cat([alone(model, ids) for ids in texts])
        use_fused_activations(model)
        prepare_linears(model)
        use_t5_layers(model)
        layers = layers_of(model)
        assert layers is not None
        found = layers.encoded(texts)
        ours = torch.cat(
            [found.states_TD[at : at + size] for at, size in zip(found.starts, found.lengths, strict=True)]
        )
    assert ours.dtype == torch.bfloat16
    assert (ours - right).square().mean() <= (theirs - right).square().mean()


def test_other_families_write_as_ever():
    bart = transformers.BartForConditionalGeneration(
        transformers.BartConfig(vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1)
    )
    use_t5_layers(bart)
    assert layers_of(bart) is None
    assert layers_of(made("t5")) is None  # nobody asked for it
