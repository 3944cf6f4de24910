import itertools
import random
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.entities import ENTITIES_TYPE, EntityDecoder, Span, Strategy, WordRule, entities_array, merged_scores
from pipeline.errors import JobError
from pipeline.text.windows import spans as window_spans

STRATEGIES: list[Strategy] = ["none", "simple", "first", "average", "max"]
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-PER", "DATE-TIME"]
WORDS = [
    *[
        "Anna",
        "Smithson",
        "york",
        "München",
        "cafe\u0301",
        "e\u0301te\u0301",
        "İstanbul",
        "naïve",
        "a\u0000b",
        "x1-y2",
        "don't",
    ],
    *["中文字", "東京タワー", "서울", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "Ελλάδα", "Привет", "ﬁne", "½", "\u0301"],
    *["👩🏽", "👩‍👩‍👧", "🇫🇷🇩🇪", "❤️", "unhappinessfulness", "...", "(x)", "@", "1234567890"],
]
BLANKS = [" ", " ", " ", " ", "", "  ", "\t", "\n\n", "\u00a0", "\u3000", " \n "]


def generated_texts(count):
    """Words of many scripts, with all kinds of blanks between them and around."""
    draw = random.Random(3)
    texts = ["", " ", "\n", "👩🏽", " Anna ", "中文"]
    while len(texts) < count:
        pieces = [draw.choice(WORDS) + draw.choice(BLANKS) for _ in range(draw.randint(1, 40))]
        texts.append(draw.choice(BLANKS) + "".join(pieces))
    return texts


