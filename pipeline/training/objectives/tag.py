"""A label for each word piece, learned from spans of the text: the entities that `task: tag` then finds.

objective: tag                           data: {text: letter, label: entities, …}
list<struct<label, start, end>>   -> spans of the text, in code points
list<string>                      -> B-…, I-… or O of each token, and `text` is a list of tokens (list<string>), which
                                     are joined by blanks
objective: {name: tag, aggregation: first}

An example holds its spans by word pieces: input_ids [101, 7592, …], spans [{label: PER, start: 1, stop: 3}]. Labels of
the model are O, B-LOC, I-LOC, B-PER …; a span's first piece gets B-, those behind it I-.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.corpus.column import find_dotted, is_text
from pipeline.entities import Strategy
from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import ColumnInput, Input
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import Tokens
from pipeline.training.objectives import _bio
from pipeline.training.objectives._bio import Marked
from pipeline.training.objectives.base import (
    Encoded,
    Learned,
    Objective,
    ObjectiveSettings,
    Prediction,
    needs_label,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.examples import Examples

IGNORED = -100
"""The target of special tokens and padding."""

TEXT, SPANS = "tagged_text", "tagged_spans"
"""Columns of the test rows that lists of tokens and labels become, so that `task: tag` can be judged by them."""

LABELS_TOLD = 20

_ROWS_AT_ONCE = 1024

_SPANS = pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32()), ("stop", pa.int32())]))
_GOLD = pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))


class Tag(Objective):
    """Cross entropy of each word piece's label."""

    needs = "AutoModelForTokenClassification"
    figures: ClassVar[Mapping[str, bool]] = {"spans_f1": True, "token_accuracy": True}

    class Config(ObjectiveSettings):
        """How the trained model is judged."""

        aggregation: Strategy = "simple"
        """How the word pieces of a judged text become entities, as in `task: tag`. simple gives back the spans that
        the labels mean; first, average and max keep words whole."""

        label_smoothing: float = Field(default=0.0, ge=0, lt=1)
        """Share of the target that is spread over all labels (Szegedy et al. 2016)."""

    def __init__(self, config: ObjectiveSettings, data: Any) -> None:
        """Raises JobError without a label column, or with a second text."""
        super().__init__(config, data)
        needs_label("tag", data, "a column of spans (list<struct<label, start, end>>), or of a label for each token")
        if data.text_pair is not None:
            raise JobError("data.text_pair: tag reads one text; leave it out")
        self._of_words = False

    def inputs(self) -> Mapping[str, Input]:
        """The text, or the column of its tokens, and the labels."""
        label = ColumnInput(str(self.data.label))
        return {"text": ColumnInput(self.data.text), "label": label} if self._of_words else super().inputs()

    def check_label(self, type_: pa.DataType) -> None:
        """Lists of spans, or lists of strings; only then it is known what the text column must be."""
        if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)) or not (
            is_text(type_.value_type) or _has_spans(type_.value_type)
        ):
            raise CorpusError(
                f"data.label '{self.data.label}' is {type_}; tag needs spans (list<struct<label: string, start: int, "
                "end: int>>), or a label for each token (list<string>)"
            )
        self._of_words = is_text(type_.value_type)

    # ------------------------------------------------------------------------------------------------------ encoding

    def start(self, tokenizer: Any, model: PinnedModel, max_tokens: int) -> None:
        """Take the tokenizer. Raises ModelError: one that cannot tell where a token stands."""
        super().start(tokenizer, model, max_tokens)
        if not self._texts.has_offsets:
            raise ModelError(
                f"the tokenizer of {model.ref!r} is a slow one ({type(tokenizer).__name__}), which cannot tell where a "
                "token stands in its text; a model with a tokenizer.json can"
            )
        self._maker = PieceMaker(self._texts, max_tokens)

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """One example a row; spans behind the window are dropped with their text. Bad labels leave the row out."""
        texts, marked = self._read(rows["text"], rows["label"])
        tokens_R = list(self._texts.tokens(texts, self._maker.most, offsets=True))
        pieces = self._maker.cut(tokens_R, texts)
        failures = {row: each for row, each in enumerate(marked) if isinstance(each, Failure)}
        for row, failure in pieces.failures.items():
            failures.setdefault(row, failure)
        lead, spans, weights = len(self._maker.frame.before), [], []
        for row, (found, each) in enumerate(zip(tokens_R, marked, strict=True)):
            if row in failures:
                continue
            assert isinstance(found, Tokens)
            assert found.offsets_T2 is not None
            assert not isinstance(each, Failure)
            offsets_T2 = found.offsets_T2[: self._maker.room]
            spans.append(
                [
                    {"label": span.label, "start": lead + span.start, "stop": lead + span.stop}
                    for span in _bio.on_tokens(each, offsets_T2)
                ]
            )
            weights.append(len(offsets_T2))
        return self.encoded(pieces, failures, {"spans": pa.array(spans, _SPANS)}, np.array(weights, np.float32))

    def _read(self, texts: Sequence[Any], labels: Sequence[Any]) -> tuple[list[str], list[list[Marked] | Failure]]:
        """The text of each row, and its spans by code points; a failed row's text may be empty."""
        where = f"the label '{self.data.label}'"
        read: list[str] = []
        found: list[list[Marked] | Failure] = []
        for text, label in zip(texts, labels, strict=True):
            if label is None:
                read.append("")
                found.append(Failure(Reason.NULL_LABEL, f"{where} is null"))
            elif not self._of_words:
                read.append(text)
                found.append(_bio.spans_of(label, len(text), where))
            elif not isinstance(text, list):
                read.append("")
                told = "null" if text is None else "no list"
                found.append(
                    Failure(Reason.NULL_TEXT, f"'{self.data.text}' is {told}, and {where} is of a list of tokens")
                )
            else:
                spans = _bio.spans_of_words(text, label, where)
                read.append("" if isinstance(spans, Failure) else _bio.joined(text))
                found.append(spans)
        return read, found

    @property
    def rewrites_rows(self) -> bool:
        """Of tokens."""
        return self._of_words

    def judged_rows(self, rows: pa.Table) -> pa.Table:
        """Of tokens: the text that they make, and its spans, in columns of their own."""
        if not self.rewrites_rows:
            return rows
        texts, marked = self._read(
            _column(rows, self.data.text).to_pylist(), _column(rows, str(self.data.label)).to_pylist()
        )
        gold = [
            None
            if isinstance(each, Failure)
            else [{"label": span.label, "start": span.start, "end": span.stop} for span in each]
            for each in marked
        ]
        return rows.append_column(TEXT, pa.array(texts, pa.string())).append_column(SPANS, pa.array(gold, _GOLD))

    def counted(self, examples: pa.Table) -> Learned:
        """Spans of each label."""
        labels = pc.struct_field(pc.list_flatten(examples["spans"]), "label")
        return {each["values"]: float(each["counts"]) for each in labels.value_counts().to_pylist()}

    def learned(self, counted: Mapping[str, float]) -> Learned:
        """O, then B- and I- of each label in the order of the alphabet, and how many spans each label has."""
        if not counted:
            raise CorpusError(f"the training rows have no span in '{self.data.label}': there is nothing to learn")
        return {"labels": _bio.bio(counted), "counts": {label: int(counted[label]) for label in sorted(counted)}}

    def check_known(self, learned: Learned, counted: Mapping[str, float], subset: str) -> None:
        """Every label of the validation and test rows stands in a training row."""
        unseen = sorted(set(counted) - set(learned["counts"]))
        if unseen:
            spans = int(sum(counted[label] for label in unseen))
            raise CorpusError(
                f"{len(unseen)} label{'' if len(unseen) == 1 else 's'} of '{self.data.label}' in {spans} spans of the "
                f"{subset} rows {'is' if len(unseen) == 1 else 'are'} in no training row: "
                f"{', '.join(unseen[:LABELS_TOLD])}{' …' if len(unseen) > LABELS_TOLD else ''}; leave these rows "
                "out (data.unseen_labels: leave_out), or split otherwise"
            )

    # ------------------------------------------------------------------------------------------------------ training

    def model_options(self, learned: Learned) -> dict[str, Any]:
        """The labels, by number."""
        labels = learned["labels"]
        return {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":  # noqa: ARG002
        """Ids, mask, and targets_BL: the label's number of each word piece."""
        import torch

        tensors = self.tensors(examples)
        frame, numbers = self._maker.frame, {label: at for at, label in enumerate(learned["labels"])}
        targets_BL = np.full(tensors["input_ids"].shape, IGNORED, np.int64)
        lengths_B = examples["weight"].to_numpy().astype(np.int64)
        for row, (length, spans) in enumerate(zip(lengths_B, examples["spans"].to_pylist(), strict=True)):
            targets_BL[row, len(frame.before) : len(frame.before) + length] = numbers[_bio.OUTSIDE]
            for span in spans:
                targets_BL[row, span["start"]] = numbers[f"B-{span['label']}"]
                targets_BL[row, span["start"] + 1 : span["stop"]] = numbers[f"I-{span['label']}"]
        return tensors | {"target": torch.from_numpy(targets_BL)}

    def loss(self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned) -> "torch.Tensor":  # noqa: ARG002
        """Summed over the word pieces."""
        return self._loss(_logits(model, batch), batch["target"])

    def _loss(self, logits_BLD: "torch.Tensor", targets_BL: "torch.Tensor") -> "torch.Tensor":
        import torch.nn.functional as functional

        return functional.cross_entropy(
            logits_BLD.flatten(0, 1),
            targets_BL.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.config.label_smoothing,
        )

    def judge(
        self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned
    ) -> "tuple[torch.Tensor, npt.NDArray[Any]]":
        """Of each row: spans found and right, spans found, spans there are; word pieces right, word pieces."""
        logits_BLD = _logits(model, batch)
        loss = self._loss(logits_BLD, batch["target"])
        wanted_BL, said_BL = batch["target"].cpu().numpy(), logits_BLD.argmax(-1).cpu().numpy()
        said_BL[wanted_BL == IGNORED] = IGNORED
        labels = learned["labels"]
        begins_L = np.array([label.startswith("B-") for label in labels])
        tag_L = np.array([(place + 1) // 2 for place in range(len(labels))])
        wanted, said = (_bio.found_in(each_BL, begins_L, tag_L) for each_BL in (wanted_BL, said_BL))
        rows = len(wanted_BL)
        counts_B3 = [np.bincount([span[0] for span in each], minlength=rows) for each in (wanted & said, said, wanted)]
        judged_BL = wanted_BL != IGNORED
        right_B2 = [((wanted_BL == said_BL) & judged_BL).sum(1), judged_BL.sum(1)]
        return loss, np.stack([*counts_B3, *right_B2], 1)

    def score(self, judged_EK: npt.NDArray[Any], learned: Learned) -> dict[str, float]:  # noqa: ARG002
        """F1 of whole spans (micro), and the share of word pieces that have the right label."""
        hits, said, wanted, right, pieces = judged_EK.sum(0)
        return {
            "spans_f1": 2 * float(hits) / float(said + wanted) if said + wanted else 0.0,
            "token_accuracy": float(right) / float(pieces),
        }

    # ------------------------------------------------------------------------------------------------------ promoting

    def prediction(self, name: str) -> Prediction:
        """`tag`, which reads long texts in windows: no span is left out of the judgement."""
        text, gold = (TEXT, SPANS) if self._of_words else (self.data.text, str(self.data.label))
        annotation = {"name": name, "task": "tag", "text": text, "aggregation": self.config.aggregation}
        return Prediction([annotation], "spans", {"gold": gold, "predicted": f"{name}_entities"})

    def baselines(self, learned: Learned, gold: pa.Table, train: "Examples") -> dict[str, pa.Table]:  # noqa: ARG002
        """memory: what a training row marks is marked wherever it stands, with the label that it has most often.

        The baseline of CoNLL 2003 (Tjong Kim Sang and De Meulder).
        """
        seen: dict[tuple[int, ...], Counter[str]] = defaultdict(Counter)
        for first in range(0, len(train), _ROWS_AT_ONCE):
            rows = train.rows(range(first, min(first + _ROWS_AT_ONCE, len(train))))
            for ids, spans in zip(rows["input_ids"].to_pylist(), rows["spans"].to_pylist(), strict=True):
                for span in spans:
                    seen[tuple(ids[span["start"] : span["stop"]])][span["label"]] += 1
        known = {ids: min(counts, key=lambda label: (-counts[label], label)) for ids, counts in seen.items()}
        said: list[list[dict[str, Any]]] = []
        for found in self._texts.tokens(gold["text"].to_pylist(), None, offsets=True):
            marked = [] if isinstance(found, Failure) else _bio.remembered(found.ids_T, known)
            offsets_T2 = None if isinstance(found, Failure) else found.offsets_T2
            said.append(
                [
                    {"label": each.label, "start": offsets_T2[each.start, 0], "end": offsets_T2[each.stop - 1, 1]}
                    for each in marked
                    if offsets_T2 is not None
                ]
            )
        return {"memory": pa.table({"predicted": pa.array(said, _GOLD)})}


def _has_spans(type_: pa.DataType) -> bool:
    if not pa.types.is_struct(type_):
        return False
    fields = {field.name: field.type for field in type_}
    return (
        "label" in fields
        and is_text(fields["label"])
        and all(side in fields and pa.types.is_integer(fields[side]) for side in ("start", "end"))
    )


def _column(rows: pa.Table, path: str) -> pa.ChunkedArray:
    names = find_dotted(rows.schema, path).names
    column = rows.column(names[0])
    return column if len(names) == 1 else pc.struct_field(column, list(names[1:]))


def _logits(model: "nn.Module", batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """logits_BLD in float32."""
    inputs = {name: values for name, values in batch.items() if name != "target"}
    logits_BLD: torch.Tensor = model(**inputs).logits
    return logits_BLD.float()
