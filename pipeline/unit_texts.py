"""What annotations read of one unit: the texts of its good rows, each distinct one once. Without Ray, without models.

unit = UnitTexts(table, added=…, leave_out={17}, …)
rendered = unit.rendered(task, reads)      # rows 0, 1, 3 hold "a", "b", "a": firsts_U=[0, 1], which_R=[0, 1, 0]
unit.texts(task, rendered).values          # ["a", "b"]
"""

import contextlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs import Reads, Source
from pipeline.quarantine import Failure, Reason
from pipeline.repeats import distinct
from pipeline.tasks.base import Annotation, Task, Texts
from pipeline.text.tokens import Tokens

_NOTHING = frozenset({Reason.NULL_TEXT, Reason.BLANK_TEXT})

Running = Callable[[Sequence[int]], None]
"""Told the rows that are about to go through a model; the crash journal listens."""


@dataclass(slots=True)
class Rendered:
    """The R good rows of a unit as one annotation reads them, U distinct ones, and the rows that are at fault."""

    rows_R: list[int]
    inputs: dict[str, list[Any]]  # by the task's own names, of all rows of the unit
    source: Source  # of the main one
    firsts_U: list[int]  # the row where each distinct text first stands
    which_R: list[int]  # which of them each row has
    failures: dict[int, Failure]  # by row

    def of(self, row: int) -> tuple[Any, ...]:
        """All inputs of a row."""
        return tuple(values[row] for values in self.inputs.values())


