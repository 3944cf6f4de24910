import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.multilabels import Multilabels

sklearn = pytest.importorskip("sklearn.metrics")

NAMES = ["games", "gui", "math", "web"]
KIND = Multilabels("gold", "said")
SCORED = Multilabels("gold", labels="labels", scores="scores")

some = st.lists(st.sampled_from(NAMES), unique=True)
pairs = st.lists(st.tuples(some, some), min_size=1, max_size=20)


def lists(rows):
    return pa.array(rows, pa.list_(pa.string()))


def table(gold, said):
    return pa.table({"gold": lists(gold), "said": lists(said)})


def scored(gold, scores_RL, names=NAMES):
    scores = [None if row is None else list(row) for row in scores_RL]
    return pa.table(
        {
            "gold": lists(gold),
            "labels": lists([None if row is None else names for row in scores]),
            "scores": pa.array(scores, pa.list_(pa.float32())),
        }
    )


def indicator(rows, names):
    return np.array([[name in row for name in names] for row in rows], int).reshape(len(rows), len(names))


def theirs(gold, said, names):
    matrices = [np.pad(indicator(rows, names), ((0, 0), (0, 1))) for rows in (gold, said)]
    present = list(range(len(names)))
    return {
        f"{average}_f1": sklearn.f1_score(*matrices, labels=present, average=average, zero_division=0)
        for average in ("micro", "macro", "weighted")
    } | {
        "samples_f1": sklearn.f1_score(*matrices, average="samples", zero_division=1),
        "subset_accuracy": sklearn.accuracy_score(*matrices),
    }


def values(measured):
    return {name: figure.value for name, figure in measured.figures.items()}


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_the_figures_are_those_of_scikit_learn(rows):
    gold, said = zip(*rows, strict=True)
    names = sorted({name for row in (*gold, *said) for name in row})
    found = values(measure(KIND, table(gold, said), resamples=0))
    if names:
        assert found == pytest.approx(theirs(gold, said, names))
    else:
        assert found == {"samples_f1": 1, "subset_accuracy": 1}


@settings(max_examples=20, deadline=None)
@given(pairs)
def test_each_resample_is_what_scikit_learn_makes_of_the_drawn_rows(rows):
    gold, said = zip(*rows, strict=True)
    measured = measure(KIND, table(gold, said), seed=3, resamples=5)
    weights_RB = np.hstack(list(Bootstrap(len(rows), 3, 5).weights()))
    for each, weights_R in enumerate(weights_RB.T):
        drawn = np.repeat(np.arange(len(rows)), weights_R.astype(int))
        gold_drawn, said_drawn = ([column[row] for row in drawn] for column in (gold, said))
        names = sorted({name for row in (*gold_drawn, *said_drawn) for name in row})
        if not names:
            continue
        for name, value in theirs(gold_drawn, said_drawn, names).items():
            if name == "weighted_f1" and not any(gold_drawn):
                continue
            assert measured.resampled[name][each] == pytest.approx(value)


def test_no_labels_on_both_sides_is_right_but_no_prediction_is_wrong():
    found = values(measure(KIND, table([[], []], [[], None])))
    assert (found["samples_f1"], found["subset_accuracy"]) == (0.5, 0.5)


def test_rows_without_gold_are_left_out_and_those_without_prediction_are_told():
    measured = measure(KIND, table([["web"], None, ["web"]], [["web"], ["web"], None]))
    assert measured.tables["left_out"] == {"gold is null": 1}
    assert measured.tables["without_prediction"] == 1
    assert measured.figures["micro_f1"].value == pytest.approx(2 / 3)


def test_a_label_that_stands_twice_counts_once_and_a_null_in_a_list_is_none():
    assert values(measure(KIND, table([["web", None]], [["web", "web"]])))["subset_accuracy"] == 1


def test_with_all_scores_what_reaches_the_threshold_is_predicted():
    rows = scored([["games"], ["web", "gui"]], [[0.5, 0.49, 0.1, 0.2], [0.1, 0.7, 0.1, 0.4]])
    assert values(measure(SCORED, rows))["subset_accuracy"] == 0.5
    lower = Multilabels("gold", labels="labels", scores="scores", threshold=0.4)
    assert values(measure(lower, rows))["subset_accuracy"] == 0.5
    assert values(measure(lower, rows))["samples_f1"] == pytest.approx((2 / 3 + 1) / 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 60), st.integers(0, 1000))
