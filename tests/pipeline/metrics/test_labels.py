import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.labels import Labels

sklearn = pytest.importorskip("sklearn.metrics")


def holds_its_value(figure):
    return figure.low <= figure.value <= figure.high


names = st.sampled_from(["games", "web", "math", "net"])
pairs = st.lists(st.tuples(names, names), min_size=1, max_size=40)


def table(rows, **more):
    gold, said = zip(*rows, strict=True)
    return pa.table({"gold": pa.array(gold, pa.string()), "said": pa.array(said, pa.string()), **more})


def values(measured):
    return {name: figure.value for name, figure in measured.figures.items()}


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_the_figures_are_those_of_scikit_learn_with_its_own_defaults(rows):
    gold, said = zip(*rows, strict=True)
    found = values(measure(Labels("gold", "said"), table(rows), resamples=0))
    assert found == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(gold, said),
            **{
                f"{average}_f1": sklearn.f1_score(gold, said, average=average, zero_division=0)
                for average in ("macro", "micro", "weighted")
            },
        }
    )


@settings(max_examples=20, deadline=None)
@given(pairs, st.integers(0, 3))
def test_each_resample_is_what_scikit_learn_makes_of_the_drawn_rows(rows, seed):
    measured = measure(Labels("gold", "said"), table(rows), seed=seed, resamples=5)
    weights_RB = np.hstack(list(Bootstrap(len(rows), seed, 5).weights()))
    for each, weights_R in enumerate(weights_RB.T):
        gold, said = np.repeat(np.array(rows), weights_R.astype(int), axis=0).T
        assert measured.resampled["accuracy"][each] == pytest.approx(sklearn.accuracy_score(gold, said))
        for average in ("macro", "micro", "weighted"):
            theirs = sklearn.f1_score(gold, said, average=average, zero_division=0)
            assert measured.resampled[f"{average}_f1"][each] == pytest.approx(theirs)


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_the_tables_are_those_of_scikit_learn(rows):
    gold, said = zip(*rows, strict=True)
    tables = measure(Labels("gold", "said"), table(rows), resamples=0).tables
    labels = sorted({*gold, *said})
    assert tables["confusion"]["labels"] == labels
    theirs = sklearn.confusion_matrix(gold, said, labels=[*labels, "none such"])
    assert tables["confusion"]["counts"] == theirs[:-1, :-1].tolist()
    report = sklearn.classification_report(gold, said, output_dict=True, zero_division=0)
    for line in tables["per_class"]:
        theirs = report[line["label"]]
        assert (line["precision"], line["recall"], line["f1"], line["gold"]) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
        assert line["predicted"] == said.count(line["label"])


def test_a_row_without_prediction_is_wrong_and_one_without_gold_is_left_out():
    rows = [("web", "web"), ("web", None), (None, "web"), ("games", None)]
    measured = measure(Labels("gold", "said"), table(rows))
    assert measured.figures["accuracy"].value == pytest.approx(1 / 3)
    assert measured.figures["accuracy"].rows == 3
    assert measured.figures["micro_f1"].value == pytest.approx(1 / 2)  # precision 1, recall 1/3
    assert measured.tables["left_out"] == {"gold is null": 1}
    assert measured.tables["without_prediction"] == 2
    assert measured.tables["confusion"]["without_prediction"] == [1, 1]


def test_a_gold_label_that_the_model_cannot_say_is_wrong_and_is_told():
    rows = [("web", "web"), ("otherosfs", "web"), ("otherosfs", "games"), ("cli", "web")]
    measured = measure(Labels("gold", "said", known=("games", "web")), table(rows))
    assert measured.figures["accuracy"].value == 0.25
    assert measured.tables["unknown_labels"] == {"cli": 1, "otherosfs": 2}


def test_what_is_confused_most_stands_first():
    rows = [("web", "net")] * 3 + [("net", "web")] * 2 + [("web", "web")] * 9
    assert measure(Labels("gold", "said"), table(rows)).tables["confused_most"] == [
        {"gold": "web", "predicted": "net", "rows": 3},
        {"gold": "net", "predicted": "web", "rows": 2},
    ]


def test_of_very_many_labels_there_is_no_matrix_but_the_confusions_are_told():
    rows = [(f"label {each}", f"label {each + 1}") for each in range(205)]
    tables = measure(Labels("gold", "said"), table(rows), resamples=10).tables
    assert "confusion" not in tables
    assert len(tables["confused_most"]) == 50


def lists(labels, scores):
    return {"labels": pa.array(labels, pa.list_(pa.string())), "scores": pa.array(scores, pa.list_(pa.float32()))}


LISTS = Labels("gold", labels="labels", scores="scores")


def test_of_all_scores_the_highest_is_the_prediction_and_the_first_of_equal_ones():
    each = ["games", "web", "math"]
    scores = [[0.2, 0.5, 0.3], [0.5, 0.0, 0.5], None, [0.1, 0.1, 0.8]]
    gold = ["web", "games", "math", "web"]
    measured = measure(LISTS, pa.table({"gold": gold, **lists([each, each, None, each], scores)}))
    assert measured.figures["accuracy"].value == 0.5
    assert measured.tables["without_prediction"] == 1
    assert measured.figures["ece"].rows == 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.floats(0.01, 1), min_size=3, max_size=3)), min_size=1, max_size=30
    )
)
def test_the_log_loss_is_that_of_scikit_learn_whatever_the_order_of_a_list(rows):
    each = ["games", "math", "web"]
    scores = np.array([score for _, score in rows])
    scores /= scores.sum(1, keepdims=True)
    gold = [each[place] for place, _ in rows]
    turned = [list(reversed(each)) if row % 2 else each for row in range(len(rows))]
    turned_scores = [list(reversed(score)) if row % 2 else score for row, score in enumerate(scores.tolist())]
    found = measure(LISTS, pa.table({"gold": gold, **lists(turned, turned_scores)}), resamples=0)
    assert found.figures["log_loss"].value == pytest.approx(sklearn.log_loss(gold, scores, labels=each), rel=1e-4)


