"""The hub's client against a small real server that speaks as much of the hub's API as a download needs."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "8b3219a92973c328a8e22fadcfa821b5dc75636a"
OTHER = "0" * 40

PIN = """
import json, sys
from pipeline.errors import ModelError
from pipeline.models.reference import ModelSettings, pin
for settings in json.loads(sys.argv[1]):
    try:
        pinned = pin(ModelSettings(**settings))
        print(json.dumps({"revision": pinned.revision, "folder": pinned.folder, "digest": pinned.digest}))
    except ModelError as fault:
        print(json.dumps({"fault": str(fault)}))
"""

REFUSALS = {
    "org/missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "org/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "org/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "org/forbidden": (403, {}),
    "org/busy": (429, {}),
    "org/down": (503, {}),
}


class Hub(BaseHTTPRequestHandler):
    """Models by name: revision -> commit, and the files of every commit."""

    revisions = {"main": COMMIT, "v1.0": COMMIT, "refs/pr/1": COMMIT, COMMIT: COMMIT, OTHER: COMMIT, "odd": "abc"}

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        server = self.server
        assert isinstance(server, HubServer)
        path = urlsplit(self.path).path
        server.asked.append(path)
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["api", "models", org, name, *_] if f"{org}/{name}" in REFUSALS:
                status, headers = REFUSALS[f"{org}/{name}"]
                self.send(status, headers, b"", body)
            case ["api", "models", org, name, "revision", revision] if revision in self.revisions:
                files = [{"rfilename": file} for file in server.models[f"{org}/{name}"]]
                info = {"id": f"{org}/{name}", "sha": self.revisions[revision], "siblings": files}
                self.send(200, {}, json.dumps(info | {"config": {"architectures": ["BertModel"]}}).encode(), body)
            case ["api", "models", _, _, "revision", _]:
                self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
            case ["api", "models", _, "halfway", "tree", _]:
                self.send(403, {}, b"", body)
            case ["api", "models", org, name, "tree", commit] if commit == COMMIT:
                files = server.models[f"{org}/{name}"]
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in files.items()
                ]
                self.send(200, {}, json.dumps(tree).encode(), body)
            case [org, name, "resolve", commit, *parts] if commit == COMMIT:
                content = server.models[f"{org}/{name}"]["/".join(parts)]
                etag = hashlib.sha1(content).hexdigest()
                self.send(200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content, body)
            case _:
                self.send(404, {}, b"", body)

    def send(self, status, headers, content, body):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format, *args):
        """Say nothing."""


class HubServer(ThreadingHTTPServer):
    """The server, its models, and the paths that it was asked for."""

    def __init__(self, models):
        super().__init__(("127.0.0.1", 0), Hub)
        self.models = models
        self.asked: list[str] = []


@pytest.fixture
def hub(make_model):
    folder = make_model("published", tokenizer_config={"model_max_length": 512})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    whole = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    extra = {
        "README.md": b"#",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "mine.py": b"class Mine: ...",
    }
    code = {"config.json": json.dumps({"auto_map": {"AutoModel": "mine.Mine"}}).encode()}
    pickled = {"config.json": whole["config.json"], "pytorch_model.bin": b"pickle"}
    models = {"org/name": whole | extra, "org/code": whole | extra | code, "org/pickled": pickled, "org/halfway": whole}
    server = HubServer(models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pins(hub, tmp_path):
    """Pin references in a process of their own, whose environment says where the hub and its cache are."""

    def run(*refs, endpoint=f"http://127.0.0.1:{hub.server_port}", **options):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        environment |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        settings = [ref if isinstance(ref, dict) else {"ref": ref} for ref in refs]
        process = subprocess.run(
            [sys.executable, "-c", PIN, json.dumps(settings)],
            env=environment | options,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert process.returncode == 0, process.stderr
        return [json.loads(line) for line in process.stdout.splitlines()]

    return run


def test_a_tag_a_branch_and_a_commit_become_the_same_commit(hub, pins):
    pinned = pins("hub:org/name@v1.0", "hub:org/name@refs/pr/1", f"hub:org/name@{COMMIT}")
    assert {entry["revision"] for entry in pinned} == {COMMIT}
    assert len({entry["digest"] for entry in pinned}) == 1
    fetched = {path.rpartition(f"{COMMIT}/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "tokenizer_config.json",
        "1_Pooling/config.json",
    }


def test_code_comes_only_where_it_is_allowed(hub, pins):
    denied, allowed = pins("hub:org/code@main", {"ref": "hub:org/code@main", "allow_remote_code": True})
    assert "set `allow_remote_code: true`" in denied["fault"]
    assert allowed["revision"] == COMMIT
    assert any(path.endswith("/mine.py") for path in hub.asked)


def test_what_the_hub_refuses_is_told_by_kind(pins):
    told = {
        "hub:org/missing@main": "the hub knows no model 'org/missing', or it is private",
        "hub:org/name@nothing": "org/name has no revision 'nothing'",
        "hub:org/gated@main": "org/gated is gated: accept its terms",
        "hub:org/token@main": "the hub refused the token (HTTP 401 for org/token)",
        "hub:org/forbidden@main": "the hub refused org/forbidden (HTTP 403)",
        "hub:org/halfway@main": "the hub refused org/halfway (HTTP 403)",
        "hub:org/busy@main": "the hub limits requests and refused org/busy (HTTP 429)",
        "hub:org/down@main": "the hub is out of order (HTTP 503 for org/down): try again later",
        "hub:org/pickled@main": "its weights are a pickle (pytorch_model.bin)",
        f"hub:org/name@{OTHER}": f"the hub answered the commit {COMMIT} when asked for {OTHER}",
        "hub:org/name@odd": "the hub answered 'abc' for the revision 'odd', which is no 40-hex commit",
        "hub:org/na--me@main": "'org/na--me' is no name of a hub model: ",
    }
    for (ref, message), outcome in zip(told.items(), pins(*told), strict=True):
        assert message in outcome["fault"], ref
        assert outcome["fault"].startswith(f"model {ref!r}: ")


def test_offline_a_cached_commit_works_and_nothing_else_does(hub, pins):
    (online,) = pins("hub:org/name@main")
    asked = len(hub.asked)
    cached, missing, branch = pins(
        f"hub:org/name@{COMMIT}", f"hub:org/code@{COMMIT}", "hub:org/name@main", HF_HUB_OFFLINE="1"
    )
    assert cached == online
    assert f"offline (HF_HUB_OFFLINE), and the commit {COMMIT} of org/code is not in" in missing["fault"]
    assert "offline (HF_HUB_OFFLINE), so the revision 'main' cannot be resolved: name the 40-hex" in branch["fault"]
    assert len(hub.asked) == asked


def test_without_network_a_cached_commit_works_and_the_rest_names_the_endpoint(pins):
    (online,) = pins("hub:org/name@main")
    closed = "http://127.0.0.1:9"
    cached, branch = pins(f"hub:org/name@{COMMIT}", "hub:org/name@main", endpoint=closed)
    assert cached == online
    assert f"cannot reach the hub at {closed} (ConnectError" in branch["fault"]


def test_a_cache_that_cannot_be_written_is_named(pins, tmp_path):
    (tmp_path / "file").touch()
    (outcome,) = pins("hub:org/name@main", HF_HUB_CACHE=str(tmp_path / "file/cache"))
    assert "cannot write org/name to the cache (" in outcome["fault"]
    assert "set HF_HOME to a folder that has room" in outcome["fault"]
