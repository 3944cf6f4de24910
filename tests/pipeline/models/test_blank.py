"""A module whose weights are read afterwards is made without drawing numbers for them."""

import torch
from torch.nn import Embedding, Linear, init

from pipeline.models.blank import blank


def test_a_weight_without_numbers_is_given_none_and_any_other_is() -> None:
    before = init.normal_
    with blank():
        assert init.normal_ is not before
        with torch.device("meta"):
            assert Linear(2, 3).weight.shape == (3, 2)
            assert Embedding(5, 2, padding_idx=0).weight.is_meta
        here = torch.zeros(64)
        assert init.normal_(here) is here
    assert here.count_nonzero() == 64
    assert init.normal_ is before
