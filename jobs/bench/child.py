"""The process of one peer in one round: load, a first batch, all texts, and how long each took.

    python -m jobs.bench.child open_vino:OpenVino setting.json began outputs.parquet -> {"seconds": 12.1, …}

`began` is when the process was started, in seconds since 1970; the answer is the last line.
"""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench import peers, workloads
from jobs.bench.workload import Workload


def measure(place: str, setting: Workload, began: float, outputs: Path) -> dict[str, Any]:
    """Have a peer do the workload, and write what came of each row, if anything did."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(setting.cores)
    measured, found = peers.at(place)(setting).measure(began)
    if found is not None:
        pq.write_table(pa.table({"output": pa.array(list(found))}), outputs)
    return asdict(measured)


def main() -> None:
    """What libraries print goes to standard error."""
    place, setting, began, outputs = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        told = measure(place, workloads.read(Path(setting)), float(began), Path(outputs))
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
