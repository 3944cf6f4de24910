from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.passages import grouped, passages

TEXTS = st.text(st.sampled_from("ab cd. ! ?\n\u3000。é😀\u0301"), max_size=120)


def words(texts):
    return [len(text.split()) for text in texts]


def characters(texts):
    return [len(text) for text in texts]


def test_sentences_stand_alone_and_groups_hold_as_many_as_fit():
    text = "One. Two two. Three."
    assert [text[start:stop] for start, stop in passages(text, 3, words)] == ["One.", "Two two.", "Three."]
    assert [text[start:stop] for start, stop in grouped(text, 3, words)] == ["One. Two two.", "Three."]
    assert grouped(text, 4, words) == [(0, 20)]


def test_a_sentence_that_is_too_long_is_cut_at_the_blank_nearest_to_its_middle():
    text = "one two three four five"
    assert [text[start:stop] for start, stop in passages(text, 3, words)] == ["one two three", "four five"]


def test_a_word_that_is_too_long_is_cut_within():
    assert passages("abcdefgh", 3, characters) == [(0, 2), (2, 4), (4, 6), (6, 8)]


@given(TEXTS, st.integers(1, 40), st.sampled_from([words, characters]), st.sampled_from([passages, grouped]))
def test_every_visible_character_stands_in_one_passage_that_fits(text, most, length, cut):
    spans = cut(text, most, length)
    assert all(tokens <= most for tokens in length([text[start:stop] for start, stop in spans]))
    end = 0
    for start, stop in spans:
        assert start >= end
        assert text[end:start].strip() == ""
        assert text[start:stop] == text[start:stop].strip() != ""
        end = stop
    assert text[end:].strip() == ""


@given(TEXTS)
def test_a_text_that_fits_is_one_group(text):
    spans = grouped(text, 1000, words)
    assert len(spans) == bool(text.strip())
