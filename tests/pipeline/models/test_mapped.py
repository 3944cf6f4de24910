import ctypes
import mmap
import re
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from pipeline.models.mapped import (
    as_stored,
    let_go_of_file,
    let_go_of_path,
    let_go_of_shared,
    letting_go,
    mappings,
)
from tests.pipeline.families.factory import BERT_SIZES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what is mapped")


def resident(kind):
    """Bytes of this process that lie in memory, of a file's (RssFile) or of what is shared (RssShmem)."""
    return int(re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model most of whose weights are one table, of 32 MB in float32."""
    config = transformers.BertConfig(vocab_size=250_000, **BERT_SIZES)
    folder = tmp_path_factory.mktemp("model")
    config.save_pretrained(folder)
    weights = transformers.BertModel(config).state_dict()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loaded(folder, dtype):
    return transformers.BertModel.from_pretrained(folder, dtype=dtype)


def test_what_is_converted_is_the_same_and_its_file_is_let_go_of_at_once(folder, monkeypatch):
    held = []
    set_parameter = transformers.core_model_loading.set_param_for_module

    def looked(*given, **named):
        held.append(resident("RssFile"))
        return set_parameter(*given, **named)

    monkeypatch.setattr(transformers.core_model_loading, "set_param_for_module", looked)
    plain = loaded(folder, torch.bfloat16).state_dict()
    without = held[-1]  # all the others have been converted
    with letting_go():
        found = loaded(folder, torch.bfloat16).state_dict()
    assert without - held[-1] > 20_000_000
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_what_is_kept_as_the_file_has_it_stays(folder):
    with letting_go():
        found = loaded(folder, torch.float32)
    plain = loaded(folder, torch.float32).state_dict()
    assert all(torch.equal(each, plain[name]) for name, each in found.state_dict().items())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_as_stored_nothing_is_held_but_what_is_looked_at_and_nothing_is_lost(folder, stored, tmp_path):
    transformers.BertModel.from_pretrained(folder, dtype=stored).save_pretrained(tmp_path)
    wanted = loaded(tmp_path, torch.float32).state_dict()
    before = resident("RssFile") + resident("RssAnon")
    with as_stored():
        found = loaded(tmp_path, torch.float32).state_dict()
    assert resident("RssFile") + resident("RssAnon") - before < 8_000_000
    assert {each.dtype for each in found.values() if each.is_floating_point()} == {stored}
    assert all(torch.equal(each.float(), wanted[name]) for name, each in found.items())


def test_memory_without_a_file_is_not_lost():
    numbers = torch.full((1_000_000,), 7.0)
    let_go_of_file(numbers.data_ptr(), numbers.nbytes)
    let_go_of_file(numbers.data_ptr(), numbers.nbytes, mappings())
    assert bool((numbers == 7).all())


def test_pages_of_a_file_come_back(tmp_path):
    (tmp_path / "file").write_bytes(b"words" * 4_000_000)
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        assert mapped[:] == b"words" * 4_000_000
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        before = resident("RssFile")
        let_go_of_file(address + 3, len(mapped) - 3)
        assert before - resident("RssFile") > 15_000_000
        assert mapped[:] == b"words" * 4_000_000
        known, before = mappings(), resident("RssFile")
        for start in range(0, len(mapped), 500_000):  # each too little to ask for
            let_go_of_file(address + start, 500_000, known)
        assert before - resident("RssFile") > 15_000_000
        assert mapped[:] == b"words" * 4_000_000


def test_a_file_is_let_go_of_by_its_name_though_it_is_deleted(tmp_path):
    (tmp_path / "file").write_bytes(b"words" * 4_000_000)
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(2):
            assert mapped[:] == b"words" * 4_000_000
            before = resident("RssFile")
            let_go_of_path(tmp_path / "another")
            assert resident("RssFile") == before
            let_go_of_path(tmp_path / "file")
            assert before - resident("RssFile") > 15_000_000
            (tmp_path / "file").unlink(missing_ok=True)


def test_shared_memory_is_let_go_of_and_not_lost():
    memory = SharedMemory(create=True, size=20_000_000)
    shared = memory.buf
    assert shared is not None
    try:
        shared[:] = b"words" * 4_000_000
        before = resident("RssShmem")
        let_go_of_shared()
        assert before - resident("RssShmem") > 15_000_000
        assert bytes(shared) == b"words" * 4_000_000
    finally:
        del shared
        memory.close()
        memory.unlink()
