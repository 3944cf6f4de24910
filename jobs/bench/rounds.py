"""Rounds: every contender once in each, in a process of its own, while nothing else runs.

Contest(workload, {"corpusmill": {…}}, ["openvino bf16"], product_dtype="bfloat16", folder=Path(…)).round(1) ->
    {"corpusmill": Ran(Measured(rows=4096, tokens=336_000, seconds=9.4, …), …), "openvino bf16": Ran(…)}
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

from jobs.bench.memory import Memory
from jobs.bench.workload import Measured, Workload
from pipeline.errors import RunError
from pipeline.progress import Watcher

OURS = "corpusmill"
_COMMAND = "from jobs.cli import main; raise SystemExit(main())"


@dataclass(frozen=True, slots=True)
class Ran:
    """One contender in one round."""

    measured: Measured
    whole_seconds: float  # of its process
    peak_bytes: int | None
    product_flop_per_second: float  # of the processor in this round
    agreed_R: npt.NDArray[np.float64] | None  # with the reference, of the rows that both did; None: nothing is compared


@dataclass(slots=True)
class Contest:
    """What stays the same in all rounds."""

    workload: Workload
    jobs: Mapping[str, Mapping[str, Any]]  # our own, but for their output: `OURS`, and those that compute otherwise
    peers: Sequence[str]
    product_dtype: str
    folder: Path  # for what passes between processes
    watcher: Watcher
    _reference: list[Any] | None = None
    _reference_one_in: int = 1

    def round(self, number: int, first: int = 0) -> dict[str, Ran]:
        """Every contender once, beginning with another one in each round."""
        if self._reference is None and self.workload.reference is not None:
            self.watcher.phase("computing what is right, in float32")
            told, self._reference, *_ = self._child(self.workload.reference)
            self._reference_one_in = told.one_in
        self.watcher.phase(f"round {number}: the matrix product")
        product, *_ = self._process("jobs.bench.product", self.product_dtype, str(self.workload.cores))
        names = [*self.jobs, *self.peers]
        ran = {}
        for name in (*names[first % len(names) :], *names[: first % len(names)]):
            self.watcher.phase(f"round {number}: {name}")
            measured, outputs, seconds, peak_bytes = (
                self._ours(self.jobs[name]) if name in self.jobs else self._child(self.workload.peers[name])
            )
            agreed_R = self._agreed(outputs, measured.one_in)
            ran[name] = Ran(measured, seconds, peak_bytes, product["flop_per_second"], agreed_R)
        return {name: ran[name] for name in names}

    def _ours(self, job: Mapping[str, Any]) -> tuple[Measured, list[Any] | None, float, int | None]:
        output = self.folder / f"out-{time.monotonic_ns()}"
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump({**job, "output": {"path": str(output)}}))
        told, seconds, peak_bytes = self._run([sys.executable, "-P", "-c", _COMMAND, "run", str(path), "--json"])
        return *self.workload.our_run(told, output), seconds, peak_bytes

    def _agreed(self, outputs: Sequence[Any] | None, one_in: int) -> npt.NDArray[np.float64] | None:
        """Of the rows that the reference has too; `one_in` divides its own."""
        if self._reference is None or outputs is None:
            return None
        return self.workload.agreed(outputs[:: self._reference_one_in // one_in], self._reference)

    def _child(self, place: str) -> tuple[Measured, list[Any] | None, float, int | None]:
        setting, outputs = self.folder / "setting.json", self.folder / "outputs.parquet"
        self.workload.write(setting)
        outputs.unlink(missing_ok=True)
        told, seconds, peak_bytes = self._process(
            "jobs.bench.child", place, str(setting), str(time.time()), str(outputs)
        )
        found = pq.read_table(outputs)["output"].to_pylist() if outputs.exists() else None
        return Measured(**told), found, seconds, peak_bytes

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
