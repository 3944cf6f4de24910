r"""What a causal language model writes after a prompt or in a chat, or which of some answers it finds likeliest.

{name: line, task: generate, text: "{description}\n\nIn one line:", model: models/gpt2, stop: ["\n"]}
-> line_text: " a board game for two players", line_end: "stop"      # eos | length | stop
with messages in the place of text, through the model's own chat template
 messages: [{role: system, content: Be brief.}, {role: user, content: "What is {package}?"}]
 messages: conversation                                 # a column of list<struct<role, content>>
with choices, and nothing is written
 choices: {games: a game, web: a web server}
-> line_label: "games", line_score: 0.93                # or line_labels, line_scores: top_k, all_scores

Greedy unless the job says `sample: true`, whatever the model's generation_config.json bids; other ways of decoding that
the job leaves open are that file's. What a row draws depends on the seed and on its prompt alone, in any batch and any
order. That holds in float32, which `dtype: auto` therefore means where a job samples.

A choice's score is its share among the choices of the probability that the model gives it after the prompt: by the sum
of its tokens' logarithms, or by their mean, which does not punish long ones (Brown et al. 2020, arXiv:2005.14165,
section 2.4, normalise so by length). Prompt and choice are tokenised as one text, with a blank between them where the
prompt does not end in white space; what differs between two choices is the probability of two whole texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import labels
from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import positions_tokens, task_of_head, window_of
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure, Reason
from pipeline.tasks._chat import ChatTemplate, filled, inputs_of, read
from pipeline.tasks._choices import Choices, softmax
from pipeline.tasks._generate import DEFAULT_NEW_TOKENS, GenerateSettings
from pipeline.tasks.base import Annotation, ColumnInput, Comparison, Input, TextInput, Texts
from pipeline.tasks.window import WindowTask
from pipeline.tasks.writer import DECODING
from pipeline.text.tokens import Ids, Tokens

if TYPE_CHECKING:
    from pipeline.models.engine import AboutToRun, Padded
    from pipeline.models.generation.decoding import Decoding
    from pipeline.models.loading import LoadedModel


@dataclass(slots=True)
class Prompts:
    """The prompts of R rows; a failed row has no ids."""

    texts_R: list[str]  # as tokenised: with a chat template's special tokens, without the tokenizer's own
    ids_R: list[Ids | None]
    truncated_R: npt.NDArray[np.bool_]
    failures: dict[int, Failure]

    @property
    def good(self) -> list[int]:
        """The rows that have a prompt."""
        return [row for row, ids in enumerate(self.ids_R) if ids is not None]


class Generate(WindowTask):
    """The answer of a causal language model to each row, written or chosen."""

    needs = "AutoModelForCausalLM"

    class Config(GenerateSettings):
        """The prompt, how the answer is written, or what it is chosen from."""

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find the window and what of it the answer leaves to the prompt.

        Raises ModelError: a model of another kind; JobError: no model; a window without room.
        """
        super().__init__(config, model)
        head = task_of_head(self.pinned.config)
        if head not in (None, "causal"):
            architecture = next(iter(self.pinned.config.get("architectures") or []), "")
            raise ModelError(
                f"model {self.pinned.ref!r} is of another kind ({architecture}); generate needs a causal language "
                "model (…ForCausalLM)"
            )
        if config.sample:
            self.auto_dtype = "float32"
        self._choices: Choices | None = None
        self._labels = list(config.choices or ())
        self._answers = list(config.choices.values()) if isinstance(config.choices, dict) else self._labels
        if config.choices is None:
            self._share_window(config.max_new_tokens or DEFAULT_NEW_TOKENS, "max_new_tokens")

    def _share_window(self, new_tokens: int, whose: str) -> None:
        """Divide the window between the prompt and an answer of so many tokens. Raises JobError: it does not fit."""
        place, asked = f"annotation {self.config.name!r}", self.config.max_tokens
        positions = positions_tokens(self.pinned.config)
        own = window_of(Path(self.pinned.folder), self.pinned.config)
        self._new_tokens = new_tokens
        if asked is not None:
            if positions is not None and asked + new_tokens > positions:
                raise JobError(
                    f"{place}: max_tokens {asked} and {whose} {new_tokens} are more than the {positions} positions of "
                    f"{self.pinned.ref!r}; together at most {positions}"
                )
            self.window_tokens, self._bound = asked, f"max_tokens is {asked}"
            return
        if own <= new_tokens:
            raise JobError(
                f"{place}: {whose} {new_tokens} leaves no room for a prompt in the window of {own} tokens of "
                f"{self.pinned.ref!r}"
            )
        self.window_tokens = own - new_tokens
        self._bound = f"the window of {own} leaves {self.window_tokens} beside {new_tokens} of the answer"

    def tokenise(self, texts: Texts) -> None:
        """Nothing ahead: what is read may be a template's, and writing takes far longer than reading."""

    def inputs(self) -> Mapping[str, Input]:
        """The prompt, or what the messages are made of."""
        match self.config.messages:
            case None:
                return {"text": TextInput(self.config.text)}
            case str(column):
                return {"messages": ColumnInput(column)}
            case messages:
                return inputs_of(messages)

    def fields(self) -> list[pa.Field]:
        """`text` and why it `end`s; with choices `label` and `score`, or `labels` and `scores`."""
        if self.config.choices is None:
            return [pa.field("text", pa.string()), pa.field("end", pa.string())]
        several = self.config.top_k is not None or self.config.all_scores
        return list(labels.LIST_FIELDS if several else labels.BEST_FIELDS)

    def compared(self) -> Comparison:
        """Texts; of choices labels."""
        if self.config.choices is None:
            return Comparison("texts", {"predicted": "text"})
        several = self.config.top_k is not None or self.config.all_scores
        every, best = {"labels": "labels", "scores": "scores"}, {"predicted": "label", "score": "score"}
        return Comparison("labels", every if several else best, {"known": tuple(self._labels)})

    def stride(self) -> int | None:
        """A prompt is read at once."""
        return None

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model, try it, and try its chat template.

        Raises ModelError: the model cannot compute; no chat template, or one that refuses such messages; JobError: a
        way of decoding that is not supported; choices that cannot be told apart; a window without room.
        """
        from pipeline.models.generation.decoding import Rules
        from pipeline.text.tokens import TextTokenizer

        try:
            Rules(loaded.module, self.decoding())
            if self._answers:
                self._choices = Choices(TextTokenizer(loaded.tokenizer), self._answers)
                self._choices.check(self.config.choice_score or "sum")
            if self.config.messages is not None:
                self._template = ChatTemplate(loaded.tokenizer, self.config.template_options or {})
                self._try_template()
        except (JobError, ModelError) as fault:
            raise type(fault)(f"annotation {self.config.name!r}: {fault}") from fault.__cause__
        if self._choices is not None:
            self._share_window(self._choices.longest_tokens, "the longest choice of")
        super().start(loaded)

    def _try_template(self) -> None:
        if not isinstance(self.config.messages, list):
            return
        trial = {name: ["a b"] for name in inputs_of(self.config.messages)}
        prompt = self._template.prompt(filled(self.config.messages, 1, trial)[0])
        if isinstance(prompt, Failure):
            roles = ", ".join(message.role for message in self.config.messages)
            raise ModelError(f"the chat template of {self.pinned.ref!r} refuses messages of {roles}: {prompt.detail}")

    def check_model(self, padded: "Padded") -> None:
        """One score for each entry of the vocabulary must come."""
        logits = self.loaded.module(**padded.inputs).logits
        if logits.ndim != 3:
            raise ModelError(f"model {self.pinned.ref!r} gives no score for each word of a vocabulary")

    def decoding(self) -> "Decoding":
        """How it writes."""
        from pipeline.models.generation.decoding import Decoding

        config = self.config
        asked = {name: getattr(config, name) for name in DECODING}
        asked |= {"max_new_tokens": config.max_new_tokens or DEFAULT_NEW_TOKENS, "num_beams": config.num_beams or 1}
        if config.sample:
            asked |= {name: getattr(config, name) for name in ("temperature", "top_k", "top_p")}
        return Decoding(**asked, do_sample=config.sample, seed=config.seed or 0, stop=tuple(config.stop or ()))

    def annotate(self, texts: Texts) -> Annotation:
        """Prompts, then answers or the likelihoods of the choices."""
        prompts = self.prompts(texts)
        return self._written(prompts, texts) if self._choices is None else self._chosen(prompts, self._choices, texts)

    def prompts(self, texts: Texts) -> Prompts:
        """What the model reads of each row."""
        rows = len(texts.values)
        chats_R = self._chats(texts)
        failures = {row: chat for row, chat in enumerate(chats_R) if isinstance(chat, Failure)}
        texts_R = ["" if isinstance(chat, Failure) else chat for chat in chats_R]
        ids_R: list[Ids | None] = [None] * rows
        truncated_R = np.zeros(rows, np.bool_)
        for row, tokens in enumerate(self._tokens(texts, texts_R)):
            if row in failures:
                continue
            ids = self._fitted(tokens, texts_R[row])
            if isinstance(ids, Failure):
                failures[row] = ids
                continue
            ids_R[row], truncated_R[row] = ids
        return Prompts(texts_R, ids_R, truncated_R, failures)

    def _chats(self, texts: Texts) -> Sequence[str | Failure]:
        """The prompts as text."""
        messages = self.config.messages
        if messages is None:
            return texts.values
        if isinstance(messages, str):
            chats = [read(value, self.config.max_chars) for value in texts.values]
        else:
            chats = list(filled(messages, len(texts.values), texts.inputs))
        return [chat if isinstance(chat, Failure) else self._template.prompt(chat) for chat in chats]

    def _tokens(self, texts: Texts, prompts: list[str]) -> list[Tokens | Failure]:
        if self.config.messages is not None:
            return list(self.maker.tokenizer.tokens(prompts, most=None))
        return self.tokens(texts, most=self.maker.room if self.config.long_text == "truncate" else None)

    def _fitted(self, tokens: Tokens | Failure, prompt: str) -> tuple[Ids, bool] | Failure:
        """The ids that the model reads, and whether they are less than all."""
        if isinstance(tokens, Failure):
            return tokens
        ids_T = tokens.ids_T
        if len(ids_T) == 0:
            return Failure(Reason.NO_TOKENS, f"the tokenizer finds no token in {len(prompt)} characters")
        is_plain = self.config.messages is None  # a chat template writes the special tokens itself
        count = len(ids_T) + (self.maker.frame.special if is_plain else 0)
        too_long = count > self.window_tokens
        if too_long and self.config.long_text == "refuse":
            return Failure(Reason.NO_ROOM, f"the prompt has {count} tokens; {self._bound}")
        if not is_plain:
            return ids_T, False
        nothing = np.zeros(0, np.int32)
        return self.maker.frame.around(ids_T[: self.maker.room], nothing), too_long

    def _written(self, prompts: Prompts, texts: Texts) -> Annotation:
        from pipeline.models.generation.answers import cut
        from pipeline.models.generation.generate import generate

        rows, loaded = prompts.good, self.loaded
        done = generate(
            loaded.module,
            [ids for ids in prompts.ids_R if ids is not None],
            self.decoding(),
            token_budget=loaded.budget,
            device=loaded.device,
            tokenizer=loaded.tokenizer,
            about_to_run=_journal(rows, texts),
        )
        texts_R: list[str | None] = [None] * len(prompts.ids_R)
        ends_R: list[str | None] = [None] * len(prompts.ids_R)
        for row, ids, end in zip(rows, done.ids_P, done.ends_P, strict=True):
            if ids is not None and end is not None:
                texts_R[row] = cut(loaded.tokenizer.decode(ids, skip_special_tokens=True), self.config.stop or ())
                ends_R[row] = end.value
        return Annotation(
            {"text": pa.array(texts_R, pa.string()), "end": pa.array(ends_R, pa.string())},
            _tokens_R(prompts.ids_R),
            prompts.truncated_R,
            prompts.failures | {rows[piece]: failure for piece, failure in done.failures.items()},
            done.tokens,
            done.padding_tokens,
            done.seconds,
        )

    def _chosen(self, prompts: Prompts, choices: Choices, texts: Texts) -> Annotation:
        from pipeline.models.generation.likelihood import likelihoods

        loaded, failures = self.loaded, dict(prompts.failures)
        ids_R: list[Ids | None] = [None] * len(prompts.ids_R)
        rows: list[int] = []
        continuations: list[list[Ids]] = []
        for row in prompts.good:
            found = self._divided(prompts, choices, row)
            if isinstance(found, Failure):
                failures[row] = found
                continue
            ids_R[row] = found[0]
            rows.append(row)
            continuations.append(found[1])
        done = likelihoods(
            loaded.module,
            [ids for ids in ids_R if ids is not None],
            continuations,
            token_budget=loaded.budget,
            device=loaded.device,
            about_to_run=_journal(rows, texts),
        )
        failures |= {rows[piece]: failure for piece, failure in done.failures.items()}
        values_RL = np.zeros((len(ids_R), len(self._labels)))
        for row, values in zip(rows, done.means_P if self.config.choice_score == "mean" else done.sums_P, strict=True):
            if values is not None:
                values_RL[row] = values
        good_R = np.ones(len(ids_R), np.bool_)
        good_R[list(failures)] = False
        return Annotation(
            self._labelled(softmax(values_RL), good_R),
            _tokens_R(prompts.ids_R),
            prompts.truncated_R,
            failures,
            done.tokens,
            done.padding_tokens,
            done.seconds,
        )

    def _divided(self, prompts: Prompts, choices: Choices, row: int) -> tuple[Ids, list[Ids]] | Failure:
        """A row's prompt as it stands before every choice, and the choices."""
        ids = prompts.ids_R[row]
        assert ids is not None
        # What the tokenizer puts after a text stands in nobody's way, and a chat template has put everything.
        after = len(self.maker.frame.after) if self.config.messages is None else 0
        whole = ids[: len(ids) - after]
        if prompts.truncated_R[row]:
            return whole, choices.apart
        border = choices.after(prompts.texts_R[row])
        if isinstance(border, Failure):
            return border
        before = self.maker.frame.before if self.config.messages is None else np.zeros(0, np.int32)
        prompt_ids = np.concatenate([before, border.prompt_ids])
        if len(prompt_ids) == 0:
            return whole, choices.apart
        count = len(prompt_ids) + max(map(len, border.continuations))
        if count > self.window_tokens + self._new_tokens:
            return Failure(Reason.NO_ROOM, f"the prompt and a choice have {count} tokens; {self._bound}")
        return prompt_ids, border.continuations

    def _labelled(self, scores_RL: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        if self.config.all_scores:
            return labels.every(scores_RL, self._labels, good_R)
        if self.config.top_k is not None:
            return labels.ranked(scores_RL, self._labels, good_R, most=self.config.top_k)
        return labels.best(scores_RL, self._labels, good_R)


def _journal(rows: Sequence[int], texts: Texts) -> "AboutToRun | None":
    """Who wants to be told the rows of each micro-batch before it goes."""
    running = texts.running
    return None if running is None else lambda batch: running(sorted(rows[piece] for piece in batch))


def _tokens_R(ids_R: Sequence[Ids | None]) -> npt.NDArray[np.int32]:  # noqa: N802 - carries its shape
    """Tokens of each prompt; 0 where there is none."""
    return np.array([0 if ids is None else len(ids) for ids in ids_R], np.int32)
