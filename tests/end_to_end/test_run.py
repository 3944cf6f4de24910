"""The main job as a user meets it: one command, a real Ray, real files.

What needs a process of its own has one: the plain road, a signal, a full disk, a folder with modules of our names.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError
from pipeline.models.device import resolve_dtype

Corpusmill = Callable[..., Any]
Job = Callable[..., str]


def _asked(sql: str) -> list[tuple[Any, ...]]:
    """What DuckDB answers."""
    relation = duckdb.sql(sql)
    assert relation is not None
    return relation.fetchall()


def _corpus(folder: Path, texts: list[str | None], files: int = 2) -> Path:
    folder.mkdir(parents=True)
    for number in range(files):
        pq.write_table(
            pa.table({"text": pa.array(texts[number::files], pa.string())}), folder / f"part-{number}.parquet"
        )
    return folder


def test_every_row_stands_once_with_its_annotation_and_other_readers_agree(
    process: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text number {row}" for row in range(600)])
    answer = process("run", job(corpus), "--profile", "--json")
    assert answer.code == 0, answer.err
    summary = answer.summary
    startup, profile = summary["startup"], summary["profile"]
    assert list(startup) == ["planning", "ray", "trial", "actors", "imports", "models", "first_unit"]
    assert abs(sum(startup.values()) - summary["seconds_to_first_receipt"]) < 0.1
    assert set(profile["seconds"]) == {"driver", "readers", "actors", "commits"}
    trace = json.loads((tmp_path / "out/metadata/profile.json").read_text())
    units = [event["args"]["unit"] for event in trace["traceEvents"] if event["name"] == "unit"]
    assert len(set(units)) == len(units) == profile["units"] == summary["units_total"]
    assert (summary["rows_in"], summary["rows_out"], summary["rows_quarantined"]) == (600, 600, 0)
    assert summary["units_done"] == summary["units_total"] > 1
    asked = f"SELECT count(DISTINCT (_file, _row)), sum(size_chars) FROM '{tmp_path}/out/data/**/*.parquet'"
    assert _asked(asked) == [(600, sum(len(f"text number {row}") for row in range(600)))]
    frame = pl.read_parquet(f"{tmp_path}/out/data/**/*.parquet")
    assert frame.columns == ["text", "size_chars", "size_label", "size_tokens", "size_truncated", "_file", "_row"]
    assert process("verify", "out").code == 0
    again = process("run", "job.yaml", "--json")
    assert again.summary["units_skipped"] == summary["units_total"]
    assert again.summary["units_done"] == 0


def test_bad_rows_are_set_aside_with_their_reason_and_the_limit_decides_the_exit_code(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    texts: list[str | None] = [f"text {row}" for row in range(100)]
    texts[3], texts[50], texts[70] = None, "  \n", "please FAIL"
    corpus = _corpus(tmp_path / "corpus", texts)
    answer = corpusmill("run", job(corpus), "--json")
    assert answer.code == 3, answer.err
    assert answer.summary["rows_quarantined"] == 3
    asked = f"SELECT reason, input.text FROM '{tmp_path}/out/quarantine/**/*.parquet' ORDER BY reason"
    assert _asked(asked) == [
        ("blank_text", "  \n"),
        ("model_failed", "please FAIL"),
        ("null_text", None),
    ]
    assert corpusmill("run", "job.yaml", "-o", "limits.max_quarantined=3", "--json").code == 0
    assert corpusmill("verify", "out").code == 0


def test_a_row_that_kills_its_process_is_found_and_its_neighbours_are_unharmed(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    texts: list[str | None] = [f"text {row}" for row in range(80)]
    texts[33] = "KILL the process"
    answer = corpusmill("run", job(_corpus(tmp_path / "corpus", texts), limits={"max_quarantined": 1}), "--json")
    assert answer.code == 0, answer.err
    assert (answer.summary["rows_out"], answer.summary["reasons"]) == (79, {"killed_process": 1})
    asked = f"SELECT input.text FROM '{tmp_path}/out/quarantine/**/*.parquet'"
    assert _asked(asked) == [("KILL the process",)]


def test_retry_recovers_what_was_repaired_and_keeps_what_stood(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row} of a size" for row in range(200)], files=4)
    broken = corpus / "part-2.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    first = corpusmill("run", job(corpus, annotation={"max_chars": 16}, limits={"max_quarantined": 1.0}), "--json")
    assert first.code == 0, first.err
    assert first.summary["rows_out"] == 8  # of rows 0 to 9, whose texts have 16 characters, two lie in the broken file
    parts = sorted(path.name for path in (tmp_path / "out/data").rglob("*.parquet"))
    broken.write_bytes(whole)
    second = corpusmill("retry", "out", "-o", "annotations.0.max_chars=100", "--profile", "--json")
    assert second.code == 0, second.err
    profile = second.summary["profile"]
    assert 0 < profile["units"] == second.summary["units_done"]
    assert profile["units"] + profile["units_before"] == second.summary["units_total"]
    trace = json.loads((tmp_path / "out/metadata/profile.json").read_text())
    units = [event["args"]["unit"] for event in trace["traceEvents"] if event["name"] == "unit"]
    assert len(set(units)) == len(units) == profile["units"]
    assert (second.summary["rows_out"], second.summary["rows_quarantined"]) == (200, 0)
    assert set(parts) < {path.name for path in (tmp_path / "out/data").rglob("*.parquet")}
    assert corpusmill("verify", "out").code == 0
    refused = corpusmill("retry", "out", "-o", "annotations.0.text=other")
    assert refused.code == 2
    assert "a retry may change annotations.N.{max_chars, max_tokens, errors}" in refused.err


def test_a_changed_job_is_refused_with_the_difference_and_the_way_to_a_sidecar(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", ["a text"] * 20)
    assert corpusmill("run", job(corpus)).code == 0
    changed = corpusmill("run", "job.yaml", "-o", "annotations.0.max_chars=99")
    assert changed.code == 2
    assert "annotations.0.max_chars" in changed.err
    assert "99" in changed.err
    assert "columns: none" in changed.err
    pq.write_table(pa.table({"text": ["new"]}), corpus / "part-9.parquet")
    grown = corpusmill("run", "job.yaml", "--json")
    assert grown.code == 0
    assert "part-9.parquet" in grown.err


def test_a_second_run_on_one_output_is_refused_and_ctrl_c_ends_the_first_in_words(
    job: Job, corpusmill: Corpusmill, tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", ["a text"] * 640, files=10)
    job(corpus, annotation={"pause": 0.5})
    command = [str(Path(sys.executable).with_name("corpusmill")), "run", "job.yaml", "--json"]
    first = subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while not list(tmp_path.glob("out/metadata/receipts/*.json")):
        assert first.poll() is None
        time.sleep(0.05)
    second = corpusmill("run", "job.yaml")
    assert second.code == 1
    assert str(first.pid) in second.err
    first.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    _, errors = first.communicate(timeout=30)
    assert (first.returncode, "units are committed; the same command goes on" in errors) == (130, True), errors
    assert time.monotonic() - stopped < 15
    standing = len(list(tmp_path.glob("out/metadata/receipts/*.json")))
    assert corpusmill("verify", "out").code == 4
    done = corpusmill("run", "job.yaml", "-o", "annotations.0.pause=0.5", "--json")
    assert done.summary["units_skipped"] >= standing
    assert done.summary["rows_out"] == 640


def test_hive_folders_are_kept_and_partition_columns_stand_in_the_path_only(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    for section in ("games", "a%2Fb"):
        _corpus(tmp_path / f"corpus/section={section}", [f"text of {section}"] * 10)
    answer = corpusmill("run", job(tmp_path / "corpus", annotation={"text": "{section}: {text}"}), "--json")
    assert answer.code == 0, answer.err
    parts = f"read_parquet('{tmp_path}/out/data/**/*.parquet', hive_partitioning=true)"
    asked = f"SELECT section, count(*), max(size_chars) FROM {parts} GROUP BY 1 ORDER BY 1"
    assert _asked(asked) == [
        ("a/b", 10, len("a/b: text of a%2Fb")),
        ("games", 10, len("games: text of games")),
    ]
    part = next((tmp_path / "out/data/section=games").glob("*.parquet"))
    assert "section" not in pq.read_schema(part).names


def test_it_works_from_a_folder_with_a_users_own_pipeline_jobs_and_cluster(
    process: Corpusmill, job: Job, tmp_path: Path
) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('shadowed')")
    for name in ("jobs", "cluster"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    corpus = _corpus(tmp_path / "corpus", ["a text"] * 30)
    assert process("run", job(corpus)).code == 0


def test_metadata_that_was_edited_by_hand_is_told_and_a_unit_without_a_valid_receipt_is_computed_again(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row}" for row in range(300)])
    assert corpusmill("run", job(corpus)).code == 0
    receipt = next((tmp_path / "out/metadata/receipts").glob("*.json"))
    receipt.write_text(receipt.read_text().replace('"rows_filtered":0', '"rows_filtered":1'))
    assert corpusmill("verify", "out").code == 4
    again = corpusmill("run", "job.yaml", "--json")
    assert (again.code, again.summary["units_done"], again.summary["rows_out"]) == (0, 1, 300)
    assert corpusmill("verify", "out").code == 0
    plan = tmp_path / "out/metadata/plan.json"
    plan.write_text(plan.read_text().replace("part-0", "part-7"))
    refused = corpusmill("run", "job.yaml")
    assert refused.code == 2
    assert "plan.json" in refused.err


def test_a_full_disk_ends_the_run_in_words_and_the_same_command_goes_on(
    process: Corpusmill, corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row}" for row in range(300)])
    job(corpus)
    for failpoint in ("part.before_write", "receipt.before_replace", "manifest.before_fsync"):
        full = process("run", "job.yaml", env={"CORPUSMILL_FAILPOINT": f"{failpoint}:1:ENOSPC"})
        assert full.code == 1
        assert "No space left on device" in full.err
        assert "run the same command to go on" in full.err
        assert ("Ray's own logs lie in" in full.err) == (failpoint != "manifest.before_fsync")  # by then Ray is done
        assert corpusmill("verify", "out").code == 4
    again = corpusmill("run", "job.yaml", "--json")
    assert (again.code, again.summary["units_done"], again.summary["rows_out"]) == (0, 0, 300)
    assert corpusmill("verify", "out").code == 0


def test_an_output_of_ours_is_a_corpus_whose_rows_keep_their_first_identity(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row}" for row in range(100)])
    assert corpusmill("run", job(corpus)).code == 0
    second = job("out", annotation={"name": "again"}, output={"path": "out-2"})
    assert corpusmill("run", second, "--json").summary["rows_out"] == 100
    first, again = f"'{tmp_path}/out/data/*.parquet'", f"'{tmp_path}/out-2/data/*.parquet'"
    asked = f"SELECT count(*) FROM {first} a JOIN {again} b USING (_file, _row) WHERE a.text = b.text"
    assert _asked(asked) == [(100,)]
    assert corpusmill("verify", "out-2").code == 0


def test_a_sidecar_carries_annotations_and_row_identity_alone(corpusmill: Corpusmill, job: Job, tmp_path: Path) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row}" for row in range(50)])
    assert corpusmill("run", job(corpus, output={"columns": "none"})).code == 0
    part = next((tmp_path / "out/data").glob("*.parquet"))
    assert pq.read_schema(part).names == ["size_chars", "size_label", "size_tokens", "size_truncated", "_file", "_row"]


def test_a_trial_has_a_process_of_its_own_and_what_it_raises_is_told_in_one_line(one_ray: Any) -> None:
    from pipeline.errors import RunError, WorkerDiedError
    from pipeline.stream import on_a_worker, on_workers
    from pipeline.workers import Workers

    one_ray.begin()
    like = Workers(actors=1, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)
    assert on_a_worker(os.getpid, like=like) != os.getpid()
    assert on_a_worker(max, 3, 7, like=like) == 7
    with pytest.raises(RunError, match=r"^ValueError: max\(\) .*empty"):
        on_a_worker(max, [], like=like)
    with pytest.raises(WorkerDiedError):
        on_a_worker(os._exit, 9, like=like)
    found = on_workers([os.getpid, partial(max, 3, 7), os.getpid], like=like)
    assert (found[1], len({*found, os.getpid()})) == (7, 4)
    with pytest.raises(RunError, match=r"^ValueError: max\(\) .*empty"):
        on_workers([partial(time.sleep, 60), partial(max, [])], like=like)


def test_what_was_said_of_a_text_is_kept_for_other_outputs_and_a_changed_cache_does_not_hinder_a_run(
    corpusmill: Corpusmill, job: Job, tmp_path: Path, minilm: Path
) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row % 30}" for row in range(90)])
    embed = {"name": "e", "task": "embed", "model": {"ref": str(minilm)}}
    first = corpusmill("run", job(corpus, embed, repeats={"cache": "said"}), "--json")
    assert first.code == 0, first.err
    told = first.summary["annotations"]["e"]
    assert (told["repeated"], told["tokens"] > first.summary["tokens"] > 0) == (60, True)
    again = corpusmill("run", "job.yaml", "--json", "-o", "output.path=out-2")
    assert (again.summary["tokens"], again.summary["annotations"]["e"]["repeated"]) == (0, 90)
    parts, others = (f"'{tmp_path}/{output}/data/*.parquet'" for output in ("out", "out-2"))
    same = f"SELECT count(*) FROM {parts} a JOIN {others} b USING (_file, _row)"
    assert _asked(f"{same} WHERE a.e_embedding = b.e_embedding AND a.e_tokens = b.e_tokens") == [(90,)]
    assert corpusmill("verify", "out-2").code == 0
    assert corpusmill("run", "job.yaml", "-o", "repeats.cache=elsewhere", "-o", "repeats.once=false").code == 0
    (tmp_path / "file").write_text("")
    refused = corpusmill("run", "job.yaml", "-o", "output.path=out-3", "-o", "repeats.cache=file")
    assert "cache: " in refused.err
    assert "name another folder, or none" in refused.err
    assert refused.code == 2


def test_a_run_by_openvino_keeps_its_graph_and_says_what_torch_says(
    corpusmill: Corpusmill, job: Job, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")
    graphs = Path(os.environ["CORPUSMILL_CACHE"], "graphs")
    shutil.rmtree(graphs, ignore_errors=True)
    corpus = _corpus(tmp_path / "corpus", [f"text {row}" for row in range(60)])
    embed = {"name": "e", "task": "embed", "model": str(tiny("bert")), "dtype": "float32", "engine": "openvino"}
    done = corpusmill("run", job(corpus, embed), "--json")
    assert done.code == 0, done.err
    assert len(list(graphs.glob("*/graph.json"))) == 1
    others = corpusmill("run", "job.yaml", "-o", "output.path=out-2", "-o", "annotations.0.engine=torch", "--json")
    assert others.code == 0, others.err
    parts, torchs = (pl.read_parquet(f"{tmp_path}/{output}/data/*.parquet") for output in ("out", "out-2"))
    both = parts.join(torchs, on=["_file", "_row"])
    found, wanted = (both[name].to_numpy() for name in ("e_embedding", "e_embedding_right"))
    assert len(both) == 60
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_filter_and_sample_choose_rows_and_every_row_is_accounted_for(
    corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    numbers = list(range(1000))
    table = pa.table({"text": [f"text {number}" for number in numbers], "number": numbers})
    pq.write_table(table, corpus / "a.parquet", row_group_size=100)
    answer = corpusmill("run", job(corpus, corpus={"filter": "number >= 250 AND number <> 700"}), "--json")
    assert answer.code == 0, answer.err
    assert (answer.summary["rows_in"], answer.summary["rows_filtered"], answer.summary["rows_out"]) == (1000, 251, 749)
    assert corpusmill("verify", "out").code == 0
    sampled = job(corpus, corpus={"filter": "number >= 250", "sample": 40}, output={"path": "sampled"})
    assert corpusmill("run", sampled, "--json").summary["rows_out"] == 40
    asked = f"SELECT min(number) >= 250 AND max(number) - min(number) > 300 FROM '{tmp_path}/sampled/data/*.parquet'"
    assert _asked(asked) == [(True,)]
    assert corpusmill("verify", "sampled").code == 0


def test_planned_files_that_change_or_go_are_quarantined_as_such(
    process: Corpusmill, corpusmill: Corpusmill, job: Job, tmp_path: Path
) -> None:
    for section in ("a", "b", "c"):
        _corpus(tmp_path / f"corpus/s={section}", [f"text of {section}"] * 10, files=1)
    job(tmp_path / "corpus", limits={"max_quarantined": 1.0})
    stopped = process("run", "job.yaml", env={"CORPUSMILL_FAILPOINT": "part.before_write:1:EIO"})
    assert stopped.code == 1
    pq.write_table(pa.table({"text": ["another"] * 10}), tmp_path / "corpus/s=a/part-0.parquet")
    shutil.rmtree(tmp_path / "corpus/s=b")
    for receipt in (tmp_path / "out/metadata/receipts").glob("*.json"):
        receipt.unlink()
    answer = corpusmill("run", "job.yaml", "--json")
    assert answer.code == 0, answer.err
    assert answer.summary["reasons"] == {"file_changed": 10, "file_missing": 10}
    assert answer.summary["rows_out"] == 10
    assert corpusmill("verify", "out").code == 0


def test_preview_and_plan_write_nothing(corpusmill: Corpusmill, job: Job, tmp_path: Path) -> None:
    corpus = _corpus(tmp_path / "corpus", [f"text {row}" for row in range(100)])
    shown = corpusmill("preview", job(corpus), "-n", "5")
    assert shown.code == 0, shown.err
    assert "text 8" in shown.out
    planned = json.loads(corpusmill("plan", "job.yaml", "--json").out)
    assert (planned["rows"], planned["files"]) == (100, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "job.yaml"]


def test_a_look_at_a_job_in_int8_writes_nothing_either(
    corpusmill: Corpusmill, job: Job, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    try:
        resolve_dtype("int8", "cpu")
    except JobError as error:
        pytest.skip(str(error))
    model = {"name": "e", "task": "embed", "text": "text", "model": str(tiny("bert")), "dtype": "int8"}
    texts: list[str | None] = [f"text {row}" + " and more" * (row % 5) for row in range(60)]
    shown = corpusmill("preview", job(_corpus(tmp_path / "corpus", texts), annotations=[model]), "-n", "5")
    assert shown.code == 0, shown.err
    assert "e_embedding" in shown.out
    planned = json.loads(corpusmill("plan", "job.yaml", "--json").out)
    assert planned["annotations"]["e"]["dtype"] == "int8"
    assert "annotation 'e' in int8, beside float32: 99% of 40 rows have a cosine of at least 0." in planned["notes"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "job.yaml"]
