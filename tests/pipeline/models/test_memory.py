import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ModelError
from pipeline.models.memory import check_memory, give_back, keep_products, machine_memory_bytes


def physical():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def limit(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_it_is_the_machines(tmp_path):
    assert machine_memory_bytes(tmp_path / "none", tmp_path / "none") == physical()


@pytest.mark.parametrize("holder", ["jobs/mine/memory.max", "jobs/memory.max", "memory.max"])
def test_the_lowest_limit_of_the_groups_above_counts(tmp_path, holder):
    limit(tmp_path / "own", "0::/jobs/mine\n")
    limit(tmp_path / "groups/jobs/mine/memory.max", "max\n")
    limit(tmp_path / "groups" / holder, "1048576\n")
    assert machine_memory_bytes(tmp_path / "groups", tmp_path / "own") == 1_048_576


def test_the_older_kind_of_control_group(tmp_path):
    limit(tmp_path / "own", "4:memory:/\n")
    limit(tmp_path / "groups/memory/memory.limit_in_bytes", "2097152\n")
    assert machine_memory_bytes(tmp_path / "groups", tmp_path / "own") == 2_097_152


def test_a_limit_above_the_machine_changes_nothing(tmp_path):
    limit(tmp_path / "own", "0::/\n")
    limit(tmp_path / "groups/memory.max", f"{2**62}\n")
    assert machine_memory_bytes(tmp_path / "groups", tmp_path / "own") == physical()


def test_this_machine_has_some():
    assert 0 < machine_memory_bytes() <= physical()


def test_weights_that_fit_just_so():
    check_memory(2**30, 2**30)


def test_weights_beyond_the_memory_are_refused_with_both_sizes():
    with pytest.raises(ModelError, match=r"weights take 40.0 GiB, and this machine has 15.5 GiB of memory"):
        check_memory(40 * 2**30, int(15.5 * 2**30))


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps and gives back in a way that can be asked for")
def test_what_was_freed_goes_back_to_the_system():
    parts = [bytearray(40_000) for _ in range(5000)]
    parts = parts[::10]  # holes between what is left
    before = held()
    give_back()
    assert before - held() > 100_000_000
    assert len(parts) == 500


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what is held")
def test_what_arrow_has_freed_goes_back_too():
    buffers = [pa.array(np.arange(400_000)).cast(pa.float64()) for _ in range(30)]
    assert buffers.pop().sum().as_py() > 0
    before = held()
    del buffers
    give_back()
    assert before - held() > 80_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told what to keep")
def test_a_process_that_has_settled_keeps_what_a_micro_batch_frees_and_looks_at_no_old_objects_again():
    code = """
import gc, resource
from pipeline.models.memory import hold

class Old: pass

old, faults = [Old() for _ in range(20_000)], []
hold()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x" * 48_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(len(gc.get_objects()) < 10_000 <= gc.get_freeze_count(), max(faults[2:]) < 1_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


_PRODUCTS = """
import ctypes
from pipeline.models.memory import keep_products

keep_products(few=True)
import torch

class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks used".split()]
    _fields_ += [("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]

asked = ctypes.CDLL(None).mallinfo2
asked.restype = Told
with torch.inference_mode():
    grew = []
    for first in (32, 132):
        before = asked().used
        for tokens in range(first, first + 100):
            one = torch.zeros(4, tokens, 32, dtype=torch.bfloat16)
            torch.bmm(one, torch.zeros(4, 32, 33, dtype=torch.bfloat16))
        grew.append(asked().used - before)
print(grew[1] < 2_000_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc tells what is used")
def test_products_of_ever_new_shapes_do_not_pile_up():
    # This process may have been told other numbers, by what trained a model in it before.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_CACHE_CAPACITY")}
    call = [sys.executable, "-c", _PRODUCTS]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["True"]


@pytest.mark.parametrize("few", [True, False])
def test_how_many_products_stay_is_the_users_to_say(monkeypatch, few):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "200")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "8")
    keep_products(few)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "200"
    assert os.environ["LRU_CACHE_CAPACITY"] == "8"