def test_without_all_scores_there_is_no_log_loss():
    found = measure(LISTS, pa.table({"gold": ["web", "web"], **lists([["web"], ["games"]], [[0.9], [0.6]])}))
    assert set(found.figures) == {"accuracy", "macro_f1", "micro_f1", "weighted_f1", "ece"}
    assert found.figures["accuracy"].value == 0.5
    assert "unknown_labels" not in found.tables  # of two labels that are told, a model may know more


def test_a_probability_of_nothing_has_a_finite_loss():
    found = measure(LISTS, pa.table({"gold": ["web"], **lists([["games", "web"]], [[1.0, 0.0]])}))
    assert found.figures["log_loss"].value == pytest.approx(-np.log(np.finfo(np.float32).eps))


SCORED = Labels("gold", "said", "score")


def test_calibration_is_the_gap_between_score_and_share_that_is_right():
    rows = [("web", "web")] * 3 + [("games", "web")]
    found = measure(SCORED, table(rows, score=pa.array([0.9, 0.9, 0.62, 0.62], pa.float32())))
    assert found.figures["ece"].value == pytest.approx((2 * 0.1 + 2 * 0.12) / 4)
    first, second = found.tables["reliability"]
    assert (first["rows"], first["right"]) == (2, 0.5)
    assert (second["confidence"], second["right"]) == pytest.approx((0.9, 1.0))
    assert first["low"] < 0.62 <= first["high"]


def test_scores_that_are_right_as_often_as_they_say_have_an_error_near_none():
    draws = np.random.default_rng(5)
    score_R = draws.uniform(0.3, 1, 20_000).astype(np.float32)
    rows = [("web", "web" if right else "net") for right in draws.random(20_000) < score_R]
    figure = measure(SCORED, table(rows, score=pa.array(score_R))).figures["ece"]
    assert holds_its_value(figure)
    assert 0 < figure.value < 0.02


def test_a_row_without_a_score_is_judged_and_not_in_the_calibration():
    rows = [("web", "web"), ("web", "games")]
    found = measure(SCORED, table(rows, score=pa.array([0.75, None], pa.float32())))
    assert found.figures["accuracy"].rows == 2
    assert (found.figures["ece"].value, found.figures["ece"].rows) == (0.25, 1)


def test_whole_numbers_truth_values_and_dictionaries_are_labels_too():
    whole = pa.table({"gold": [1, 0], "said": ["1", "1"]})
    assert measure(Labels("gold", "said"), whole).figures["accuracy"].value == 0.5
    truth = pa.table({"gold": [True, False], "said": ["true", "true"]})
    assert measure(Labels("gold", "said"), truth).figures["accuracy"].value == 0.5
    coded = pa.table({"gold": pa.array(["a", None, "b"]).dictionary_encode(), "said": ["a", "a", "a"]})
    assert measure(Labels("gold", "said"), coded).figures["accuracy"].value == 0.5


def test_a_score_that_is_above_one_by_rounding_is_a_probability():
    found = measure(SCORED, table([("web", "web")], score=pa.array([1.0000001], pa.float32())))
    assert found.figures["ece"].value == pytest.approx(0, abs=1e-6)


def test_a_table_of_many_chunks_is_read_whole():
    part = table([("web", "web"), ("games", "web")], score=pa.array([0.5, 0.5], pa.float32()))
    assert measure(SCORED, pa.concat_tables([part, part])).figures["accuracy"].rows == 4


def test_what_stands_in_metrics_json_is_plain():
    rows = [("web", "web"), ("games", "web"), (None, "web")]
    told = measure(SCORED, table(rows, score=pa.array([0.5, 0.5, 1.0], pa.float32()))).to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["main"] == "accuracy"
    assert set(told["figures"]["accuracy"]) == {"value", "low", "high", "rows"}


@pytest.mark.parametrize(
    ("kind", "columns", "words"),
    [
        (Labels("gold"), {"gold": ["a"]}, "labels are measured by a column of predictions, or by one of lists of"),
        (Labels("gold", "said"), {"gold": ["a"]}, "no column 'said' to measure, among gold"),
        (
            Labels("gold", "said"),
            {"gold": ["a"], "said": [0.5]},
            "column 'said' holds double, and strings are measured",
        ),
        (SCORED, {"gold": ["a"], "said": ["a"], "score": [3.5]}, "column 'score' holds scores outside 0 to 1 (3.5 to"),
        (LISTS, {"gold": ["a"], **lists([["a"]], [[-2.0]])}, "column 'scores' holds scores outside 0 to 1"),
        (LISTS, {"gold": ["a"], **lists([["a", "b"]], [[1.0]])}, "columns 'labels' and 'scores' differ in the lengths"),
        (LISTS, {"gold": ["a"], **lists([["a", None]], [[1.0, 0.0]])}, "columns 'labels' and 'scores' hold lists with"),
        (
            Labels("gold", labels="said", scores="scores"),
            {"gold": ["a"], "said": ["a"], "scores": [[1.0]]},
            "column 'said' holds string, and lists of strings",
        ),
    ],
)
def test_columns_that_cannot_be_measured_are_refused(kind, columns, words):
    with pytest.raises(JobError) as refused:
        measure(kind, pa.table(columns))
    assert str(refused.value).startswith(words)
