"""A text is written for each text: summaries, titles, translations, by an encoder-decoder.

objective: seq2seq                       data: {text: description, label: summary, …}
objective: {name: seq2seq, prefix: "summarize: ", max_target_tokens: 64, label_smoothing: 0.1}
objective: {name: seq2seq, task: translate, source: eng_Latn, target: deu_Latn}

An example holds the tokens that `task: summarize` (or translate) would read, and the target's tokens:
input_ids [21603, 10, …, 1], target [3, 9, …, 1]. Its weight is the target's tokens, special ones included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.corpus.column import is_text
from pipeline.errors import CorpusError, JobError
from pipeline.metrics import baselines
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure, Reason
from pipeline.tasks._abstractive import Abstractive
from pipeline.tasks.summarize import Summarize
from pipeline.tasks.translate import Translate, kind_of_languages
from pipeline.tasks.writer import WriterTask
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import TextTokenizer
from pipeline.training.objectives._tokenwise import IGNORED, TokenObjective, bare
from pipeline.training.objectives.base import (
    Encoded,
    Learned,
    ObjectiveSettings,
    Prediction,
    as_lists,
    needs_label,
    padded,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.examples import Examples

LEAD_WORDS = 8
"""Words of one of the baselines; the other has as many as a training target on average."""

_NAME = "seq2seq"


class Seq2Seq(TokenObjective):
    """Cross entropy of the target's tokens, each given those before it."""

    asks_tokenizer = True

    needs = "AutoModelForSeq2SeqLM"

    class Config(ObjectiveSettings):
        """How texts are put to the model, and how long what it writes may be."""

        task: Literal["summarize", "translate"] = "summarize"
        """The task by which the trained model is used and judged."""

        prefix: str | None = Field(default=None, max_length=10_000)
        """What stands before each text, at most 10,000 characters; default: what the task puts there by itself (T5's
        own words for summaries), else nothing."""

        source: str | None = Field(default=None, min_length=1, max_length=100)
        """translate: the language of the texts, as in `task: translate`."""

        target: str | None = Field(default=None, min_length=1, max_length=100)
        """translate: the language to write, as in `task: translate`."""

        max_target_tokens: int = Field(default=64, ge=2, le=100_000)
        """Tokens of a target, special ones included, 2 to 100,000; longer ones are cut. As many are written at most."""

        num_beams: int | None = Field(default=None, ge=1, le=64)
        """Ways that are followed side by side when the model is judged, 1 (greedy) to 64; default: the model's own."""

        label_smoothing: float = Field(default=0.0, ge=0, lt=1)
        """Share of the target that is spread over the vocabulary (Szegedy et al. 2016)."""

        @model_validator(mode="after")
        def _languages_are_of_translations(self) -> "Seq2Seq.Config":
            if self.task == "summarize" and (self.source or self.target):
                raise ValueError("source and target need `task: translate`; a summary has the language of its text")
            return self

    def __init__(self, config: ObjectiveSettings, data: Any) -> None:
        """Raises JobError without a label column, or with a second text."""
        super().__init__(config, data)
        needs_label(_NAME, data, "a column of texts to write")
        if data.text_pair is not None:
            raise JobError(f"data.text_pair: {_NAME} reads one text; a template joins several columns")
        self._writer: WriterTask | None = None

    @property
    def label_smoothing(self) -> float:
        """As the job says."""
        return float(self.config.label_smoothing)

    def check_label(self, type_: pa.DataType) -> None:
        """Strings."""
        if not is_text(type_):
            raise CorpusError(f"data.label '{self.data.label}' is {type_}; {_NAME} needs texts to write (strings)")

    # ------------------------------------------------------------------------------------------------------ encoding

    def start(self, tokenizer: Any, model: PinnedModel, max_tokens: int) -> None:
        """Take the tokenizer, and put texts as the task does that will use the model.

        Raises ModelError: a model that cannot write; JobError: targets longer than it has positions for, languages
        that it does not know or that it must be told.
        """
        super().start(tokenizer, model, max_tokens)
        self._writer = writer = self._as_task(model, max_tokens)
        unloaded: Any = SimpleNamespace(
            tokenizer=tokenizer, module=SimpleNamespace(config=SimpleNamespace(**model.config))
        )
        with writer.prepared(unloaded):
            self._lead = np.array(writer.lead, np.int32)
            self._maker = PieceMaker(self._texts, max_tokens - len(self._lead))
        self._target_maker = PieceMaker(self._target_tokenizer(), self.config.max_target_tokens)
        around = len(next(iter(self._texts.tokens([writer.prefix], None))).ids_T) if writer.prefix else 0  # type: ignore[union-attr]
        if around >= self._maker.room:
            raise JobError(
                f"objective.prefix: its {around} tokens leave no room for a text in a window of {max_tokens}: shorten "
                "it, or raise training.max_tokens"
            )

    def _as_task(self, model: PinnedModel, max_tokens: int) -> WriterTask:
        settings = {**self._annotation(_NAME, model), "max_tokens": max_tokens}
        if self.config.task == "translate":
            return Translate(Translate.Config.model_validate(settings), model)
        return Abstractive(Summarize.Config.model_validate(settings), model)

    def _annotation(self, name: str, model: PinnedModel | None) -> dict[str, Any]:
        """How an annotate job asks for what the model was trained to write."""
        config = self.config
        asked = {
            "name": name,
            "task": config.task,
            "text": self.data.text,
            "max_new_tokens": config.max_target_tokens,
            **{
                option: getattr(config, option)
                for option in ("prefix", "source", "target", "num_beams")
                if getattr(config, option) is not None
            },
        }
        told = config.prefix is not None or config.source or config.target
        if config.task == "translate" and not told and model is not None and kind_of_languages(model) == "t5":
            asked["prefix"] = ""  # a T5 that learns one pair of languages has to be told neither
        return asked

    def _target_tokenizer(self) -> TextTokenizer:
        """What makes tokens of targets: with the target language's token around them, or a vocabulary of their own."""
        if not hasattr(self.tokenizer, "_switch_to_target_mode"):
            return self._texts
        if self.config.target is not None and hasattr(self.tokenizer, "tgt_lang"):
            self.tokenizer.tgt_lang = self.config.target
        return TextTokenizer(_Targets(self.tokenizer))

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """One example a row; a null or blank label leaves the row out."""
        assert self._writer is not None
        pieces = self._maker.pieces([self._writer.prefix + text for text in rows["text"]])
        if len(self._lead):
            pieces = replace(pieces, ids_P=[np.concatenate([self._lead, ids]) for ids in pieces.ids_P])
        failures = {row: fault for row, label in enumerate(rows["label"]) if (fault := self._fault(label)) is not None}
        targets = self._target_maker.pieces(
            ["" if row in failures else label for row, label in enumerate(rows["label"])]
        )
        for more in (pieces.failures, targets.failures):
            for row, failure in more.items():
                failures.setdefault(row, failure)
        ids_R = dict(zip(targets.row_P.tolist(), targets.ids_P, strict=True))
        kept = [row for row in range(len(rows["label"])) if row not in failures]
        columns = {
            "target": as_lists([ids_R[row] for row in kept]),
            "words": pa.array([len(rows["label"][row].split()) for row in kept], pa.int32()),
        }
        cut = replace(pieces, truncated_R=pieces.truncated_R | targets.truncated_R)
        return self.encoded(cut, failures, columns, np.array([len(ids_R[row]) for row in kept], np.float32))

    def _fault(self, label: str | None) -> Failure | None:
        if label is None:
            return Failure(Reason.NULL_LABEL, f"the label '{self.data.label}' is null")
        if not label.strip():
            return Failure(Reason.BAD_LABEL, f"the label '{self.data.label}' is blank")
        return None

    def counted(self, examples: pa.Table) -> Learned:
        """Rows, and the words of their targets."""
        return {"rows": float(len(examples)), "words": float(pc.sum(examples["words"]).as_py() or 0)}

    def learned(self, counted: Mapping[str, float]) -> Learned:
        """How long a target is."""
        return {"mean_words": counted["words"] / counted["rows"]} if counted.get("rows") else {}

    # ------------------------------------------------------------------------------------------------------ training

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":  # noqa: ARG002
        """Ids, mask, and targets_BL."""
        import torch

        return self.tensors(examples) | {"target": torch.from_numpy(padded(examples["target"], IGNORED))}

    def asked(self, model: "nn.Module", batch: "dict[str, torch.Tensor]") -> "tuple[dict[str, Any], torch.Tensor]":
        """The decoder reads the targets, one place later, behind the token that begins."""
        import torch

        module, targets_BL = bare(model), batch["target"]
        if hasattr(module, "prepare_decoder_input_ids_from_labels"):
            decoder_BL = module.prepare_decoder_input_ids_from_labels(labels=targets_BL)
        else:
            first_B1 = targets_BL.new_full((len(targets_BL), 1), module.config.decoder_start_token_id)
            before_BL = targets_BL[:, :-1].masked_fill(targets_BL[:, :-1] == IGNORED, self.pad_id)
            decoder_BL = torch.cat([first_B1, before_BL], 1)
        inputs = {name: values for name, values in batch.items() if name != "target"}
        return inputs | {"decoder_input_ids": decoder_BL, "use_cache": False}, targets_BL

    # ------------------------------------------------------------------------------------------------------ promoting

    def finish(self, model: "nn.Module", learned: Learned) -> "nn.Module":  # noqa: ARG002
        """The model writes as much as it was trained to, where a job does not say."""
        generation = getattr(bare(model), "generation_config", None)
        if generation is not None:
            generation.max_new_tokens, generation.max_length = self.config.max_target_tokens, None
        return model

    def prediction(self, name: str) -> Prediction:
        """`summarize`, or `translate`."""
        annotation = self._annotation(name, None if self._writer is None else self.model)
        written = "summary" if self.config.task == "summarize" else "translation"
        return Prediction([annotation], "texts", {"gold": str(self.data.label), "predicted": f"{name}_{written}"})

    def baselines(self, learned: Learned, gold: pa.Table, train: "Examples") -> dict[str, pa.Table]:  # noqa: ARG002
        """The beginning of each text: 8 words, and as many as a training target has on average."""
        if self.config.task == "translate":
            return {}
        mean = max(1, round(learned["mean_words"])) if "mean_words" in learned else LEAD_WORDS
        return {
            f"lead_{words}": pa.table({"predicted": baselines.lead(gold["text"], words)})
            for words in sorted({mean, LEAD_WORDS})
        }


class _Targets:
    """A tokenizer that treats targets in a way of their own, as `PieceMaker` calls one.

    Marian has a vocabulary for them; M2M100, NLLB and mBART put another language's token around them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return self._tokenizer(text_target=text, add_special_tokens=add_special_tokens)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self(text, add_special_tokens)["input_ids"])
