import itertools
import re

import pytest
import sentencex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.text.sentences import groups, sentence_spans

LANGUAGES = [
    "en",
    "de",
    "fr",
    "es",
    "ru",
    "el",
    "ar",
    "he",
    "hi",
    "th",
    "zh",
    "ja",
    "ko",
    "my",
    "hy",
    "pt-br",
    "xx",
    "",
]
PIECES = [
    *("Dr. Smith", "word", "e.g.", "U.S.", "3.5", "…", "...", "?!", "!", "?", ".", ". ", "。", "！", "؟", "।", "։"),
    *("\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", " ", "\t"),
    *(" * ", "\n * ", "\n- ", "\n• ", "1. ", "\n2) ", "\n(iv) ", "a. ", "[1]", "\x00", "'", '"', "“", "”", "«", "»"),
    *("中文句子", "שלום", "ثم ماذا", "สวัสดี", "हिन्दी", "e\u0301", "😀", "👩\u200d👧", "🇩🇪", "\U0001d54f", "\ufeff"),
    *("(", ")", ";", "* ", "\u200b", "\u202e", "\u3000", "İ", "ß", "I", "`", "``", "''", "<", ">", "a@b.org", "Yahoo!"),
]  # fmt: skip
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.text(max_size=200))


def parts(text, language="en"):
    return [text[start:stop] for start, stop in sentence_spans(text, language)]


def between(text, spans):
    edges = [0, *itertools.chain.from_iterable(spans), len(text)]
    return [text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def assert_sentences(text, spans):
    assert all(text[start:stop].strip() == text[start:stop] != "" for start, stop in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert all(not gap.strip() for gap in between(text, spans))


@settings(max_examples=300, deadline=None)
@given(texts, st.sampled_from(LANGUAGES))
def test_the_library_keeps_every_character_of_a_paragraph_with_narrow_white_space(text, language):
    paragraph = re.sub(r"\n\r*\n", "\n", re.sub(r"[^\S\x00-\x7f]", " ", text))
    assert "".join(sentencex.segment(language, paragraph)) == paragraph


@settings(max_examples=500, deadline=None)
@given(texts, st.sampled_from(LANGUAGES))
@example("", "en")
@example(" \r\n\r\n\t", "en")
@example("😀 A. 😀 B. 👩‍👩‍👧 c\u0301. 中文。", "en")
@example("No end at all", "th")
def test_nothing_but_white_space_stands_outside_the_sentences(text, language):
    assert_sentences(text, sentence_spans(text, language))


@settings(max_examples=100, deadline=None)
@given(texts, texts, st.sampled_from(["\n\n", "\r\n\r\n", "\r\r", "\n \t\n", " \n\n\n", "\u2028\n"]))
def test_a_blank_line_always_ends_a_sentence(before, after, blank):
    cut = len(before) + len(blank)
    assert all(stop <= cut or start >= len(before) for start, stop in sentence_spans(before + blank + after))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join), st.integers(1_000, 3_000))
def test_texts_of_any_length_are_kept_whole_and_their_sentences_are_short(piece, times):
    text = piece * times
    spans = sentence_spans(text)
    assert_sentences(text, spans)
    assert all(stop - start <= 4_100 for start, stop in spans)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Dr. Smith came. He stayed.", ["Dr. Smith came.", "He stayed."]),
        ("Version 3.5.2 of it, i.e. good.  See http://a.b/c.html. Done.",
         ["Version 3.5.2 of it, i.e. good.", "See http://a.b/c.html.", "Done."]),
        ("Wrapped line\nthat goes on. The next\r\none.", ["Wrapped line\nthat goes on.", "The next\r\none."]),
        ("He saw (it is so. Really) that. Then left.", ["He saw (it is so. Really) that.", "Then left."]),
        ("Wait... what?! No way!!! 😀 Ok.", ["Wait... what?!", "No way!!!", "😀 Ok."]),
        ("中文句子。第二句！第三句？", ["中文句子。", "第二句！", "第三句？"]),
        ("ثم ماذا؟ نعم.", ["ثم ماذا؟", "نعم."]),
        ("שלום לך. מה שלומך? טוב!", ["שלום לך.", "מה שלומך?", "טוב!"]),
        ("हिन्दी वाक्य। दूसरा वाक्य।", ["हिन्दी वाक्य।", "दूसरा वाक्य।"]),
        ("สวัสดีครับ ผมชื่อ จอห์น", ["สวัสดีครับ ผมชื่อ จอห์น"]),
        ("A title\n\nA text\r\n\r\nan end", ["A title", "A text", "an end"]),
        ("one\u2028\ntwo\x85\x85three\r\rfour \n \n five", ["one", "two", "three", "four", "five"]),
        ("nul\x00 here. Next.", ["nul\x00 here.", "Next."]),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_ends_them(text, found):
    assert parts(text) == found


