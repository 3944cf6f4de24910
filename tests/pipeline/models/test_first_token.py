import pytest
import torch
import transformers

from pipeline.models.attention import use_plain_attention
from pipeline.models.first_token import read_first_token

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
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
    "electra": transformers.ElectraConfig,
    "camembert": transformers.CamembertConfig,
}


@pytest.mark.parametrize("way", ["eager", "sdpa", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_the_whole_layer(family, way):
    torch.manual_seed(0)
    options = SMALL | ({"embedding_size": 32} if family == "electra" else {})
    model = transformers.AutoModelForSequenceClassification.from_config(
        FAMILIES[family](**options), attn_implementation="sdpa" if way == "sdpa" else "eager"
    ).eval()
    if way == "plain":
        use_plain_attention(model)
    ids = torch.randint(3, 100, (4, 13))
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[2, 1:] = 0
    ids = ids * mask

    def found():
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask).logits
        (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
        return logits.detach(), {name: each.grad for name, each in model.named_parameters()}

    names = list(model.state_dict())
    logits, gradients = found()
    assert read_first_token(model)
    first, first_gradients = found()
    torch.testing.assert_close(first, logits, atol=1e-6, rtol=1e-4)
    assert first_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(first_gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    assert list(model.state_dict()) == names

    width = []
    last = getattr(model, model.base_model_prefix).encoder.layer[-1]
    last.intermediate.register_forward_hook(lambda _module, inputs, _found: width.append(inputs[0].shape[1]))
    model(input_ids=ids, attention_mask=mask)
    assert width == [1]


def test_a_model_whose_head_reads_more_stays_as_it_is():
    for kind, config in (
        (transformers.BertForTokenClassification, transformers.BertConfig(**SMALL)),
        (transformers.BertModel, transformers.BertConfig(**SMALL)),
        (transformers.DistilBertForSequenceClassification, transformers.DistilBertConfig(dim=32, n_heads=4)),
    ):
        assert not read_first_token(kind(config))
    assert not read_first_token(torch.nn.Linear(2, 2))
    assert not read_first_token(
        transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, is_decoder=True))
    )
