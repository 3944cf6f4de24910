"""Each text in another language.

{name: german, task: translate, text: title, model: models/nllb, source: eng_Latn, target: deu_Latn}
-> german_translation: "Ein Kartenspiel für zwei.", german_end: "eos"        # length: cut off by max_new_tokens

How a model is told the languages is its family's own: Marian of several targets by a token in front of the text;
M2M100, NLLB and mBART by tokens in front of the text and of the translation; T5 by words in front. Other
encoder-decoders take a `prefix`. A text over the window is translated sentence by sentence.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import JobError
from pipeline.models.inspection import read_optional
from pipeline.models.reference import PinnedModel
from pipeline.tasks._languages import T5_NAMES, WITHOUT_BLANKS, codes, splitter_code, t5_name, unknown
from pipeline.tasks.base import Annotation, Comparison, Texts
from pipeline.tasks.writer import DecodingSettings, WriterTask, Written
from pipeline.text.passages import passages
from pipeline.text.sentences import Span
from pipeline.text.tokens import Tokens

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel

Kind = Literal["marian", "m2m100", "nllb", "mbart", "t5", "other"]
"""How a model is told what to translate into what."""

_BY_TOKENS = ("m2m100", "nllb", "mbart")


class Translate(WriterTask):
    """What an encoder-decoder that was trained to translate makes of each text."""

    class Config(DecodingSettings):
        """The languages, and how a text is taken apart."""

        source: str | None = Field(default=None, min_length=1, max_length=100)
        """The language of the texts as the model calls it: en (M2M100), eng_Latn (NLLB), en_XX (mBART), en or English
        (T5); Marian and others have no use for it."""

        target: str | None = Field(default=None, min_length=1, max_length=100)
        """The language to write: as `source`, or deu for Marian's >>deu<<; a model of one target has no use for it."""

        prefix: str | None = Field(default=None, max_length=10_000)
        """T5 and models without a way of their own: what stands before each text, in place of source and target;
        at most 10,000 characters."""

        split: Literal["auto", "sentences", "none"] = "auto"
        """Translate sentence by sentence: a text that is longer than `max_tokens` (auto), every one (sentences), or
        none: what is too long is cut off, which `<name>_truncated` tells."""

        language: str | None = Field(default=None, pattern="^[a-z]{2,3}(-[a-z]+)*$")
        """By whose rules sentences end: a code as Wikipedia has it (en, de, zh, pt-br); default: the source's, else
        en."""

        @model_validator(mode="after")
        def _says_it_once(self) -> Self:
            if self.prefix is not None and (self.source or self.target):
                raise ValueError("prefix stands in place of source and target: say the one or the other")
            if self.split == "none" and self.language is not None:
                raise ValueError("language needs `split: auto` or `sentences`; no text is taken apart otherwise")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find how the model is told the languages.

        Raises JobError: options that this kind of model has no use for, or that it needs; a language that its files do
        not name; further errors as `WriterTask`.
        """
        super().__init__(config, model)
        self._kind = kind_of_languages(self.pinned)
        try:
            self._check_options()
            if self._kind == "t5":
                self.prefix = self._words_of_t5()
            elif self._kind == "other":
                self.prefix = config.prefix or ""
            elif (
                known := codes(self._kind, _tokens_in(Path(self.pinned.folder), self._kind))
            ) or self._kind == "marian":
                self._check_languages(known)
        except JobError as fault:
            raise JobError(f"annotation {config.name!r}: {fault}") from None
        said = read_optional(Path(self.pinned.folder) / "tokenizer_config.json") if self._kind == "marian" else {}
        self._language = config.language or splitter_code(config.source or said.get("source_lang")) or "en"
        written = splitter_code(config.target or said.get("target_lang"))
        self._blank = "" if written is None or written in WITHOUT_BLANKS else " "

    def fields(self) -> list[pa.Field]:
        """`translation`, and its `end`."""
        return [pa.field("translation", pa.string()), pa.field("end", pa.string())]

    def compared(self) -> Comparison:
        """Texts."""
        return Comparison("texts", {"predicted": "translation"})

    @contextmanager
    def prepared(self, loaded: "LoadedModel") -> Iterator[None]:
        """The tokenizer puts this source's token before a text; afterwards its own again.

        Raises JobError: a language that the model does not know.
        """
        if self._kind in ("t5", "other"):
            yield
            return
        tokenizer = loaded.tokenizer
        known = codes(self._kind, {**tokenizer.get_vocab(), **getattr(tokenizer, "lang_token_to_id", {})})
        self._check_languages(known)
        if self._kind == "marian":
            language = self._marian_target(known)
            # Not as text: the tokenizer takes all for the language that stands before the last << of a text.
            self.lead = () if language is None else (int(tokenizer.convert_tokens_to_ids(known[language])),)
            yield
            return
        self.forced_bos = self._target_token(loaded.module, tokenizer, known)
        before = tokenizer.src_lang
        tokenizer.src_lang = self.config.source
        try:
            yield
        finally:
            tokenizer.src_lang = before

    def annotate(self, texts: Texts) -> Annotation:
        """All texts, and all sentences of long ones, through the model together."""
        written = Written.nothing(len(texts.values))
        spans_R = self._parted(texts.values)
        words_R = [self._words(text, spans) for text, spans in zip(texts.values, spans_R, strict=True)]
        parts = [
            (row, text[start:stop])
            for row, text in enumerate(texts.values)
            for (start, stop), has_words in zip(spans_R[row], words_R[row], strict=True)
            if has_words
        ]
        found = iter(
            self.writer.write([self.prefix + part for _, part in parts], [row for row, _ in parts], texts, written)
        )
        translations: list[str | None] = []
        for row, text in enumerate(texts.values):
            said = [
                next(found) if has_words else text[start:stop]
                for (start, stop), has_words in zip(spans_R[row], words_R[row], strict=True)
            ]
            whole = [each for each in said if each is not None]
            translations.append(None if row in written.failures else joined(text, spans_R[row], whole, self._blank))
        for row in written.failures:
            written.ends_R[row] = None
        return Annotation(
            columns={
                "translation": pa.array(translations, pa.string()),
                "end": pa.array(written.ends_R, pa.string()),
            },
            tokens_R=written.tokens_R,
            truncated_R=written.truncated_R,
            failures=written.failures,
            forward_tokens=written.tokens,
            padding_tokens=written.padding_tokens,
            model_seconds=written.seconds,
        )

    def _parted(self, texts: Sequence[str]) -> list[list[Span]]:
        """[start, stop) of what is translated by itself, in each text."""
        whole = [[(0, len(text))] for text in texts]
        if self.config.split == "none":
            return whole
        room = self.writer.room
        is_whole = [self.config.split == "auto" and tokens <= room for tokens in self._lengths(texts)]
        return [
            span if fits else passages(text, room, self._lengths, self._language)
            for text, span, fits in zip(texts, whole, is_whole, strict=True)
        ]

    def _lengths(self, parts: Sequence[str]) -> list[int]:
        return self.writer.lengths([self.prefix + part for part in parts])

    def _words(self, text: str, spans: Sequence[Span]) -> list[bool]:
        """Which of a text's parts hold tokens; all of them where none does, so that the writer tells it."""
        if len(spans) < 2:
            return [True] * len(spans)
        found = self.writer.tokens([text[start:stop] for start, stop in spans])
        words = [not isinstance(each, Tokens) or len(each.ids_T) > 0 for each in found]
        return words if any(words) else [True] * len(spans)

    def _check_options(self) -> None:
        """Refuse what this kind of model has no use for; JobError, also for what it needs."""
        config, kind = self.config, self._kind
        if config.prefix is not None and kind not in ("t5", "other"):
            raise JobError(f"prefix: {self._told()} is told its languages by {self._means()}, not by words")
        if kind == "other" and (config.source or config.target):
            raise JobError(
                f"source and target: {self._told()} has no way of its own to be told them; put what it was trained "
                "with before the texts (`prefix`)"
            )
        if kind == "marian" and config.source:
            raise JobError(
                f"source: {self._told()} reads what it was trained for and has no use for it; `language` says by whose "
                "rules sentences end"
            )
        missing = [option for option in ("source", "target") if not getattr(config, option)]
        if missing and (kind in _BY_TOKENS or (kind == "t5" and config.prefix is None)):
            instead = ", or the `prefix` that it was trained with" if kind == "t5" else ""
            raise JobError(f"{' and '.join(missing)}: {self._told()} must be told what to translate into what{instead}")

    def _check_languages(self, known: Mapping[str, str]) -> None:
        """Refuse a language that is not among those of the model's vocabulary, with a JobError."""
        if self._kind == "marian":
            self._marian_target(known)
            return
        for option in ("source", "target"):
            if (language := getattr(self.config, option)) not in known:
                raise JobError(unknown(option, language, known))

    def _marian_target(self, known: Mapping[str, str]) -> str | None:
        """The language to write, of those that a Marian model knows; None where it has a single one without a token."""
        target: str | None = self.config.target
        if target is None:
            if len(known) > 1:
                raise JobError(f"target: {self._told()} writes several languages: name one of {', '.join(known)}")
            return next(iter(known), None)
        if not known:
            raise JobError(f"target: {self._told()} writes one language and has no use for it")
        language = target.removeprefix(">>").removesuffix("<<")
        if language not in known:
            raise JobError(unknown("target", language, known))
        return language

    def _words_of_t5(self) -> str:
        """T5's own prefix, or the job's."""
        config = self.config
        if config.prefix is not None:
            return str(config.prefix)
        source, target = t5_name(config.source), t5_name(config.target)
        for option, name in (("source", source), ("target", target)):
            if name is None:
                known = [*T5_NAMES, *T5_NAMES.values()]
                other = "; a T5 that was trained for others has a `prefix` for it"
                raise JobError(unknown(option, getattr(config, option), known) + other)
        return f"translate {source} to {target}: "

    def _target_token(self, module: Any, tokenizer: Any, known: Mapping[str, str]) -> int | None:
        """The token that every translation begins with; None where the decoder's own first one says the language."""
        token = int(tokenizer.convert_tokens_to_ids(known[self.config.target]))
        own = getattr(module.config, "decoder_start_token_id", None)
        if own is None or own not in tokenizer.convert_tokens_to_ids(list(known.values())):
            return token
        # mBART of 25 languages: each model writes one.
        if own != token:
            written = next(code for code, each in known.items() if tokenizer.convert_tokens_to_ids(each) == own)
            raise JobError(f"target: {self._told()} writes {written!r} alone, by its config.json")
        return None

    def _told(self) -> str:
        return f"model {self.pinned.ref!r} ({self.pinned.config.get('model_type')})"

    def _means(self) -> str:
        return "`target`" if self._kind == "marian" else "`source` and `target`"


