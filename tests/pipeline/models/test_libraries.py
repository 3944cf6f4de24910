"""Code comes back when it is called; what a library has written stays."""

import ctypes
import re
import sys
from pathlib import Path

import pytest
import torch

from pipeline.models.libraries import _read_only, _written, let_go_of_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what is mapped")


def resident(kind: str) -> int:
    """Bytes of this process that lie in memory: of files (RssFile), or of its own (RssAnon)."""
    return int(re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def test_code_is_let_go_of_and_comes_back() -> None:
    numbers = torch.arange(64.0).reshape(8, 8)
    wanted = (numbers @ numbers).softmax(1)
    before, own = resident("RssFile"), resident("RssAnon")
    let_go_of_code()
    assert before - resident("RssFile") > 20_000_000, "torch alone has more than that"
    assert torch.equal((numbers @ numbers).softmax(1), wanted)
    assert resident("RssAnon") >= own - 1_000_000, "what a library has written stays"


def test_what_is_let_go_of_is_code_and_never_what_a_library_writes_to() -> None:
    segments, written = _read_only(), _written()
    assert written
    library = ctypes.CDLL(None)
    code = ctypes.cast(library.malloc, ctypes.c_void_p).value
    assert code is not None
    assert any(start <= code < stop for start, stop in segments)
    touched = [each for each in segments if any(each[0] < stop and start < each[1] for start, stop in written)]
    assert touched == [], "the loader writes to no segment that is only to be read"
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_ = line.split()
        begin, end = (int(each, 16) for each in place.split("-"))
        assert "w" not in rights or not any(begin < stop and start < end for start, stop in segments)
