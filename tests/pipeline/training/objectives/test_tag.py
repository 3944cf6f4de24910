import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from seqeval.metrics import f1_score  # type: ignore[import-untyped]

from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.tag import Tag as TagTask
from pipeline.training.examples import Examples
from pipeline.training.job import DataSettings, TrainingSettings
from pipeline.training.objectives import find
from pipeline.training.objectives.tag import SPANS, TEXT, Tag
from tests.pipeline.families import languages

SPAN = pa.struct([("label", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
SPANS_TYPE = pa.list_(SPAN)
WORDS_TYPE = pa.list_(pa.string())

NAMES = ["Anna", "Bruno", "Zoë", "Kim", "Otto", "Mia"]
PLACES = ["York", "Köln", "Rome", "Oslo", "Łódź", "Bern"]


def letters(count=48):
    """Invented sentences, with the names and places in them."""
    texts, spans = [], []
    for row in range(count):
        name, place = NAMES[row % 6], PLACES[row // 6 % 6]
        if row % 3:
            name += " " + NAMES[(row + 2) % 6]
        text = f"{name} lives in {place} ." if row % 2 else f"In {place} there is {name} today"
        found = [("PER", name), ("LOC", place)]
        texts.append(text)
        spans.append(
            [{"label": label, "start": text.index(each), "end": text.index(each) + len(each)} for label, each in found]
        )
    return {"text": texts, "label": spans}


@pytest.fixture
def bert(tiny):
    return tiny("bert", "Model", max_tokens=64)


@pytest.fixture
def tag(prepare, bert):
    return prepare(Tag, bert, SPANS_TYPE)


def test_it_is_found_by_its_name():
    assert find("tag") is Tag


def test_a_baseline_marks_again_what_was_marked(tag, tmp_path):
    marked = {
        "text": ["Anna lives in York", "in York", "York Oslo"],
        "label": [
            [{"label": "PER", "start": 0, "end": 4}, {"label": "LOC", "start": 14, "end": 18}],
            [{"label": "LOC", "start": 3, "end": 7}],
            [{"label": "PER", "start": 0, "end": 4}, {"label": "LOC", "start": 0 + 5, "end": 9}],
        ],
    }
    path = tmp_path / "train.arrow"
    examples = tag.encode(marked).examples
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, examples.schema) as writer:
        writer.write_table(examples)
    judged = pa.table({"text": ["from Oslo to York, Kim", "Anna", ""]})
    found = tag.baselines({}, judged, Examples([str(path)]))["memory"]["predicted"].to_pylist()
    assert found == [
        [{"label": "LOC", "start": 5, "end": 9}, {"label": "LOC", "start": 13, "end": 17}],
        [{"label": "PER", "start": 0, "end": 4}],
        [],
    ]


def test_it_needs_a_label_column_and_one_text():
    with pytest.raises(JobError, match=r"data\.label is missing: tag needs a column of spans"):
        Tag(Tag.Config(name="tag"), DataSettings(path="corpus", text="body"))
    with pytest.raises(JobError, match=r"data\.text_pair: tag reads one text"):
        Tag(Tag.Config(name="tag"), DataSettings(path="corpus", text="body", label="wanted", text_pair="other"))


@pytest.mark.parametrize(
    "type_", [SPANS_TYPE, pa.large_list(SPAN), WORDS_TYPE, pa.large_list(pa.large_string())], ids=str
)
def test_spans_and_labels_of_tokens_are_good(type_):
    Tag(Tag.Config(name="tag"), DataSettings(path="corpus", text="body", label="wanted")).check_label(type_)


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.list_(pa.int64()),
        pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32())])),
        pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32()), ("end", pa.float32())])),
        pa.list_(pa.struct([("label", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])),
    ],
    ids=str,
)
def test_another_type_of_label_is_refused(type_):
    made = Tag(Tag.Config(name="tag"), DataSettings(path="corpus", text="body", label="wanted"))
    with pytest.raises(CorpusError, match=rf"data\.label 'wanted' is {re.escape(str(type_))}; tag needs spans"):
        made.check_label(type_)


def test_a_slow_tokenizer_is_refused(prepare, tiny):
    with pytest.raises(ModelError, match=r"is a slow one .*cannot tell where a token stands"):
        prepare(Tag, tiny("marian", "Model"), SPANS_TYPE)