def test_the_areas_are_those_of_scikit_learn_ties_included(rows, seed):
    generator = np.random.default_rng(seed)
    gold_RL = generator.random((rows, 4)) < 0.4
    scores_RL = generator.integers(0, 11, (rows, 4)) / 10
    gold = [[name for name, has in zip(NAMES, row, strict=True) if has] for row in gold_RL]
    measured = measure(SCORED, scored(gold, scores_RL), resamples=0)
    sides = [each for each in range(4) if 0 < gold_RL[:, each].sum() < rows]
    areas = {NAMES[each]: sklearn.roc_auc_score(gold_RL[:, each], scores_RL[:, each]) for each in sides}
    found = {line["label"]: line["auc"] for line in measured.tables["per_class"] if line["auc"] is not None}
    assert found == pytest.approx(areas)
    if areas:
        assert measured.figures["macro_auc"].value == pytest.approx(np.mean(list(areas.values())))
        assert measured.figures["micro_auc"].value == pytest.approx(
            sklearn.roc_auc_score(gold_RL.reshape(-1), scores_RL.reshape(-1))
        )


def test_the_interval_of_an_area_is_nearly_that_of_areas_computed_anew():
    generator = np.random.default_rng(8)
    gold_RL = generator.random((300, 4)) < 0.3
    scores_RL = np.clip(0.4 * gold_RL + 0.6 * generator.random((300, 4)), 0, 1).astype(np.float32)
    gold = [[name for name, has in zip(NAMES, row, strict=True) if has] for row in gold_RL]
    measured = measure(SCORED, scored(gold, scores_RL), resamples=200)
    weights_RB = np.hstack(list(Bootstrap(300, 0, 200).weights()))
    macro, micro = [], []
    for weights_R in weights_RB.T:
        drawn = np.repeat(np.arange(300), weights_R.astype(int))
        macro.append(sklearn.roc_auc_score(gold_RL[drawn], scores_RL[drawn], average="macro"))
        micro.append(sklearn.roc_auc_score(gold_RL[drawn], scores_RL[drawn], average="micro"))
    assert measured.resampled["macro_auc"] == pytest.approx(np.array(macro), abs=0.004)
    assert measured.resampled["micro_auc"] == pytest.approx(np.array(micro), abs=0.004)


def test_calibration_is_over_each_label_of_each_row():
    measured = measure(SCORED, scored([["games"], []], [[0.9, 0.1], [0.9, 0.1]], ["games", "web"]))
    assert measured.figures["ece"].value == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert [each["rows"] for each in measured.tables["reliability"]] == [2, 2]


def test_rows_without_prediction_and_labels_unknown_to_the_model_have_no_score_to_judge():
    gold = [["games"], ["gui"], ["games", "zoo"], ["gui", "zoo"]]
    scores = [[0.9, 0.2], [0.3, 0.8], None, [0.4, 0.6]]
    measured = measure(SCORED, scored(gold, scores, ["games", "gui"]))
    assert measured.figures["macro_auc"].value == 1
    assert measured.figures["macro_auc"].rows == 3
    assert measured.tables["unknown_labels"] == {"zoo": 2}
    assert {line["label"]: line["auc"] for line in measured.tables["per_class"]} == {"games": 1, "gui": 1, "zoo": None}


def test_scores_of_the_predicted_labels_alone_give_no_area():
    rows = pa.table(
        {
            "gold": lists([["web"], ["gui"]]),
            "labels": lists([["web"], ["gui", "web"]]),
            "scores": pa.array([[0.9], [0.8, 0.6]], pa.list_(pa.float32())),
        }
    )
    found = measure(Multilabels("gold", "labels", labels="labels", scores="scores"), rows)
    assert set(found.figures) == {"micro_f1", "macro_f1", "weighted_f1", "samples_f1", "subset_accuracy"}


def test_what_stands_in_metrics_json_is_plain():
    told = measure(SCORED, scored([["games"], []], [[0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0]])).to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(JobError, match=r"^labels are measured by a column of predictions, or by one of lists"):
        measure(Multilabels("gold"), table([["a"]], [["a"]]))
    with pytest.raises(JobError, match=r"^column 'gold' holds string, and lists of strings are measured"):
        measure(KIND, pa.table({"gold": ["a"], "said": lists([["a"]])}))
