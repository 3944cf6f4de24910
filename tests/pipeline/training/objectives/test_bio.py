from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities  # type: ignore[import-untyped]

from pipeline.entities import EntityDecoder
from pipeline.quarantine import Failure, Reason
from pipeline.training.objectives._bio import (
    Marked,
    bio,
    found_in,
    joined,
    on_tokens,
    remembered,
    spans_of,
    spans_of_words,
)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([5, 6], []),
        ([1, 2, 3, 1], [Marked("PER", 0, 3), Marked("LOC", 3, 4)]),
        ([1, 2, 1, 2], [Marked("LOC", 0, 1), Marked("LOC", 2, 3)]),
        ([0, 2, 3], [Marked("ORG", 1, 3)]),
    ],
)
def test_known_stretches_are_found_from_the_left_the_longest_first(ids, expected):
    known = {(1,): "LOC", (1, 2, 3): "PER", (2, 3): "ORG"}
    assert remembered(np.array(ids, np.int32), known) == expected


def span(label, start, end):
    return {"label": label, "start": start, "end": end}


@st.composite
def tokens_and_spans(draw):
    """Offsets of the tokens of a text (touching, apart, empty or of equal place), and sorted spans of it."""
    gaps = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=20))
    offsets, place = [], 0
    for blank, chars in gaps:
        offsets.append((place + blank, place + blank + chars))
        place += blank + chars
    cuts = sorted(draw(st.sets(st.integers(0, place + 1), max_size=12)))
    spans = [
        Marked(draw(st.sampled_from(["PER", "LOC"])), start, stop)
        for start, stop in pairwise(cuts)
        if draw(st.booleans())
    ]
    return np.array(offsets), spans


def test_spans_of_the_sample_in_the_docstring():
    offsets = np.array([(0, 4), (5, 10), (10, 13), (14, 16), (17, 21)])
    marked = spans_of([span("LOC", 17, 21), span("PER", 0, 13)], 21, "label")
    assert marked == [Marked("PER", 0, 13), Marked("LOC", 17, 21)]
    assert on_tokens(marked, offsets) == [Marked("PER", 0, 3), Marked("LOC", 4, 5)]


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        ([span("PER", 0, 5), span("LOC", 4, 8)], "spans that overlap, 'PER' [0, 5) and 'LOC' [4, 8)"),
        ([span("PER", 0, 5), span("PER", 0, 5)], "spans that overlap"),
        ([span("PER", 5, 12)], "the span 'PER' [5, 12), outside a text of 10 characters"),
        ([span("PER", -1, 2)], "outside a text of 10 characters"),
        ([span("PER", 3, 3)], "which holds nothing"),
        ([span("PER", 4, 3)], "which holds nothing"),
        ([span("O", 1, 3)], "the span 'O' [1, 3), whose label means none"),
        ([span("", 1, 3)], "whose label means none"),
        ([span(None, 1, 3)], "a span without label, start or end"),
        ([span("PER", None, 3)], "a span without label, start or end"),
        ([None], "a span without label, start or end: None"),
    ],
)
def test_a_bad_span_is_told(spans, told):
    failure = spans_of(spans, 10, "the label 'entities'")
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.BAD_LABEL
    assert failure.detail.startswith("the label 'entities' has ")
    assert told in failure.detail


def test_spans_that_touch_are_two():
    assert spans_of([span("A", 0, 2), span("A", 2, 4)], 4, "label") == [Marked("A", 0, 2), Marked("A", 2, 4)]


@settings(deadline=None)
@given(tokens_and_spans())
def test_each_token_is_of_the_first_span_that_it_overlaps_and_of_no_other(case):
    offsets, spans = case
    owner = [
        next((at for at, each in enumerate(spans) if start < each.stop and stop > each.start), None)
        for start, stop in offsets
    ]
    wanted = []
    for at, each in enumerate(spans):
        mine = [token for token, of in enumerate(owner) if of == at]
        if mine:
            wanted.append(Marked(each.label, mine[0], mine[-1] + 1))
    assert on_tokens(spans, offsets) == wanted


