"""Which versions of packages made something.

installed("torch", "no-such-package") -> {"python": "3.12.3", "torch": "2.13.0"}
"""

import platform
from importlib.metadata import PackageNotFoundError, version


def installed(*packages: str) -> dict[str, str]:
    """Python's version, and that of each package that is there."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
