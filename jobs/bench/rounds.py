"""Rounds: every contender once in each, in a process of its own, while nothing else runs.

Contest(setting, ["openvino bf16"], product_dtype="bfloat16", job={…}, folder=Path(…)).round() ->
    {"corpusmill": Ran(rows=4096, tokens=336_000, seconds=9.4, …), "openvino bf16": Ran(…)}
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import yaml

from jobs.bench.arithmetic import encoder_flop
from jobs.bench.memory import Memory
from jobs.bench.peer import Vectors
from jobs.bench.peers.reference import ONE_IN
from jobs.bench.setting import Setting
from pipeline.errors import RunError
from pipeline.progress import Watcher

OURS = "corpusmill"
ANNOTATION = "bench"
"""Prefix of the columns that our own run adds."""

_COMMAND = "from jobs.cli import main; raise SystemExit(main())"


@dataclass(frozen=True, slots=True)
class Ran:
    """One contender in one round."""

    rows: int
    tokens: int
    padded_tokens: int | None
    seconds: float  # for these rows, once it runs
    whole_seconds: float  # of its process
    first_row_seconds: float  # since its process was started
    peak_bytes: int | None
    flop: float | None
    product_flop_per_second: float  # of the processor in this round
    cosines_R: npt.NDArray[np.float64]  # to the reference, of the rows that both computed


@dataclass(slots=True)
class Contest:
    """What stays the same in all rounds."""

    setting: Setting
    peers: Sequence[str]
    product_dtype: str
    job: Mapping[str, Any]  # our own, but for its output
    config: Mapping[str, Any]  # of the model
    folder: Path  # for what passes between processes
    watcher: Watcher
    _reference: Vectors | None = None

    def round(self, number: int, first: int = 0) -> dict[str, Ran]:
        """Every contender once, beginning with another one in each round."""
        if self._reference is None:
            self.watcher.phase("computing what is right, in float32")
            self._child("reference")
            self._reference = np.load(self.folder / "vectors.npy")
        self.watcher.phase(f"round {number}: the matrix product")
        told, *_ = self._process("jobs.bench.product", self.product_dtype, str(self.setting.cores))
        names = [OURS, *self.peers]
        ran = {}
        for name in (*names[first % len(names) :], *names[: first % len(names)]):
            self.watcher.phase(f"round {number}: {name}")
            ran[name] = self._ours(told["flop_per_second"]) if name == OURS else self._peer(name, told)
        return {name: ran[name] for name in names}

    def _peer(self, name: str, product: Mapping[str, float]) -> Ran:
        told, seconds, peak_bytes = self._child(name)
        vectors_RD, one_in = np.load(self.folder / "vectors.npy"), told.pop("one_in")
        cosines_R = self._cosines(vectors_RD, one_in)
        return Ran(
            **told,
            whole_seconds=seconds,
            peak_bytes=peak_bytes,
            product_flop_per_second=product["flop_per_second"],
            cosines_R=cosines_R,
        )

    def _ours(self, product_flop_per_second: float) -> Ran:
        output = self.folder / f"out-{time.monotonic_ns()}"
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump({**self.job, "output": {"path": str(output)}}))
        told, seconds, peak_bytes = self._run([sys.executable, "-P", "-c", _COMMAND, "run", str(path), "--json"])
        parts = [pq.read_table(part) for part in sorted((output / "data").glob("*.parquet"))]
        rows = np.concatenate([part["_row"].to_numpy() for part in parts])
        order_R = np.argsort(rows)
        if not np.array_equal(rows[order_R], np.arange(self.setting.rows)):
            raise RunError(
                f"corpusmill embedded {len(rows)} of {self.setting.rows} texts, and peers would embed all: leave out "
                "those that are quarantined (`corpusmill preview` tells why)"
            )
        lengths_R = np.concatenate([part[f"{ANNOTATION}_tokens"].to_numpy() for part in parts])[order_R]
        vectors = [part[f"{ANNOTATION}_embedding"].combine_chunks() for part in parts]
        vectors_RD = np.concatenate([each.flatten().to_numpy().reshape(len(each), -1) for each in vectors])[order_R]
        return Ran(
            rows=len(rows),
            tokens=told["tokens"],
            padded_tokens=told["tokens"] + told["padding_tokens"],
            seconds=told["tokens"] / told["tokens_per_second"],
            whole_seconds=seconds,
            first_row_seconds=told["seconds_to_first_receipt"],
            peak_bytes=peak_bytes,
            flop=encoder_flop(self.config, lengths_R.astype(np.int64)),
            product_flop_per_second=product_flop_per_second,
            cosines_R=self._cosines(vectors_RD, 1),
        )

    def _cosines(self, vectors_RD: Vectors, one_in: int) -> npt.NDArray[np.float64]:
        """Of the rows that the reference has too; `one_in` divides its own."""
        assert self._reference is not None
        ours, right = (each.astype(np.float64) for each in (vectors_RD[:: ONE_IN // one_in], self._reference))
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(right, axis=1)
        found: npt.NDArray[np.float64] = (ours * right).sum(1) / lengths
        return found

    def _child(self, name: str) -> tuple[dict[str, Any], float, int | None]:
        setting, vectors = self.folder / "setting.json", self.folder / "vectors.npy"
        self.setting.write(setting)
        return self._process("jobs.bench.child", name, str(setting), str(time.time()), str(vectors))

    def _process(self, module: str, *arguments: str) -> tuple[dict[str, Any], float, int | None]:
        return self._run([sys.executable, "-P", "-m", module, *arguments])

    def _run(self, command: Sequence[str]) -> tuple[dict[str, Any], float, int | None]:
        """The JSON of its last line, its seconds and its memory. Raises RunError with its last words."""
        began = time.monotonic()
        log = self.folder / "log.txt"
        with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
            try:
                with Memory(process.pid) as memory:
                    output, _ = process.communicate()
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            words = log.read_text(errors="replace").strip().splitlines() or ["no words"]
            raise RunError(f"{' '.join(command[2:5])} ended with {process.returncode}: {words[-1][:300]}")
        told: dict[str, Any] = json.loads(output.splitlines()[-1])
        return told, time.monotonic() - began, memory.peak_bytes
