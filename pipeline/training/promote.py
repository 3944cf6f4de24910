"""From a candidate to the model that others use: its card is written, then its folder gets its name in one step.

    promote(store, facts)      # metadata/candidate/ -> model/, with README.md and corpusmill.json beside the weights

model/
  model.safetensors, config.json, tokenizer.json …    what `from_pretrained` and `transformers.pipeline` load
  README.md          a model card, as the hub shows it
  corpusmill.json    the same facts for programs: data fingerprint, split, settings, figures, versions
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from pipeline.errors import RunError
from pipeline.output.storage import Store, words_of
from pipeline.training.card import card

MODEL = "model"
CANDIDATE = "metadata/candidate"
FACTS = "corpusmill.json"
CARD = "README.md"


def promote(store: Store, facts: Mapping[str, Any]) -> None:
    """Give the candidate its name; afterwards it is whole and lasts, whatever happens. Nothing where it has it.

    Raises RunError: the file system refuses.
    """
    if store.exists(MODEL):
        return
    store.write(f"{CANDIDATE}/{FACTS}", json.dumps(facts, indent=1, allow_nan=False).encode())
    store.write(f"{CANDIDATE}/{CARD}", card(facts).encode())
    try:
        for folder, _, names in os.walk(store.full(CANDIDATE)):
            for name in names:
                _sync(os.path.join(folder, name))  # noqa: PTH118 - as os.walk gives them
            _sync(folder)
        store.full(CANDIDATE).rename(store.full(MODEL))
        _sync(store.root)
    except OSError as error:
        raise RunError(
            f"the model could not be moved from {CANDIDATE} to {MODEL} in {store.root}: {words_of(error)}; the same "
            "command goes on"
        ) from error


def _sync(path: str) -> None:
    """Make a file's bytes, or a folder's names, last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
