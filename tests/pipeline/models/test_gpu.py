"""What only a GPU can show. None is in CI: see the notes of releases for where these ran last."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers

from pipeline.models.attention import can_pack
from pipeline.models.engine import Padded, forward_pieces
from pipeline.models.first_token import read_first_token
from pipeline.models.loading import pack
from pipeline.models.rows import PackedRows
from pipeline.quarantine import Reason

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")

WIDE = {"vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_labels": 5}
FAMILIES = {
    "bert": transformers.BertConfig(**WIDE, intermediate_size=256),
    "roberta": transformers.RobertaConfig(**WIDE, intermediate_size=256, pad_token_id=0),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=500, dim=128, hidden_dim=256, n_layers=3, n_heads=4, num_labels=5, pad_token_id=0
    ),
}
HEADS = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_says_what_it_says_in_float32_beside_padding(family: str, head: str, dtype: torch.dtype) -> None:
    assert can_pack(dtype, 32)
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(deepcopy(FAMILIES[family])).eval().cuda()
    lengths = [130, 64, 1, 130, 17, 2]
    real = torch.arange(130) < torch.tensor(lengths)[:, None]
    ids = (torch.randint(3, 500, (6, 130)) * real).cuda()
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=real.long().cuda())[0].cpu()
        model.to(dtype)
        read_first_token(model)
        assert pack(model)
        found = model(input_ids=ids, rows=PackedRows.of(lengths, "cuda"))[0].float().cpu()
    said = real if head != "AutoModelForSequenceClassification" else torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(found[said], wanted[said], atol=0.05, rtol=0.05)
    assert torch.nn.functional.cosine_similarity(found[said], wanted[said], dim=-1).min() > 0.999


def test_float32_and_heads_that_the_kernel_has_not_are_not_packed() -> None:
    assert not can_pack(torch.float32, 32)
    assert [can_pack(torch.bfloat16, size) for size in (8, 26, 64, 128, 256, 512)] == [
        True,
        False,
        True,
        True,
        True,
        False,
    ]


def forward(padded: Padded) -> torch.Tensor:
    """The sum and the number of a piece's tokens."""
    ids, mask = padded.input_ids_BL, padded.attention_mask_BL
    return torch.stack([(ids * mask).sum(1), mask.sum(1)], 1).float()


def test_numbers_come_back_in_input_order_while_more_are_asked_for() -> None:
    pieces = [np.arange(1, 1 + number % 90, dtype=np.int32) for number in range(1, 5000) if number % 90]
    done = forward_pieces(pieces, forward, width=2, token_budget=2000, pad_id=7, device="cuda", packed=True)
    assert done.values_PD.tolist() == [[piece.sum(), len(piece)] for piece in pieces]
    assert not done.failures


def test_out_of_memory_halves_this_micro_batch_and_those_after_it_before_they_are_tried() -> None:
    each = torch.cuda.mem_get_info()[1] // 20
    tried: list[int] = []

    def greedy(padded: Padded) -> torch.Tensor:
        tried.append(len(padded.pieces_B))
        torch.empty(len(padded.pieces_B) * each, dtype=torch.uint8, device="cuda")
        return forward(padded)

    pieces = [np.full(10, number, np.int32) for number in range(128)]
    done = forward_pieces(pieces, greedy, width=2, token_budget=640, pad_id=0, device="cuda")
    assert not done.failures
    assert tried == [64, 32, *[16] * 8]
    assert done.values_PD.tolist() == [[10 * number, 10] for number in range(128)]


def test_a_piece_that_needs_more_memory_than_there_is_fails_alone() -> None:
    def greedy(padded: Padded) -> torch.Tensor:
        if (padded.input_ids_BL == 13).any():
            torch.empty(10 << 40, dtype=torch.uint8, device="cuda")
        return forward(padded)

    pieces = [np.full(10, number, np.int32) for number in range(64)]
    done = forward_pieces(pieces, greedy, width=2, token_budget=160, pad_id=0, device="cuda")
    assert [(piece, failure.reason) for piece, failure in done.failures.items()] == [(13, Reason.OUT_OF_MEMORY)]
    assert [done.values_PD[number].tolist() for number in (0, 63)] == [[0, 10], [630, 10]]
