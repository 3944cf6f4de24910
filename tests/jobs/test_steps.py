import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs import kinds, steps
from jobs.summary import text
from pipeline.errors import JobError, RunError
from pipeline.progress import Silent

FINETUNE = {
    "kind": "finetune",
    "objective": "classify",
    "model": "models/base",
    "data": {"path": "corpus", "text": "text", "label": "label"},
    "output": {"path": "out/model"},
}
TOPIC = {"name": "topic", "task": "classify", "text": "text", "model": "steps:0"}
ANNOTATE = {
    "kind": "annotate",
    "corpus": {"path": "corpus"},
    "annotations": [TOPIC],
    "output": {"path": "out/labeled"},
}
EVALUATE = {
    "kind": "evaluate",
    "objective": "classify",
    "model": {"ref": "steps:0"},
    "data": {"path": "corpus", "text": "text", "label": "label"},
    "output": {"path": "out/evaluation"},
}


def parse(*each: Any) -> list[dict[str, Any]]:
    return steps.parse({"kind": "steps", "steps": list(each)}, "job.yaml").steps


def refused(*each: Any) -> list[str]:
    with pytest.raises(JobError) as error:
        parse(*each)
    return str(error.value).splitlines()


def test_a_step_names_the_model_of_an_earlier_one() -> None:
    found = parse(FINETUNE, EVALUATE, ANNOTATE)
    assert found[0] == FINETUNE
    assert found[1]["model"] == {"ref": "out/model/model"}
    assert found[2]["annotations"][0]["model"] == "out/model/model"


def test_a_fine_tuning_may_go_on_from_an_earlier_ones_model_and_be_held_against_it() -> None:
    second = {
        **FINETUNE,
        "model": "steps:0",
        "gate": {"metric": "accuracy", "not_worse_than": "steps:0"},
        "output": {"path": "out/second/"},
    }
    third = {**ANNOTATE, "annotations": [{**TOPIC, "model": {"ref": "steps:1"}}]}
    found = parse(FINETUNE, second, third)
    assert found[1]["model"] == "out/model/model"
    assert found[1]["gate"]["not_worse_than"] == "out/model/model"
    assert found[2]["annotations"][0]["model"] == {"ref": "out/second/model"}


def test_other_texts_of_that_form_stay_as_they_are() -> None:
    document = {**ANNOTATE, "annotations": [{**TOPIC, "model": "m", "text": "steps:0"}]}
    assert parse(document) == [document]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, "steps:0 is no earlier step; no step before this one trains a model"),
        (3, "steps:3 is no earlier step; no step before this one trains a model"),
    ],
)
def test_a_step_cannot_name_itself_or_a_later_one(number: int, told: str) -> None:
    assert refused({**EVALUATE, "model": f"steps:{number}"}) == [f"job.yaml: steps.0: model: {told}"]


def test_a_step_that_trains_nothing_leaves_no_model() -> None:
    known = "models of earlier steps: steps:0"
    labeled = {**ANNOTATE, "annotations": [{**TOPIC, "model": "m"}]}
    assert refused(FINETUNE, labeled, {**EVALUATE, "model": "steps:1"}) == [
        f"job.yaml: steps.2: model: steps:1 is no step of kind finetune, so it leaves no model; {known}"
    ]


def test_all_that_is_wrong_with_any_step_is_told_and_no_more() -> None:
    lines = refused(
        {**FINETUNE, "training": {"epoch": 1}},
        {**EVALUATE, "surprise": 1},
        {**ANNOTATE, "kind": "annotat"},
        {"output": {"path": "out"}},
        {"kind": "steps", "steps": []},
    )
    known = "known: annotate, evaluate, finetune"
    assert lines[0].startswith("job.yaml: steps.0: training.epoch: there is no such key; did you mean 'epochs'?")
    assert lines[1].startswith("job.yaml: steps.1: surprise: there is no such key")
    assert lines[2] == f"job.yaml: steps.2: kind: 'annotat' is not allowed in a step; did you mean 'annotate'? {known}"
    assert lines[3] == f"job.yaml: steps.3: `kind` is missing; {known}"
    assert lines[4] == f"job.yaml: steps.4: kind: 'steps' is not allowed in a step; {known}"
    assert len(lines) == 5


