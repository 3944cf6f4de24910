"""The libraries that compute metrics and draw plots, which come with an extra of their own.

library("sklearn.metrics").accuracy_score([1, 2], [1, 1])    # 0.5
"""

import importlib
from typing import Any

from pipeline.errors import JobError

_PACKAGES = {"sklearn": "scikit-learn", "scipy": "scipy", "rouge_score": "rouge-score"}  # where pip's name is another


def library(module: str) -> Any:
    """That module of a library.

    Raises JobError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as fault:
        name = module.partition(".")[0]
        if fault.name is None or fault.name.partition(".")[0] != name:
            raise
        raise JobError(
            f"metrics need {_PACKAGES.get(name, name)}, which is not installed: "
            'pip install "corpusmill[evaluate]" brings it'
        ) from fault
