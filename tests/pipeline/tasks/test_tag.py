import json
import random
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers.pipelines.token_classification import AggregationStrategy

from pipeline.errors import JobError, ModelError
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.tag import Tag
from tests.pipeline.families import languages

STRATEGIES = ["none", "simple", "first", "average", "max"]
FAMILIES = [
    *["bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta", "deberta-v2", "deberta-v3", "modernbert"],
    *["t5", "gpt2", "llama"],
]
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-MISC"]
WINDOW = 1024
# Words of these scripts are a few tokens each, whatever the tokenizer.
SPACED = ["english", "german", "french", "russian", "greek", "hebrew", "accents", "emoji"]


class Reference:
    """The library's own pipeline: what it computed of each text, decoded by any strategy."""

    def __init__(self, folder, most_tokens):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.tokenizer.model_max_length = most_tokens
        model = transformers.AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.pipe = transformers.TokenClassificationPipeline(model=model, tokenizer=self.tokenizer)
        self.outputs, self.found = {}, {}

    def reads(self, text):
        """Whether it has tokens, and no more than the window holds."""
        tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return 0 < tokens <= self.tokenizer.model_max_length - self.tokenizer.num_special_tokens_to_add()

    def entities(self, text, strategy):
        """Label, start, end without surrounding white space, score; empty ones left out."""
        if (text, strategy) not in self.found:
            self.found[text, strategy] = list(self._entities(text, strategy))
        return self.found[text, strategy]

    def _entities(self, text, strategy):
        if text not in self.outputs:
            with torch.inference_mode():
                chunks = self.pipe.preprocess(text, is_split_into_words=False)
                self.outputs[text] = [self.pipe.forward(chunk) for chunk in chunks]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            found = self.pipe.postprocess(self.outputs[text], aggregation_strategy=AggregationStrategy(strategy))
        for entity in found:
            start, end = entity["start"], entity["end"]
            while start < end and text[start].isspace():
                start += 1
            while start < end and text[end - 1].isspace():
                end -= 1
            if start < end:
                yield entity.get("entity_group", entity.get("entity")), start, end, float(entity["score"])


@pytest.fixture(scope="module")
def reference():
    """References by folder, so that each text goes through a model once for all strategies."""
    made = {}

    def make(folder, most_tokens=WINDOW):
        if folder not in made:
            made[folder] = Reference(folder, most_tokens)
        return made[folder]

    return make


@pytest.fixture(scope="module")
def together():
    """The texts as one unit of a job: annotations by several strategies share tokens and passes."""
    made: dict[tuple[str, ...], Texts] = {}
    return lambda texts: made.setdefault(tuple(texts), Texts(list(texts)))


@pytest.fixture
def tagger(tiny):
    def make(family="bert", labels=LABELS, max_tokens=WINDOW, **options):
        return tiny(family, "TokenClassification", labels=labels, max_tokens=max_tokens, **options)

    return make


def found(task, texts):
    annotation = task.annotate(texts if isinstance(texts, Texts) else Texts(list(texts)))
    assert [pa.field(name, column.type) for name, column in annotation.columns.items()] == task.fields()
    return annotation.columns["entities"].to_pylist()


def places(entities):
    """What does not depend on the neighbours in a micro-batch to the last bit."""
    return entities and [(entity["label"], entity["start"], entity["end"]) for entity in entities]


def assert_same_entities(task, texts, expected_R, atol=1e-4):
    """Labels and places exactly, scores nearly; how many entities there were."""
    entities_R = found(task, texts)
    for text, entities, expected in zip(texts.values, entities_R, expected_R, strict=True):
        assert places(entities) == [each[:3] for each in expected], repr(text[:80])
        np.testing.assert_allclose([each["score"] for each in entities], [each[3] for each in expected], atol=atol)
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in entities)
        assert all(entity["text"] and entity["text"] == entity["text"].strip() for entity in entities)
    return sum(map(len, entities_R))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_entities_are_those_of_the_pipeline(tagger, start, reference, together, texts_of, least_of, family, strategy):
    theirs, texts = reference(tagger(family)), texts_of(family)
    within = [text for text in texts if theirs.reads(text)]
    assert len(within) >= least_of(family)
    task = start(Tag, tagger(family), token_budget=2048, aggregation=strategy)
    expected_R = [theirs.entities(text, strategy) for text in within]
    assert assert_same_entities(task, together(within), expected_R) > 5 * least_of(family)


