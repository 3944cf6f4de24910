import math
import sys

import numpy as np
import pyarrow as pa
import pytest

from pipeline import metrics
from pipeline.errors import JobError
from pipeline.metrics.base import Figure, Kind, difference, lower_is_better, measure
from pipeline.metrics.labels import Labels
from pipeline.metrics.libraries import library
from pipeline.metrics.numbers import Numbers

KIND = Labels("gold", "said")


def width(figure):
    return figure.high - figure.low


def holds_its_value(figure):
    return figure.low <= figure.value <= figure.high


def drawn(right, rows=400, seed=0):
    generator = np.random.default_rng(seed)
    gold = generator.choice(["a", "b", "c"], rows)
    said = np.where(generator.random(rows) < right, gold, "a")
    return pa.table({"gold": gold, "said": said, "group": np.arange(rows) // 8})


def test_a_seed_gives_the_same_figures_and_another_seed_other_intervals():
    table = drawn(0.7)
    assert measure(KIND, table).figures == measure(KIND, table).figures
    other = measure(KIND, table, seed=1).figures["accuracy"]
    assert other.value == measure(KIND, table).figures["accuracy"].value
    assert other != measure(KIND, table).figures["accuracy"]


def test_the_interval_holds_the_value_and_is_narrower_with_more_rows():
    few, many = (measure(KIND, drawn(0.7, rows)).figures["accuracy"] for rows in (100, 2000))
    for figure in (few, many):
        assert holds_its_value(figure)
    assert width(many) < width(few) / 3


def test_without_resamples_there_are_no_intervals():
    for figure in measure(KIND, drawn(0.7), resamples=0).figures.values():
        assert (figure.low, figure.high) == (None, None)


def test_rows_that_are_alike_in_groups_make_the_interval_wider():
    one = drawn(0.7, 60)
    copies = pa.concat_tables([one.set_column(2, "group", pa.array(range(60)))] * 8)
    alone, together = (measure(KIND, copies, group=group).figures["accuracy"] for group in (None, "group"))
    assert alone.value == together.value
    assert width(together) > 2 * width(alone)
    # as if there were only the 60
    once = measure(KIND, one).figures["accuracy"]
    assert width(together) == pytest.approx(width(once), rel=0.1)


def test_a_row_without_group_is_a_group_of_its_own():
    table = drawn(0.7, 100)
    nulls = table.set_column(2, "group", pa.nulls(100, pa.string()))
    single = table.set_column(2, "group", pa.array(range(100)))
    assert measure(KIND, nulls, group="group").figures == measure(KIND, single, group="group").figures


def test_a_group_that_is_no_column_is_refused():
    with pytest.raises(JobError, match=r"^no column 'source' to measure, among gold, said, group"):
        measure(KIND, drawn(0.7), group="source")


def test_where_no_row_has_gold_there_is_nothing_to_measure():
    table = pa.table({"gold": pa.nulls(3, pa.string()), "said": ["a", "b", "c"]})
    with pytest.raises(JobError, match=r"^there is nothing to measure among 3 rows; gold is null: 3$"):
        measure(KIND, table)
    with pytest.raises(JobError, match=r"^there is nothing to measure among 0 rows$"):
        measure(KIND, table.slice(0, 0))


def test_a_model_that_is_better_on_the_same_rows_is_told_from_one_that_is_not():
    worse, better = drawn(0.6), drawn(0.9)
    assert worse["gold"].equals(better["gold"])
    ours, theirs = measure(KIND, better), measure(KIND, worse)
    found = difference(ours, theirs)["accuracy"]
    assert found.value == pytest.approx(ours.figures["accuracy"].value - theirs.figures["accuracy"].value)
    assert holds_its_value(found)
    assert found.value - width(found) > 0
    same = difference(ours, ours)["accuracy"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_paired_interval_is_narrower_than_that_of_unpaired_figures():
    table = drawn(0.7, 1000)
    nearly = table.set_column(1, "said", pa.array(["b", *table["said"].to_pylist()[1:]]))
    ours, theirs = measure(KIND, table), measure(KIND, nearly)
    paired = difference(ours, theirs)["accuracy"]
    assert width(paired) < 0.01
    assert width(ours.figures["accuracy"]) > 0.04


def test_figures_of_different_rows_have_no_difference():
    with pytest.raises(ValueError, match=r"is of 400 rows and 1000 resamples here, of 40 and 1000 there"):
        difference(measure(KIND, drawn(0.7)), measure(KIND, drawn(0.7, 40)))


def test_a_figure_without_a_value_is_absent():
    assert set(measure(Numbers("gold", "said"), pa.table({"gold": [1.0, 1.0], "said": [1.0, 2.0]})).figures) == {
        "rmse",
        "mae",
        "mse",
    }


def test_an_infinite_number_is_null_in_json():
    assert Figure(math.inf, 2.0, math.inf, 3).to_json() == {"value": None, "low": 2.0, "high": None, "rows": 3}


def test_what_stands_in_metrics_json_tells_how_intervals_came_to_be():
    told = measure(KIND, drawn(0.7), seed=3, resamples=50, group="group").to_json()
    assert told["intervals"] == {"coverage": 0.95, "resamples": 50, "seed": 3, "group": "group"}


def test_a_figure_reads_as_a_line():
    assert str(Figure(0.76612, 0.7531, 0.7789, 4096)) == "0.7661 [0.7531, 0.7789] of 4,096 rows"
    assert str(Figure(0.5, None, None, 2)) == "0.5 of 2 rows"


def test_of_errors_less_is_better_and_of_f1_more():
    assert lower_is_better("rmse")
    assert lower_is_better("perplexity")
    assert not lower_is_better("macro_f1")
    assert not lower_is_better("spearman")


def test_a_kind_is_found_by_its_name():
    assert metrics.known() == ["labels", "multilabels", "numbers", "perplexity", "retrieval", "spans", "texts"]
    for name in metrics.known():
        assert issubclass(metrics.find(name), Kind)
        assert metrics.find(name).__name__.lower() == name


def test_a_wrong_name_is_told_with_the_nearest():
    with pytest.raises(
        JobError, match=r"^nothing is measured by the name 'label'; did you mean 'labels'\? known: labels, m"
    ):
        metrics.find("label")


def test_a_library_that_is_not_installed_is_told_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.metrics", raising=False)
    with pytest.raises(
        JobError, match=r'^metrics need scikit-learn, which is not installed: pip install "corpusmill\['
    ):
        library("sklearn.metrics")


def test_a_library_that_lacks_another_is_not_told_as_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import none_such_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"none_such_at_all"):
        library("half_installed")
