"""Read, annotate, commit: a unit's way in one process, and what is left of deaths, damage and retries."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import stages
from pipeline.annotator import Annotator
from pipeline.blame import DEATHS_AT_MOST, Attempt, Phase, Stage
from pipeline.envelope import Envelope
from pipeline.errors import ModelError, RunError
from pipeline.job import AnnotateJob
from pipeline.models import device
from pipeline.models.reference import PinnedModel
from pipeline.output import planfile, receipts
from pipeline.output.layout import receipt_path
from pipeline.output.receipts import Receipt
from pipeline.output.storage import Store
from pipeline.planning import Models, new_plan, pin_models
from pipeline.repeats import Repeats
from pipeline.run import Run
from pipeline.stages import LOADS_AT_MOST, AnnotateStage, Order, Work, commit, read
from pipeline.workers import Pools, Workers

COUNTING = Path(__file__).parent.parent / "chaos/counting.py"
WORKERS = Workers(actors=1, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)
POOLS: Pools = {None: WORKERS}


@dataclass
class Bench:
    """A corpus, its plan, and the stages over it."""

    folder: Path
    settings: dict[str, Any]
    epoch: int = 1
    alone: bool = False
    profile: bool = False
    pools: Pools = field(default_factory=lambda: POOLS)

    def __post_init__(self) -> None:
        self.store = Store.at(str(self.folder / "out"))
        job = AnnotateJob.model_validate(self.settings)
        self.plan, _ = new_plan(job, pin_models(job), self.pools)
        planfile.save(self.store, self.plan)

    @property
    def work(self) -> Work:
        job = AnnotateJob.model_validate(self.settings)
        run = Run(job, self.store, pin_models(job), self.plan, self.pools, self.epoch, f"r{self.epoch}", {}, 0.0)
        return replace(run.work(), alone=self.alone, profile=self.profile)

    def order(self, number: int = 0, retry: bool = False) -> Order:
        return Order(self.plan.units[number], retry)

    def annotated(self, order: Order) -> Envelope:
        """A unit as its commit gets it."""
        work = self.work
        found = Envelope.of_block(read(order, work).to_block())
        for pool in work.pools:
            found = Envelope.of_block(AnnotateStage(work, pool)(found).to_block())
        return found

    def through(self, order: Order) -> dict[str, Any]:
        """The unit's whole way, packed for Ray between its stages."""
        return commit(self.annotated(order), self.work)

    def receipt(self, number: int = 0) -> Receipt:
        receipt = receipts.load(self.store, self.plan.units[number].id)
        assert receipt is not None
        return receipt

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the parts that count, by their place."""
        standing, _ = receipts.load_all(self.store)
        paths = [file.path for each in standing.values() for file in each.files if file.kind == "data"]
        rows = [row for path in paths for row in pq.read_table(self.store.full(path), partitioning=None).to_pylist()]
        return sorted(rows, key=lambda row: (row["_file"], row["_row"]))

    def entries(self) -> list[dict[str, Any]]:
        standing, _ = receipts.load_all(self.store)
        paths = [file.path for each in standing.values() for file in each.files if file.kind == "quarantine"]
        return [row for path in paths for row in pq.read_table(self.store.full(path), partitioning=None).to_pylist()]

    def died(self, stage: Stage, *marks: tuple[Phase, Sequence[int] | None], number: int = 0) -> None:
        """Leave the marks of attempts that never came to an end."""
        for phase, rows in marks:
            Attempt(self.store, self.epoch, self.plan.units[number].id, stage).running(phase, rows)

    def marks(self) -> list[str]:
        return self.store.list(f"metadata/tmp/attempts-{self.epoch}", recursive=True)


Make = Callable[..., Bench]
DIED: tuple[Phase, None] = ("stream", None)


@pytest.fixture
def bench(tmp_path: Path) -> Make:
    """A corpus of one file for each list of texts."""

    def make(*files: Sequence[str | None], group: int | None = None, **sections: Any) -> Bench:
        (tmp_path / "corpus").mkdir()
        for number, texts in enumerate(files):
            table = pa.table({"text": pa.array(texts, pa.string()), "number": range(len(texts))})
            pq.write_table(table, tmp_path / f"corpus/{number}.parquet", row_group_size=group or max(1, len(texts)))
        annotation = {"name": "size", "task": str(COUNTING), "text": "text"} | sections.pop("annotation", {})
        settings = {
            "allow_code": True,
            "corpus": {"path": str(tmp_path / "corpus")} | sections.pop("corpus", {}),
            "annotations": [annotation],
            "output": {"path": str(tmp_path / "out")},
        }
        return Bench(tmp_path, settings)

    return make


def _damage(path: Path, group: int) -> None:
    """Break the pages of one row group; the footer stays whole."""
    column = pq.read_metadata(path).row_group(group).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _sums_agree(receipt: Receipt) -> bool:
    return receipt.rows_read == receipt.rows_filtered + receipt.rows_out + receipt.rows_quarantined


# ------------------------------------------------------------------------------------------------------------ the way


def test_a_profiled_unit_tells_where_its_time_went_and_becomes_what_it_would_be_without(bench: Make) -> None:
    unit = bench(["one", "please FAIL"])
    plain = unit.through(unit.order())
    assert "profile" not in plain
    receipt = unit.receipt()
    unit.epoch, unit.profile = 2, True
    unit.store.delete(receipt_path(receipt.unit))
    told = unit.through(unit.order())
    assert unit.receipt() == replace(receipt, epoch=2, run_id="r2", files=unit.receipt().files, seconds=ANY)
    assert [each["role"] for each in told["profile"]] == ["reader", "actor", "commit"]
    names = [[name for name, *_ in each["spans"]] for each in told["profile"]]
    assert names == [["read"], ["imports", "annotate", "unit"], ["parts", "receipt", "commit"]]
    assert {each["process"].rpartition(":")[2] for each in told["profile"]} == {str(os.getpid())}


def test_an_actor_tells_how_it_was_made_with_each_unit_and_its_spans_once(bench: Make) -> None:
    unit = bench(["one"])
    unit.profile = True
    stage = AnnotateStage(unit.work)
    first, second = (stage(read(unit.order(), unit.work)) for _ in range(2))
    assert first.told["loaded"] == second.told["loaded"] == {stage.name: stage.loaded}
    assert stage.loaded["imports"] > 0
    assert [name for name, *_ in first.told["profile"][1]["spans"]] == ["imports", "annotate", "unit"]
    assert [name for name, *_ in second.told["profile"][1]["spans"]] == ["annotate", "unit"]


def test_an_actor_on_a_gpu_has_two_units_under_way_unless_something_must_run_alone(
    bench: Make, make_encoder: Callable[..., Path]
) -> None:
    unit = bench(["one"], annotation={"task": "embed", "model": {"ref": str(make_encoder())}})
    work = replace(unit.work, pools={None: replace(WORKERS, gpus_per_actor=1)})
    assert work.units_at_once(None) == 2
    of_a_users = tuple(replace(spec, code="6f1c") for spec in work.annotations)
    for other in (
        unit.work,
        replace(work, alone=True),
        replace(work, repeats=Repeats(cache="said")),
        replace(work, annotations=of_a_users),
    ):
        assert other.units_at_once(None) == 1
    elsewhere = tuple(replace(spec, settings={**spec.settings, "pool": "own"}) for spec in of_a_users)
    work = replace(work, annotations=(*work.annotations, *elsewhere), pools={**work.pools, "own": work.pools[None]})
    assert [work.units_at_once(pool) for pool in (None, "own")] == [2, 1]


def test_an_actor_on_a_node_that_is_unlike_the_drivers_says_so(
    bench: Make, make_encoder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = bench(["ak bl"], annotation={"task": "embed", "model": {"ref": str(make_encoder())}})
    (tmp_path / "cpuinfo").write_text("flags : avx512f avx512_vnni\n")
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")

    def told(dtype: str, asked: str = "auto") -> Envelope:
        (spec,) = unit.work.annotations
        spec = replace(spec, settings={**spec.settings, "dtype": asked}, pinned=replace(spec.pinned, dtype=dtype))
        return AnnotateStage(replace(unit.work, annotations=(spec,)))(read(unit.order(), unit.work))

    assert told("float32").told["slow"] == told("bfloat16", "bfloat16").told["slow"] == []
    (slow,) = told("bfloat16").told["slow"]
    assert re.fullmatch(
        r"annotation 'size': `dtype: auto` became bfloat16 on the driver's node, and on node \S+ it is slow, whose "
        r"processor has not one of amx_bf16, avx512_bf16, bf16: have nodes alike, or begin anew with `dtype: float32`",
        slow,
    )
    refused = told("int8")
    assert (refused.state, refused.told["kind"]) == ("fatal", "ModelError")
    words = r"annotation 'size': dtype: int8 was planned on another node, and the processor of node \S+ has not one of"
    assert re.match(words, refused.told["message"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_actors_import_what_reads_alone_whatever_computes(
    bench: Make, make_encoder: Callable[..., Path], dtype: str
) -> None:
    unit = bench(["ak bl"], annotation={"task": "embed", "model": {"ref": str(make_encoder())}})

    def imports(**options: Any) -> list[str]:
        (spec,) = unit.work.annotations
        spec = replace(spec, pinned=replace(spec.pinned, dtype=dtype, **options))
        return replace(unit.work, annotations=(spec,)).imports

    for engine in ("torch", "openvino", "auto"):
        assert imports(engine=engine) == ["pipeline.models.lean:import_lean"]


def test_actors_of_a_family_that_is_not_well_known_import_all_but_openvinos_do_not(
    bench: Make, make_encoder: Callable[..., Path]
) -> None:
    unit = bench(["ak bl"], annotation={"task": "embed", "model": {"ref": str(make_encoder())}})
    (spec,) = unit.work.annotations
    assert spec.model is not None
    other = replace(spec, model=replace(spec.model, config={**spec.model.config, "model_type": "odd"}))
    work = replace(unit.work, annotations=(other,))
    assert work.imports == ["pipeline.models.loading"]
    in_openvino = replace(other, pinned=replace(other.pinned, engine="openvino"))
    assert replace(work, annotations=(in_openvino,)).imports == ["pipeline.models.lean:import_lean"]


def test_in_a_process_of_its_own_an_actor_has_models_converted_in_another(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart: list[bool] = []
    monkeypatch.setattr(Annotator, "load", lambda _, **how: apart.append(how["apart"]))
    for name in ("hold", "keep_products"):  # of this process, in which other tests run
        monkeypatch.setattr(stages, name, lambda **_: None)
    work = bench(["ak bl"]).work
    for own_process in (True, False):
        AnnotateStage(work, own_process=own_process)
    assert apart == [True, False]


def test_two_units_at_once_become_what_each_becomes_alone(bench: Make, make_encoder: Callable[..., Path]) -> None:
    texts = [[f"ak {'bl ' * number}" for number in range(1, 30)], [f"cm {'ak ' * number}" for number in range(1, 20)]]
    unit = bench(*texts, annotation={"task": "embed", "model": {"ref": str(make_encoder())}})
    work = replace(unit.work, profile=True)
    stage, orders = AnnotateStage(work), [unit.order(number) for number in range(len(unit.plan.units))]
    alone = [stage(read(order, work)) for order in orders]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda order: stage(read(order, work)), orders * 4))
    for number, found in enumerate(together):
        assert found.added == alone[number % len(orders)].added
    lanes = {told["process"].rpartition(":")[2] for each in together for told in each.told["profile"][1:]}
    assert lanes <= {str(os.getpid()), f"{os.getpid()}+1"}


def test_a_unit_goes_its_way_and_leaves_parts_a_receipt_and_no_mark(bench: Make) -> None:
    unit = bench(["one", None, "please FAIL", "four letters"])
    told = unit.through(unit.order())
    assert (told["state"], told["unit"]) == ("done", unit.plan.units[0].id)
    ((actor, since_ready),) = told["since_ready"].items()
    assert actor.endswith(f":{os.getpid()}")
    assert since_ready >= told["seconds"] >= 0
    assert [(row["_row"], row["size_chars"]) for row in unit.rows()] == [(0, 3), (3, 12)]
    assert {(entry["_row"], entry["reason"]) for entry in unit.entries()} == {(1, "null_text"), (2, "model_failed")}
    assert (unit.receipt().rows_read, unit.receipt().rows_out, unit.receipt().rows_quarantined) == (4, 2, 2)
    assert unit.marks() == []


def test_texts_for_a_gpu_are_tokenised_by_who_reads_them_unless_that_may_have_killed_one(
    bench: Make, make_encoder: Callable[..., Path]
) -> None:
    annotation = {"task": "embed", "model": {"ref": str(make_encoder())}}
    unit = bench(["ak bl", None, "cm"], annotation=annotation)
    assert read(unit.order(), unit.work).tokens is None
    unit.pools = {None: replace(WORKERS, readers=2)}
    found = Envelope.of_block(read(unit.order(), unit.work).to_block())
    assert found.tokens is not None
    ids = [tokens["ids"] for tokens in found.tokens["size/"].to_pylist()]
    assert [None if each is None else len(each) for each in ids] == [2, None, 1]
    assert unit.annotated(unit.order()).tokens is None, "the commit has no use for them"
    unit.through(unit.order())
    assert [row["size_tokens"] for row in unit.rows()] == [4, 3]
    unit.died("read", DIED)
    assert read(unit.order(), unit.work).tokens is None


def test_a_text_that_cannot_be_tokenised_ahead_is_left_to_the_actor(
    bench: Make, make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(make_encoder(), tmp_path / "model")
    unit = bench(["ak bl"], annotation={"task": "embed", "model": {"ref": str(copy)}})
    unit.pools, work = {None: replace(WORKERS, readers=2)}, unit.work
    shutil.rmtree(copy)
    found = read(unit.order(), replace(work, pools=unit.pools, run_id="elsewhere"))
    assert (found.state, found.tokens) == ("read", None)


def test_a_unit_whose_rows_are_all_filtered_away_still_owes_its_receipt(bench: Make) -> None:
    unit = bench(["one", "two", "three"], corpus={"filter": "number > 0 AND number < 1"})
    assert unit.through(unit.order())["state"] == "done"
    receipt = unit.receipt()
    assert (receipt.rows_read, receipt.rows_filtered, receipt.rows_out, receipt.files) == (3, 3, 0, ())
    assert not receipt.unit_lost


def test_a_commit_that_is_executed_again_changes_nothing(bench: Make) -> None:
    unit = bench(["one", None])
    done = unit.annotated(unit.order())
    first, before = commit(done, unit.work), unit.receipt()
    assert commit(done, unit.work) == first
    assert unit.receipt() == before


def test_what_cannot_be_written_ends_the_run_in_words(bench: Make) -> None:
    unit = bench(["one"])
    done = unit.annotated(unit.order())
    (unit.folder / "out/data").write_text("a file where the folder should be")
    told = commit(done, unit.work)
    assert (told["state"], told["kind"]) == ("fatal", "RunError")
    assert "could not write data/part-" in told["message"]


def test_marks_that_cannot_be_left_end_the_run_in_words(bench: Make) -> None:
    unit = bench(["one"])
    shutil.rmtree(unit.folder / "out/metadata")
    (unit.folder / "out/metadata").write_text("a file where the folder should be")
    told = unit.through(unit.order())
    assert (told["state"], told["kind"]) == ("fatal", "RunError")
    assert "could not write metadata/tmp/attempts-1/" in told["message"]


def test_a_run_whose_epoch_is_over_commits_nothing(bench: Make) -> None:
    from pipeline.output.epoch import begin

    unit = bench(["one"])
    for run in ("r1", "r2"):
        begin(unit.store, run, "now")
    told = unit.through(unit.order())
    assert (told["state"], told["kind"]) == ("fatal", "RunError")
    assert "a run of epoch 2 has taken over" in told["message"]
    assert receipts.load_all(unit.store) == ({}, [])


def test_an_error_of_ours_carries_its_traceback(bench: Make) -> None:
    unit = bench(["one"])
    told = unit.through(Order(replace(unit.plan.units[0], spans=(replace(unit.plan.units[0].spans[0], fragment=7),))))
    assert (told["state"], told["kind"]) == ("fatal", "IndexError")
    assert "Traceback" in told["message"]


# -------------------------------------------------------------------------------------------------------------- blame


@pytest.mark.parametrize("stage", ["read", "annotate"])
def test_one_death_beside_others_is_tried_again(bench: Make, stage: Stage) -> None:
    unit = bench(["one", "two"])
    unit.died(stage, ("stream", None))
    assert unit.through(unit.order())["state"] == "done"
    assert (unit.receipt().rows_out, unit.marks()) == (2, [])


@pytest.mark.parametrize("stage", ["read", "annotate"])
def test_after_two_deaths_a_unit_waits_until_nothing_runs_beside_it(bench: Make, stage: Stage) -> None:
    unit = bench(["one", "two"])
    unit.died(stage, ("stream", None), ("stream", [1]))
    for _ in range(2):  # however often it is asked
        told = unit.through(unit.order())
        assert told == {"state": "suspect", "unit": unit.plan.units[0].id}
    assert receipts.load_all(unit.store) == ({}, [])
    unit.alone = True
    assert unit.through(unit.order())["state"] == "done"
    assert (unit.receipt().rows_out, unit.marks()) == (2, [])


def test_a_third_death_alone_quarantines_the_rows_that_were_running(bench: Make) -> None:
    unit = bench(["one", "two", "three"])
    unit.died("annotate", ("stream", None), ("stream", [1, 2]), ("trial", [1]))
    unit.alone = True
    assert unit.through(unit.order())["state"] == "done"
    assert [row["_row"] for row in unit.rows()] == [0, 2]
    entry = unit.entries()[0]
    assert (entry["_row"], entry["annotation"], entry["reason"]) == (1, None, "killed_process")
    assert entry["detail"].startswith("3 processes died over this unit")
    assert entry["input"]["text"] == "two"


def test_a_third_death_of_readers_quarantines_the_unit_and_nothing_else(bench: Make) -> None:
    unit = bench(["one", "two"], ["three"] * 300)
    unit.died("read", ("stream", None), ("stream", None), ("stream", None))
    unit.alone = True
    for number in range(len(unit.plan.units)):
        assert unit.through(unit.order(number))["state"] == "done"
    lost = unit.receipt(0)
    assert (lost.rows_read, lost.rows_out, lost.unit_lost) == (lost.rows_quarantined, 0, True)
    assert {entry["reason"] for entry in unit.entries()} == {"killed_process"}
    assert len({(entry["_file"], entry["_row"]) for entry in unit.entries()}) == lost.rows_read
    assert len(unit.rows()) + lost.rows_read == 302


def test_a_unit_that_goes_on_killing_is_quarantined_whole(bench: Make) -> None:
    unit = bench(["one", "two"])
    unit.died("annotate", *[DIED] * DEATHS_AT_MOST)
    unit.alone = True
    assert unit.through(unit.order())["state"] == "done"
    assert (unit.receipt().rows_out, unit.receipt().reasons) == (0, {"killed_process": 2})


def test_a_death_of_an_earlier_runs_process_is_nobodys_fault(bench: Make) -> None:
    unit = bench(["one"])
    unit.died("annotate", *[DIED] * 3)
    unit.epoch = 2
    assert unit.through(unit.order())["state"] == "done"
    assert unit.receipt().rows_out == 1


# -------------------------------------------------------------------------------------------------------------- pools


@pytest.fixture
def two_pools(bench: Make) -> Callable[..., Bench]:
    """A corpus whose `size` is annotated in the job's own pool, and `again` in `large`, which reads it."""

    def make(*files: Sequence[str | None], **options: Any) -> Bench:
        one = bench(*files)
        again = {"name": "again", "task": str(COUNTING), "text": "{text} is {size_label}", "pool": "large"} | options
        one.settings["annotations"].append(again)
        return Bench(one.folder, one.settings, pools={None: WORKERS, "large": WORKERS})

    return make