def kind_of_languages(pinned: PinnedModel) -> Kind:
    """How a model is told the languages, by its files."""
    model_type = pinned.config.get("model_type")
    if model_type in ("m2m_100", "nllb-moe"):
        named = read_optional(Path(pinned.folder) / "tokenizer_config.json").get("tokenizer_class") or ""
        return "nllb" if model_type == "nllb-moe" or str(named).startswith("Nllb") else "m2m100"
    kinds: Mapping[str, Kind] = {"marian": "marian", "mbart": "mbart", "t5": "t5"}
    return kinds.get(str(model_type), "other")


def joined(text: str, spans: Sequence[Span], said: Sequence[str], blank: str) -> str:
    """What was said of each span, with the white space that stands between them; `blank` where there is none."""
    parts = [said[0]]
    for ((_, before), (after, _)), translation in zip(pairwise(spans), said[1:], strict=True):
        parts += [text[before:after] or blank, translation]
    return "".join(parts)


def _tokens_in(folder: Path, kind: Kind) -> list[str]:
    """Tokens that a model folder's files name, among which those of languages are, as far as files tell."""
    if kind == "marian":
        return list(read_optional(folder / "vocab.json"))
    found: list[Any] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        options = read_optional(folder / name)
        for key in ("extra_special_tokens", "additional_special_tokens"):
            found += options[key] if isinstance(options.get(key), list) else []
    return [each["content"] if isinstance(each, dict) else str(each) for each in found]
