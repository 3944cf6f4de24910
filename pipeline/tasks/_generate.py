"""The options of `generate`: a prompt or messages, and how the answer is written or what it is chosen from.

{text: "{summary}:", max_new_tokens: 24, sample: true, temperature: 0.7, seed: 3}
{messages: [{role: user, content: "{summary}"}], choices: {games: a game, web: a web server}, top_k: 2}
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.tasks._chat import Message
from pipeline.tasks.writer import DECODING, DecodingSettings

DEFAULT_NEW_TOKENS = 128

_DRAWING = ("temperature", "top_k", "top_p", "seed")
_WRITING = (*sorted(DECODING), "temperature", "top_p", "seed", "stop")

Words = Annotated[str, Field(min_length=1, max_length=1_000)]
Choice = Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"\S")]


class GenerateSettings(DecodingSettings):
    """The prompt, how the answer is written, or what it is chosen from."""

    text: str | None = Field(default=None, min_length=1)  # type: ignore[assignment]  # or `messages`
    """The prompt, which the model goes on from: a column, a dotted path to a nested field, or a template with
    {column} in it; this or `messages`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=100)] | Words | None = None
    """A chat that the model answers, through its own chat template: a list of {role, content}, where content is a
    template or words that are the same for every row; or a column of list<struct<role, content>>."""

    template_options: dict[Words, str | bool | int | float] | None = Field(default=None, min_length=1)
    """Variables of the model's chat template: `enable_thinking: false` for Qwen3; `date_string` for Llama 3, which
    otherwise writes the day of the run into each prompt."""

    long_text: Literal["refuse", "truncate"] = "refuse"
    """A prompt that leaves no room for the answer: the row fails, or the end of its `text` is cut off, which
    `<name>_truncated` tells; messages are never cut."""

    max_tokens: int | None = Field(default=None, ge=3, le=1_000_000)
    """Tokens of the longest prompt, special tokens included; default: what `max_new_tokens` leaves of the model's
    window."""

    max_new_tokens: int | None = Field(default=None, ge=1, le=100_000)
    """Tokens that are written at most, 1 to 100,000; default 128."""

    num_beams: int | None = Field(default=None, ge=1, le=64)
    """Ways that are followed side by side, 1 to 64; default 1."""

    sample: bool = False
    """Draw each token by its probability instead of taking the likeliest."""

    temperature: float | None = Field(default=None, gt=0, le=100)
    """With sample: below 1 likely tokens become likelier, above 1 less so, up to 100; default: the model's own,
    else 1."""

    top_k: int | None = Field(default=None, ge=1, le=1_000_000)
    """With sample: draw among the so many likeliest tokens; default: the model's own, else 50. With choices: keep
    the so many best labels, best first."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """With sample: draw among the fewest likeliest tokens that have this probability together, up to 1; default:
    the model's own, else 1."""

    seed: int | None = Field(default=None, ge=0, le=4_294_967_295)
    """With sample: another one draws other texts, 0 to 4,294,967,295; default 0."""

    stop: Annotated[list[Words], Field(min_length=1, max_length=100)] | None = None
    """The text ends before the first of these strings, 1 to 100 of them."""

    choices: (
        Annotated[list[Choice], Field(min_length=2, max_length=10_000)]
        | Annotated[dict[Choice, Choice], Field(min_length=2, max_length=10_000)]
        | None
    ) = None
    """Choose one of these answers, at least two, instead of writing one; or label -> answer. A blank is put before
    them where the prompt does not end in white space."""

    choice_score: Literal["sum", "mean"] | None = None
    """With choices: compare the whole answers' log-likelihoods, or those of a token; default sum."""

    all_scores: bool = False
    """With choices: keep every label with its score, in the job's order."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("the prompt is either `text` or `messages`: give one of them")
        if self.messages is None:
            if self.template_options is not None:
                raise ValueError("template_options needs `messages`; a plain text goes through no chat template")
            return self
        if self.long_text == "truncate":
            raise ValueError("`long_text: truncate` needs `text`; of messages nothing can be cut off safely")
        if isinstance(self.messages, list) and all(message.is_words for message in self.messages):
            raise ValueError(
                "messages name no column: every row would have the same prompt; write {column} in one of them"
            )
        return self

    @model_validator(mode="after")
    def _one_way_of_writing(self) -> Self:
        if self.sample and (self.num_beams or 1) > 1:
            raise ValueError(f"sample needs `num_beams: 1`, not {self.num_beams}: beams do not draw")
        if self.num_beams is None and self.choices is None:
            for option in ("length_penalty", "early_stopping"):
                if getattr(self, option) is not None:
                    raise ValueError(f"{option} needs beams: set `num_beams`, which is 1 (greedy) otherwise")
        if self.max_new_tokens is None and (self.min_new_tokens or 0) > DEFAULT_NEW_TOKENS and self.choices is None:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is more than {DEFAULT_NEW_TOKENS}, the default of "
                "max_new_tokens: set that too"
            )
        if self.sample or self.choices is not None:
            return self
        for option in _DRAWING:
            if getattr(self, option) is not None:
                more = " (or `choices`)" if option == "top_k" else ""
                raise ValueError(f"{option} needs `sample: true`{more}; otherwise the likeliest token is taken")
        return self

    @model_validator(mode="after")
    def _choosing_is_not_writing(self) -> Self:
        if self.choices is None:
            if self.choice_score is not None or self.all_scores:
                option = "choice_score" if self.choice_score is not None else "all_scores"
                raise ValueError(f"{option} needs `choices`")
            return self
        for option in _WRITING:
            if getattr(self, option) is not None:
                raise ValueError(f"{option} has no sense beside `choices`: nothing is written")
        if self.sample:
            raise ValueError("sample has no sense beside `choices`: the likeliest is taken")
        if self.top_k is not None and self.all_scores:
            raise ValueError("top_k and all_scores exclude each other: each says which labels are kept")
        answers = list(self.choices.values()) if isinstance(self.choices, dict) else self.choices
        doubled = sorted({answer for answer in answers if answers.count(answer) > 1})
        if doubled:
            raise ValueError(f"choices: {doubled[0]!r} stands there twice")
        if self.top_k is not None and self.top_k > len(answers):
            raise ValueError(f"top_k {self.top_k} is more than the {len(answers)} choices")
        return self
