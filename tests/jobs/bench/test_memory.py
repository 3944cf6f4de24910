import subprocess
import sys

from jobs.bench.memory import Memory, family

PARENT = """
import subprocess, sys
held = bytearray(b"x" * 150_000_000)
subprocess.run([sys.executable, "-c", "import time; held = bytearray(b'x' * 100_000_000); time.sleep(2)"])
"""


def test_the_memory_of_a_process_and_its_children_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT]) as process, Memory(process.pid) as memory:
        process.wait()
    assert memory.peak_bytes is not None
    assert 250_000_000 < memory.peak_bytes < 400_000_000


GROWING = """
import time
held = []
for _ in range(3):
    held.append(bytearray(b"x" * 80_000_000))
    time.sleep(1.2)
held.clear()
time.sleep(1.2)
"""


def test_the_most_that_was_ever_held_is_told() -> None:
    with subprocess.Popen([sys.executable, "-c", GROWING]) as process, Memory(process.pid) as memory:
        process.wait()
    assert memory.peak_bytes is not None
    assert 240_000_000 < memory.peak_bytes < 290_000_000


def test_of_a_process_that_is_gone_nothing_is_told() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert family(process.pid) == {process.pid}
    with Memory(process.pid) as memory:
        pass
    assert memory.peak_bytes is None
