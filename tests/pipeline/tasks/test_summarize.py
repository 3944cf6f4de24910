import json
import shutil
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.centrality import chosen
from pipeline.errors import JobError, ModelError
from pipeline.quarantine import Reason
from pipeline.tasks.base import Texts
from pipeline.tasks.summarize import Summarize
from pipeline.tasks.writer import Written
from pipeline.text.sentences import sentence_spans

SMOOTH = {"t5": {"initializer_factor": 1.0}}  # the fixture's own spread blows rounding up a thousandfold
NEAR = 1e-4


@pytest.fixture
def titles(repository):
    """A T5 that writes titles; beside the checkout, not in it."""
    folder = repository.parent / "shared/models/t5-small-titles"
    if not folder.is_dir():
        pytest.skip("needs the development model ../shared/models/t5-small-titles")
    return folder


@pytest.fixture(scope="module")
def descriptions(sample):
    import pyarrow.parquet as pq

    return pq.read_table(next(sample.rglob("*.parquet")), columns=["description"])["description"].to_pylist()


def by_library(folder, prompts, most, **options):
    """Each prompt alone, by transformers, in float32: the text, and how far its two best tokens lay apart at least."""
    module = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, truncation=True, max_length=most, return_tensors="pt")
        with torch.inference_mode():
            told = module.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                output_scores=True,
                return_dict_in_generate=True,
                **options,
            )
        gap = min(float((-scores.topk(2).values.diff()).min()) for scores in told.scores)
        found.append((tokenizer.decode(told.sequences[0], skip_special_tokens=True), gap))
    return found


def visible(texts, folder, prefix=""):
    """Those that reach a task, and of which the tokenizer makes something."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [text for text in texts if text.strip() and tokenizer.encode(prefix + text, add_special_tokens=False)]


def check_equal(found, expected, most_near):
    """All texts are the library's, but for near ties, of which there are few."""
    parted = 0
    for mine, (theirs, gap) in zip(found, expected, strict=True):
        if mine != theirs:
            assert gap < NEAR, (mine, theirs, gap)
            parted += 1
    assert parted <= most_near


# ---------------------------------------------------------------------------------------------------------- abstractive


@pytest.mark.parametrize("family", ["t5", "bart", "pegasus"])
def test_greedy_summaries_are_those_of_generate_row_by_row(tiny, start, texts, family):
    folder = tiny(family, "Seq2SeqLM", max_tokens=64, **SMOOTH.get(family, {}))
    rows = visible(texts, folder, "say: ")
    assert len(rows) >= 200
    task = start(Summarize, folder, token_budget=600, prefix="say: ", num_beams=1, max_new_tokens=8)
    found = task.annotate(Texts(rows))
    assert not found.failures
    expected = by_library(folder, [f"say: {row}" for row in rows], 64, num_beams=1, max_new_tokens=8)
    check_equal(found.columns["summary"].to_pylist(), expected, most_near=4)
    assert set(found.columns["end"].to_pylist()) <= {"eos", "length"}


@pytest.mark.parametrize(("family", "beams"), [("t5", 2), ("bart", None), ("pegasus", 3)])
def test_beams_are_those_of_generate_row_by_row(tiny, start, texts, family, beams):
    folder = tiny(family, "Seq2SeqLM", max_tokens=64, **SMOOTH.get(family, {}))
    rows = visible(texts, folder)[::4]
    asked = {"num_beams": beams, "length_penalty": 0.6, "no_repeat_ngram_size": 2, "min_new_tokens": 3}
    asked = {name: value for name, value in asked.items() if value is not None}
    task = start(Summarize, folder, token_budget=600, max_new_tokens=10, **asked)
    found = task.annotate(Texts(rows)).columns["summary"].to_pylist()
    check_equal(found, by_library(folder, rows, 64, max_new_tokens=10, **asked), most_near=4)


def test_titles_in_float32_are_those_of_generate_and_the_folder_may_be_float16(titles, start, descriptions):
    rows = [f"summarize: {text}" for text in descriptions[:16]]
    task = start(Summarize, titles, token_budget=2048, prefix="summarize: ", max_new_tokens=24)
    assert task.annotate(Texts(descriptions[:1])).columns["summary"].null_count == 0
    found = task.annotate(Texts(descriptions[:16])).columns["summary"].to_pylist()
    check_equal(found, by_library(titles, rows, 512, max_new_tokens=24), most_near=1)
    halved = start(Summarize, titles, dtype="bfloat16", token_budget=2048, prefix="summarize: ", max_new_tokens=24)
    in_bfloat16 = halved.annotate(Texts(descriptions[:16])).columns["summary"].to_pylist()
    assert sum(mine == theirs for mine, theirs in zip(in_bfloat16, found, strict=True)) >= 12


