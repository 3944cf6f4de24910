"""Which versions of packages made something, and which decide the last bits of what a model says.

installed("torch", "no-such-package") -> {"python": "3.12.3", "torch": "2.13.0"}
computing({"torch"})                  -> {"corpusmill": "0.1.0", "arithmetic": "5", "torch": "2.13.0", …}
differing([{"torch": "2.12.0"}, {"torch": "2.13.0", "arithmetic": "5"}])
                                      -> "torch 2.12.0 and 2.13.0, arithmetic unknown and 5"
"""

import platform
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

ARITHMETIC = 5
"""Of corpusmill itself: raised by each change after which the same plan gives other bits, as where texts share their
micro-batches with others. 2: a micro-batch on a CPU ends before texts so much shorter that padding would cost more.
3: encoders' layers add up what they read inside their products, in int8 in float32; in OpenVINO's a GELU's outputs are
made positive, and what that adds goes off the next bias. 4: OpenVINO has tables of words in float16, unless it computes
in float32. 5: OpenVINO's micro-batches of BERT and its like have as many real tokens as they may have."""

_COMPUTE = ("corpusmill", "tokenizers", "torch", "transformers")
_OF_ENGINES = ("openvino",)


def installed(*packages: str) -> dict[str, str]:
    """Python's version, and that of each package that is there."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def computing(engines: Collection[str | None]) -> dict[str, str]:
    """The versions that decide what models say in these engines, here and now."""
    found = installed(*_COMPUTE, *(each for each in _OF_ENGINES if each in engines))
    del found["python"]
    return {**found, "arithmetic": str(ARITHMETIC)}


def differing(several: Sequence[Mapping[str, str]]) -> str:
    """In which versions these differ, each as they came."""
    names = dict.fromkeys(name for each in several for name in each)
    found = {name: list(dict.fromkeys(each.get(name, "unknown") for each in several)) for name in names}
    return ", ".join(f"{name} {' and '.join(values)}" for name, values in found.items() if len(values) > 1)
