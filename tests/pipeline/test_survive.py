"""A task that raises loses the texts that made it raise, and no others."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quarantine import Reason
from pipeline.survive import annotate_surviving
from pipeline.tasks.base import Annotation, AnnotationSettings, Task, Texts


class Touchy(Task):
    """Counts characters, and raises for texts that it does not like."""

    def fields(self) -> list[pa.Field]:
        return [pa.field("chars", pa.int32())]

    def annotate(self, texts: Texts) -> Annotation:
        if texts.running is not None:
            texts.running(range(len(texts.values)))
        if "bad" in texts.values:
            raise ValueError("I do not like it")
        if "huge" in texts.values:
            raise MemoryError
        if "nameless" in texts.values:
            return Annotation.of({}, len(texts.values))
        chars = [len(text) for text in texts.values if text != "skipped"]
        return Annotation.of({"chars": pa.array(chars)}, len(texts.values))


TOUCHY = Touchy(AnnotationSettings(name="t", task="touchy", text="text"), None)


@given(st.lists(st.sampled_from(["good", "bad", "huge", "fine too"]), max_size=40))
def test_only_the_texts_that_raise_fail(values: list[str]) -> None:
    found = annotate_surviving(TOUCHY, Texts(values))
    assert set(found.failures) == {row for row, value in enumerate(values) if value in ("bad", "huge")}
    assert found.columns["chars"].to_pylist() == [None if v in ("bad", "huge") else len(v) for v in values]


def test_the_reason_says_what_was_raised() -> None:
    found = annotate_surviving(TOUCHY, Texts(["good", "bad", "huge"]))
    assert (found.failures[1].reason, found.failures[1].detail) == (Reason.MODEL_FAILED, "ValueError: I do not like it")
    assert (found.failures[2].reason, found.failures[2].detail) == (Reason.OUT_OF_MEMORY, "MemoryError")


def test_the_journal_hears_the_places_in_the_whole() -> None:
    heard: list[list[int]] = []
    annotate_surviving(TOUCHY, Texts(["a", "b", "bad", "c"], running=lambda rows: heard.append(list(rows))))
    assert heard == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]


def test_an_answer_that_does_not_fit_its_texts_is_a_failure_like_any_other() -> None:
    found = annotate_surviving(TOUCHY, Texts(["good", "skipped", "fine too", "nameless"]))
    assert found.columns["chars"].to_pylist() == [4, None, 8, None]
    assert {row: failure.detail for row, failure in found.failures.items()} == {
        1: "ValueError: the task gave 0 values of 'chars' for 1 texts",
        3: "ValueError: the task gave no column 'chars'",
    }