def test_ends_tell_what_was_cut_off(tiny, start, texts):
    folder = tiny("pegasus", "Seq2SeqLM", max_tokens=64)
    rows = visible(texts, folder)[:40]
    ends = {}
    for most in (2, 40):
        found = start(Summarize, folder, num_beams=1, max_new_tokens=most).annotate(Texts(rows))
        ends[most] = found.columns["end"].to_pylist()
    assert ends[2].count("length") > ends[40].count("length")
    assert ends[40].count("eos") > 0


def test_what_is_cut_off_before_is_told_and_tokens_are_those_that_the_model_read(tiny, start):
    folder = tiny("t5", "Seq2SeqLM", max_tokens=64)
    found = start(Summarize, folder, max_tokens=16, max_new_tokens=2).annotate(Texts(["a b", "train " * 40]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert found.tokens_R.tolist() == [len(tokenizer("a b")["input_ids"]), 16]
    assert found.truncated_R.tolist() == [False, True]
    assert found.forward_tokens == found.tokens_R.sum()


def test_a_text_that_fails_is_null_and_its_neighbours_are_not(tiny, start):
    task = start(Summarize, tiny("bart", "Seq2SeqLM"), num_beams=1, max_new_tokens=3)
    task.way.writer.loaded.module.get_encoder().register_forward_pre_hook(_break_long, with_kwargs=True)
    found = task.annotate(Texts(["a b", "train " * 30, "c"]))
    assert found.failures[1].reason == Reason.MODEL_FAILED
    assert found.columns["summary"].is_null().to_pylist() == [False, True, False]
    assert found.columns["end"].is_null().to_pylist() == [False, True, False]


def _break_long(module, args, kwargs):
    if kwargs["input_ids"].shape[1] > 20:
        raise ValueError("no")


def test_the_prefix_is_the_models_own_unless_the_job_says_another(tiny, prepare, tmp_path):
    plain = tiny("t5", "Seq2SeqLM")
    folder = tmp_path / "t5"
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {"summarization": {"prefix": "summarize: ", "num_beams": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    assert prepare(Summarize, folder).way.prefix == "summarize: "
    assert prepare(Summarize, folder, prefix="").way.prefix == ""
    assert prepare(Summarize, plain).way.prefix == ""


def test_a_prefix_that_fills_the_window_is_refused(tiny, start):
    with pytest.raises(
        JobError, match=r"annotation 'found': prefix: its .* tokens leave no room for a text in a window"
    ):
        start(Summarize, tiny("t5", "Seq2SeqLM"), max_tokens=8, prefix="summarize the following text: ")


@pytest.mark.parametrize("family", ["bart", "pegasus"])
def test_more_new_tokens_than_positions_are_refused(tiny, prepare, family):
    folder = tiny(family, "Seq2SeqLM", max_tokens=64)
    with pytest.raises(JobError, match=r"max_new_tokens: 64 is more than .* it has 64 positions, .* at most 63"):
        prepare(Summarize, folder, max_new_tokens=64)
    assert prepare(Summarize, folder, max_new_tokens=63)


# ------------------------------------------------------------------------------------------------------------- windows


class Scribe:
    """A writer that keeps each prompt's first `keep` words, a word being a token."""

    def __init__(self, room, keep):
        self.room, self.keep = room, keep
        self.rounds = []

    def lengths(self, prompts):
        return [len(prompt.split()) for prompt in prompts]

    def write(self, prompts, rows, texts, written):
        self.rounds.append(list(prompts))
        for prompt, row in zip(prompts, rows, strict=True):
            written.truncated_R[row] |= len(prompt.split()) > self.room
            written.ends_R[row] = "eos"
        return [" ".join(prompt.split()[: min(self.room, self.keep)]) for prompt in prompts]


@pytest.fixture
def scribed(tiny, prepare):
    def make(room, keep, **options):
        task = prepare(Summarize, tiny("t5", "Seq2SeqLM"), long_text="windows", **options)
        task.way.writer = Scribe(room, keep)
        return task, task.way.writer

    return make


def test_long_texts_become_groups_whose_summaries_are_summarised(scribed):
    task, scribe = scribed(room=6, keep=2)
    long = "One two three. Four five six. Seven eight nine. Ten eleven."
    found = task.annotate(Texts(["Just a few.", long]))
    assert scribe.rounds == [
        ["Just a few.", "One two three. Four five six.", "Seven eight nine. Ten eleven."],
        ["One two Seven eight"],
    ]
    assert found.columns["summary"].to_pylist() == ["Just a", "One two"]
    assert found.truncated_R.tolist() == [False, False]


def test_the_prefix_stands_before_every_group_and_takes_its_room(scribed):
    task, scribe = scribed(room=6, keep=3, prefix="say this: ")
    task.annotate(Texts(["One two three. Four five six."]))
    assert scribe.rounds[0] == ["say this: One two three.", "say this: Four five six."]


def test_a_text_that_does_not_become_less_is_cut_off_and_told(scribed):
    task, scribe = scribed(room=4, keep=4)
    found = task.annotate(Texts(["One two three. Four five six. Seven eight nine."]))
    assert len(scribe.rounds) == 2
    assert found.columns["summary"].to_pylist() == ["One two three. Four"]
    assert found.truncated_R.tolist() == [True]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30), room=st.integers(1, 12), keep=st.integers(1, 12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_rounds_come_to_an_end_and_no_word_is_lost_before_the_first(scribed, lengths, room, keep):
    task, scribe = scribed(room=room, keep=keep)
    text = " ".join("Word " + "word " * (length - 1) + "end." for length in lengths)
    found = task.annotate(Texts([text]))
    assert " ".join(scribe.rounds[0]).split() == text.split()
    sizes = [len(prompts) for prompts in scribe.rounds]
    assert all(later < earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] == 1
    fits = all(len(prompt.split()) <= room for prompts in scribe.rounds for prompt in prompts)
    assert found.truncated_R.tolist() == [not fits]


def test_windows_with_a_real_model_read_all_of_a_text(tiny, start, texts):
    folder = tiny("bart", "Seq2SeqLM", max_tokens=64)
    rows = [text for text in visible(texts, folder) if len(text) > 400]
    task = start(Summarize, folder, token_budget=600, long_text="windows", num_beams=1, max_new_tokens=8)
    found = task.annotate(Texts(rows))
    assert not found.failures
    assert found.columns["summary"].null_count == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    least = [len(tokenizer.encode(row, add_special_tokens=False)) for row in rows]
    assert (found.tokens_R >= np.array(least) * 0.9).all()  # a blank between groups may have been a token


# ---------------------------------------------------------------------------------------------------------- extractive

ENCODERS = ["bert", "mpnet", "modernbert", "roberta", "t5"]
STORY = (
    "The train from Boston leaves at seven. Nobody reads the newspaper any more. The train from Boston leaves at seven."
    "  Anna lends books.\n\n * One more film\n * The music is wonderful. Dr. Smith stays at home."
)


def sentences_of(found):
    return found.columns["sentences"].to_pylist()


def check_verbatim(rows, found, most):
    """Every sentence is the text's own, in its order; the summary is these and nothing else."""
    for text, summary, kept in zip(rows, found.columns["summary"].to_pylist(), sentences_of(found), strict=True):
        spans = sentence_spans(text)
        assert len(kept) == min(most, len(spans))
        assert [(each["start"], each["end"]) for each in kept] == sorted((each["start"], each["end"]) for each in kept)
        assert all((each["start"], each["end"]) in spans for each in kept)
        assert all(text[each["start"] : each["end"]] == each["text"] for each in kept)
        assert summary == " ".join(each["text"] for each in kept)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_extract_cannot_invent(tiny, start, texts, family):
    folder = tiny(family, "Model", max_tokens=64)
    rows = [text for text in visible(texts, folder) if len(text) < 3_000]
    task = start(Summarize, folder, token_budget=2048, sentences=2, method="extractive")
    found = task.annotate(Texts(rows))
    assert not found.failures
    check_verbatim(rows, found, 2)


@given(text=st.text(st.sampled_from("ab .!?\n\u00a0字。é😀*1)\u200b"), min_size=1, max_size=120))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_whatever_the_text_an_extract_is_of_it(tiny, shared_task, text):
    found = shared_task.annotate(Texts([text, STORY]))
    assert 1 not in found.failures
    if 0 not in found.failures:
        check_verbatim([text, STORY], found, 2)


@pytest.fixture(scope="module")
def shared_task(tiny):
    from pipeline.models.loading import load
    from pipeline.models.reference import ModelSettings, pin

    model = ModelSettings(ref=str(tiny("bert", "Model", max_tokens=64)))
    options = {"name": "found", "task": "summarize", "text": "body", "model": model, "sentences": 2}
    task = Summarize(Summarize.Config.model_validate(options), pin(model))
    assert task.model is not None
    task.start(load(task.model, task.needs, dtype="float32", device="cpu", threads=1, token_budget=512))
    return task


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("options", [{}, {"diversity": 0.0, "before": 1.0, "pooling": "cls"}])
def test_the_sentences_are_the_central_ones_by_vectors_made_by_hand(tiny, start, texts, family, options):
    folder = tiny(family, "Model", max_tokens=64)
    rows = [text for text in visible(texts, folder) if len(sentence_spans(text)) > 3][:30]
    found = start(Summarize, folder, token_budget=2048, method="extractive", **options).annotate(Texts(rows))
    kind = transformers.AutoModelForTextEncoding if family == "t5" else transformers.AutoModel
    module = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, kept in zip(rows, sentences_of(found), strict=True):
        spans = sentence_spans(text)
        vectors = []
        for start_, stop in spans:
            inputs = tokenizer(text[start_:stop], truncation=True, max_length=64, return_tensors="pt")
            with torch.inference_mode():
                hidden = module(**inputs).last_hidden_state[0]
            vectors.append((hidden[0] if options.get("pooling") == "cls" else hidden.mean(0)).numpy())
        weights = {name: value for name, value in options.items() if name != "pooling"}
        expected = chosen(np.stack(vectors), 3, **weights)
        assert [spans.index((each["start"], each["end"])) for each in kept] == expected


def test_minilm_keeps_what_sentence_transformers_vectors_keep(minilm, start, descriptions):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    rows = [text for text in descriptions if len(sentence_spans(text)) > 3][:30]
    found = start(Summarize, minilm, token_budget=2048).annotate(Texts(rows))
    model = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    for text, kept in zip(rows, sentences_of(found), strict=True):
        spans = sentence_spans(text)
        expected = chosen(model.encode([text[start_:stop] for start_, stop in spans]), 3)
        assert [spans.index((each["start"], each["end"])) for each in kept] == expected


def test_a_text_of_few_sentences_is_kept_whole_and_costs_nothing(make_encoder, start):
    found = start(Summarize, make_encoder(), sentences=3).annotate(Texts(["One.  Two!\nThree?", "Ak"]))
    assert found.columns["summary"].to_pylist() == ["One. Two! Three?", "Ak"]
    assert found.tokens_R.tolist() == [0, 0]
    assert found.forward_tokens == 0


def test_what_is_said_twice_is_kept_once(make_encoder, start):
    text = "ak bl cm. ak bl cm. dn eo. fp gq hr."
    found = start(Summarize, make_encoder(), sentences=3).annotate(Texts([text]))
    assert found.columns["summary"].to_pylist() == ["ak bl cm. dn eo. fp gq hr."]


def test_sentences_of_all_texts_go_through_the_model_together_and_the_journal_hears_their_rows(make_encoder, start):
    heard: list[Sequence[int]] = []
    task = start(Summarize, make_encoder(), token_budget=4000, sentences=1)
    texts = Texts(["ak. bl.", "cm.", "dn. eo. fp."], running=heard.append)
    found = task.annotate(texts)
    assert heard == [[0, 2]]
    assert found.tokens_R.tolist() == [8, 0, 12]


def test_a_sentence_over_the_window_is_cut_off_and_told(make_encoder, start):
    found = start(Summarize, make_encoder(), max_tokens=8, sentences=1).annotate(Texts(["ak. " + "bl " * 20, "a. b."]))
    assert found.truncated_R.tolist() == [True, False]


def test_sentences_without_tokens_come_last_and_a_text_of_nothing_else_fails(make_encoder, start):
    empty = "\u200b\n\n\u200b\n\n\u200b"
    found = start(Summarize, make_encoder(), sentences=1).annotate(Texts(["\u200b\n\nak.", empty]))
    assert found.columns["summary"].to_pylist() == ["ak.", None]
    assert found.failures[1].reason == Reason.NO_TOKENS
    assert found.columns["sentences"].is_null().to_pylist() == [False, True]


def test_a_sentence_that_the_model_fails_at_fails_its_text_alone(make_encoder, start):
    task = start(Summarize, make_encoder(), sentences=1, token_budget=1)

    def broken(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 6:
            raise ValueError("no")

    task.way._embed.loaded.module.register_forward_pre_hook(broken, with_kwargs=True)
    found = task.annotate(Texts(["ak. bl.", "ak. bl cm dn eo fp."]))
    assert {row: failure.reason for row, failure in found.failures.items()} == {1: Reason.MODEL_FAILED}


def test_rows_are_taken_in_portions(make_encoder, start, monkeypatch):
    rows = ["ak. bl. cm.", "dn.", "eo. fp.", "ak. eo. bl. dn."] * 3
    task = start(Summarize, make_encoder(), sentences=1)
    whole = task.annotate(Texts(rows))
    monkeypatch.setattr("pipeline.tasks._extractive._SENTENCES_TOGETHER", 5)
    parted = task.annotate(Texts(rows))
    assert parted.columns == whole.columns
    np.testing.assert_array_equal(parted.tokens_R, whole.tokens_R)


# -------------------------------------------------------------------------------------------------- methods and options


@pytest.mark.parametrize(
    ("family", "head", "columns"),
    [
        ("t5", "Seq2SeqLM", ["summary", "end"]),
        ("marian", "Seq2SeqLM", ["summary", "end"]),
        ("bert", "Model", ["summary", "sentences"]),
        ("bert", "SequenceClassification", ["summary", "sentences"]),
        ("bart", "Model", ["summary", "sentences"]),
    ],
)
def test_the_model_decides_the_method(tiny, prepare, family, head, columns):
    task = prepare(Summarize, tiny(family, head))
    assert [field.name for field in task.fields()] == columns
    assert task.needs == ("AutoModelForSeq2SeqLM" if "end" in columns else "AutoModel")


def test_columns_are_of_the_types_that_are_told(make_encoder, tiny, start):
    for task in (start(Summarize, make_encoder()), start(Summarize, tiny("t5", "Seq2SeqLM"), max_new_tokens=2)):
        found = task.annotate(Texts(["ak. bl. cm. dn.", "a"]))
        assert {field.name: field.type for field in task.fields()} == {
            name: column.type for name, column in found.columns.items()
        }
        assert pa.table(found.columns).num_rows == 2


@pytest.mark.parametrize(
    ("method", "option", "told"),
    [
        ("abstractive", {"sentences": 2}, "sentences needs `method: extractive`, and this is abstractive"),
        ("abstractive", {"diversity": 0.1, "before": 0.0}, "diversity, before need `method: extractive`"),
        ("abstractive", {"pooling": "cls"}, "pooling needs `method: extractive`"),
        ("abstractive", {"language": "de"}, "language needs `long_text: windows` where summaries are written"),
        ("extractive", {"num_beams": 2, "max_new_tokens": 5}, "max_new_tokens, num_beams need `method: abstractive`"),
        ("extractive", {"long_text": "windows"}, "long_text: windows needs `method: abstractive`, and this is extract"),
    ],
)
def test_options_of_the_other_method_are_refused(tiny, prepare, method, option, told):
    folder = tiny("t5", "Seq2SeqLM")
    with pytest.raises(ValueError, match=told):
        prepare(Summarize, folder, method=method, **option)
    by_model = folder if method == "abstractive" else tiny("bert", "Model")
    with pytest.raises(JobError, match=f"annotation 'found': {told}.*: '.*' is (T5For|BertModel)"):
        prepare(Summarize, by_model, **option)


@pytest.mark.parametrize("option", [{"sentences": 0}, {"diversity": 1.0}, {"before": -1.1}, {"language": "Deutsch"}])
def test_options_have_bounds(make_encoder, prepare, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        prepare(Summarize, make_encoder(), **option)


def test_models_that_cannot_are_refused_in_words(tiny, prepare):
    with pytest.raises(ModelError, match=r"is BertModel, which cannot write a summary: .*method: extractive"):
        prepare(Summarize, tiny("bert", "Model"), method="abstractive")
    with pytest.raises(ModelError, match="is BartModel, which cannot write a summary"):
        prepare(Summarize, tiny("bart", "Model"), method="abstractive")
    with pytest.raises(ModelError, match="is GPT2LMHeadModel, a causal language model, which is for the task `gen"):
        prepare(Summarize, tiny("gpt2", "CausalLM"))
    with pytest.raises(JobError, match="the task 'summarize' needs a `model`"):
        Summarize(Summarize.Config.model_validate({"name": "found", "task": "summarize", "text": "body"}), None)


def test_settings_that_travelled_to_an_actor_say_the_same(tiny, prepare):
    task = prepare(Summarize, tiny("t5", "Seq2SeqLM"), max_new_tokens=5)
    travelled = Summarize.Config.model_validate(task.config.model_dump(mode="json"))
    assert travelled == task.config
    assert Summarize(travelled, task.model).fields() == task.fields()


def test_nothing_written_yet_is_nothing():
    assert Written.nothing(2).ends_R == [None, None]