def test_a_unit_passes_both_pools_and_what_came_of_it_stands_in_one_part(two_pools: Callable[..., Bench]) -> None:
    unit = two_pools(["one", None, "please FAIL", "four letters"], where="size_chars > 3")
    told = unit.through(unit.order())
    assert (told["state"], list(told["seconds_by_annotation"])) == ("done", ["size", "again"])
    assert [(row["size_chars"], row["again_chars"]) for row in unit.rows()] == [(3, None), (12, 21)]
    assert [(entry["annotation"], entry["reason"]) for entry in unit.entries()] == [
        ("size", "null_text"),
        ("size", "model_failed"),
    ]
    assert unit.receipt().tokens_by_annotation == {"size": 0, "again": 0}
    assert unit.marks() == []


def test_a_row_that_failed_in_one_pool_is_still_annotated_in_another_that_does_not_read_it(
    two_pools: Callable[..., Bench],
) -> None:
    unit = two_pools(["one", "please FAIL"], text="number {number}")
    unit.through(unit.order())
    (entry,) = unit.entries()
    assert (entry["annotation"], entry["input"]["size_chars"], entry["input"]["again_chars"]) == ("size", None, 8)


def test_deaths_in_one_pool_are_blamed_there_and_leave_what_the_other_found(two_pools: Callable[..., Bench]) -> None:
    unit = two_pools(["one", "two", "three"])
    unit.died("annotate-large", ("stream", None), ("stream", [1, 2]), ("trial", [1]))
    assert unit.through(unit.order())["state"] == "suspect"
    unit.alone = True
    assert unit.through(unit.order())["state"] == "done"
    assert [row["_row"] for row in unit.rows()] == [0, 2]
    (entry,) = unit.entries()
    assert (entry["_row"], entry["annotation"], entry["reason"]) == (1, None, "killed_process")
    assert (entry["input"]["size_chars"], entry["input"]["again_chars"]) == (3, None)
    assert unit.marks() == []


