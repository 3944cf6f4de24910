from copy import deepcopy

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.attention import use_plain_attention
from pipeline.models.first_token import read_first_token
from pipeline.models.loading import pack
from pipeline.models.rows import GRAIN, FilledRows, PackedRows, compute_in_rows

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 5,
    "pad_token_id": 0,
}
FAMILIES = {
    "bert": transformers.BertConfig(**SMALL),
    "roberta": transformers.RobertaConfig(**SMALL),
    "xlm-roberta": transformers.XLMRobertaConfig(**SMALL),
    "electra": transformers.ElectraConfig(**SMALL, embedding_size=32),
    "camembert": transformers.CamembertConfig(**SMALL),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=100, dim=32, hidden_dim=64, n_layers=3, n_heads=4, num_labels=5, pad_token_id=0
    ),
}
HEADS = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 3))
def test_what_is_joined_is_split_into_the_same_texts(texts: int, tokens: int, width: int) -> None:
    rows = FilledRows(texts, tokens)
    values = torch.arange(texts * tokens * width).float().view(texts, tokens, width) + 1
    joined = rows.joined(values)
    assert joined.shape == (1, rows.count, width)
    assert rows.count % GRAIN == 0
    assert rows.count - texts * tokens < GRAIN
    assert torch.equal(rows.split(joined), values)
    assert not joined[0, texts * tokens :].any()
    first = rows.first(joined)
    assert torch.equal(first[0], values[:, 0])
    assert torch.equal(rows.split(first), values[:, :1])
    assert torch.equal(rows.joined(values[:, :1])[:, :texts], first)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_says_in_rows_what_it_says_of_texts(family: str, head: str, padded: bool) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(deepcopy(FAMILIES[family])).eval()
    ids = torch.randint(3, 100, (4, 13))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 6:] = mask[2, 1:] = 0
    ids, real = ids * mask, mask.bool()

    def said() -> torch.Tensor:
        with torch.inference_mode():
            values = model(input_ids=ids, attention_mask=mask)[0]
        found: torch.Tensor = values[real] if head != "AutoModelForSequenceClassification" else values
        return found

    wanted = said()
    use_plain_attention(model)
    read_first_token(model)
    assert compute_in_rows(model)
    rows_seen: set[tuple[int, ...]] = set()
    layers = model.base_model.transformer.layer if family == "distilbert" else model.base_model.encoder.layer
    layers[0].register_forward_hook(lambda _module, inputs, _found: rows_seen.add(tuple(inputs[0].shape[:2])))
    torch.testing.assert_close(said(), wanted, atol=1e-5, rtol=1e-4)
    assert rows_seen == {(1, GRAIN)}


@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.integers(1, 3))
def test_packed_are_the_real_tokens_alone(lengths: list[int], width: int) -> None:
    rows = PackedRows.of(lengths, "cpu")
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    values = torch.arange(real.numel() * width).float().view(*real.shape, width) + 1
    joined = rows.joined(values)
    assert joined.shape == (1, sum(lengths), width)
    assert torch.equal(joined[0], values[real])
    assert torch.equal(rows.first(joined)[0], values[:, 0])
    if max(lengths) > 1:
        assert torch.equal(rows.split(joined), values * real[..., None])
        assert torch.equal(rows.split(rows.first(joined)), values[:, :1])
        assert torch.equal(rows.joined(values[:, :1]), rows.first(joined))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_says_of_real_tokens_what_it_says_beside_padding(family: str, head: str) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(deepcopy(FAMILIES[family])).eval()
    lengths = [13, 6, 1, 13]
    real = torch.arange(13) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 100, (4, 13)) * real
    with torch.inference_mode():
        values = model(input_ids=ids, attention_mask=real.long())[0]
        read_first_token(model)
        assert pack(model)
        tokens_seen: set[tuple[int, ...]] = set()
        layers = model.base_model.transformer.layer if family == "distilbert" else model.base_model.encoder.layer
        layers[0].register_forward_hook(lambda _module, inputs, _found: tokens_seen.add(tuple(inputs[0].shape[:2])))
        packed = model(input_ids=ids, rows=PackedRows.of(lengths, "cpu"))[0]
        beside = model(input_ids=ids, attention_mask=real.long())[0]
    said = real if head != "AutoModelForSequenceClassification" else torch.ones(4, dtype=torch.bool)
    torch.testing.assert_close(packed[said], values[said], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(beside[said], values[said], atol=1e-5, rtol=1e-4)
    assert tokens_seen == {(1, sum(lengths)), (4, 13)}


def test_what_cannot_be_packed_stays() -> None:
    assert not pack(transformers.ModernBertModel(transformers.ModernBertConfig(**SMALL)))
    eager = transformers.BertModel._from_config(deepcopy(FAMILIES["bert"]), attn_implementation="eager")
    assert not pack(eager)
    assert eager.config._attn_implementation == "eager"
    assert not pack(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("head", HEADS)
def test_texts_of_one_token_are_computed_too(head: str) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(transformers.BertConfig(**SMALL)).eval()
    ids = torch.randint(3, 100, (4, 1))
    with torch.inference_mode():
        wanted = model(input_ids=ids)[0]
        use_plain_attention(model)
        read_first_token(model)
        assert compute_in_rows(model)
        torch.testing.assert_close(model(input_ids=ids)[0], wanted, atol=1e-5, rtol=1e-4)


def test_where_something_is_trained_texts_stay_apart() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(deepcopy(FAMILIES["bert"])).eval()
    use_plain_attention(model)
    ids = torch.randint(3, 100, (2, 5))
    model(input_ids=ids).last_hidden_state.sum().backward()
    wanted = model.encoder.layer[0].output.dense.weight.grad.clone()
    model.zero_grad()
    assert compute_in_rows(model)
    model(input_ids=ids).last_hidden_state.sum().backward()
    assert torch.equal(model.encoder.layer[0].output.dense.weight.grad, wanted)


def test_a_model_of_another_family_or_with_another_attention_stays() -> None:
    modern = transformers.ModernBertModel(transformers.ModernBertConfig(**SMALL))
    use_plain_attention(modern)
    assert not compute_in_rows(modern)
    decoder = transformers.BertModel(transformers.BertConfig(**SMALL, is_decoder=True))
    use_plain_attention(decoder)
    assert not compute_in_rows(decoder)
    assert not compute_in_rows(transformers.BertModel(transformers.BertConfig(**SMALL)))
    assert not compute_in_rows(torch.nn.Linear(2, 2))
