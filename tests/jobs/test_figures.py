"""What people see of how good a model is."""

import pytest

from jobs.figures import best_and_worst, evaluated, measured, number
from jobs.summary import text

FIGURES = {
    "accuracy": {"value": 0.7664, "low": 0.7531, "high": 0.7789, "rows": 4096},
    "macro_f1": {"value": 0.5321, "low": 0.507, "high": 0.551, "rows": 4096},
    "ece": {"value": 0.041, "low": 0.03, "high": 0.05, "rows": 4096},
}
MAJORITY = {name: {"value": 0.1034, "low": 0.09, "high": 0.11, "rows": 4096} for name in ("accuracy", "macro_f1")}
SUMMARY = {
    "output": "out/my evaluation/",
    "rows": {"judged": 4096, "left_out": 0, "without_prediction": 0},
    "model": "models/sections",
    "digest": "a2af034e8500" + "0" * 52,
    "tokens_per_second": 21_060.4,
    "seconds": 19.2,
}


def shown(part, width=80):
    return text([part], width=width).splitlines()


def classes(*f1s):
    return [{"label": f"label {place}", "f1": f1, "gold": 10 + place} for place, f1 in enumerate(f1s)]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.76641, "0.766"), (-0.5, "-0.500"), (12.249, "12.2"), (1204.4, "1,204"), (0.0, "0.000"), (None, "-")],
)
def test_numbers_have_the_digits_that_count(value, words):
    assert number(value) == words


def test_figures_stand_with_their_intervals_beside_the_baselines():
    assert shown(measured({"": FIGURES}, {"majority": MAJORITY})) == [
        "                 95% interval    majority",
        "accuracy  0.766  0.753 to 0.779     0.103",
        "macro_f1  0.532  0.507 to 0.551     0.103",
        "ece       0.041  0.030 to 0.050",
    ]


def test_figures_of_annotations_stand_under_their_names():
    one = {"accuracy": FIGURES["accuracy"]}
    assert shown(measured({"topic": FIGURES, "mood": one}))[1:] == [
        "topic  accuracy  0.766  0.753 to 0.779",
        "       macro_f1  0.532  0.507 to 0.551",
        "       ece       0.041  0.030 to 0.050",
        "mood   accuracy  0.766  0.753 to 0.779",
    ]


def test_figures_without_intervals_have_no_empty_column():
    figures = {"perplexity": {"value": 22.19, "low": None, "high": None, "rows": 9}}
    assert shown(measured({"": figures})) == ["", "perplexity  22.2"]


def test_few_labels_are_all_shown_best_first_with_what_they_are_taken_for():
    tables = {
        "per_class": classes(0.25, 0.75, 0.5),
        "confused_most": [
            {"gold": "label 0", "predicted": "label 1", "rows": 7},
            {"gold": "label 0", "predicted": "label 2", "rows": 2},
        ],
    }
    rows = shown(best_and_worst(tables))
    assert [row.split("  ")[0].strip() or "-" for row in rows] == ["labels", "-", "-"]
    assert ["label 1" in rows[0], "label 2" in rows[1], "label 0" in rows[2]] == [True] * 3
    assert rows[2].endswith("0.250  10 rows  often label 1")
    assert rows[0].count("━") > rows[1].count("━") > rows[2].count("━") > 0


def test_of_many_labels_the_best_and_the_worst_are_shown_and_those_that_are_never_gold_are_not():
    tables = {"per_class": [*classes(*(place / 20 for place in range(20))), {"label": "never", "f1": 0.0, "gold": 0}]}
    rows = shown(best_and_worst(tables))
    assert [row.split("━")[0].split("  ")[0] for row in rows] == ["best", "", "", "worst", "", "", "", ""]
    assert "label 19" in rows[0]
    assert "label 0 " in rows[-1]
    assert not any("never" in row for row in rows)


@pytest.mark.parametrize("per_class", [[], classes(0.5)])
def test_one_label_is_no_ranking(per_class):
    assert best_and_worst({"per_class": per_class}) is None
    assert best_and_worst({}) is None


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_nothing_is_wider_than_the_terminal(width):
    long = [{"label": "a very long label " * 9 + str(place), "f1": 0.5, "gold": 10_000} for place in range(20)]
    tables = {"per_class": long, "confused_most": [{"gold": each["label"], "predicted": "x" * 90} for each in long]}
    assert max(map(len, shown(best_and_worst(tables, width), width))) <= width


def test_an_evaluation_without_trouble_says_what_was_judged_and_where_it_lies():
    assert shown(evaluated(SUMMARY, {})) == [
        "rows    4,096 judged",
        "model   models/sections (a2af034e8500…)",
        "speed   21,060 tokens/s, 0:19 in all",
        "output  out/my evaluation/metrics.json, and pictures in out/my evaluation/plots",
        "next    corpusmill verify 'out/my evaluation/predictions'",
    ]


def test_rows_that_could_not_be_judged_or_answered_and_labels_that_the_model_has_not_are_told():
    summary = {
        **SUMMARY,
        "rows": {"judged": 90, "left_out": 14, "without_prediction": 1},
        "tokens_per_second": None,
    }
    tables = {
        "left_out": {"section is null": 12, "the row could not be read": 2},
        "unknown_labels": {f"{place}": place for place in range(1, 9)},
    }
    rows = shown(evaluated(summary, tables), 200)
    assert rows[:3] == [
        "rows       90 judged, 14 left out (section is null: 12, the row could not be read: 2)",
        "no answer  1 row, counted as wrong",
        "unknown    36 rows of labels that the model has not: 8, 7, 6, 5, 4, 3 and 2 more",
    ]
    assert "speed      0:19 in all" in rows
