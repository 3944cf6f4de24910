"""A look before the run, in this process, without a trace on disk."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorpusError, JobError, OutputError
from pipeline.job import AnnotateJob
from pipeline.models.device import resolve_dtype
from pipeline.preview import ESTIMATE_ROWS, first_texts, plan_job, preview
from pipeline.workers import Pools, Workers

COUNTING = str(Path(__file__).parent.parent / "chaos/counting.py")


class OneActor:
    """A cluster that places one actor and is never connected to."""

    def workers(self, weights_bytes: Mapping[str | None, int]) -> Pools:
        one = Workers(actors=1, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)
        return dict.fromkeys(weights_bytes, one)

    def connected(self, imports: Sequence[str] = ()) -> Any:
        raise AssertionError("a look needs no Ray")

    def log_folder(self) -> str | None:
        return None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 400 rows, the first of a partition of its own; each tenth text is null."""
    for number, partition in enumerate(("s=a", "s=b", "s=b")):
        texts = [None if row % 10 == 3 else f"text {row} of {number}" for row in range(400)]
        (tmp_path / "corpus" / partition).mkdir(parents=True, exist_ok=True)
        table = pa.table({"text": pa.array(texts, pa.string()), "number": range(400)})
        pq.write_table(table, tmp_path / f"corpus/{partition}/{number}.parquet")
    return tmp_path


def _job(folder: Path, **corpus: Any) -> AnnotateJob:
    return AnnotateJob.model_validate(
        {
            "allow_code": True,
            "corpus": {"path": str(folder / "corpus")} | corpus,
            "annotations": [{"name": "size", "task": COUNTING, "text": "text"}],
            "output": {"path": str(folder / "out")},
        }
    )


def test_a_preview_shows_the_first_rows_as_parts_would_hold_them_and_why_some_would_not(folder: Path) -> None:
    shown = preview(_job(folder), OneActor(), 5)
    added = ["size_chars", "size_label", "size_tokens", "size_truncated"]
    assert shown.column_names == ["text", "number", "s", "_file", "_row", *added, "quarantine"]
    assert shown["_row"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(shown["_file"].to_pylist()) == {"s=a/0.parquet"}
    assert shown["size_chars"].to_pylist() == [11, 11, 11, None, 11]
    reasons = shown["quarantine"].to_pylist()
    assert reasons[3].startswith("null_text: ")
    assert [why for why in reasons if why is not None] == [reasons[3]]
    assert sorted(path.name for path in folder.iterdir()) == ["corpus"]


def test_a_preview_goes_on_through_units_until_it_has_its_rows(folder: Path) -> None:
    shown = preview(_job(folder, filter="number >= 398 AND number <> 399"), OneActor(), 3)
    assert shown["number"].to_pylist() == [398, 398, 398]
    reasons = preview(_job(folder, filter="number = 393"), OneActor(), 3)["quarantine"].to_pylist()
    assert [why.split(":")[0] for why in reasons] == ["null_text"] * 3


def test_a_preview_of_nothing_has_all_columns_and_no_row(folder: Path) -> None:
    shown = preview(_job(folder, filter="number > 0 AND number < 1"), OneActor(), 3)
    assert (shown.num_rows, shown.column_names[-1]) == (0, "quarantine")


def test_first_texts_are_what_the_first_annotation_would_read_of_good_rows(folder: Path) -> None:
    template = _job(folder).annotations[0].model_copy(update={"text": "{number}: {text}"})
    job = _job(folder).model_copy(update={"annotations": [template]})
    task, texts = first_texts(job, OneActor(), 5)
    assert task.config.name == "size"
    assert texts[:3] == [f"{row}: text {row} of 0" for row in range(3)]
    assert len(first_texts(_job(folder), OneActor(), 5)[1]) == 4  # the fourth row's text is null


def test_a_plan_counts_and_estimates(folder: Path) -> None:
    (folder / "corpus/s=b/broken.parquet").write_bytes(b"PAR1 and no end")
    told = plan_job(_job(folder), OneActor())
    assert (told["files"], told["files_unreadable"], told["partitions"], told["rows"]) == (4, 1, 2, 1200)
    assert (told["rows_sampled"], told["tokens_estimated"]) == (ESTIMATE_ROWS, 0)
    assert told["pools"] == [{"pool": None, "actors": 1, "threads": 1, "device": "cpu"}]
    assert told["seconds_estimated"] >= 0
    assert any(note.startswith("s=b/broken.parquet: ") for note in told["notes"])
    assert not (folder / "out").exists()


def _in_two_pools(folder: Path) -> AnnotateJob:
    document = _job(folder).model_dump(mode="json")
    again = {"name": "again", "task": COUNTING, "text": "size_label", "pool": "large"}
    return AnnotateJob.model_validate(document | {"annotations": [*document["annotations"], again]})


def test_a_look_makes_the_annotations_of_all_pools_in_this_process(folder: Path) -> None:
    shown = preview(_in_two_pools(folder), OneActor(), 5)
    assert shown["again_chars"].to_pylist() == [5, 5, 5, None, 5]
    told = plan_job(_in_two_pools(folder), OneActor())
    assert [pool["pool"] for pool in told["pools"]] == [None, "large"]
    assert told["rows_sampled"] == ESTIMATE_ROWS


def test_a_plan_without_a_row_estimates_nothing(folder: Path) -> None:
    told = plan_job(_job(folder, filter="number > 0 AND number < 1"), OneActor())
    assert (told["tokens_estimated"], told["seconds_estimated"], told["rows_sampled"]) == (None, None, 0)


def test_a_look_at_a_job_in_int8_shows_its_rows_and_tells_how_far_it_agrees(
    folder: Path, make_encoder: Callable[..., Path]
) -> None:
    try:
        resolve_dtype("int8", "cpu")
    except JobError as error:
        pytest.skip(str(error))

    def in_int8(**corpus: Any) -> AnnotateJob:
        annotation = {"name": "e", "task": "embed", "text": "text", "model": str(make_encoder()), "dtype": "int8"}
        document = _job(folder, **corpus).model_dump(mode="json")
        return AnnotateJob.model_validate(document | {"annotations": [annotation | {"int8_agreement": 1.0}]})

    assert preview(in_int8(), OneActor(), 5)["e_embedding"].null_count == 1
    assert preview(in_int8(filter="number > 0 AND number < 1"), OneActor(), 3).num_rows == 0
    nulls = preview(in_int8(filter="number = 3"), OneActor(), 3)
    assert [why.split(":")[0] for why in nulls["quarantine"].to_pylist()] == ["null_text"] * 3
    (note,) = plan_job(in_int8(), OneActor())["notes"]
    assert note.startswith("annotation 'e' in int8, beside float32: 99% of ")


def test_what_a_run_would_refuse_a_look_refuses_too(folder: Path) -> None:
    with pytest.raises(CorpusError, match="did you mean 'number'"):
        plan_job(_job(folder, filter="nummer = 1"), OneActor())
    (folder / "out").mkdir()
    (folder / "out/letters.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        preview(_job(folder), OneActor(), 1)