def test_an_example_holds_the_tokens_that_annotate_reads_and_its_spans_by_word_pieces(tag, batch_of):
    text = "Anna Bruno in York"
    spans = [{"label": "LOC", "start": 14, "end": 18}, {"label": "PER", "start": 0, "end": 10}]
    encoded = tag.encode({"text": [text], "label": [spans]})
    ids = tag.tokenizer(text)["input_ids"]
    assert encoded.examples["input_ids"].to_pylist() == [ids]
    assert encoded.examples["weight"].to_pylist() == [len(ids) - 2]
    assert encoded.tokens == len(ids)
    learned = tag.learned(tag.counted(encoded.examples))
    batch = batch_of(tag, encoded.examples, learned)
    offsets = tag.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    wanted = []
    for start, end in offsets:
        name = "PER" if end <= 10 else "LOC" if start >= 14 else None
        wanted.append(-100 if start == end else "O" if name is None else f"{'B' if start in (0, 14) else 'I'}-{name}")
    said = [each if each < 0 else learned["labels"][each] for each in batch["target"][0].tolist()]
    assert said == wanted
    assert said.count("B-PER") == said.count("B-LOC") == 1
    assert said.count("I-PER") >= 1


def test_bad_rows_are_left_out_with_the_reason(tag):
    rows = {
        "text": ["Anna", "Anna", "Anna in York", "Anna", "\u200b"],
        "label": [
            None,
            [{"label": "PER", "start": 0, "end": 9}],
            [{"label": "PER", "start": 0, "end": 4}, {"label": "LOC", "start": 2, "end": 8}],
            [],
            [],
        ],
    }
    encoded = tag.encode(rows)
    assert {row: failure.reason for row, failure in encoded.failures.items()} == {
        0: Reason.NULL_LABEL,
        1: Reason.BAD_LABEL,
        2: Reason.BAD_LABEL,
        4: Reason.NO_TOKENS,
    }
    assert len(encoded.examples) == 1
    assert encoded.examples["spans"].to_pylist() == [[]]


def test_spans_behind_the_window_are_dropped_and_the_row_is_told_as_cut(prepare, bert):
    tag = prepare(Tag, bert, SPANS_TYPE, max_tokens=8)
    text = "Anna in " + "the " * 20 + "York"
    spans = [{"label": "PER", "start": 0, "end": 4}, {"label": "LOC", "start": len(text) - 4, "end": len(text)}]
    encoded = tag.encode({"text": [text, "Anna"], "label": [spans, []]})
    assert encoded.truncated_rows == 1
    assert [each["label"] for each in encoded.examples["spans"].to_pylist()[0]] == ["PER"]
    assert encoded.examples["weight"].to_pylist()[0] == 6


def test_tokens_and_their_labels_become_the_same_examples_as_spans_of_the_joined_text(prepare, bert, tag):
    words = prepare(Tag, bert, WORDS_TYPE)
    ours = words.encode({"text": [["Anna", "Bruno", "in", "York"]], "label": [["B-PER", "I-PER", "O", "B-LOC"]]})
    spans = [{"label": "PER", "start": 0, "end": 10}, {"label": "LOC", "start": 14, "end": 18}]
    theirs = tag.encode({"text": ["Anna Bruno in York"], "label": [spans]})
    assert ours.examples.equals(theirs.examples)


def test_bad_lists_of_tokens_are_left_out(prepare, bert):
    words = prepare(Tag, bert, WORDS_TYPE)
    encoded = words.encode(
        {"text": [None, "Anna", ["Anna"], ["Anna"], []], "label": [["O"], ["O"], ["O", "O"], None, []]}
    )
    assert [(row, encoded.failures[row].reason) for row in sorted(encoded.failures)] == [
        (0, Reason.NULL_TEXT),
        (1, Reason.NULL_TEXT),
        (2, Reason.BAD_LABEL),
        (3, Reason.NULL_LABEL),
        (4, Reason.NO_TOKENS),
    ]
    assert len(encoded.examples) == 0


