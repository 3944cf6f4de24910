"""Annotations in pools of their own: a real Ray, actors of two kinds at once, and the rows of a job with one pool."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import jobs

Corpusmill = Callable[..., Any]
COUNTING = str(Path(__file__).parent.parent / "chaos/counting.py")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests of this module; runs in this process use it."""
    import ray

    ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


def _run(folder: Path, corpus: Path, pool: str | None, **sections: Any) -> dict[str, Any]:
    """A job whose second annotation reads what the first one wrote, and whose third could do without both."""
    size = {"name": "size", "task": COUNTING, "text": "text", "log": str(folder / "size.log")}
    again = {"name": "again", "task": COUNTING, "text": "{size_label} {word}", "where": "size_chars > 8", "pool": pool}
    mirror = {"name": "mirror", "task": COUNTING, "text": "text", "max_chars": 30, "errors": "keep"}
    document = {
        "kind": "annotate",
        "allow_code": True,
        "corpus": {"path": str(corpus)},
        "annotations": [size, again, mirror],
        "output": {"path": str(folder / "out")},
        "limits": {"max_quarantined": 1.0},
        **sections,
    }
    folder.mkdir()
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    manifest = jobs.run(str(folder / "job.yaml"))
    assert not jobs.verify(str(folder / "out")).faults
    return dict(manifest)


def _corpus(folder: Path, texts: list[str | None], words: list[str]) -> Path:
    folder.mkdir()
    for number in range(2):
        table = pa.table({"text": pa.array(texts[number::2], pa.string()), "word": words[number::2]})
        pq.write_table(table, folder / f"part-{number}.parquet")
    return folder


def _rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [row for part in folder.glob(f"out/{kind}/*.parquet") for row in pq.read_table(part).to_pylist()]
    return sorted(rows, key=lambda row: (row["_file"], row["_row"], row.get("annotation") or ""))


def test_two_pools_give_the_rows_of_one(tmp_path: Path) -> None:
    texts: list[str | None] = [f"text {row}" + " and more" * (row % 4) for row in range(240)]
    words = [f"word {row}" for row in range(240)]
    texts[5], texts[70], words[90], words[131] = None, "please FAIL", "please FAIL", "please RAISE"
    corpus = _corpus(tmp_path / "corpus", texts, words)
    _run(tmp_path / "one", corpus, pool=None, cluster={"actors": 2})
    large = {"actors": 1, "cpus_per_actor": 2, "memory": "100MiB"}
    _run(tmp_path / "two", corpus, pool="large", cluster={"actors": 2, "pools": {"large": large}})
    rows = _rows(tmp_path / "two", "data")
    assert rows == _rows(tmp_path / "one", "data")
    assert {row["again_chars"] is None for row in rows} == {True, False}
    entries = _rows(tmp_path / "two", "quarantine")
    assert entries == _rows(tmp_path / "one", "quarantine")
    assert [(each["annotation"], each["reason"]) for each in entries] == [
        ("size", "model_failed"),
        ("again", "model_failed"),
        ("size", "null_text"),
        ("again", "model_failed"),
    ]


def test_a_row_that_kills_actors_of_the_second_pool_is_found_and_what_the_first_did_is_not_done_again(
    tmp_path: Path,
) -> None:
    texts: list[str | None] = [f"text number {row}" for row in range(120)]
    words = [f"word {row}" for row in range(120)]
    words[33] = "KILL"
    manifest = _run(tmp_path / "job", _corpus(tmp_path / "corpus", texts, words), pool="large")
    totals = manifest["totals"]
    assert (totals["rows_out"], totals["reasons"]) == (119, {"killed_process": 1})
    (entry,) = _rows(tmp_path / "job", "quarantine")
    assert (entry["annotation"], entry["input"]["word"], entry["input"]["size_chars"]) == (None, "KILL", 14)
    units = len(list(tmp_path.glob("job/out/metadata/receipts/*.json")))
    assert len((tmp_path / "job/size.log").read_text().splitlines()) == units + 1  # once more with nothing beside it


def test_on_a_machine_of_its_own_all_pools_start_at_once_whatever_they_reserve(
    process: Corpusmill, job: Callable[..., str], tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row}" for row in range(900)], ["word"] * 900)
    annotations = [
        {"name": "size", "task": COUNTING, "text": "text", "pool": "small"},
        {"name": "again", "task": COUNTING, "text": "size_label", "pool": "large"},
        {"name": "last", "task": COUNTING, "text": "{again_label} {word}", "where": "size_chars = 8"},
    ]
    cluster = {"actors": 1, "pools": {"large": {"memory": "200MiB"}}}
    answer = process("run", job(corpus, annotations=annotations, cluster=cluster), "--json")
    assert answer.code == 0, answer.err
    assert (answer.summary["rows_out"], answer.summary["units_total"] > 2) == (900, True)
    rows = _rows(tmp_path, "data")
    assert {(row["size_label"], row["again_chars"], row["last_chars"]) for row in rows} == {
        ("short", 5, None),
        ("short", 5, 10),
    }
