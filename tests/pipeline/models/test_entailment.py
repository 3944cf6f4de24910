import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.models.classes import InferenceHead
from pipeline.models.entailment import label_scores

LOGITS = arrays(
    np.float32, st.tuples(st.integers(0, 4), st.integers(2, 5), st.just(3)), elements=st.floats(-90, 90, width=32)
)


@given(logits_RLK=LOGITS)
def test_labels_share_one_probability_or_have_one_each(logits_RLK):
    head = InferenceHead(entailment=2, contradiction=0)
    shares_RL = label_scores(logits_RLK, head, multi_label=False)
    np.testing.assert_allclose(shares_RL.sum(1), 1, rtol=1e-5)
    alone_RL = label_scores(logits_RLK, head, multi_label=True)
    assert ((alone_RL >= 0) & (alone_RL <= 1)).all()
    surer = logits_RLK[..., 2] > logits_RLK[..., 0] + 1e-3
    assert (alone_RL[surer] > 0.5).all()


def test_scores_by_hand():
    logits_RLK = np.log(np.array([[[1, 9, 3], [2, 9, 1]]], np.float32))
    head = InferenceHead(entailment=2, contradiction=0)
    assert label_scores(logits_RLK, head, multi_label=False)[0] == pytest.approx([0.75, 0.25])
    assert label_scores(logits_RLK, head, multi_label=True)[0] == pytest.approx([0.75, 1 / 3])