def letters(count):
    """Letters with names, places, addresses and numbers, in many scripts."""
    draw = random.Random(13)
    names = [
        "Anna Smithson",
        "José Núñez",
        "Zoe\u0308 Müller",
        "李小龍",
        "Олег Петров",
        "محمد علي",
        "Ángel 👩🏽 O'Neil",
    ]
    places = ["221B Baker Street, London", "München", "東京都 100-0001", "Springfield, IL 62704", "Αθήνα", "दिल्ली"]
    written = []
    for number in range(count):
        name, place = draw.choice(names), draw.choice(places)
        lines = [
            f"My name is {name} and I live in {place}.",
            f"{name} <{name.split()[0].lower()}{number}@example.org> +49 170 {draw.randint(10**6, 10**7)} 🎉",
            f"Passport {draw.randint(10**8, 10**9)}, account {draw.randint(10**9, 10**10)}; https://example.com/{number}",
            languages.running_text(draw, list(languages.SENTENCES), draw.randint(10, 200)),
        ]
        written.append("\n".join(draw.sample(lines, draw.randint(1, 4))))
    return written


@pytest.fixture(scope="module")
def personal(repository):
    folder = repository.parent / "shared/models/minilm-pii-ner"
    if not folder.is_dir():
        pytest.skip("needs the development models ../shared/models")
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_of_a_trained_model_are_those_of_the_pipeline(personal, start, reference, together, strategy):
    theirs, written = reference(personal, 512), letters(200)
    task = start(Tag, personal, token_budget=2048, aggregation=strategy)
    expected_R = [theirs.entities(text, strategy) for text in written]
    assert assert_same_entities(task, together(written), expected_R) > 400


@pytest.fixture(scope="module")
def local(tiny):
    """ModernBERT with sliding windows alone: three layers that see eight tokens on either side, so 24 in all."""
    return tiny(
        "modernbert",
        "TokenClassification",
        labels=LABELS,
        max_tokens=8192,
        layer_types=["sliding_attention"] * 3,
    )


@pytest.fixture(scope="module")
def long_texts():
    draw = random.Random(5)
    return [languages.running_text(draw, SPACED, draw.randint(3_000, 5_000)) for _ in range(12)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("options", [{"max_tokens": 512}, {"max_tokens": 160, "stride": 120}])
def test_no_entity_is_lost_doubled_or_torn_at_a_windows_edge(
    local, start, reference, together, long_texts, strategy, options
):
    theirs = reference(local, 8192)
    assert all(theirs.reads(text) for text in long_texts)
    task = start(Tag, local, token_budget=2048, aggregation=strategy, **options)
    assert (task.pieces(together(long_texts)).windows_R > 1).all()
    expected_R = [theirs.entities(text, strategy) for text in long_texts]
    assert assert_same_entities(task, together(long_texts), expected_R) > 1000


def test_windows_that_share_too_little_for_the_models_sight_say_something_else(local, start, reference, long_texts):
    """Else the test before this one would prove nothing."""
    task = start(Tag, local, token_budget=2048, max_tokens=160, stride=0)
    places_R = [places(entities) for entities in found(task, long_texts)]
    expected_R = [reference(local, 8192).entities(text, "simple") for text in long_texts]
    assert places_R != [[each[:3] for each in expected] for expected in expected_R]


@pytest.fixture(scope="module")
def sightless(tiny, tmp_path_factory):
    """A BERT that sees nothing but the token itself: no layers, no positions."""
    folder = tmp_path_factory.mktemp("sightless")
    made = tiny("bert", "TokenClassification", labels=LABELS, max_tokens=8192, num_hidden_layers=0)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    module = transformers.AutoModelForTokenClassification.from_pretrained(made)
    with torch.no_grad():
        module.bert.embeddings.position_embeddings.weight.zero_()
    module.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("max_tokens", "stride"), [(4, 1), (9, 6), (32, None), (100, 3)])