def test_a_row_that_killed_actors_of_one_pool_is_not_shown_to_the_next(two_pools: Callable[..., Bench]) -> None:
    unit = two_pools(["one", "two", "three"])
    unit.died("annotate", ("stream", None), ("stream", [1, 2]), ("trial", [1]))
    unit.alone = True
    assert unit.through(unit.order())["state"] == "done"
    (entry,) = unit.entries()
    assert (entry["_row"], entry["annotation"], entry["reason"]) == (1, None, "killed_process")
    assert (entry["input"]["size_chars"], entry["input"]["again_chars"]) == (None, None)


def test_a_retry_passes_both_pools_again(two_pools: Callable[..., Bench]) -> None:
    unit = two_pools(["short", "rather long"], max_chars=15)
    unit.through(unit.order())
    assert [(entry["annotation"], entry["_row"]) for entry in unit.entries()] == [("again", 1)]
    unit.settings["annotations"][1]["max_chars"] = 100
    unit.epoch = 2
    assert unit.through(unit.order(retry=True))["state"] == "done"
    assert [(row["_row"], row["again_chars"]) for row in unit.rows()] == [(0, 14), (1, 20)]


def test_seconds_of_both_pools_count_and_earlier_actors_age_by_the_later_ones_work(
    two_pools: Callable[..., Bench],
) -> None:
    unit = two_pools(["one"], pause=0.05)
    first = AnnotateStage(unit.work)
    second = AnnotateStage(unit.work, "large")
    second.name = "another:1"
    found = Envelope.of_block(read(unit.order(), unit.work).to_block())
    between = Envelope.of_block(first(found).to_block())
    told = second(between).told
    assert list(told["since_ready"]) == [first.name, "another:1"]
    later_seconds = told["seconds"] - between.told["seconds"]
    assert later_seconds >= 0.05
    aged_seconds = told["since_ready"][first.name] - between.told["since_ready"][first.name]
    assert aged_seconds == pytest.approx(later_seconds)


