"""The process of one peer in one round: load, a first batch, all texts, and how long each took.

    python -m jobs.bench.child openvino setting.json began vectors.npy -> {"seconds": 12.1, …} in the last line

`began` is when the process was started, in seconds since 1970.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.arithmetic import encoder_flop
from jobs.bench.peer import BATCH
from jobs.bench.peers import find
from jobs.bench.setting import Setting


def measure(name: str, setting: Setting, began: float, vectors: Path) -> dict[str, Any]:
    """Have a peer compute its texts, and write what came of them."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(setting.cores)
    peer = find(name)(setting)
    texts = setting.some(peer.one_in)
    peer.load()
    peer.vectors(texts[:BATCH])
    first_row_seconds = time.time() - began
    start = time.perf_counter()
    vectors_RD = peer.vectors(texts)
    seconds = getattr(peer, "seconds", None) or time.perf_counter() - start
    np.save(vectors, vectors_RD)
    lengths_R = token_counts(setting, texts)
    return {
        "rows": len(texts),
        "tokens": int(lengths_R.sum()),
        "one_in": peer.one_in,
        "padded_tokens": peer.padded_tokens(texts, lengths_R),
        "flop": encoder_flop(json.loads(Path(setting.folder, "config.json").read_text()), lengths_R),
        "seconds": seconds,
        "first_row_seconds": first_row_seconds,
    }


def token_counts(setting: Setting, texts: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens of each text within the window, special ones included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.folder)
    encoded = tokenizer(texts, truncation=True, max_length=setting.max_tokens)
    return np.array([len(ids) for ids in encoded["input_ids"]], np.int64)


def main() -> None:
    """What libraries print goes to standard error."""
    name, setting, began, vectors = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(name, Setting.read(Path(setting)), float(began), Path(vectors))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