def test_a_model_of_single_tokens_says_the_same_by_any_windows(
    sightless, start, reference, together, texts, strategy, max_tokens, stride
):
    theirs = reference(sightless, 8192)
    within = [text for text in texts[::3] if theirs.reads(text)]
    task = start(Tag, sightless, token_budget=8192, aggregation=strategy, max_tokens=max_tokens, stride=stride)
    expected_R = [theirs.entities(text, strategy) for text in within]
    assert assert_same_entities(task, together(within), expected_R, atol=1e-5) > 1000


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta-v3"])
def test_truncation_reads_the_first_window_and_tells_so(tagger, start, texts, family):
    first = start(Tag, tagger(family), token_budget=2048, max_tokens=20, long_text="truncate")
    read = Texts([text for text in texts if text.strip()][:120])
    annotation = first.annotate(read)
    assert 30 < annotation.truncated_R.sum() < len(read.values)
    assert annotation.tokens_R.max() == 20
    whole = start(Tag, tagger(family), token_budget=2048).annotate(Texts(read.values))
    short = np.flatnonzero(~annotation.truncated_R)
    assert len(short) >= 5
    entities_R, whole_R = (each.columns["entities"].to_pylist() for each in (annotation, whole))
    for row in short:
        assert places(entities_R[row]) == places(whole_R[row])
    for text, entities in zip(read.values, entities_R, strict=True):
        assert all(text[each["start"] : each["end"]] == each["text"] for each in entities or ())


def test_long_texts_are_read_in_windows_that_share_a_quarter_unless_the_job_says_otherwise(tagger, start, long_texts):
    task = start(Tag, tagger(), max_tokens=64)
    annotation = task.annotate(Texts(long_texts))
    assert not annotation.truncated_R.any()
    spans_P2 = task.pieces(Texts(long_texts[:1])).spans_P2
    assert (spans_P2[:-1, 1] - spans_P2[1:, 0] == 16).all()


@pytest.fixture
def sentence():
    return "Anna Smith works for the city library; she has lent 12,500 books since 2019."


def test_only_labels_and_scores_that_are_asked_for_are_kept(tagger, start, texts):
    folder, read = tagger(), [text for text in texts if text.strip()][:60]
    every = found(start(Tag, folder), read)
    assert {entity["label"] for entities in every for entity in entities or ()} == {"PER", "LOC", "MISC"}
    kept = found(start(Tag, folder, labels=["B-PER", "MISC"], threshold=0.6), read)
    assert kept == [
        entities and [each for each in entities if each["label"] != "LOC" and each["score"] >= np.float32(0.6)]
        for entities in every
    ]
    assert sum(len(entities or ()) for entities in kept) > 0


def test_a_text_without_entities_has_an_empty_list_and_a_failed_one_null(tagger, start, sentence):
    task = start(Tag, tagger(), threshold=1.0)
    annotation = task.annotate(Texts([sentence, "\u200b", sentence]))
    assert annotation.columns["entities"].to_pylist() == [[], None, []]
    assert annotation.failures[1].reason is Reason.NO_TOKENS
    assert found(task, []) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_numbers_that_are_not_finite_fail_their_own_row_alone(tagger, start, sentence, strategy):
    task = start(Tag, tagger(), token_budget=64, aggregation=strategy)
    entities = found(task, [sentence])[0]
    broken = "x y"
    (marked,) = task.loaded.tokenizer("y", add_special_tokens=False)["input_ids"]

    def spoil(module, given, output):
        output.logits[(given[1]["input_ids"] == marked).any(1)] = torch.nan

    def with_inputs(module, args, kwargs, output):
        spoil(module, (args, kwargs), output)

    task.loaded.module.register_forward_hook(with_inputs, with_kwargs=True)
    annotation = task.annotate(Texts([sentence, broken, sentence]))
    assert annotation.columns["entities"].to_pylist() == [entities, None, entities]
    assert {row: failure.reason for row, failure in annotation.failures.items()} == {1: Reason.NON_FINITE_OUTPUT}


