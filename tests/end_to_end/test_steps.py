"""The job file that ships: it trains, judges, holds against a gate, and labels with the result, in one command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

REPOSITORY = Path(__file__).parents[2]

Corpusmill = Callable[..., Any]


def test_one_file_trains_judges_and_labels_and_the_same_command_finds_nothing_left_to_do(
    process: Corpusmill, tmp_path: Path
) -> None:
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    first = process("run", "jobs/configs/steps.yaml", "--json")
    assert first.code == 0, first.err
    train, judge, label = first.summary["steps"]
    assert train["promoted"] is True
    assert train["metrics"]["accuracy"]["value"] >= train["gate"]["asked"]["at_least"]
    assert train["metrics"]["accuracy"]["value"] > train["baselines"]["majority"]["accuracy"]["value"]
    assert judge["digest"] == train["model"]["digest"] == label["annotations"]["topic"]["digest"]
    assert judge["metrics"]["accuracy"]["low"] < judge["metrics"]["accuracy"]["value"]
    found = duckdb.sql(f"SELECT count(*), count(topic_label) FROM '{tmp_path}/out/steps/labeled/data/*.parquet'")
    assert found is not None
    assert found.fetchall() == [(label["rows_out"], label["rows_out"])]
    card = (tmp_path / "out/steps/model/model/README.md").read_text()
    assert train["model"]["digest"] in card

    again = process("run", "jobs/configs/steps.yaml", "--json")
    assert again.code == 0, again.err
    assert "starting Ray" not in again.err
    assert json.dumps(again.summary["steps"][0]["metrics"]) == json.dumps(train["metrics"])
    assert again.summary["steps"][2]["units_done"] == 0
