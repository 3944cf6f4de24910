"""What all contenders do: embed texts, label them, write, train; one class for each, in `workloads`.

An instance is a setting of it (which model, which texts, how long), and travels to the contenders' processes as JSON:

    {"workload": "encoding", "folder": "/models/minilm", "texts": "/tmp/…/texts.parquet", "rows": 2000, …}

A workload knows its peers, how corpusmill does it, and when two outputs for a text agree.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.arithmetic import encoder_flop
from pipeline.errors import JobError, RunError

ANNOTATION = "bench"
"""Prefix of the columns that our own run adds."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How outputs are held against those of float32."""

    name: str  # at the head of its column
    key: Literal["cosine_least", "same_share"]  # of the report's figure that the table shows
    words: str  # what that means


@dataclass(frozen=True, slots=True)
class Measured:
    """What one contender did."""

    rows: int
    tokens: int  # real ones, of what it read
    padded_tokens: int | None
    seconds: float  # for these rows, once it runs
    first_row_seconds: float | None  # since its process was started
    flop: float | None
    one_in: int = 1  # it did one row in so many


@dataclass(frozen=True, slots=True)
class Workload(ABC):
    """A model, so many rows, a window, all cores."""

    name: ClassVar[str]
    """Its name in `workloads`."""

    peers: ClassVar[Mapping[str, str]]
    """Peers by name, in the order in which they stand in a table: `module:Class` in `jobs.bench.peers`."""

    unavailable: ClassVar[Mapping[str, str]] = {}
    """Peers that cannot stand beside corpusmill in one environment, with the reason."""

    reference: ClassVar[str | None] = None
    """Who computes what is right, as `peers` names them; None: nothing is compared."""

    agreement: ClassVar[Agreement | None] = None

    folder: str  # of the model
    rows: int
    max_tokens: int
    cores: int

    @abstractmethod
    def ours(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The job that corpusmill runs, of the user's own; without its output."""

    @abstractmethod
    def our_run(self, told: Mapping[str, Any], output: Path) -> tuple[Measured, list[Any] | None]:
        """What our run did, by its summary and its output folder, and an output for each row."""

    def agreed(self, found: Sequence[Any], right: Sequence[Any]) -> npt.NDArray[np.float64]:
        """For each row how far it is what is right, up to 1."""
        return np.array([one == other for one, other in zip(found, right, strict=True)], np.float64)

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        found: dict[str, Any] = json.loads(Path(self.folder, "config.json").read_text())
        return found

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps({"workload": self.name, **asdict(self)}))

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        """What `write` wrote, without the name."""
        return cls(**document)


@dataclass(frozen=True, slots=True)
class TextWorkload(Workload):
    """An annotation of R texts."""

    ours_alone: ClassVar[tuple[str, ...]] = ()
    """Options that peers have no word for."""

    ours_too: ClassVar[Mapping[str, Any]] = {}
    """Options of our annotation that say what peers do anyway."""

    auto_class: ClassVar[str]
    """The transformers class of the model."""

    texts: str  # a Parquet file with a column `text`, without nulls

    @classmethod
    @abstractmethod
    def of(cls, task: Any, rows: int, texts: str, cores: int) -> Self:
        """The setting of a task that is not started yet. Raises JobError: its options cannot be compared."""

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raises JobError for options of an annotation that peers have no word for."""
        named = [option for option in cls.ours_alone if getattr(settings, option, None) not in (None, False)]
        if settings.long_text == "windows" and "long_text" in settings.model_fields_set:
            named.append("long_text")
        if named:
            raise JobError(f"annotation {settings.name!r}: peers have no word for {', '.join(named)}: leave it out")

    @abstractmethod
    def our_outputs(self, part: pa.Table) -> list[Any]:
        """An output for each row of a part of our run."""

    def flop(self, lengths_R: npt.NDArray[np.int64]) -> float | None:
        """Multiplications and additions for texts of these tokens; None where nobody has counted them."""
        return encoder_flop(self.config(), lengths_R)

    def some(self, one_in: int = 1) -> list[str]:
        """Every so-many-th text, in order: `one_in=1` is all."""
        texts: list[str] = pq.read_table(self.texts)["text"].to_pylist()
        return texts[::one_in]

    def ours(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The first annotation over the texts that all contenders have, in the job's own actors."""
        left_out = ("where", "gold", "pool")
        annotation = {key: value for key, value in document["annotations"][0].items() if key not in left_out}
        cluster = {key: value for key, value in (document.get("cluster") or {}).items() if key != "pools"}
        cluster["gpus_per_actor"] = 0  # the peers compute on CPUs
        return {
            "kind": "annotate",
            "allow_code": document.get("allow_code", False),
            "corpus": {"path": str(Path(self.texts).parent)},
            "annotations": [{**annotation, **self.ours_too, "name": ANNOTATION, "text": "text"}],
            "repeats": {"once": False},  # as the peers do
            "cluster": cluster,
        }

    def our_run(self, told: Mapping[str, Any], output: Path) -> tuple[Measured, list[Any] | None]:
        """Rows in the order of the texts. Raises RunError where some are quarantined."""
        parts = [pq.read_table(part) for part in sorted((output / "data").glob("*.parquet"))]
        rows = np.concatenate([part["_row"].to_numpy() for part in parts])
        order_R = np.argsort(rows)
        if not np.array_equal(rows[order_R], np.arange(self.rows)):
            raise RunError(
                f"corpusmill annotated {len(rows)} of {self.rows} texts, and peers would do all: leave out those that "
                "are quarantined (`corpusmill preview` tells why)"
            )
        outputs = [each for part in parts for each in self.our_outputs(part)]
        lengths_R = np.concatenate([part[f"{ANNOTATION}_tokens"].to_numpy() for part in parts])[order_R]
        measured = Measured(
            rows=len(rows),
            tokens=told["tokens"],
            padded_tokens=told["tokens"] + told["padding_tokens"],
            seconds=told["tokens"] / told["tokens_per_second"],
            first_row_seconds=told["seconds_to_first_receipt"],
            flop=self.flop(lengths_R.astype(np.int64)),
        )
        return measured, [outputs[row] for row in order_R]