def test_annotations_of_one_model_share_its_pass_and_only_a_mean_keeps_every_score(tagger, start, texts):
    folder, read = tagger(), Texts([text for text in texts if text.strip()][:40])
    first, second, mean = (start(Tag, folder, aggregation=each) for each in ("simple", "max", "average"))
    second.loaded = mean.loaded = first.loaded
    assert [task.annotate(read).forward_tokens > 0 for task in (first, second, mean)] == [True, False, True]
    kept = [{len(of[0]) for of in task.said(read).found_P} for task in (first, second, mean)]
    assert kept == [{2}, {2}, {len(LABELS)}]
    assert found(second, read.values) == second.annotate(read).columns["entities"].to_pylist()


def test_many_texts_are_decoded_in_parts_that_change_nothing(tagger, start, texts, monkeypatch):
    task, read = start(Tag, tagger(), token_budget=2048), [text for text in texts if text.strip()][:80]
    whole = found(task, read)
    monkeypatch.setattr("pipeline.tasks.tag._DECODED_TOKENS", 300)
    assert found(task, read) == whole


@pytest.fixture
def relabelled(tagger, tmp_path):
    """A tagger's folder with another config.json."""

    def make(**options):
        target = tmp_path / "relabelled"
        shutil.copytree(tagger(), target)
        config = json.loads((target / "config.json").read_text())
        config = {key: value for key, value in {**config, **options}.items() if value is not None}
        (target / "config.json").write_text(json.dumps(config))
        return target

    return make


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"id2label": None, "label2id": None},
            'does not name its labels, so nobody can tell .*: put id2label into its config.json, as in {"0": "O"',
        ),
        ({"id2label": {"0": "O", "1": "B-PER"}}, "more labels than names: its head has 6 rows, and .* names 2"),
        (
            {"architectures": ["BertForSequenceClassification"]},
            r"is of another kind \(sequence_classification: BertForSequenceClassification\); tag needs one with a head "
            r"for tokens \(…ForTokenClassification\)",
        ),
        ({"architectures": ["BertModel"]}, r"is of another kind \(encoder: BertModel\)"),
    ],
)
def test_a_model_that_cannot_tag_is_refused(relabelled, prepare, options, words):
    with pytest.raises(ModelError, match=words):
        prepare(Tag, relabelled(**options))


def test_a_model_whose_head_was_never_trained_is_refused(tiny, relabelled, start):
    folder = relabelled(architectures=None)
    shutil.copy(tiny("bert", "Model", max_tokens=WINDOW) / "model.safetensors", folder)
    with pytest.raises(ModelError, match=r"lacks .* weights .* classifier"):
        start(Tag, folder)


class Constant(torch.nn.Module):
    """A model that says the same of everything."""

    def __init__(self, *shape):
        super().__init__()
        self.config, self._shape = SimpleNamespace(pad_token_id=0), shape

    def forward(self, **inputs):
        return SimpleNamespace(logits=torch.zeros(self._shape))


def test_a_model_that_does_not_score_each_label_of_each_token_is_refused(tagger, prepare, start):
    loaded = start(Tag, tagger()).loaded
    with pytest.raises(ModelError, match=r"annotation 'found': .* logits of shape \(1, 6\) for a text of \d tokens"):
        prepare(Tag, tagger()).start(replace(loaded, module=Constant(1, 6)))


def test_a_label_that_the_model_does_not_have_is_refused(tagger, prepare):
    words = (
        "annotation 'found': labels: the model has no label 'PRE' to keep; did you mean 'PER'? it has PER, LOC, MISC"
    )
    with pytest.raises(JobError) as told:
        prepare(Tag, tagger(), labels=["LOC", "PRE"])
    assert str(told.value) == words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"aggregation": "mean"}, "'none', 'simple', 'first', 'average' or 'max'"),
        ({"labels": []}, "at least 1 item"),
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"long_text": "truncate", "stride": 4}, "stride needs `long_text: windows`"),
        ({"max_tokens": 16, "stride": 16}, "stride 16 must be less than max_tokens 16"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValidationError) as told:
        Tag.Config.model_validate({"name": "a", "task": "tag", "text": "b", "model": "c", **options})
    assert words in str(told.value)
