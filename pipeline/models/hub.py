"""Models of the Hugging Face hub: a tag or branch becomes a commit once, and the commit's files come to this node.

    bring("org/name", "v1.0", with_code=False)
      ->  ("…/hub/models--org--name/snapshots/8b3219a9…", "8b3219a92973c328a8e22fadcfa821b5dc75636a")

Endpoint, cache, token and offline mode are huggingface_hub's own: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
Of the processes of a node that need a model, one downloads it; the others wait for it and find it in the cache.
"""

import errno
import itertools
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import ModelError
from pipeline.models.inspection import pickle_refusal, pickles_only

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

COMMIT = re.compile(r"[0-9a-f]{40}")
TRIES = 6
MOST_WAIT_SECONDS = 300.0  # all pauses between the tries of one request together

_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.codes", "*.jinja"]
# Copies of the weights for other libraries, and other precisions of the same.
_UNWANTED = ["onnx/*", "openvino/*", "coreml/*", "original/*", "checkpoint-*/*", "consolidated*", "*.fp16.safetensors"]
# Errors of the HTTP library, whichever the client uses, that cut an answer off; no connection at all is told at once.
_CUT_OFF = frozenset({"ConnectTimeout", "PoolTimeout", "ReadError", "ReadTimeout", "RemoteProtocolError", "WriteError"})
# Writing on tells these without a file's name; opening one names it.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})

Answer = TypeVar("Answer")


def bring(name: str, revision: str, with_code: bool, gguf_file: str | None = None) -> tuple[Path, str]:
    """Folder on this node and 40-hex commit of a hub model; Python files come only `with_code`.

    Where `gguf_file` is named, that file comes alone. A commit that is in the cache is used without network. Answers
    429 and 5xx and broken connections are tried again, at most `TRIES` times and with pauses of `MOST_WAIT_SECONDS`
    together. Raises ModelError: no such model, revision or file; gated; token refused; hub out of order or out of
    reach; offline and not in the cache; another commit than asked for; pickle weights only; nowhere to write.
    """
    patterns = [gguf_file] if gguf_file is not None else [*_WANTED, "*.py"] if with_code else _WANTED
    commit = revision
    try:
        if not COMMIT.fullmatch(revision):
            commit = str(_info(name, revision).sha)
        if folder := _cached(name, commit, patterns, gguf_file):
            return folder, commit
        with _alone(name):
            # Whoever had the lock before may have brought the model.
            return _cached(name, commit, patterns, gguf_file) or _download(name, commit, patterns, gguf_file), commit
    except ModelError:
        raise
    except Exception as problem:  # network errors are those of the HTTP library that the client happens to use
        if _unanswered(problem) and (folder := _cached(name, commit, patterns, gguf_file, listed=False)):
            return folder, commit
        raise _told(problem, name, commit) from problem


def pause_seconds(tried: int, headers: Mapping[str, str], now: datetime, spread: float = 0.0) -> float:
    """Seconds to wait after the `tried`-th try: what the hub asks for, else 1, 2, 4 …, longer by the share `spread`.

    The hub asks with Retry-After (RFC 9110, seconds or a date) or with RateLimit, as huggingface_hub reads it.
    """
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    asked = next((value.strip() for key, value in headers.items() if key.lower() == "retry-after"), "")
    if asked.isdecimal():
        return float(asked)
    if asked:
        try:
            moment = parsedate_to_datetime(asked)
        except ValueError:
            pass
        else:
            return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    return float(2.0 ** (tried - 1) * (1 + spread))


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """What `ask` answers, asked again after a pause where the hub could not answer now."""
    waited_seconds = 0.0
    for tried in itertools.count(1):
        try:
            return ask()
        except Exception as problem:
            cause = _cause(problem)
            headers = getattr(getattr(cause, "response", None), "headers", {})
            # Nodes that begin together should not all come back together.
            pause = pause_seconds(tried, headers, datetime.now(UTC), random.random() / 2)
            waited_seconds += pause
            if not _passing(cause) or tried == TRIES or waited_seconds > MOST_WAIT_SECONDS:
                raise
        time.sleep(pause)
    raise AssertionError("the loop ends with an answer or an error")


def _info(name: str, revision: str) -> "ModelInfo":
    """What the hub says of the model at this revision, whose commit is then known.

    Raises ModelError where the commit is none, or another than the one asked for.
    """
    from huggingface_hub import HfApi

    info = _patiently(lambda: HfApi().model_info(name, revision=revision))
    commit = info.sha or ""
    if not COMMIT.fullmatch(commit):
        raise ModelError(f"the hub answered {commit!r} for the revision {revision!r}, which is no 40-hex commit")
    if COMMIT.fullmatch(revision) and commit != revision:
        raise ModelError(
            f"the hub answered the commit {commit} when asked for {revision}: pin one of the model's own commits"
        )
    return info


