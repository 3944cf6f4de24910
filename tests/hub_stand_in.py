"""A small real server that speaks as much of the Hugging Face hub's HTTP API as finding and downloading a model needs.

hub.publish("org/name", folder, branch="main", tags=["v1.0"])  ->  "5f0c…", the 40-hex commit
hub.trouble(429, times=2, headers={"Retry-After": "0"}, path="/tree/")
hub.asked                                  # [("GET", "/api/models/org/name/revision/main"), …]
hub.environment(home)                      # what a process needs to ask this hub with a cache of its own
"""

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Trouble:
    """Requests whose path holds `path` are answered with `status`, or cut off after `cut_bytes`, `times` times."""

    path: str
    status: int | None
    headers: Mapping[str, str]
    times: float
    cut_bytes: int | None = None


@dataclass
class Model:
    """What a repository holds: revision -> commit, and the files of every commit."""

    revisions: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)


class HubStandIn(ThreadingHTTPServer):
    """The server: models, troubles on demand, and every request that it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.models: dict[str, Model] = {}
        self.asked: list[tuple[str, str]] = []
        self.latency_seconds = 0.0
        self._troubles: list[Trouble] = []
        self._guard = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def publish(
        self,
        name: str,
        folder: Path | Mapping[str, bytes],
        branch: str = "main",
        tags: Sequence[str] = (),
    ) -> str:
        """Put these files under a new commit, which the branch and the tags then name; earlier commits stay."""
        if isinstance(folder, Path):
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
        else:
            files = dict(folder)
        listing = json.dumps({file: hashlib.sha1(files[file]).hexdigest() for file in sorted(files)})
        commit = hashlib.sha1(f"{name} {listing}".encode()).hexdigest()
        model = self.models.setdefault(name, Model())
        model.files[commit] = files
        model.revisions |= dict.fromkeys([commit, branch, *tags], commit)
        return commit

    def trouble(
        self,
        status: int | None = None,
        path: str = "",
        headers: Mapping[str, str] | None = None,
        times: float = float("inf"),
        cut_bytes: int | None = None,
    ) -> None:
        """Answer the next `times` requests whose path holds `path` with this status, or break them off half-way."""
        self._troubles.append(Trouble(path, status, headers or {}, times, cut_bytes))

    def heal(self) -> None:
        """No more trouble."""
        self._troubles.clear()

    def downloads(self) -> Counter[str]:
        """How often each file's content was asked for, by its path behind the commit."""
        asked = [path.partition("/resolve/")[2] for method, path in self.asked if method == "GET"]
        return Counter(rest.partition("/")[2] for rest in asked if rest)

    def environment(self, home: Path, **options: str) -> dict[str, str]:
        """This process's environment for another one that asks this hub and keeps its cache under `home`."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        return {
            **plain,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **options,
        }

    def trouble_for(self, method: str, path: str) -> Trouble | None:
        """Note a request; the trouble that it meets."""
        with self._guard:
            self.asked.append((method, path))
            for trouble in self._troubles:
                if trouble.path in path and trouble.times > 0:
                    trouble.times -= 1
                    return trouble
        return None


class _Answer(BaseHTTPRequestHandler):
    server: HubStandIn

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        trouble = self.server.trouble_for(self.command, path)
        time.sleep(self.server.latency_seconds)
        if trouble is not None and trouble.status is not None:
            self.send(trouble.status, trouble.headers)
            return
        # A revision may hold slashes, which the client quotes.
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        org, name, *rest = parts[2:] if api else parts
        model = self.server.models.get(f"{org}/{name}")
        if model is None:
            self.send(404, {"X-Error-Code": "RepoNotFound"})
            return
        match api, rest:
            case True, ["revision" | "tree", revision] if revision not in model.revisions:
                self.send(404, {"X-Error-Code": "RevisionNotFound"})
            case True, ["revision", revision]:
                commit = model.revisions[revision]
                config = {"architectures": ["BertModel"]}
                siblings = [{"rfilename": file} for file in model.files.get(commit, {})]
                info = {"id": f"{org}/{name}", "sha": commit, "siblings": siblings, "config": config}
                self.send(200, {}, json.dumps(info).encode())
            case True, ["tree", revision]:
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in model.files[model.revisions[revision]].items()
                ]
                self.send(200, {}, json.dumps(tree).encode())
            case False, ["resolve", revision, *file] if "/".join(file) in model.files.get(
                commit := model.revisions.get(revision, ""), {}
            ):
                content = model.files[commit]["/".join(file)]
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
                self.send(200, headers, content, trouble.cut_bytes if trouble is not None else None)
            case _:
                self.send(404, {"X-Error-Code": "EntryNotFound"})

    def send(self, status: int, headers: Mapping[str, str], content: bytes = b"", cut_bytes: int | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | dict(headers)).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if cut_bytes is None else content[:cut_bytes])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
