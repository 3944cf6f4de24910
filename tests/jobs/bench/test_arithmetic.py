import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.arithmetic import encoder_flop, padded_in_order

SIZES = {
    "bert": transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=72
    ),
    "distilbert": transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
}


@pytest.mark.parametrize("family", SIZES)
def test_arithmetic_is_what_torch_counts(family: str) -> None:
    config = SIZES[family]
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    model.pooler = None
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(input_ids=torch.ones((5, 17), dtype=torch.long))
    assert encoder_flop(config.to_dict(), np.full(5, 17)) == counted.get_total_flops()


def test_a_model_of_unknown_sizes_has_no_arithmetic() -> None:
    assert encoder_flop({"hidden_size": 3, "num_hidden_layers": 2}, np.array([4])) is None


LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=90).map(lambda lengths: np.array(lengths, np.int64))


@given(LENGTHS, st.integers(1, 40))
def test_each_batch_is_as_long_as_its_longest(lengths: np.ndarray, batch: int) -> None:
    wanted = sum(max(part) * len(part) for at in range(0, len(lengths), batch) if len(part := lengths[at : at + batch]))
    assert padded_in_order(lengths, batch) == wanted
