"""Models of the Hugging Face hub: a tag or branch becomes a commit once, and the commit's files come to this node.

    bring("org/name", "v1.0", with_code=False)
      ->  ("…/hub/models--org--name/snapshots/8b3219a9…", "8b3219a92973c328a8e22fadcfa821b5dc75636a")

Endpoint, cache, token and offline mode are huggingface_hub's own: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

import re
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.models.inspection import pickle_refusal, pickles_only

COMMIT = re.compile(r"[0-9a-f]{40}")

_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.codes", "*.jinja"]
# Copies of the weights for other libraries, and other precisions of the same.
_UNWANTED = ["onnx/*", "openvino/*", "coreml/*", "original/*", "checkpoint-*/*", "consolidated*", "*.fp16.safetensors"]


def bring(name: str, revision: str, with_code: bool) -> tuple[Path, str]:
    """Folder on this node and 40-hex commit of a hub model; Python files come only `with_code`.

    A commit that is in the cache is used without network. Raises ModelError: no such model or revision; gated; token
    refused; hub out of order or out of reach; offline and not in the cache; pickle weights only; nowhere to write.
    """
    from huggingface_hub import HfApi, snapshot_download

    patterns = [*_WANTED, "*.py"] if with_code else _WANTED
    try:
        info = HfApi().model_info(name, revision=revision)
    except Exception as problem:  # network errors are those of the HTTP library that the client happens to use
        if COMMIT.fullmatch(revision) and _may_recover(problem) and (folder := _cached(name, revision, patterns)):
            return folder, revision
        raise _told(problem, name, revision) from problem
    commit = info.sha or ""
    if not COMMIT.fullmatch(commit):
        raise ModelError(f"the hub answered {commit!r} for the revision {revision!r}, which is no 40-hex commit")
    if COMMIT.fullmatch(revision) and commit != revision:
        raise ModelError(
            f"the hub answered the commit {commit} when asked for {revision}: pin one of the model's own commits"
        )
    if pickle := pickles_only(file.rfilename for file in info.siblings or []):
        raise pickle_refusal(pickle, info.config or {})
    try:
        return Path(
            snapshot_download(name, revision=commit, allow_patterns=patterns, ignore_patterns=_UNWANTED)
        ), commit
    except Exception as problem:
        raise _told(problem, name, commit) from problem


def _cached(name: str, commit: str, patterns: list[str]) -> Path | None:
    """The folder of a commit that an earlier run brought here whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, revision=commit, allow_patterns=patterns, ignore_patterns=_UNWANTED, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _may_recover(problem: Exception) -> bool:
    """Whether the hub could not answer now, rather than answered no."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(problem, HfHubHTTPError):
        return problem.response.status_code == 429 or problem.response.status_code >= 500
    return not isinstance(problem, HFValidationError)


def _told(problem: BaseException, name: str, revision: str) -> ModelError:
    """What went wrong, for a person."""
    from huggingface_hub import constants, errors

    if isinstance(problem, errors.LocalEntryNotFoundError) and problem.__cause__ is not None:
        return _told(problem.__cause__, name, revision)
    if isinstance(problem, errors.GatedRepoError):
        return ModelError(f"{name} is gated: accept its terms on its page, then set HF_TOKEN or run `hf auth login`")
    if isinstance(problem, errors.RepositoryNotFoundError):
        return ModelError(
            f"the hub knows no model {name!r}, or it is private: check the spelling, or set HF_TOKEN to a token that "
            "may read it"
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return ModelError(f"{name} has no revision {revision!r}: name one of its tags, branches or 40-hex commits")
    if isinstance(problem, errors.HfHubHTTPError):
        return _told_status(problem.response.status_code, name)
    if isinstance(problem, errors.OfflineModeIsEnabled):
        where = constants.HF_HUB_CACHE
        if COMMIT.fullmatch(revision):
            return ModelError(f"offline (HF_HUB_OFFLINE), and the commit {revision} of {name} is not in {where}")
        return ModelError(
            f"offline (HF_HUB_OFFLINE), so the revision {revision!r} cannot be resolved: name the 40-hex commit of "
            f"{name} that is in {where}"
        )
    if isinstance(problem, errors.HFValidationError):
        return ModelError(f"{name!r} is no name of a hub model: {problem}")
    if isinstance(problem, OSError) and problem.filename is not None:
        return ModelError(
            f"cannot write {name} to the cache ({problem.filename}: {problem.strerror}): set HF_HOME to a folder that "
            "has room"
        )
    return ModelError(
        f"cannot reach the hub at {constants.ENDPOINT} ({type(problem).__name__}: {problem}): check the network; a "
        "model that is in the cache needs none when its revision is the 40-hex commit"
    )


def _told_status(status: int, name: str) -> ModelError:
    if status == 429:
        return ModelError(f"the hub limits requests and refused {name} (HTTP 429): wait, or set HF_TOKEN")
    if status >= 500:
        return ModelError(f"the hub is out of order (HTTP {status} for {name}): try again later")
    if status == 401:
        return ModelError(f"the hub refused the token (HTTP 401 for {name}): renew HF_TOKEN or run `hf auth login`")
    return ModelError(f"the hub refused {name} (HTTP {status}): HF_TOKEN lacks the right to read it")