def test_an_item_of_a_list_is_a_sentence_and_so_is_what_follows_in_it():
    text = "It has:\n * one item\n * two items. And more.\n   And more still.\nNext. Last."
    assert parts(text) == [
        *("It has:", "* one item", "* two items.", "And more.", "And more still.", "Next.", "Last."),
    ]  # fmt: skip


def test_an_items_number_belongs_to_its_sentence():
    assert parts("1. First thing. 2. Second thing.\n(3) Third.") == [
        "1. First thing.",
        "2. Second thing.",
        "(3) Third.",
    ]
    assert parts("It is so. 7.") == ["It is so.", "7."]


@pytest.mark.parametrize("blank", ["\u3000", "\u2028", "\u2029", "\x85", "\xa0"])
def test_wide_white_space_where_the_library_would_panic(blank):
    assert parts(f"So am I{blank}. Then{blank}left.") == [f"So am I{blank}.", f"Then{blank}left."]


class PanicException(BaseException):
    """As the Rust library raises it: no Exception."""


@pytest.mark.parametrize("fault", [PanicException, KeyboardInterrupt])
def test_a_paragraph_at_which_the_library_panics_is_one_sentence(monkeypatch, fault):
    segment = sentencex.segment

    def fragile(language, text):
        if "boom" in text:
            raise fault
        return segment(language, text)

    monkeypatch.setattr(sentencex, "segment", fragile)
    text = "One. Two.\n\n * A boom. And more.\n\nThree. Four."
    if fault is PanicException:
        assert parts(text) == ["One.", "Two.", "* A boom. And more.", "Three.", "Four."]
    else:
        with pytest.raises(KeyboardInterrupt):
            parts(text)


def test_abbreviations_are_those_of_the_language():
    text = "Das ist z. B. gut. Am 3. Mai ist es so."
    assert parts(text, "de") == ["Das ist z. B. gut.", "Am 3. Mai ist es so."]
    assert parts("One. Two.", "no such language") == parts("One. Two.", "en")


def test_a_paragraph_longer_than_the_library_sees_at_once_has_the_sentences_of_its_lines():
    lines = [f"Sentence {line} says what Dr. Smith (see e.g. page 3) found in {line} texts." for line in range(2_000)]
    assert parts(" ".join(lines)) == lines


def test_what_never_ends_is_cut_before_a_word():
    text = "word " * 20_000
    found = parts(text)
    assert len(found) > 20
    assert all(set(part.split(" ")) == {"word"} for part in found)
    assert [len(part) for part in parts("a" * 10_000)] == [4_000, 4_000, 2_000]


lengths_of = st.lists(st.integers(0, 60), max_size=80)


@settings(max_examples=200, deadline=None)
@given(lengths_of, st.integers(1, 100))
def test_groups_take_every_sentence_once_and_as_many_as_fit(lengths_S, most):
    found = groups(lengths_S, most)
    assert [at for first, last in found for at in range(first, last)] == list(range(len(lengths_S)))
    for first, last in found:
        assert last > first
        assert sum(lengths_S[first:last]) <= most or last - first == 1
    for (first, last), after in itertools.pairwise(found):
        assert sum(lengths_S[first : last + 1]) > most
        assert after[0] == last


def test_a_single_longer_sentence_goes_alone():
    assert groups([3, 9, 3, 3], 6) == [(0, 1), (1, 2), (2, 4)]
    assert groups([15, 10, 10, 9], 25) == [(0, 2), (2, 4)]
    assert groups([], 6) == []