def test_test_rows_of_tokens_get_the_text_and_the_spans_that_a_tag_task_is_compared_with(prepare, bert, tag):
    words = prepare(Tag, bert, WORDS_TYPE)
    rows = pa.table(
        {
            "body": [["Anna", "Bruno", "in", "York"], ["no", "one"]],
            "wanted": [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]],
        }
    )
    judged = words.judged_rows(rows)
    assert judged[TEXT].to_pylist() == ["Anna Bruno in York", "no one"]
    assert judged[SPANS].to_pylist() == [
        [{"label": "PER", "start": 0, "end": 10}, {"label": "LOC", "start": 14, "end": 18}],
        [],
    ]
    prediction = words.prediction("said")
    assert prediction.annotations[0]["text"] == TEXT
    assert prediction.columns == {"gold": SPANS, "predicted": "said_entities"}
    rows = pa.table({"body": ["Anna"], "wanted": pa.array([[]], SPANS_TYPE)})
    assert tag.judged_rows(rows) is rows
    assert tag.prediction("said").columns == {"gold": "wanted", "predicted": "said_entities"}
    assert tag.prediction("said").kind == "spans"


def test_labels_are_learned_from_the_training_rows_in_a_stable_order(tag):
    encoded = tag.encode(letters())
    counted = tag.counted(encoded.examples)
    assert counted == {"PER": 48, "LOC": 48}
    learned = tag.learned(dict(reversed(counted.items())))
    assert learned == {"labels": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"], "counts": {"LOC": 48, "PER": 48}}
    assert tag.model_options(learned)["id2label"][3] == "B-PER"
    with pytest.raises(CorpusError, match="the training rows have no span in 'wanted'"):
        tag.learned({})


def test_a_label_that_no_training_row_has_is_told(tag):
    learned = tag.learned({"PER": 3})
    tag.check_known(learned, {"PER": 1}, "test")
    with pytest.raises(
        CorpusError, match="2 labels of 'wanted' in 5 spans of the test rows are in no training row: A, LOC;"
    ):
        tag.check_known(learned, {"LOC": 4, "A": 1, "PER": 1}, "test")


def test_the_loss_is_that_of_transformers_summed_over_word_pieces(tag, batch_of):
    encoded = tag.encode(letters(12))
    learned = tag.learned(tag.counted(encoded.examples))
    module = tag.build(learned, TrainingSettings()).eval()
    assert module.config.id2label == dict(enumerate(learned["labels"]))
    batch = batch_of(tag, encoded.examples, learned)
    inputs = {name: values for name, values in batch.items() if name != "target"}
    with torch.no_grad():
        theirs = module(**inputs, labels=batch["target"]).loss
        ours = tag.loss(module, batch, learned)
    weight = sum(encoded.examples["weight"].to_pylist())
    assert weight == int((batch["target"] != -100).sum())
    torch.testing.assert_close(ours / weight, theirs)


def test_what_is_judged_is_what_seqeval_and_accuracy_say(tag, batch_of):
    encoded = tag.encode(letters(24))
    learned = tag.learned(tag.counted(encoded.examples))
    module = tag.build(learned, TrainingSettings()).eval()
    parts, wanted, said, losses = [], [], [], 0.0
    for rows in (range(10), range(10, 24)):
        batch = batch_of(tag, encoded.examples.take(list(rows)), learned)
        with torch.no_grad():
            loss, judged = tag.judge(module, batch, learned)
            logits = module(**{name: values for name, values in batch.items() if name != "target"}).logits
            torch.testing.assert_close(loss, tag.loss(module, batch, learned))
        assert len(judged) == len(rows)
        parts.append(judged)
        for row in range(len(rows)):
            kept = batch["target"][row] != -100
            wanted.append([learned["labels"][at] for at in batch["target"][row][kept]])
            said.append([learned["labels"][at] for at in logits[row].argmax(-1)[kept]])
        losses += float(loss)
    figures = tag.score(np.concatenate(parts), learned)
    assert list(figures) == list(tag.figures)
    assert figures["spans_f1"] == pytest.approx(f1_score(wanted, said))
    flat = [(one, other) for each in zip(wanted, said, strict=True) for one, other in zip(*each, strict=True)]
    assert figures["token_accuracy"] == pytest.approx(np.mean([one == other for one, other in flat]))
    assert tag.score(np.array([[0, 0, 0, 1, 2]] * 2), learned) == {"spans_f1": 0.0, "token_accuracy": 0.5}


class Oracle(torch.nn.Module):
    """Says the labels that it was given of each piece, by its ids."""

    def __init__(self, examples, targets_BL, labels):
        super().__init__()
        ids = examples["input_ids"].to_pylist()
        self.known = {tuple(each): target[: len(each)] for each, target in zip(ids, targets_BL, strict=True)}
        self.labels = labels
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, attention_mask, **_):
        logits = torch.zeros(*input_ids.shape, self.labels)
        for row, length in enumerate(attention_mask.sum(1).tolist()):
            said = self.known.get(tuple(input_ids[row, :length].tolist()))
            if said is not None:
                logits[row, :length] = torch.nn.functional.one_hot(said.clamp(min=0), self.labels).float() * 50
        return transformers.modeling_outputs.TokenClassifierOutput(logits=logits)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta-v3", "modernbert", "mpnet", "gpt2"])
