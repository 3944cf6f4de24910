"""An objective of one's own, as the shipped example shows it: an RNN encoder-decoder is trained from nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from pipeline import tasks
from pipeline.errors import JobError
from pipeline.models.own import load_own
from pipeline.models.pretrained import prepared_tokenizer
from pipeline.models.reference import ModelSettings, PinnedModel, pin
from pipeline.tasks.base import Texts
from pipeline.training import objectives
from pipeline.training.examples import Examples
from pipeline.training.job import DataSettings, TrainingSettings

ROWS = {
    "text": ["the red library of games", "a tool for the web", "fonts and colours for all", "a game of chess"],
    "label": ["red games", "web tool", "fonts", "a game of chess with a very long name"],
}


@pytest.fixture(scope="module")
def task(repository: Path) -> Any:
    return tasks.find(str(repository / "jobs/configs/own_task.py"), allow_code=True)


@pytest.fixture(scope="module")
def untrained(task: Any, tmp_path_factory: pytest.TempPathFactory) -> PinnedModel:
    """The folder that own_task.py writes: sizes and a tokenizer."""
    folder = tmp_path_factory.mktemp("rnn")
    write = vars(sys.modules[task.__module__])["write_untrained"]
    write(folder, [*ROWS["text"], *ROWS["label"]], hidden=32)
    return pin(ModelSettings(ref=str(folder)))


@pytest.fixture
def objective(repository: Path, untrained: PinnedModel) -> Any:
    name = str(repository / "jobs/configs/own_objective.py")
    kind = objectives.find(name, allow_code=True)
    data = DataSettings(path="rows", text="text", label="label")
    made = kind(kind.Config.model_validate({"name": name, "max_target_tokens": 6}), data)
    made.start(prepared_tokenizer(untrained, 1), untrained, 32)
    return made


def test_a_summary_is_cut_to_its_tokens_and_always_ends(objective: Any, untrained: PinnedModel) -> None:
    found = objective.encode(ROWS)
    targets = found.examples["target_ids"].to_pylist()
    assert [len(ids) for ids in targets] == found.examples["weight"].to_pylist()
    assert {ids[-1] for ids in targets} == {untrained.config["end_id"]}
    assert max(map(len, targets)) == 6
    assert [objective.tokenizer.decode(ids, skip_special_tokens=True) for ids in targets[:3]] == ROWS["label"][:3]


def test_the_loss_is_that_of_each_next_token_after_the_right_ones(objective: Any, untrained: PinnedModel) -> None:
    examples = objective.encode(ROWS).examples
    learned = objective.learned(objective.counted(examples))
    model = objective.build(learned, TrainingSettings(seed=1)).eval()
    batch = objective.batch(examples, learned, np.random.default_rng(0))
    wanted = 0.0
    with torch.no_grad():
        for ids, target in zip(examples["input_ids"].to_pylist(), examples["target_ids"].to_pylist(), strict=True):
            ids_BL = torch.tensor([ids])
            reading, at = model.read(ids_BL, torch.ones_like(ids_BL))
            assert at.ids_B.tolist() == [untrained.config["start_id"]]
            for token in target:
                chosen_by_BX, at = model.step(at, reading)
                shares_V = model.shares(chosen_by_BX[None], at.looked_BL[None], ids_BL)[0, 0]
                assert shares_V.sum().item() == pytest.approx(1, abs=1e-5)
                wanted -= shares_V[token].log().item()
                at = at._replace(ids_B=torch.tensor([token]))
        assert objective.loss(model, batch, learned).item() == pytest.approx(wanted, rel=1e-4)


def test_what_it_learns_is_what_the_task_writes(objective: Any, task: Any, repository: Path, tmp_path: Path) -> None:
    examples = objective.encode(ROWS).examples
    learned = objective.learned(objective.counted(examples))
    model = objective.build(learned, TrainingSettings(seed=1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = objective.loss(model, objective.batch(examples, learned, np.random.default_rng(0)), learned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    objective.save(objective.finish(model, learned), str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 32
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    prediction = objective.prediction("short")
    (annotation,) = prediction.annotations
    assert annotation["task"] == str(repository / "jobs/configs/own_task.py")
    assert (prediction.kind, prediction.code) == ("texts", True)
    assert prediction.columns == {"gold": "label", "predicted": "short_summary"}
    pinned = pin(ModelSettings(ref=str(tmp_path)))
    made = task(task.Config.model_validate({**annotation, "model": {"ref": str(tmp_path)}}), pinned)
    made.start(load_own(made.build(), pinned, "float32", "cpu", 1, 256))
    assert made.annotate(Texts(ROWS["text"])).columns["summary"].to_pylist()[:3] == ROWS["label"][:3]


def test_its_baseline_is_the_beginning_of_the_text(objective: Any) -> None:
    tables = objective.baselines({"mean_tokens": 2.4}, pa.table({"text": ROWS["text"]}), Examples([]))
    assert tables["lead_2"]["predicted"].to_pylist()[0] == "the red"


def test_without_summaries_there_is_nothing_to_learn(repository: Path) -> None:
    name = str(repository / "jobs/configs/own_objective.py")
    kind: Callable[..., Any] = objectives.find(name, allow_code=True)
    with pytest.raises(JobError, match=r"data\.label is missing: own_objective\.py needs the column of the summaries"):
        kind(objectives.base.ObjectiveSettings(name=name), DataSettings(path="rows", text="text"))


def test_without_the_jobs_word_no_code_is_run(repository: Path) -> None:
    with pytest.raises(JobError, match="is code of your own: set `allow_code: true` in the job to run it"):
        objectives.find(str(repository / "jobs/configs/own_objective.py"))
