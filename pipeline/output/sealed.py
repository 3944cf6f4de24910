"""JSON that tells when somebody changed it by hand: plan, receipts and manifest.

    {"checksum": "9f0c…", "epoch": 1, "rows_out": 4096, …}

The checksum is the sha256 of the canonical JSON of all the rest: keys sorted, no blanks, ASCII.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


class BrokenSealError(Exception):
    """The bytes are no JSON object, or not the one that was sealed; the caller says which file."""


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one spelling of a JSON object."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def seal(value: Mapping[str, Any]) -> bytes:
    """One line of JSON with the checksum of itself; it comes back from `unseal` as lists, dicts and plain values."""
    body = canonical(value)
    checksum = hashlib.sha256(body).hexdigest()
    separator = b"," if value else b""
    return b'{"checksum":"' + checksum.encode() + b'"' + separator + body[1:] + b"\n"


def unseal(data: bytes) -> dict[str, Any]:
    """What was sealed, without its checksum; BrokenSealError where it was changed since."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise BrokenSealError(f"it is not JSON: {error}") from error
    if not isinstance(value, dict) or "checksum" not in value:
        raise BrokenSealError("it carries no checksum")
    checksum = value.pop("checksum")
    try:
        body = canonical(value)
    except ValueError as error:  # a NaN, which `seal` never writes
        raise BrokenSealError(f"it was changed since it was written: {error}") from error
    if checksum != hashlib.sha256(body).hexdigest():
        raise BrokenSealError("it was changed since it was written: its checksum is of something else")
    return value