class UnitTexts:
    """The rows of one unit, with the columns that the annotations have added so far."""

    def __init__(
        self,
        table: pa.Table,
        added: frozenset[str],
        leave_out: Collection[int],
        running: Running | None,
        offsets: bool,
        once: bool,
        tokens: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Take the rows; `added` are the columns of all annotations, `once` has each distinct text read once.

        `tokens` were found ahead, by annotation and input.
        """
        self._table = table
        self._once = once
        self._tokens = {whose: list(found) for whose, found in (tokens or {}).items()}
        self._lengths: dict[tuple[Source, str | None], dict[int, int]] = {}
        self._added = added  # also of annotations that are still to come
        self._left_out = frozenset(leave_out)
        self._running = running
        self._offsets = offsets
        self._columns: dict[tuple[Source, int], tuple[list[Any], dict[int, Failure]]] = {}
        self._shared: dict[tuple[Source, tuple[int, ...]], dict[Hashable, Any]] = {}

    @property
    def rows(self) -> int:
        """Rows of the unit, good or not."""
        return int(self._table.num_rows)

    def add(self, columns: Mapping[str, pa.Array]) -> None:
        """What an annotation has added."""
        for name, values in columns.items():
            self._table = self._table.append_column(name, values)

    def _without(self, annotation: str) -> frozenset[int]:
        """Rows of which an annotation said nothing: those alone have no tokens, not even none of them."""
        nothing_N = pc.is_null(self._table[f"{annotation}_tokens"])
        return frozenset(np.flatnonzero(nothing_N.to_numpy()).tolist())

    def rendered(self, task: Task, reads: Reads) -> Rendered:
        """What one annotation reads of the rows that it wants."""
        max_chars = task.config.max_chars
        left_out = self._left_out.union(*map(self._without, reads.earlier))
        wanted = [row for row in np.flatnonzero(reads.wanted(self._table)).tolist() if row not in left_out]
        failures: dict[int, Failure] = {}
        inputs = {}
        for each, source in reads.sources.items():
            key = (source, max_chars)
            if key not in self._columns:
                self._columns[key] = source.render(self._table, max_chars)
            inputs[each], broken = self._columns[key]
            if self._added.intersection(source.columns):  # an annotation may have nothing to say: no fault of the row
                wanted = [row for row in wanted if row not in broken or broken[row].reason not in _NOTHING]
            failures = {**broken, **failures}
        rows_R = [row for row in wanted if row not in failures]
        main = reads.sources[next(iter(reads.sources))]
        at_fault = {row: failures[row] for row in wanted if row in failures}
        rendered = Rendered(rows_R, inputs, main, rows_R, list(range(len(rows_R))), at_fault)
        if self._once:
            with contextlib.suppress(TypeError):  # a list or a struct is no key
                firsts, rendered.which_R = distinct([rendered.of(row) for row in rows_R])
                rendered.firsts_U = [rows_R[first] for first in firsts]
        return rendered

    def lengths(self, task: Task, rendered: Rendered, chosen: Sequence[int]) -> list[int]:
        """How long the `chosen` distinct texts are: in tokens where the task can say so ahead, else in characters.

        The tokens are kept for `texts`. Annotations with the same texts and tokenizer are told the same.
        """
        tokenizer = None if task.model is None else task.model.tokenizer_digest or task.model.digest
        lengths = self._lengths.setdefault((rendered.source, tokenizer), {})
        lacking = [each for each in chosen if rendered.firsts_U[each] not in lengths]
        rows = [rendered.firsts_U[each] for each in lacking]
        lengths |= {row: len(str(rendered.of(row)[0])) for row in rows}
        texts = replace(self.texts(task, rendered, lacking), shared={}, running=None)
        with contextlib.suppress(Exception):  # `annotate` meets it too, and can say which text is to blame
            task.tokenise(texts)
            if texts.tokenised:
                found_UI = zip(*texts.tokenised.values(), strict=True)
                lengths |= dict(zip(rows, [sum(map(_count, found_I)) for found_I in found_UI], strict=True))
            for whose, found in texts.tokenised.items():
                tokens = self._tokens.setdefault(whose, [None] * self.rows)
                for row, each in zip(rows, found, strict=True):
                    tokens[row] = each
        return [lengths[rendered.firsts_U[each]] for each in chosen]

    def texts(self, task: Task, rendered: Rendered, chosen: Sequence[int] | None = None) -> Texts:
        """The distinct texts of an annotation, or the `chosen` ones of these, as its task takes them."""
        rows_U = rendered.firsts_U if chosen is None else [rendered.firsts_U[each] for each in chosen]
        inputs = {name: [values[row] for row in rows_U] for name, values in rendered.inputs.items()}
        texts = Texts(
            next(iter(inputs.values())),
            inputs,
            # Annotations that read other columns beside the same texts share what is made of these.
            self._shared.setdefault((rendered.source, tuple(rows_U)), {}),
            self._offsets,
            ahead={
                whose: [tokens[row] for row in rows_U]
                for whose, tokens in self._tokens.items()
                if whose.startswith(f"{task.config.name}/")
            },
        )
        if (running := self._running) is not None:
            rows_of: dict[int, list[int]] = {}
            for row, which in zip(rendered.rows_R, rendered.which_R, strict=True):
                rows_of.setdefault(rendered.firsts_U[which], []).append(row)
            texts.running = lambda indices: running([row for index in indices for row in rows_of[rows_U[index]]])
        return texts


def _count(found: Any) -> int:
    """How many tokens these are; a text that the tokenizer refuses has none."""
    return len(found.ids_T) if isinstance(found, Tokens) else 0


def of_all(annotation: Annotation, which_R: list[int]) -> Annotation:
    """What was said of the distinct texts, of all that have them."""
    if len(which_R) == len(annotation.tokens_R):  # none comes again
        return annotation
    indices_R = np.array(which_R)
    return replace(
        annotation,
        columns={name: _taken(column, indices_R) for name, column in annotation.columns.items()},
        tokens_R=annotation.tokens_R[indices_R],
        truncated_R=annotation.truncated_R[indices_R],
        failures={
            index: annotation.failures[which] for index, which in enumerate(which_R) if which in annotation.failures
        },
    )


def _taken(column: pa.Array, indices_R: npt.NDArray[np.integer]) -> pa.Array:
    """The values at these places. Vectors go through numpy: Arrow takes seven times as long, a number at a time."""
    if not pa.types.is_fixed_size_list(column.type) or column.null_count or not column.type.list_size:
        return column.take(pa.array(indices_R))
    numbers = column.flatten()
    if numbers.null_count or pa.types.is_boolean(numbers.type):
        return column.take(pa.array(indices_R))
    taken_RD = numbers.to_numpy().reshape(len(column), -1)[indices_R]
    return pa.FixedSizeListArray.from_arrays(pa.array(taken_RD.reshape(-1), numbers.type), type=column.type)
