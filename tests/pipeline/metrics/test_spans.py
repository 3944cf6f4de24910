import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.spans import Spans

seqeval = pytest.importorskip("seqeval.metrics")

KIND = Spans("gold", "said")
SPAN = pa.list_(pa.struct([pa.field("label", pa.string()), pa.field("start", pa.int32()), pa.field("end", pa.int32())]))
WORDS = 8


def span(label, start, end):
    return {"label": label, "start": start, "end": end}


def table(gold, said):
    return pa.table({"gold": pa.array(gold, SPAN), "said": pa.array(said, SPAN)})


def values(measured):
    return {name: figure.value for name, figure in measured.figures.items()}


@st.composite
def apart(draw):
    """Spans of one row that do not overlap, which is all that BIO can say; a word is a character wide."""
    found, start = [], 0
    while start < WORDS:
        width = draw(st.integers(1, 3))
        if draw(st.booleans()):
            found.append(span(draw(st.sampled_from(["PER", "LOC", "ORG"])), start, min(start + width, WORDS)))
        start += width
    return found


def bio(spans):
    tags = ["O"] * WORDS
    for each in spans:
        tags[each["start"]] = f"B-{each['label']}"
        tags[each["start"] + 1 : each["end"]] = [f"I-{each['label']}"] * (each["end"] - each["start"] - 1)
    return tags


rows = st.lists(st.tuples(apart(), apart()), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_the_figures_are_those_of_seqeval(rows):
    gold, said = zip(*rows, strict=True)
    found = values(measure(KIND, table(gold, said), resamples=0))
    tags = ([bio(row) for row in gold], [bio(row) for row in said])
    if not any(gold) and not any(said):
        assert set(found) == {"exact_rows"}
        return
    for name, theirs, average in [
        ("spans_f1", seqeval.f1_score, "micro"),
        ("precision", seqeval.precision_score, "micro"),
        ("recall", seqeval.recall_score, "micro"),
        ("macro_f1", seqeval.f1_score, "macro"),
        ("weighted_f1", seqeval.f1_score, "weighted"),
    ]:
        if name in found:
            assert found[name] == pytest.approx(theirs(*tags, average=average, zero_division=0))
        else:
            assert (name, any(gold)) == ("weighted_f1", False)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_a_line_for_each_label_is_that_of_seqeval(rows):
    gold, said = zip(*rows, strict=True)
    lines = measure(KIND, table(gold, said), resamples=0).tables["per_class"]
    if not lines:
        return
    report = seqeval.classification_report(
        [bio(row) for row in gold], [bio(row) for row in said], output_dict=True, zero_division=0
    )
    for line in lines:
        theirs = report[line["label"]]
        assert (line["precision"], line["recall"], line["f1"], line["gold"]) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )


def test_a_shifted_end_and_another_label_are_no_hits():
    measured = measure(
        KIND, table([[span("PER", 0, 4)], [span("PER", 0, 4)]], [[span("PER", 0, 5)], [span("LOC", 0, 4)]])
    )
    assert measured.figures["spans_f1"].value == 0


def test_spans_may_overlap_and_one_that_stands_twice_counts_once():
    outer, inner = span("ORG", 0, 12), span("LOC", 0, 4)
    measured = measure(KIND, table([[outer, inner]], [[inner, outer, outer]]))
    assert values(measured) == dict.fromkeys(
        ["spans_f1", "precision", "recall", "macro_f1", "weighted_f1", "exact_rows"], 1.0
    )


def test_a_row_without_gold_is_left_out_and_one_without_prediction_has_no_spans():
    measured = measure(KIND, table([None, [span("PER", 0, 4)], []], [[span("PER", 0, 4)], None, None]))
    assert measured.tables["left_out"] == {"gold is null": 1}
    assert measured.tables["without_prediction"] == 2
    assert measured.figures["recall"].value == 0
    assert measured.figures["exact_rows"].value == 0


def test_a_row_whose_empty_gold_is_matched_is_exact():
    assert measure(KIND, table([[], [span("A", 0, 1)]], [[], []])).figures["exact_rows"].value == 0.5


def test_where_no_row_holds_a_span_there_is_no_f1():
    assert set(measure(KIND, table([[]], [[]])).figures) == {"exact_rows"}


def test_further_fields_and_integers_of_another_width_do_no_harm():
    wide = pa.list_(pa.struct({"end": pa.int64(), "text": pa.string(), "start": pa.int64(), "label": pa.string()}))
    said = pa.array([[{"label": "A", "start": 1, "end": 2, "text": "x"}]], wide)
    assert (
        measure(KIND, pa.table({"gold": pa.array([[span("A", 1, 2)]], SPAN), "said": said})).figures["spans_f1"].value
        == 1
    )


def test_an_interval_is_that_of_seqeval_over_the_same_rows():
    generator = np.random.default_rng(3)
    gold = [[span("A", 0, 2), span("B", 3, 4)] if each else [span("A", 5, 6)] for each in generator.random(40) < 0.5]
    said = [[each for each in row if generator.random() < 0.6] for row in gold]
    measured = measure(KIND, table(gold, said), seed=5, resamples=30)
    weights_RB = np.hstack(list(Bootstrap(40, 5, 30).weights()))
    for name, average in [("spans_f1", "micro"), ("macro_f1", "macro")]:
        theirs = []
        for weights_R in weights_RB.T:
            drawn = np.repeat(np.arange(40), weights_R.astype(int))
            tags = [[bio(rows[row]) for row in drawn] for rows in (gold, said)]
            theirs.append(seqeval.f1_score(*tags, average=average, zero_division=0))
        assert measured.resampled[name] == pytest.approx(np.array(theirs))


def test_a_column_that_holds_no_spans_is_refused():
    with pytest.raises(
        JobError, match=r"^column 'said' holds list<item: string>, and lists of structs of label, start"
    ):
        measure(KIND, pa.table({"gold": pa.array([[]], SPAN), "said": [["PER"]]}))


def test_a_span_that_lacks_its_end_or_is_null_is_refused():
    with pytest.raises(JobError, match=r"^column 'gold' holds spans without label, start or end: 1 of these are null$"):
        measure(KIND, table([[span("A", 1, None)]], [[]]))
    with pytest.raises(JobError, match=r"^column 'said' holds spans without label, start or end: 3 of these are null$"):
        measure(KIND, table([[]], [[None]]))
