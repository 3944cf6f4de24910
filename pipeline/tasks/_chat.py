r"""Messages of a chat become the prompt that the model was taught, by its own chat template.

[Message(role="system", content="Be brief."), Message(role="user", content="What is {name}?")]      # the job's
[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is GNU ed?"}]        # a row's
"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is GNU ed?<|im_end|>\n<|im_start|>assistant\n"
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from pipeline.errors import ModelError
from pipeline.quarantine import Failure, Reason
from pipeline.settings import Settings
from pipeline.tasks.base import Input, TextInput

Chat = list[dict[str, Any]]
"""A row's messages, as chat templates take them."""


class Message(Settings):
    """One message that a job writes."""

    role: Annotated[str, Field(min_length=1, max_length=100)]
    """Who says it, as the model's template calls them: system, user, assistant."""

    content: Annotated[str, Field(min_length=1, pattern=r"\S")]
    """What is said: a template with {column} in it, or words that are the same for every row."""

    @property
    def is_words(self) -> bool:
        """Whether it names no column; a brace that stands alone is for the template's parser to refuse."""
        bare = self.content.replace("{{", "").replace("}}", "")
        return "{" not in bare and "}" not in bare

    @property
    def words(self) -> str:
        """What every row says, where it names no column."""
        return self.content.replace("{{", "{").replace("}}", "}")


def inputs_of(messages: Sequence[Message]) -> dict[str, Input]:
    """The templates among the messages, by names of their own."""
    return {
        _name(number): TextInput(message.content) for number, message in enumerate(messages) if not message.is_words
    }


def filled(messages: Sequence[Message], rows: int, inputs: Mapping[str, Sequence[Any]]) -> list[Chat]:
    """The chat of each of R rows; `inputs` are the rendered templates by the names that `inputs_of` gave them."""
    said = [
        [message.words] * rows if message.is_words else inputs[_name(number)] for number, message in enumerate(messages)
    ]
    return [
        [{"role": message.role, "content": content[row]} for message, content in zip(messages, said, strict=True)]
        for row in range(rows)
    ]


def read(value: Any, max_chars: int) -> Chat | Failure:
    """The chat that stands in a row of a column; fields that are null are left out, others beside the two are kept."""
    if value is None:
        return Failure(Reason.NULL_TEXT, "the messages are null")
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else f"{type(value).__name__}"
        return Failure(Reason.TEMPLATE_FAILED, f"messages are a list of {{role, content}}, and here is {found}")
    for number, message in enumerate(value):
        for key in ("role", "content"):
            said = message.get(key) if isinstance(message, dict) else None
            if not isinstance(said, str):
                return Failure(Reason.TEMPLATE_FAILED, f"message {number + 1} of {len(value)} has no text as its {key}")
    chars = sum(len(message["content"]) for message in value)
    if chars > max_chars:
        return Failure(Reason.OVER_MAX_CHARS, f"the messages have {chars} characters, max_chars is {max_chars}")
    return [{key: said for key, said in message.items() if said is not None} for message in value]


class ChatTemplate:
    """The template of one model's tokenizer."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        """`options` are variables that the template may ask for. Raises ModelError: a model without a template."""
        if tokenizer.chat_template is None:
            raise ModelError(
                "the model has no chat template, so nobody knows how it was taught to read messages: take a model "
                "that was tuned to follow instructions, or write the prompt as `text`"
            )
        self._tokenizer = tokenizer
        self._options = dict(options)

    def prompt(self, chat: Chat) -> str | Failure:
        """The chat up to where the model's answer begins, special tokens written out."""
        try:
            told: str = self._tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=False, **self._options
            )
        except Exception as fault:  # noqa: BLE001 - a template is code: it may raise anything for one row
            return Failure(Reason.TEMPLATE_FAILED, f"{type(fault).__name__}: {fault}")
        return told


def _name(number: int) -> str:
    return f"message_{number}"