@pytest.mark.parametrize("same", ["out/model", "./out/model", "out/model/", "out/../out/model"])
def test_two_steps_cannot_write_to_one_folder(same: str) -> None:
    (line,) = refused(FINETUNE, {**EVALUATE, "output": {"path": same}})
    assert (
        line == f"job.yaml: steps.0 and steps.1 have one output.path, {Path('out/model').resolve()}; each needs its own"
    )


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"kind": "steps"}, "steps: this key is missing"),
        ({"kind": "steps", "steps": []}, "steps: must not be empty"),
        ({"kind": "steps", "steps": [1]}, "steps.0: 1 is a whole number; a mapping is wanted"),
        ({"kind": "steps", "steps": [FINETUNE], "cluster": {}}, "cluster: there is no such key; known: kind, steps"),
    ],
)
def test_the_file_itself_is_checked(document: Any, told: str) -> None:
    with pytest.raises(JobError, match=re.escape(f"job.yaml: {told}")):
        steps.parse(document, "job.yaml")


# --------------------------------------------------------------------------------------------------------------- runs


class Done:
    """What a step of no work leaves."""

    def __init__(self, number: int, exit_code: int) -> None:
        self.summary = {"number": number}
        self.manifest = {"number": number}
        self.exit_code = exit_code
        self.warning = "too bad" if exit_code else None

    def shown(self, width: int) -> list[Any]:
        return [f"shown at {width}"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A kind of job that does what its document says: ends with a code, or fails. Here is what ran."""
    found: list[int] = []

    class Parsed:
        def __init__(self, document: Any) -> None:
            self.kind = document["kind"]
            self.output = type("Output", (), document["output"])

    class Idle(ModuleType):
        @staticmethod
        def parse(document: Any, source: str) -> Parsed:
            return Parsed(document)

        @staticmethod
        def run(document: Any, source: str, watcher: Any, began: float) -> Done:
            found.append(document["number"])
            if document.get("fails"):
                raise RunError("it failed")
            return Done(document["number"], document.get("code", 0))

    monkeypatch.setitem(sys.modules, "jobs.idle", Idle("idle"))
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, "idle"))
    return found


def idle(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "idle", "number": number, "output": {"path": f"out/{number}"}, **more}


def run(*each: Any) -> steps.Outcome:
    return steps.run({"kind": "steps", "steps": list(each)}, "job.yaml", Silent(), 0.0)


def test_steps_run_in_their_order(ran: list[int]) -> None:
    outcome = run(idle(0), idle(1), idle(2))
    assert ran == [0, 1, 2]
    assert outcome.exit_code == 0
    assert outcome.warning is None
    assert outcome.summary["steps"] == [{"number": number} for number in range(3)]
    assert outcome.manifest == {"steps": [{"number": number} for number in range(3)]}
    shown = text(outcome.shown(60))
    assert "steps.1  idle -> out/1\n\nshown at 60" in shown


def test_a_step_with_an_exit_code_is_the_last_one(ran: list[int]) -> None:
    outcome = run(idle(0), idle(1, code=5), idle(2), idle(3))
    assert ran == [0, 1]
    assert outcome.exit_code == 5
    assert outcome.warning == "steps.1: too bad; 2 steps after it did not run"
    assert outcome.summary["steps_total"] == 4
    assert len(outcome.summary["steps"]) == 2


def test_a_step_that_fails_says_which_it_was(ran: list[int]) -> None:
    with pytest.raises(RunError) as error:
        run(idle(0), idle(1, fails=True), idle(2))
    assert ran == [0, 1]
    assert error.value.__notes__ == ["this was steps.1 (idle -> out/1) of job.yaml; the same command goes on with it"]


def test_steps_that_label_are_profiled_and_steps_without_any_refuse(
    ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Labeling(ModuleType):
        PROFILES = True
        parse = staticmethod(sys.modules["jobs.idle"].parse)

        @staticmethod
        def run(document: Any, source: str, watcher: Any, began: float, profile: bool = False) -> Done:
            told.append((document["number"], profile))
            return Done(document["number"], 0)

    monkeypatch.setitem(sys.modules, "jobs.labeling", Labeling("labeling"))
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, "labeling"))
    document = {"kind": "steps", "steps": [idle(0), {**idle(1), "kind": "labeling"}]}
    steps.run(document, "job.yaml", Silent(), 0.0, profile=True)
    assert (ran, told) == ([0], [(1, True)])
    with pytest.raises(JobError, match=r"^job\.yaml: --profile shows .*, and no step labels; run it without$"):
        steps.run({"kind": "steps", "steps": [idle(0)]}, "job.yaml", Silent(), 0.0, profile=True)
    assert ran == [0]


def test_nothing_runs_where_a_later_step_is_wrong(ran: list[int]) -> None:
    with pytest.raises(JobError, match=r"steps\.1: objective: "):
        run(idle(0), {**FINETUNE, "objective": "clasify"})
    assert ran == []
