"""Code comes back when it is called; what a library has written stays."""

import ctypes
import re
import sys
from pathlib import Path

import pytest
import torch

from pipeline.models.libraries import let_go_of_code, read_only

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
    segments = read_only(Path("/proc/self/smaps"))
    code = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value
    assert code is not None
    assert any(start <= code < stop for start, stop in segments)
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_ = line.split()
        begin, end = (int(each, 16) for each in place.split("-"))
        assert "w" not in rights or not any(begin < stop and start < end for start, stop in segments)


LIBRARY = [("1000-2000", "r--p", 0), ("2000-4000", "r-xp", 0), ("4000-5000", "r--p", 8), ("5000-6000", "rw-p", 4)]


@pytest.mark.parametrize(
    ("parts", "inode", "wanted"),
    [
        (LIBRARY, "77", [(0x1000, 0x2000), (0x2000, 0x4000)]),
        (LIBRARY[:3], "77", []),  # it is being loaded, and what it writes to may be mapped there
        (LIBRARY, "0", []),  # no file is behind it
        ([("1000-2000", "r-xp", 4), LIBRARY[3]], "77", []),  # somebody wrote into its code
    ],
)
@pytest.mark.parametrize("own", ["Anonymous", "Swap"])
def test_a_library_counts_once_it_is_whole(
    tmp_path: Path, parts: list[tuple[str, str, int]], inode: str, wanted: list[tuple[int, int]], own: str
) -> None:
    lines = [
        f"{place} {rights} 00000000 fd:00 {inode}    /lib/lib x.so\nRss:    4 kB\n{own}:    {kilobytes} kB\n"
        for place, rights, kilobytes in parts
    ]
    data = "9000-a000 rw-p 00000000 fd:00 78    /lib/other.so\nAnonymous:    4 kB\n"
    (tmp_path / "smaps").write_text("".join(lines) + data)
    assert read_only(tmp_path / "smaps") == wanted
    assert read_only(tmp_path / "none") == []