def _download(name: str, commit: str, patterns: list[str], gguf_file: str | None) -> Path:
    """Bring what the cache lacks of a commit; files are renamed into it when they are whole."""
    from huggingface_hub import snapshot_download

    info = _info(name, commit)
    files = sorted(file.rfilename for file in info.siblings or [])
    if gguf_file is not None and gguf_file not in files:
        there = ", ".join(file for file in files if file.endswith(".gguf")) or "none"
        raise ModelError(f"{name} has no file {gguf_file!r} at {commit}; GGUF files there: {there}")
    if gguf_file is None and (pickle := pickles_only(files)):
        raise pickle_refusal(pickle, info.config or {})

    def fetch() -> Path:
        folder = snapshot_download(name, revision=commit, allow_patterns=patterns, ignore_patterns=_UNWANTED)
        # Where listing fails, the client is content with whatever an interrupted download left.
        if not _listed(name, commit):
            raise _UnlistedError
        return Path(folder)

    return _patiently(fetch)


class _UnlistedError(Exception):
    """The hub did not tell which files a commit has."""


def _alone(name: str) -> AbstractContextManager[object]:
    """Held by one process of those that share the cache; it ends with the process."""
    from huggingface_hub import constants

    path = Path(constants.HF_HUB_CACHE) / ".locks" / f"models--{name.replace('/', '--')}" / "corpusmill.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return lock(path)


def lock(path: Path) -> AbstractContextManager[object]:
    """A file that one process holds at a time, also where the file system knows no locks."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    held: AbstractContextManager[object] = WeakFileLock(path)
    return held


def _listed(name: str, commit: str) -> bool:
    """Whether the cache knows which files the commit has."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        get_cached_repo_tree(name, revision=commit)
    except CachedRepoTreeNotFoundError:
        return False
    return True


def _cached(name: str, commit: str, patterns: list[str], gguf_file: str | None, listed: bool = True) -> Path | None:
    """The folder of a commit that was brought here whole; with `listed=False` also one that may have gaps."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not COMMIT.fullmatch(commit) or (listed and not _listed(name, commit)):
        return None
    try:
        found = snapshot_download(
            name, revision=commit, allow_patterns=patterns, ignore_patterns=_UNWANTED, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    # A file that the commit does not have is not missed above.
    return Path(found) if gguf_file is None or Path(found, gguf_file).is_file() else None


def _cause(problem: Exception) -> Exception:
    """What went wrong where the client says only that a file is not in its cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    hidden = isinstance(problem, LocalEntryNotFoundError) and isinstance(problem.__cause__, Exception)
    return _cause(problem.__cause__) if hidden else problem  # type: ignore[arg-type]


def _passing(problem: Exception) -> bool:
    """Whether the same request may well be answered a little later."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(problem, HfHubHTTPError):
        return problem.response.status_code == 429 or problem.response.status_code >= 500
    # The client's own check of a file's size is an OSError that names no file.
    short = type(problem) is OSError and problem.errno is None
    return short or isinstance(problem, _UnlistedError) or type(problem).__name__ in _CUT_OFF


def _unanswered(problem: Exception) -> bool:
    """Whether the hub could not answer, rather than answered no."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    cause = _cause(problem)
    return _passing(cause) or not isinstance(cause, HfHubHTTPError | HFValidationError)


def _told(problem: Exception, name: str, revision: str) -> ModelError:
    """What went wrong, for a person."""
    from huggingface_hub import constants, errors

    problem = _cause(problem)
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
    if isinstance(problem, _UnlistedError):
        return ModelError(f"the hub does not list the files of {name} at {revision}: try again later")
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
    if isinstance(problem, OSError) and (problem.filename is not None or problem.errno in _NO_ROOM):
        where = problem.filename or constants.HF_HUB_CACHE
        return ModelError(
            f"cannot write {name} to the cache ({where}: {problem.strerror}): set HF_HOME to a folder that has room"
        )
    return ModelError(
        f"cannot reach the hub at {constants.ENDPOINT} ({type(problem).__name__}: {problem}): check the network; a "
        "model that is in the cache needs none when its revision is the 40-hex commit"
    )


def _told_status(status: int, name: str) -> ModelError:
    if status == 429:
        return ModelError(
            f"the hub limits requests and went on refusing {name} (HTTP 429): wait some minutes, or set HF_TOKEN"
        )
    if status >= 500:
        return ModelError(f"the hub is out of order (HTTP {status} for {name}, asked several times): try again later")
    if status == 401:
        return ModelError(f"the hub refused the token (HTTP 401 for {name}): renew HF_TOKEN or run `hf auth login`")
    return ModelError(f"the hub refused {name} (HTTP {status}): HF_TOKEN lacks the right to read it")
