import pyarrow as pa
import pytest

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.baselines import commonest, lead, majority, mean
from pipeline.metrics.labels import Labels
from pipeline.metrics.multilabels import Multilabels
from pipeline.metrics.numbers import Numbers


def test_the_majority_is_the_label_of_most_training_rows_and_of_equal_ones_the_first():
    assert majority({"games": 12, "web": 30}, 3).to_pylist() == ["web"] * 3
    assert majority({"web": 5, "games": 5}, 1).to_pylist() == ["games"]
    assert majority({"web": 5}, 0).to_pylist() == []


def test_the_commonest_labels_are_as_many_as_a_row_has():
    assert commonest({"gui": 8, "web": 9, "math": 1}, 10, 2).to_pylist() == [["web", "gui"]] * 2
    assert commonest({"gui": 1}, 10, 1).to_pylist() == [["gui"]]


def test_a_lead_is_the_first_words_and_null_stays_null():
    texts = pa.chunked_array([["Fathom is  a\n\nstand-alone tool.", None], ["one", ""]])
    assert lead(texts, 3).to_pylist() == ["Fathom is a", None, "one", ""]


def test_baselines_are_measured_as_a_model_is():
    pytest.importorskip("sklearn")
    table = pa.table({"gold": ["web", "games", "web"], "said": majority({"web": 2, "games": 1}, 3)})
    assert measure(Labels("gold", "said"), table).figures["accuracy"].value == pytest.approx(2 / 3)
    table = pa.table({"gold": [["web"], ["web", "gui"]], "said": commonest({"web": 2, "gui": 1}, 2, 2)})
    assert measure(Multilabels("gold", "said"), table).figures["subset_accuracy"].value == 0.5
    table = pa.table({"gold": [1.0, 2.0], "said": mean(1.5, 2)})
    assert measure(Numbers("gold", "said"), table).figures["r2"].value == 0


def test_without_training_rows_there_is_no_baseline():
    with pytest.raises(JobError, match=r"^there is no majority without labels"):
        majority({}, 3)
    with pytest.raises(JobError, match=r"^there are no commonest labels"):
        commonest({}, 3, 3)
    with pytest.raises(JobError, match=r"^there are no commonest labels"):
        commonest({"a": 1}, 0, 3)
    with pytest.raises(JobError, match=r"^a lead of 0 words is no text; at least 1$"):
        lead(pa.array(["a"]), 0)
