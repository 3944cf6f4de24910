"""Graphs: models as OpenVINO's own files, converted once on each node and kept for those who come after.

    with kept(digest, "AutoModel", make) as graph:      # `make(folder)` converts, where nobody has
        graph.xml, graph.layers, graph.said()

    ~/.cache/corpusmill/graphs/5f0c…/                   # or in $CORPUSMILL_CACHE, or $XDG_CACHE_HOME/corpusmill
        graph.xml, graph.bin    in float32, with inputs of any shape
        said.safetensors        the tokens of some texts, and what torch says of them in float32
        graph.json              written last: {"made_of": "BertModel", "in_rows": true, "layers": {…}, "files": {…}}

Files that are not what they were when they were written are made anew. Without torch.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save

from pipeline.errors import ModelError
from pipeline.models.hub import lock
from pipeline.versions import installed

FORMAT = 2
"""Of what is kept, and of how it is converted: another one is not taken for this one."""

CACHE = "CORPUSMILL_CACHE"
"""The variable that names the folder of what can be made again."""

KEPT_BYTES = 4 << 30
"""So much is kept of what nobody opened for a week; the oldest goes first."""

XML, _WEIGHTS, _SAID, _TOLD = "graph.xml", "graph.bin", "said.safetensors", "graph.json"
_INPUT, _OUTPUT = "input.", "output."
_NEW = "new-"
_IN_USE_SECONDS = 7 * 24 * 3600.0
_ABANDONED_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Said:
    """Some texts and what torch says of them, in float32."""

    inputs: Mapping[str, npt.NDArray[np.int64]]  # (B, L) each
    outputs: Mapping[str, npt.NDArray[np.float32]]  # (B, L, D) or (B, D)


@dataclass(frozen=True, slots=True)
class Graph:
    """One model's, as it lies on the disk."""

    folder: Path
    made_of: str  # the class of the module
    layers: Mapping[str, str]  # by the name of a linear layer's node, what the layer is called in the model's body
    in_rows: bool = False  # it takes what `graph_rows` lays out

    @property
    def xml(self) -> Path:
        """What OpenVINO opens."""
        return self.folder / XML

    @property
    def weights(self) -> Path:
        """What it maps into memory then."""
        return self.folder / _WEIGHTS

    def said(self) -> Said:
        """What it has to say, nearly, of some texts."""
        every = load_file(self.folder / _SAID)
        inputs, outputs = (
            {name.removeprefix(kind): values for name, values in every.items() if name.startswith(kind)}
            for kind in (_INPUT, _OUTPUT)
        )
        return Said(inputs, outputs)


def write(folder: Path, made_of: str, layers: Mapping[str, str], said: Said, in_rows: bool = False) -> None:
    """Tell of a graph that was saved as `folder / "graph.xml"`, and so say that it is whole. Raises OSError."""
    tensors: dict[str, npt.NDArray[Any]] = {_INPUT + name: values for name, values in said.inputs.items()}
    tensors |= {_OUTPUT + name: values for name, values in said.outputs.items()}
    (folder / _SAID).write_bytes(save(tensors))
    told = {"made_of": made_of, "layers": dict(layers), "in_rows": in_rows, "files": _digests(folder)}
    (folder / _TOLD).write_text(json.dumps(told), "utf-8")


def read(folder: Path) -> Graph | None:
    """The graph in a folder; None where there is none, or not as it was written."""
    try:
        told = json.loads((folder / _TOLD).read_text("utf-8"))
        whole = told["files"] == _digests(folder)
        return Graph(folder, told["made_of"], told["layers"], told["in_rows"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for name in (XML, _WEIGHTS, _SAID):
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@contextlib.contextmanager
def kept(digest: str, auto_class: str, make: Callable[[Path], None]) -> Iterator[Graph]:
    """The graph of the model with that digest, loaded as that class of transformers; its files lie there in the block.

    Processes of a node that ask at once wait for the one that makes it. Where nothing can be kept it is made for the
    block alone. Raises what `make` raises, which is given an empty folder and ends with `write`; ModelError where its
    files can be written nowhere.
    """
    with contextlib.ExitStack() as block:
        try:
            graph = _kept(digest, auto_class, make)
        except OSError:  # a cache that cannot be written, or is full
            alone = tempfile.TemporaryDirectory(prefix="corpusmill-graph-", ignore_cleanup_errors=True)
            graph = _alone(Path(block.enter_context(alone)).resolve(), make)
        yield graph


def _kept(digest: str, auto_class: str, make: Callable[[Path], None]) -> Graph:
    """Raises OSError where it is not there and cannot be kept, and what `make` raises."""
    folder = _folder(digest, auto_class)
    if (graph := _used(folder)) is not None:  # what stands there is whole: nobody need wait
        return graph
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_suffix(".lock")):
        if (graph := _used(folder)) is None:
            _make(folder, make)
            graph = read(folder)
    if graph is None:
        raise FileNotFoundError(f"{folder} went away")
    return graph


def _alone(folder: Path, make: Callable[[Path], None]) -> Graph:
    try:
        make(folder)
    except OSError as fault:
        raise ModelError(
            f"its graph for OpenVINO can be kept nowhere: {fault}; make room in {folder.parent}"
        ) from fault
    graph = read(folder)
    assert graph is not None, "it was written a moment ago"
    return graph


def _used(folder: Path) -> Graph | None:
    """The graph in a folder, which stays for the time being."""
    with contextlib.suppress(OSError):  # it is not there, or another user's
        os.utime(folder / _TOLD)
    return read(folder)


def _folder(digest: str, auto_class: str) -> Path:
    versions = installed("openvino", "torch", "transformers")
    key = json.dumps([FORMAT, digest, auto_class, versions], sort_keys=True)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.path.expanduser(os.environ.get(CACHE) or f"{home}/corpusmill")  # noqa: PTH111 - Path's may raise
    if cache.startswith("~"):
        raise FileNotFoundError("this user has no home folder")
    # What is mapped is known by its real path.
    return Path(cache).resolve() / "graphs" / hashlib.sha256(key.encode()).hexdigest()


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    """Whole or not at all."""
    _make_room(folder.parent)
    new = folder.with_name(f"{_NEW}{uuid4().hex}")
    new.mkdir()  # others may read it where the user lets them read new files
    try:
        make(new)
        shutil.rmtree(folder, ignore_errors=True)  # what was there was not whole
        new.replace(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _make_room(cache: Path) -> None:
    """Delete what nobody used lately beyond `KEPT_BYTES`, and what was left behind half made."""
    now, held = time.time(), 0
    graphs = []
    for folder in cache.iterdir():
        with contextlib.suppress(OSError):  # another process deletes it, or has just made it
            if folder.is_dir():
                told = folder / _TOLD
                used = (told if told.is_file() else folder).stat().st_mtime
                graphs.append((used, folder, sum(file.stat().st_size for file in folder.iterdir())))
    for used, folder, size in sorted(graphs, reverse=True):
        held += size
        half = folder.name.startswith(_NEW)
        if now - used > (_ABANDONED_SECONDS if half else _IN_USE_SECONDS) and (half or held > KEPT_BYTES):
            shutil.rmtree(folder, ignore_errors=True)