def test_processes_that_die_while_they_load_count_for_their_own_pool(two_pools: Callable[..., Bench]) -> None:
    unit = two_pools(["one"])
    for number in range(LOADS_AT_MOST):
        unit.store.mark(f"metadata/tmp/attempts-1/loading-large/{number}", b"")
    assert AnnotateStage(unit.work).broken is None
    broken = AnnotateStage(unit.work, "large").broken
    assert broken is not None
    assert "loaded the pool's models" in broken.told["message"]
    assert "cluster.pools.large.actors, now 1" in broken.told["message"]


# ------------------------------------------------------------------------------------------------------------ loading

STUBBORN = """
import pyarrow as pa
from pipeline.errors import ModelError
from pipeline.tasks.base import Annotation, Task, Texts

class Stubborn(Task):
    def __init__(self, config, model):
        super().__init__(config, model)
        import os
        if os.environ.get("STUBBORN"):
            raise ModelError("these weights do not fit")
    def fields(self):
        return [pa.field("n", pa.int32())]
    def annotate(self, texts: Texts) -> Annotation:
        return Annotation.of({"n": pa.array([1] * len(texts.values), pa.int32())}, len(texts.values))
"""


def test_a_model_that_cannot_be_loaded_is_told_by_the_first_unit_and_by_each_other(
    bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    unit = bench(["one"], ["two"], annotation={"task": str(tmp_path / "stubborn.py")})
    work = unit.work
    monkeypatch.setenv("STUBBORN", "1")
    stage = AnnotateStage(work)
    for number in range(len(unit.plan.units)):
        told = commit(stage(read(unit.order(number), work)), work)
        assert (told["state"], told["kind"], told["message"]) == ("fatal", "ModelError", "these weights do not fit")
    assert ModelError.exit_code == 2


def test_processes_that_die_while_they_load_end_the_run(bench: Make) -> None:
    unit = bench(["one"])
    work = replace(unit.work, pools={None: replace(WORKERS, actors=4)})
    for number in range(3 + LOADS_AT_MOST - 1):  # three of them may be other actors, alive
        unit.store.mark(f"metadata/tmp/attempts-1/loading/{number}", b"")
    assert AnnotateStage(work).broken is None
    unit.store.mark("metadata/tmp/attempts-1/loading/one-more", b"")
    broken = AnnotateStage(work).broken
    assert broken is not None
    assert broken.told["kind"] == RunError.__name__
    assert broken.told["message"].startswith("3 processes died while they loaded the job's models")
    assert "cluster.actors, now 4" in broken.told["message"]


def test_a_load_that_ends_well_leaves_no_mark(bench: Make) -> None:
    unit = bench(["one"])
    AnnotateStage(unit.work)
    assert unit.marks() == []


# -------------------------------------------------------------------------------------------------------------- retry


def test_a_retry_computes_only_rows_that_stand_nowhere(bench: Make) -> None:
    unit = bench(["short", "rather long", None, "another long"], annotation={"max_chars": 5})
    unit.through(unit.order())
    before = [file for file in unit.receipt().files if file.kind == "data"]
    unit.settings["annotations"][0]["max_chars"] = 100
    unit.epoch = 2
    assert unit.through(unit.order(retry=True))["state"] == "done"
    receipt = unit.receipt()
    assert [row["_row"] for row in unit.rows()] == [0, 1, 3]
    assert [file for file in receipt.files if file.kind == "data"][:1] == before
    assert (receipt.rows_read, receipt.rows_out, receipt.rows_quarantined) == (4, 3, 1)
    assert [(entry["_row"], entry["reason"]) for entry in unit.entries()] == [(2, "null_text")]


def test_a_retrys_commit_that_is_executed_again_changes_nothing(bench: Make) -> None:
    unit = bench(["short", "rather long"], annotation={"max_chars": 5})
    unit.through(unit.order())
    unit.settings["annotations"][0]["max_chars"] = 100
    unit.epoch = 2
    done = unit.annotated(unit.order(retry=True))
    assert commit(done, unit.work)["state"] == "done"
    before = unit.receipt()
    assert commit(done, unit.work)["state"] == "done"
    assert unit.receipt() == before
    assert [row["_row"] for row in unit.rows()] == [0, 1]


def test_a_retry_after_a_repair_brings_the_lost_rows_back(bench: Make, tmp_path: Path) -> None:
    unit = bench(["one", "two", "three", "four"], group=2)
    file = tmp_path / "corpus/0.parquet"
    whole = file.read_bytes()
    _damage(file, 1)
    unit.through(unit.order())
    assert (unit.receipt().rows_out, unit.receipt().reasons) == (2, {"damaged_row_group": 2})
    file.write_bytes(whole)
    unit.epoch = 2
    unit.through(unit.order(retry=True))
    assert [(row["_row"], row["text"]) for row in unit.rows()] == list(enumerate(["one", "two", "three", "four"]))
    assert unit.entries() == []


def test_a_retry_that_could_read_less_keeps_the_unit_as_it_is(bench: Make, tmp_path: Path) -> None:
    unit = bench(["one", "two", None], corpus={"filter": "number <> 1"})
    unit.through(unit.order())
    before = unit.receipt()
    assert (before.rows_filtered, before.rows_out, before.rows_quarantined) == (1, 1, 1)
    _damage(tmp_path / "corpus/0.parquet", 0)  # now nobody knows which row the filter had left out
    unit.epoch = 2
    assert unit.through(unit.order(retry=True)) == {"state": "kept", "unit": unit.plan.units[0].id}
    assert unit.receipt() == before


def test_rows_that_stand_are_not_lost_again_when_their_file_goes(bench: Make, tmp_path: Path) -> None:
    unit = bench(["one", None, "three"])
    unit.through(unit.order())
    (tmp_path / "corpus/0.parquet").unlink()
    unit.epoch = 2
    assert unit.through(unit.order(retry=True))["state"] == "done"
    assert [row["_row"] for row in unit.rows()] == [0, 2]
    assert [(entry["_row"], entry["reason"]) for entry in unit.entries()] == [(1, "file_missing")]
    assert _sums_agree(unit.receipt())


def test_a_retry_of_an_output_of_ours_never_doubles_rows_that_brought_their_identity(tmp_path: Path) -> None:
    """Lost rows cannot tell who they were, so a unit that lost some it had is kept."""
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus/part.parquet"
    rows = pa.table({"text": ["a", "b", "c", "d"], "_file": ["first.parquet"] * 4, "_row": [40, 41, 42, 43]})
    pq.write_table(rows, file, row_group_size=2)
    whole = file.read_bytes()
    settings = {
        "allow_code": True,
        "corpus": {"path": str(tmp_path / "corpus")},
        "annotations": [{"name": "size", "task": str(COUNTING), "text": "text"}],
        "output": {"path": str(tmp_path / "out")},
    }
    unit = Bench(tmp_path, settings)
    _damage(file, 0)
    unit.through(unit.order())
    before = unit.receipt()
    assert (before.rows_out, before.rows_quarantined) == (2, 2)
    file.write_bytes(whole)
    _damage(file, 1)
    unit.epoch = 2
    assert unit.through(unit.order(retry=True))["state"] == "kept"
    assert unit.receipt() == before
    file.write_bytes(whole)
    unit.epoch = 3
    assert unit.through(unit.order(retry=True))["state"] == "done"
    assert [row["_row"] for row in unit.rows()] == [40, 41, 42, 43]


def test_a_file_that_could_not_be_read_when_planned_is_read_whole_by_a_retry(bench: Make, tmp_path: Path) -> None:
    file = tmp_path / "corpus/0.parquet"
    unit = bench(["one", None, "three"], ["four"])
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    unit = Bench(tmp_path, unit.settings)
    broken = next(number for number, each in enumerate(unit.plan.units) if each.spans[0].row_group is None)
    unit.through(unit.order(broken))
    assert (unit.receipt(broken).rows_read, unit.receipt(broken).unit_lost) == (0, True)
    assert unit.receipt(broken).reasons == {"truncated_file": 1}
    file.write_bytes(whole)
    unit.epoch = 2
    unit.through(unit.order(broken, retry=True))
    receipt = unit.receipt(broken)
    assert (receipt.rows_read, receipt.rows_out, receipt.rows_quarantined, receipt.unit_lost) == (3, 2, 1, False)
    assert receipt.spans == (("0.parquet", 0, 3),)


def test_models_are_pinned_by_annotation_and_none_where_a_task_needs_none(bench: Make) -> None:
    unit = bench(["one"])
    job = AnnotateJob.model_validate(unit.settings)
    assert pin_models(job) == Models({"size": None})
    one = PinnedModel("wheel:x/y", None, "/", "53aa", 90, {})
    assert Models({"a": one, "b": one, "c": None}).weights_bytes == 90
