import pytest
import torch

from pipeline.models.pooling import pool

HIDDEN_BLD = torch.tensor([[[1.0, 5.0], [3.0, -9.0], [99.0, float("nan")]], [[2.0, 2.0], [4.0, 6.0], [-3.0, 1.0]]])
MASK_BL = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [[2.0, -2.0], [1.0, 3.0]]),
        ("max", [[3.0, 5.0], [4.0, 6.0]]),
        ("cls", [[1.0, 5.0], [2.0, 2.0]]),
        ("last", [[3.0, -9.0], [-3.0, 1.0]]),
    ],
)
def test_real_tokens_alone_count(how, expected):
    assert pool(HIDDEN_BLD, MASK_BL, how).tolist() == expected


def test_sums_are_made_in_float32():
    hidden_BLD = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    hidden_BLD[0, 0] = 256.0
    pooled_BD = pool(hidden_BLD, torch.ones(1, 4096, dtype=torch.int64), "mean")
    assert pooled_BD.dtype == torch.float32
    assert pooled_BD.item() == pytest.approx((256 + 4095) / 4096)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [[3.0, -9.0], [0.5, 3.5]]),
        ("max", [[3.0, -9.0], [4.0, 6.0]]),
        ("cls", [[3.0, -9.0], [4.0, 6.0]]),
        ("last", [[3.0, -9.0], [-3.0, 1.0]]),
    ],
)
def test_tokens_that_are_left_out_at_the_beginning_do_not_count(how, expected):
    assert pool(HIDDEN_BLD, MASK_BL, how, left_out_tokens=1).tolist() == expected


def test_a_row_of_which_everything_is_left_out_has_no_mean():
    assert not torch.isfinite(pool(HIDDEN_BLD, MASK_BL, "mean", left_out_tokens=2)[0]).any()
    assert not torch.isfinite(pool(HIDDEN_BLD, MASK_BL, "max", left_out_tokens=2)[0]).any()
