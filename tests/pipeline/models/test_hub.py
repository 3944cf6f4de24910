"""The hub's client in processes of their own, against a small real server that speaks the hub's API."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.hub import TRIES, pause_seconds

OTHER = "0" * 40
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

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

FILES = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]


@pytest.fixture
def commit(hub, make_model):
    """The commit of org/name, at a hub that has further models of every kind."""
    folder = make_model("published", tokenizer_config={"model_max_length": 512})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    whole = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    extra = {"README.md": b"#", "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"o", "mine.py": b"class Mine: ..."}
    code = {"config.json": json.dumps({"auto_map": {"AutoModel": "mine.Mine"}}).encode()}
    hub.publish("org/code", whole | extra | code)
    hub.publish("org/pickled", {"config.json": whole["config.json"], "pytorch_model.bin": b"pickle"})
    return hub.publish("org/name", whole | extra, tags=["v1.0", "refs/pr/1"])


@pytest.fixture
def start(hub, tmp_path):
    """Begin to pin references in a process of its own, whose environment says where the hub and its cache are."""

    def begin(*refs, home="home", before="", **options):
        wanted = [ref if isinstance(ref, dict) else {"ref": ref} for ref in refs]
        return subprocess.Popen(
            [sys.executable, "-c", before + PIN, json.dumps(wanted)],
            env=hub.environment(tmp_path / home, **options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def outcomes(process):
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in told.splitlines()]


@pytest.fixture
def pins(start):
    return lambda *refs, **options: outcomes(start(*refs, **options))


def test_a_tag_a_branch_and_a_commit_become_the_same_commit(hub, commit, pins):
    pinned = pins("hub:org/name@v1.0", "hub:org/name@refs/pr/1", f"hub:org/name@{commit}")
    assert {entry["revision"] for entry in pinned} == {commit}
    assert len({entry["digest"] for entry in pinned}) == 1
    assert sorted(hub.downloads()) == FILES


def test_code_comes_only_where_it_is_allowed(hub, commit, pins):
    denied, allowed = pins("hub:org/code@main", {"ref": "hub:org/code@main", "allow_remote_code": True})
    assert "set `allow_remote_code: true`" in denied["fault"]
    assert "revision" in allowed
    assert hub.downloads()["mine.py"] == 1


def test_what_the_hub_refuses_is_told_by_kind(hub, commit, pins):
    refusals = {
        "gated": (403, {"X-Error-Code": "GatedRepo"}),
        "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        "forbidden": (403, {}),
    }
    for name, (status, headers) in refusals.items():
        hub.trouble(status, path=f"org/{name}", headers=headers)
    whole = hub.models["org/name"].files[commit]
    halfway = hub.publish("org/halfway", whole)
    hub.trouble(403, path="org/halfway/tree/")
    hub.models["org/name"].revisions |= {OTHER: commit, "odd": "abc"}
    told = {
        "hub:org/missing@main": "the hub knows no model 'org/missing', or it is private",
        "hub:org/name@nothing": "org/name has no revision 'nothing'",
        "hub:org/gated@main": "org/gated is gated: accept its terms",
        "hub:org/token@main": "the hub refused the token (HTTP 401 for org/token)",
        "hub:org/forbidden@main": "the hub refused org/forbidden (HTTP 403)",
        f"hub:org/halfway@{halfway}": "the hub refused org/halfway (HTTP 403)",
        "hub:org/pickled@main": "its weights are a pickle (pytorch_model.bin)",
        f"hub:org/name@{OTHER}": f"the hub answered the commit {commit} when asked for {OTHER}",
        "hub:org/name@odd": "the hub answered 'abc' for the revision 'odd', which is no 40-hex commit",
        "hub:org/na--me@main": "'org/na--me' is no name of a hub model: ",
    }
    for (ref, message), outcome in zip(told.items(), pins(*told), strict=True):
        assert message in outcome["fault"], ref
        assert outcome["fault"].startswith(f"model {ref!r}: ")


def test_a_hub_that_stays_in_trouble_is_asked_a_bounded_number_of_times_and_told(hub, pins):
    hub.trouble(429, path="org/busy", headers={"Retry-After": "0"})
    hub.trouble(503, path="org/down", headers={"Retry-After": "0"})
    busy, down = pins("hub:org/busy@main", "hub:org/down@main")
    assert "the hub limits requests and went on refusing org/busy (HTTP 429)" in busy["fault"]
    assert "the hub is out of order (HTTP 503 for org/down, asked several times): try again later" in down["fault"]
    assert len([path for _, path in hub.asked if "org/busy" in path]) == TRIES


def test_a_pause_that_is_too_long_to_wait_ends_at_once(hub, pins):
    hub.trouble(429, headers={"Retry-After": "86400"})
    (outcome,) = pins("hub:org/name@main")
    assert "(HTTP 429): wait some minutes" in outcome["fault"]
    assert len(hub.asked) == 1


def test_a_trouble_that_passes_costs_only_another_try(hub, commit, pins):
    places = ["/revision/", "/tree/", "model.safetensors"]
    for status, path in [(status, path) for status in (429, 500, 503) for path in places]:
        hub.trouble(status, path=path, times=1, headers={"Retry-After": "0"})
    (outcome,) = pins(f"hub:org/name@{commit}")
    assert outcome["revision"] == commit
    assert hub.downloads().keys() == set(FILES)


def test_a_download_that_breaks_off_is_never_used_half(hub, commit, pins, tmp_path):
    hub.trouble(path="resolve", cut_bytes=9, times=3)
    (outcome,) = pins("hub:org/name@main")
    content = hub.models["org/name"].files[commit]
    for name in FILES:
        assert (tmp_path / "home/hub/models--org--name/snapshots" / commit / name).read_bytes() == content[name]
    assert outcome["revision"] == commit


def test_a_process_that_is_killed_while_it_downloads_leaves_nothing_that_is_taken_for_whole(hub, commit, start, pins):
    hub.latency_seconds = 0.2
    process = start(f"hub:org/name@{commit}")
    while not hub.downloads():
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    hub.latency_seconds = 0
    (offline,) = pins(f"hub:org/name@{commit}", HF_HUB_OFFLINE="1")
    assert "fault" in offline
    (outcome,) = pins(f"hub:org/name@{commit}")
    assert outcome["revision"] == commit


def test_a_snapshot_with_gaps_is_not_taken_for_whole_where_the_hub_does_not_list_its_files(hub, commit, pins, tmp_path):
    (whole,) = pins(f"hub:org/name@{commit}")
    storage = tmp_path / "home/hub/models--org--name"
    (storage / "snapshots" / commit / "vocab.txt").unlink()
    (storage / "trees" / f"{commit}.json").unlink()
    hub.trouble(503, path="/tree/", headers={"Retry-After": "0"}, times=2)
    (mended,) = pins(f"hub:org/name@{commit}")
    assert mended == whole


def test_of_many_processes_one_downloads_each_file(hub, commit, start):
    hub.latency_seconds = 0.5  # long enough for all of them to be there at once
    processes = [start(f"hub:org/name@{commit}") for _ in range(4)]
    found = [outcomes(process) for process in processes]
    assert len({outcome["folder"] for (outcome,) in found}) == 1
    assert hub.downloads() == dict.fromkeys(FILES, 1)
    assert len([path for _, path in hub.asked if "/tree/" in path]) == 1


def test_homes_of_their_own_are_filled_on_their_own(hub, commit, start):
    first, second = start(f"hub:org/name@{commit}"), start(f"hub:org/name@{commit}", home="another")
    assert outcomes(first)[0]["digest"] == outcomes(second)[0]["digest"]
    assert hub.downloads() == dict.fromkeys(FILES, 2)


def test_a_branch_that_moved_leaves_a_pinned_commit_where_it_was(hub, commit, pins):
    (before,) = pins("hub:org/name@main")
    moved = hub.publish("org/name", hub.models["org/name"].files[commit] | {"vocab.txt": b"other"})
    branch, pinned = pins("hub:org/name@main", f"hub:org/name@{commit}")
    (elsewhere,) = pins(f"hub:org/name@{commit}", home="another")
    assert branch["revision"] == moved != commit
    assert pinned == before
    assert (elsewhere["revision"], elsewhere["digest"]) == (commit, before["digest"])


def test_a_cached_commit_costs_no_request(hub, commit, pins):
    (first,) = pins("hub:org/name@main")
    hub.asked.clear()
    assert pins(f"hub:org/name@{commit}") == [first]
    assert hub.asked == []


def test_offline_a_cached_commit_works_and_nothing_else_does(hub, commit, pins):
    (online,) = pins("hub:org/name@main")
    hub.asked.clear()
    cached, missing, branch = pins(
        f"hub:org/name@{commit}", f"hub:org/code@{commit}", "hub:org/name@main", HF_HUB_OFFLINE="1"
    )
    assert cached == online
    assert f"offline (HF_HUB_OFFLINE), and the commit {commit} of org/code is not in" in missing["fault"]
    assert "offline (HF_HUB_OFFLINE), so the revision 'main' cannot be resolved: name the 40-hex" in branch["fault"]
    assert hub.asked == []


def test_offline_a_cache_that_an_older_client_filled_serves(hub, commit, pins, tmp_path):
    (online,) = pins("hub:org/name@main")
    (tmp_path / "home/hub/models--org--name/trees" / f"{commit}.json").unlink()
    assert pins(f"hub:org/name@{commit}", HF_HUB_OFFLINE="1") == [online]


def test_without_network_a_cached_commit_works_and_the_rest_names_the_endpoint(commit, pins):
    (online,) = pins("hub:org/name@main")
    closed = "http://127.0.0.1:9"
    cached, branch = pins(f"hub:org/name@{commit}", "hub:org/name@main", HF_ENDPOINT=closed)
    assert cached == online
    assert f"cannot reach the hub at {closed} (ConnectError" in branch["fault"]


def test_a_cache_that_cannot_be_written_is_named(commit, pins, tmp_path):
    (tmp_path / "file").touch()
    (outcome,) = pins("hub:org/name@main", HF_HUB_CACHE=str(tmp_path / "file/cache"))
    assert "cannot write org/name to the cache (" in outcome["fault"]
    assert "set HF_HOME to a folder that has room" in outcome["fault"]


def test_a_disk_that_is_full_in_the_midst_of_a_download_is_told_as_such(hub, pins, make_model, tmp_path):
    folder = make_model("large")
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"chat_template.jinja": b"x" * 2**22}
    hub.publish("org/large", files)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, 2**21))\n"
    (outcome,) = pins("hub:org/large@main", before=full)
    assert f"cannot write org/large to the cache ({tmp_path}/home/hub: File too large)" in outcome["fault"]


@settings(deadline=None)
@given(tried=st.integers(1, TRIES), spread=st.floats(0, 1))
def test_pauses_double_unless_the_hub_asks_for_another(tried, spread):
    assert 2 ** (tried - 1) <= pause_seconds(tried, {}, NOW, spread) <= 2**tried
    assert pause_seconds(tried, {"Retry-After": "7"}, NOW, spread) == 7
    assert pause_seconds(tried, {"retry-after": format_datetime(NOW + timedelta(seconds=90))}, NOW, spread) == 90
    assert pause_seconds(tried, {"Retry-After": format_datetime(NOW - timedelta(days=1))}, NOW, spread) == 0
    assert pause_seconds(tried, {"RateLimit": '"api";r=0;t=55'}, NOW, spread) == 55
    assert pause_seconds(tried, {"RateLimit": '"api";r=3;t=55'}, NOW) == 2 ** (tried - 1)
    assert pause_seconds(tried, {"Retry-After": "soon"}, NOW) == 2 ** (tried - 1)