def wordpiece():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    for word in ("anna", "smith", "son", "york", "un", "happi", "ness", "cafe", "ete", "munchen", "中", "x", "y", "12"):
        pieces |= {word, f"##{word}"}
    pieces |= {form for letter in "abcdefghijklmnopqrstuvwxyz0123456789'-.()@" for form in (letter, f"##{letter}")}
    vocabulary = {piece: number for number, piece in enumerate(sorted(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def byte_level(trim_offsets):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        initial_alphabet=alphabet, vocab_size=len(alphabet) + 60, special_tokens=["[PAD]"], show_progress=False
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return backend


def unigram():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyzA中文שלםпривет"
    pieces = ["[PAD]", "[UNK]", "▁", "▁Anna", "▁Smith", "son", "▁York", *letters]
    backend = Tokenizer(models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], unk_id=1))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


TOKENIZERS = {
    "wordpiece": wordpiece,
    "bytes, blanks trimmed": lambda: byte_level(trim_offsets=True),
    "bytes, blanks kept": lambda: byte_level(trim_offsets=False),
    "unigram": unigram,
}


def make_pipeline(backend):
    """The library's pipeline around a tiny model of LABELS."""
    import transformers

    known = backend.get_vocab()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        **({"unk_token": "[UNK]"} if "[UNK]" in known else {}),
        **({"cls_token": "[CLS]", "sep_token": "[SEP]"} if "[CLS]" in known else {}),
    )
    config = transformers.BertConfig(
        vocab_size=len(known),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    model = transformers.BertForTokenClassification(config)
    return transformers.TokenClassificationPipeline(model=model, tokenizer=tokenizer)


def softmax(logits_TL):
    """In the pipeline's own order of operations."""
    shifted = np.exp(logits_TL - logits_TL.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def inner(outputs):
    """Ids, offsets and scores of one text's own tokens."""
    own = outputs["special_tokens_mask"][0].numpy() == 0
    return (
        outputs["input_ids"][0].numpy().astype(np.int64)[own],
        outputs["offset_mapping"][0].numpy().astype(np.int64).reshape(-1, 2)[own],
        softmax(outputs["logits"][0].numpy())[own],
    )


def theirs(pipe, outputs, strategy):
    """The pipeline's entities: label, start, end without surrounding white space, score; empty ones left out."""
    from transformers.pipelines.token_classification import AggregationStrategy

    text = outputs["sentence"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        found = pipe.postprocess([outputs], aggregation_strategy=AggregationStrategy(strategy))
    bare = []
    for entity in found:
        start, end = entity["start"], entity["end"]
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start < end:
            bare.append((entity.get("entity_group", entity.get("entity")), start, end, float(entity["score"])))
    return bare


def ours(pipe, outputs_R, strategy):
    """All texts at once."""
    texts = [outputs["sentence"] for outputs in outputs_R]
    ids_R, offsets_R, scores_R = zip(*map(inner, outputs_R), strict=True)
    tokens_R = np.array([len(ids) for ids in ids_R])
    offsets_T2 = np.concatenate(offsets_R)
    begins_T = WordRule.of(pipe.tokenizer).begins(texts, tokens_R, np.concatenate(ids_R), offsets_T2)
    labels = [pipe.model.config.id2label[number] for number in range(pipe.model.config.num_labels)]
    return EntityDecoder(labels, strategy).spans(texts, tokens_R, offsets_T2, begins_T, np.concatenate(scores_R))


def assert_same_entities(pipe, outputs_R, strategy):
    """Labels, starts and ends exactly, scores to 1e-6; how many there were."""
    spans_R = ours(pipe, outputs_R, strategy)
    for outputs, spans in zip(outputs_R, spans_R, strict=True):
        expected = theirs(pipe, outputs, strategy)
        assert [(span.label, span.start, span.end) for span in spans] == [entity[:3] for entity in expected]
        np.testing.assert_allclose([span.score for span in spans], [entity[3] for entity in expected], atol=1e-6)
        assert all(span.text == outputs["sentence"][span.start : span.end] == span.text.strip() for span in spans)
    return sum(map(len, spans_R))


@pytest.fixture(scope="module", params=TOKENIZERS)
def fed(request):
    """A pipeline, and 240 texts with logits as if its model had said them; every third has many equal ones."""
    import torch

    pipe = make_pipeline(TOKENIZERS[request.param]())
    draw = np.random.default_rng(5)
    outputs_R = []
    for row, text in enumerate(generated_texts(240)):
        (chunk,) = pipe.preprocess(text, is_split_into_words=False)
        shape = (1, chunk["input_ids"].shape[1], len(LABELS))
        logits = draw.integers(0, 3, shape) if row % 3 == 0 else draw.normal(size=shape) * 3
        logits[..., 0] += row % 2
        outputs_R.append({**chunk, "logits": torch.from_numpy(logits.astype(np.float32))})
    return pipe, outputs_R


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_are_those_of_the_pipeline_for_every_kind_of_tokenizer(fed, strategy):
    pipe, outputs_R = fed
    assert assert_same_entities(pipe, outputs_R, strategy) > 500


def test_rows_alone_give_what_they_give_together(fed):
    pipe, outputs_R = fed
    for strategy in STRATEGIES:
        together = ours(pipe, outputs_R[:40], strategy)
        assert [ours(pipe, [outputs], strategy)[0] for outputs in outputs_R[:40]] == together


@pytest.fixture(scope="module")
def personal(repository):
    """A trained model, and what it says of 220 letters."""
    import torch
    import transformers

    folder = repository.parent / "shared/models/minilm-pii-ner"
    if not folder.is_dir():
        pytest.skip("needs the development models ../shared/models")
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pipe = transformers.TokenClassificationPipeline(model=model, tokenizer=tokenizer)
    draw = random.Random(11)
    names = [
        "Anna Smithson",
        "José Núñez",
        "Zoe\u0308 Müller",
        "李小龍",
        "Олег Петров",
        "محمد علي",
        "נועה כהן",
        "Ángel 👩🏽 O'Neil",
    ]
    places = ["221B Baker Street, London", "München", "東京都 100-0001", "Springfield, IL 62704", "Αθήνα", "दिल्ली"]
    chunks = []
    for number in range(220):
        name, place = draw.choice(names), draw.choice(places)
        lines = [
            f"My name is {name} and I live in {place}.",
            f"{name} <{name.split()[0].lower()}{number}@example.org> +49 170 {draw.randint(10**6, 10**7)} 🎉",
            f"Passport {draw.randint(10**8, 10**9)}, account {draw.randint(10**9, 10**10)}; see https://example.com/{number}",
            " ".join(draw.choices(WORDS, k=draw.randint(0, 30))),
        ]
        text = "\n".join(draw.sample(lines, draw.randint(1, 4)))
        (chunk,) = pipe.preprocess(text, is_split_into_words=False)
        chunks.append(chunk)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # beside other tests, threads that wait for each other take minutes
    with torch.inference_mode():
        outputs_R = [pipe._forward(chunk) for chunk in chunks]
    torch.set_num_threads(threads)
    return pipe, outputs_R


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_of_a_trained_model_are_those_of_the_pipeline(personal, strategy):
    pipe, outputs_R = personal
    assert assert_same_entities(pipe, outputs_R, strategy) > 500


def scored(*best, labels=LABELS, score=0.9):
    """Scores of one token each, with the same rest for all other labels."""
    scores_TL = np.full((len(best), len(labels)), (1 - score) / (len(labels) - 1), np.float32)
    for token, label in enumerate(best):
        scores_TL[token, labels.index(label)] = score
    return scores_TL


def decoded(decoder, text, offsets, scores_TL):
    everywhere = np.ones(len(offsets), np.bool_)
    return decoder.spans([text], np.array([len(offsets)]), np.array(offsets), everywhere, scores_TL)[0]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("first", [("PER", "Anna Smithson", 0, 13, 0.98), ("LOC", "York", 17, 21, 0.99)]),
        ("simple", [("PER", "Anna Smith", 0, 10, 0.98), ("LOC", "York", 17, 21, 0.99)]),
        ("none", [("B-PER", "Anna", 0, 4, 0.99), ("I-PER", "Smith", 5, 10, 0.97), ("B-LOC", "York", 17, 21, 0.99)]),
    ],
)
def test_the_sample_that_the_module_opens_with(strategy, expected):
    text, offsets_T2 = "Anna Smithson in York", np.array([(0, 4), (5, 10), (10, 13), (14, 16), (17, 21)])
    scores_TL = np.concatenate([scored("B-PER", score=0.99), scored("I-PER", score=0.97), scored("O", "O")])
    scores_TL = np.concatenate([scores_TL, scored("B-LOC", score=0.99)])
    begins_T = np.array([True, True, False, True, True])
    (spans,) = EntityDecoder(LABELS, strategy).spans([text], np.array([5]), offsets_T2, begins_T, scores_TL)
    assert [span[:4] for span in spans] == [each[:4] for each in expected]
    assert [span.score for span in spans] == pytest.approx([each[4] for each in expected])


FOUR = "Anna met York 2024"
FOUR_OFFSETS = [(0, 4), (5, 8), (9, 13), (14, 18)]
FOUR_SCORES = scored("B-PER", "O", "I-LOC", "E-PER")


@pytest.mark.parametrize(
    ("strategy", "keep", "expected"),
    [
        ("none", None, ["B-PER", "I-LOC", "E-PER"]),
        ("none", ["PER"], ["B-PER", "E-PER"]),
        ("none", ["I-LOC"], ["I-LOC"]),
        ("none", ["B-LOC"], []),
        ("simple", None, ["PER", "LOC", "PER"]),
        ("simple", ["PER"], ["PER", "PER"]),
        ("simple", ["B-LOC"], ["LOC"]),
        ("max", [], []),
    ],
)
def test_only_the_labels_that_are_asked_for_come_out(strategy, keep, expected):
    found = decoded(EntityDecoder(LABELS, strategy, keep), FOUR, FOUR_OFFSETS, FOUR_SCORES)
    assert [span.label for span in found] == expected


def test_a_label_that_the_model_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(JobError) as fault:
        EntityDecoder(LABELS, "simple", ["PRE"])
    assert str(fault.value) == ("the model has no label 'PRE' to keep; did you mean 'PER'? it has PER, LOC, TIME")
    with pytest.raises(JobError, match="no label 'O' to keep; it has PER"):
        EntityDecoder(LABELS, "none", ["O"])


def test_spans_below_the_score_are_left_out_and_do_not_divide_others():
    scores_TL = np.concatenate([scored("B-PER", score=0.9), scored("I-PER", "B-LOC", score=0.5), scored("O")])
    found = decoded(EntityDecoder(LABELS, "simple", at_least=0.7), FOUR, FOUR_OFFSETS, scores_TL)
    assert [span[:4] for span in found] == [("PER", "Anna met", 0, 8)]
    assert found[0].score == pytest.approx(0.7)


def test_a_score_that_equals_the_bound_is_kept():
    assert len(decoded(EntityDecoder(LABELS, "none", at_least=0.9), FOUR, FOUR_OFFSETS, FOUR_SCORES)) == 3


def test_a_span_is_counted_in_code_points_and_has_no_blanks_around_it():
    text = "👩🏽 Zoe\u0308 "
    offsets = [(0, 2), (2, 2), (2, 6), (6, 8)]
    found = decoded(EntityDecoder(LABELS, "simple"), text, offsets, scored("O", "B-LOC", "B-PER", "I-PER"))
    assert [span[:4] for span in found] == [("PER", "Zoe\u0308", 3, 7)]


def test_texts_without_tokens_have_no_spans_and_do_not_join_their_neighbours():
    texts = ["Anna", "", "Anna", ""]
    spans_R = EntityDecoder(LABELS, "simple").spans(
        texts, np.array([1, 0, 1, 0]), np.array([(0, 4), (0, 4)]), np.ones(2, np.bool_), scored("I-PER", "I-PER")
    )
    assert [[span.text for span in spans] for spans in spans_R] == [["Anna"], [], ["Anna"], []]
    for strategy in STRATEGIES:
        nothing = np.empty((0, len(LABELS)), np.float32)
        assert decoded(EntityDecoder(LABELS, strategy), "", np.empty((0, 2), np.int32), nothing) == []


def test_a_token_at_a_texts_end_does_not_see_the_blank_that_begins_the_next():
    begins_T = WordRule(None, None).begins(
        ["ab", " c"], np.array([2, 1]), np.array([5, 6, 7]), np.array([(0, 2), (2, 2), (0, 2)])
    )
    assert begins_T.tolist() == [True, False, True]


@st.composite
def divided(draw):
    """Tokens, which of them begin a word, and overlapping windows over them."""
    tokens = draw(st.integers(1, 120))
    begins_T = np.array([True, *draw(st.lists(st.booleans(), min_size=tokens - 1, max_size=tokens - 1))])
    size = draw(st.integers(1, 30))
    return begins_T, window_spans(tokens, size, draw(st.integers(0, size - 1)))


def words_of(begins_T):
    bounds = [*np.flatnonzero(begins_T).tolist(), len(begins_T)]
    return list(itertools.pairwise(bounds))


@settings(max_examples=200, deadline=None)
@given(divided())
def test_where_scores_depend_on_the_token_alone_windows_give_what_one_long_window_gives(case):
    begins_T, windows = case
    scores_TL = np.random.default_rng(len(begins_T)).random((len(begins_T), 3), dtype=np.float32)
    merged_TL = merged_scores(windows, [scores_TL[start:stop] for start, stop in windows], begins_T)
    np.testing.assert_array_equal(merged_TL, scores_TL)


@settings(max_examples=200, deadline=None)
@given(divided())
def test_each_word_comes_whole_from_the_window_in_which_it_is_farthest_from_an_edge(case):
    begins_T, windows = case
    tokens = len(begins_T)
    numbers = [np.full((stop - start, 1), number, np.float32) for number, (start, stop) in enumerate(windows)]
    window_T = merged_scores(windows, numbers, begins_T)[:, 0].astype(int).tolist()

    def farthest(first, stop):
        margins = {
            number: min(first - left if left else tokens, right - stop if right < tokens else tokens)
            for number, (left, right) in enumerate(windows)
            if left <= first and stop <= right
        }
        return max(margins, key=lambda number: margins[number], default=None)

    for first, stop in words_of(begins_T):
        whole = farthest(first, stop)
        by_token = [farthest(token, token + 1) for token in range(first, stop)]
        assert window_T[first:stop] == (by_token if whole is None else [whole] * (stop - first))


@settings(max_examples=200, deadline=None)
@given(divided(), st.integers(0, 4), st.integers(0, 20))
def test_where_windows_share_enough_a_model_of_limited_sight_says_what_it_says_of_the_whole_text(case, sight, more):
    begins_T, _ = case
    tokens = len(begins_T)
    stride = 2 * sight + max(stop - first for first, stop in words_of(begins_T))
    ids_T = np.random.default_rng(tokens).random(tokens)

    def model(start, stop):
        """The sum of what lies within sight."""
        seen = [ids_T[max(start, token - sight) : min(stop, token + sight + 1)] for token in range(start, stop)]
        return np.array([[each.sum()] for each in seen], np.float32)

    windows = window_spans(tokens, stride + 1 + more, stride)
    merged_T1 = merged_scores(windows, [model(start, stop) for start, stop in windows], begins_T)
    np.testing.assert_array_equal(merged_T1, model(0, tokens))


def test_an_entity_longer_than_the_overlap_is_found_once_and_whole():
    text = " ".join("abcdefghij")
    offsets = [(2 * place, 2 * place + 1) for place in range(10)]
    best = ["O", "B-PER", *["I-PER"] * 7, "O"]
    windows = window_spans(10, 4, 1)
    merged_TL = merged_scores(windows, [scored(*best[start:stop]) for start, stop in windows], np.ones(10, np.bool_))
    found = decoded(EntityDecoder(LABELS, "first"), text, offsets, merged_TL)
    assert [span[:4] for span in found] == [("PER", "b c d e f g h i", 2, 17)]


def test_a_column_holds_every_row_with_null_for_those_that_failed():
    rows = [
        [Span("PER", "Zoe\u0308 👩🏽", 1, 7, 0.5), Span("LOC", "York", 9, 13, 0.25)],
        None,
        [],
        [Span("LOC", "x", 0, 1, 1.0)],
    ]
    column = entities_array(rows)
    assert column.type == ENTITIES_TYPE
    assert [field.name for field in ENTITIES_TYPE.value_type] == ["label", "text", "start", "end", "score"]
    column.validate(full=True)
    assert column.to_pylist() == [spans if spans is None else [span._asdict() for span in spans] for spans in rows]


@pytest.mark.parametrize("rows", [[], [None, None], [[], None]])
def test_a_column_without_any_entity_has_its_type(rows):
    column = entities_array(rows)
    assert (column.type, column.to_pylist()) == (ENTITIES_TYPE, rows)
    assert pa.concat_arrays([column, entities_array([[Span("PER", "x", 0, 1, 0.5)]])]).type == ENTITIES_TYPE
