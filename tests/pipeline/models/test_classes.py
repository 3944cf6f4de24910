import pytest

from pipeline.models.classes import InferenceHead, inference_head


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (["contradiction", "neutral", "entailment"], InferenceHead(2, 0)),
        (["ENTAILMENT", "NEUTRAL", "CONTRADICTION"], InferenceHead(0, 2)),
        (["neutral", "entails", "contradicts"], InferenceHead(1, 2)),
        (["entailment", "not_entailment"], InferenceHead(0, 1)),
        (["not_entailment", "entailment"], InferenceHead(1, 0)),
        (["entailment", "other", "nothing"], InferenceHead(0, None)),
        (["entailment"], InferenceHead(0, None)),
        (["games", "web"], None),
        (["not_entailment", "LABEL_1"], None),
    ],
)
def test_the_classes_of_inference_are_known_by_name(names, head):
    assert inference_head(names) == head