@settings(deadline=None)
@given(tokens_and_spans())
def test_labels_of_tokens_give_the_spans_back_here_as_in_tag_and_as_in_seqeval(case):
    offsets, spans = case
    marked = on_tokens(spans, offsets)
    names = bio(["PER", "LOC"])
    assert names == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    labels_T = np.zeros(len(offsets), np.int64)
    for label, start, stop in marked:
        labels_T[start] = names.index(f"B-{label}")
        labels_T[start + 1 : stop] = names.index(f"I-{label}")
    begins_L = np.array([name.startswith("B-") for name in names])
    found = found_in(labels_T[None], begins_L, np.array([0, 1, 1, 2, 2]))
    tags = {"LOC": 1, "PER": 2}
    assert found == {(0, start, stop, tags[label]) for label, start, stop in marked}
    assert [(label, start, last + 1) for label, start, last in get_entities([names[at] for at in labels_T])] == marked

    # As `task: tag` decodes them, over the stretch of text that the span's tokens cover.
    text = "x" * int(offsets.max(initial=1))
    scores_TL = np.eye(len(names), dtype=np.float32)[labels_T]
    begins_T = np.ones(len(offsets), bool)
    decoded = EntityDecoder(names, "simple").spans([text], np.array([len(offsets)]), offsets, begins_T, scores_TL)[0]
    stretches = [(label, int(offsets[start, 0]), int(offsets[stop - 1, 1])) for label, start, stop in marked]
    assert [(each.label, each.start, each.end) for each in decoded] == [each for each in stretches if each[1] < each[2]]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=9), min_size=1, max_size=4))
def test_any_labels_of_tokens_are_read_as_seqeval_reads_them(rows):
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    labels_BT = np.full((len(rows), 9), -100)
    for row, tags in enumerate(rows):
        labels_BT[row, : len(tags)] = [names.index(tag) for tag in tags]
    begins_L = np.array([name.startswith("B-") for name in names])
    wanted = {
        (row, start, last + 1, 1 + (label == "B"))
        for row, tags in enumerate(rows)
        for label, start, last in get_entities(tags)
    }
    assert found_in(labels_BT, begins_L, np.array([0, 1, 1, 2, 2])) == wanted


def test_words_and_their_labels_become_spans_of_the_joined_text():
    words = ["Anna", "Smithson", "in", "York", "Berlin"]
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    spans = spans_of_words(words, tags, "label")
    text = joined(words)
    assert not isinstance(spans, Failure)
    assert [(each.label, text[each.start : each.stop]) for each in spans] == [
        ("PER", "Anna Smithson"),
        ("LOC", "York"),
        ("LOC", "Berlin"),
    ]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=4), st.sampled_from(["O", "B-A", "I-A", "B-B-C", "I-B-C"])), max_size=12
    )
)
def test_spans_of_words_are_those_of_seqeval(pairs):
    words, tags = [word for word, _ in pairs], [tag for _, tag in pairs]
    starts = [sum(len(word) + 1 for word in words[:at]) for at in range(len(words))]
    wanted = [
        # seqeval cuts a label at its last hyphen, which no label of this project does
        Marked("B-C" if label == "C" else label, starts[first], starts[last] + len(words[last]))
        for label, first, last in get_entities([tag.replace("B-C", "C") for tag in tags])
    ]
    assert spans_of_words(words, tags, "label") == wanted


@pytest.mark.parametrize(
    ("words", "tags", "told"),
    [
        (["a", "b"], ["O"], "1 labels for 2 tokens"),
        (["a", None], ["O", "O"], "a null"),
        (["a"], [None], "a null"),
        (["a"], ["S-PER"], "the label 'S-PER', which is neither O nor B-… nor I-…"),
        (["a"], ["PER"], "the label 'PER'"),
        (["a"], ["B-"], "the label 'B-'"),
        (["a"], ["B-O"], "the label 'B-O'"),
        (["", "a"], ["B-PER", "O"], "labels an empty token 'PER'"),
    ],
)
def test_bad_labels_of_words_are_told(words, tags, told):
    failure = spans_of_words(words, tags, "the label 'tags'")
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.BAD_LABEL
    assert told in failure.detail