def test_a_model_that_learned_all_gives_the_spans_back_through_the_tag_task(family, prepare, tiny, tmp_path, batch_of):
    texts = [text[:200].strip() for text in languages.texts() if len(text.split()) > 3][:60]
    spans = []
    for row, text in enumerate(texts):
        words = [match.span() for match in re.finditer(r"\w+", text)][row % 3 :: 3]
        spans.append([{"label": "AB"[at % 2], "start": start, "end": end} for at, (start, end) in enumerate(words)])
    folder = tiny(family, "Model" if family != "gpt2" else "CausalLM", max_tokens=512)
    tag = prepare(Tag, folder, SPANS_TYPE, max_tokens=512)
    encoded = tag.encode({"text": texts, "label": spans})
    assert not encoded.failures
    learned = tag.learned(tag.counted(encoded.examples))
    batch = batch_of(tag, encoded.examples, learned)
    tag.save(tag.build(learned, TrainingSettings()), str(tmp_path / "model"))

    (annotation,) = tag.prediction("said").annotations
    model = ModelSettings(ref=str(tmp_path / "model"))
    task = TagTask(TagTask.Config.model_validate({**annotation, "model": model}), pin(model))
    loaded = load(
        pin(model), "AutoModelForTokenClassification", dtype="float32", device="cpu", threads=1, token_budget=512
    )
    task.start(loaded)
    task.loaded = replace(loaded, module=Oracle(encoded.examples, batch["target"], len(learned["labels"])))
    found = task.annotate(Texts(texts)).columns["entities"].to_pylist()
    same = [
        [(each["label"], each["start"], each["end"]) for each in entities]
        == [(each["label"], each["start"], each["end"]) for each in wanted]
        for entities, wanted in zip(found, spans, strict=True)
    ]
    # A span that begins or ends within a token cannot come back.
    tokens = tag._texts.tokens(texts, None, offsets=True)
    aligned = [
        all(_on_edges(each.offsets_T2, text, span) for span in wanted)
        for each, text, wanted in zip(tokens, texts, spans, strict=True)
    ]
    assert sum(aligned) > 30
    assert [text for text, good, edge in zip(texts, same, aligned, strict=True) if edge and not good] == []


def _on_edges(offsets_T2, text, span):
    """Whether the tokens that overlap a span cover it and white space before it, no more."""
    mine = [(start, end) for start, end in offsets_T2.tolist() if start < span["end"] and end > span["start"]]
    return bool(mine) and text[mine[0][0] : mine[-1][1]].strip() == text[span["start"] : span["end"]]


def test_some_steps_lower_the_loss_and_find_the_spans(tag, trained, batch_of, tmp_path):
    rows = letters()
    module, losses = trained(tag, rows)
    assert losses[-1] < 0.1 * losses[0]
    encoded = tag.encode(rows)
    learned = tag.learned(tag.counted(encoded.examples))
    with torch.no_grad():
        _, judged = tag.judge(module, batch_of(tag, encoded.examples, learned), learned)
    assert tag.score(judged, learned)["spans_f1"] > 0.95

    tag.save(tag.finish(module, learned), str(tmp_path / "model"))
    (annotation,) = tag.prediction("said").annotations
    model = ModelSettings(ref=str(tmp_path / "model"))
    task = TagTask(TagTask.Config.model_validate({**annotation, "model": model}), pin(model))
    task.start(load(pin(model), task.needs, dtype="float32", device="cpu", threads=1, token_budget=512))
    found = task.annotate(Texts(rows["text"])).columns["entities"].to_pylist()
    right = [
        {(each["label"], each["start"], each["end"]) for each in entities}
        == {(each["label"], each["start"], each["end"]) for each in wanted}
        for entities, wanted in zip(found, rows["label"], strict=True)
    ]
    assert np.mean(right) > 0.9
