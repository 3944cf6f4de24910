"""Deaths of workers are blamed on the unit that ran, and with a journal on the row."""

from pathlib import Path

from pipeline.blame import Attempt, Death, blamed_rows, suspected_rows
from pipeline.output.storage import Store


def test_a_first_attempt_knows_of_no_death(tmp_path: Path) -> None:
    assert Attempt(Store.at(str(tmp_path)), 1, "6f1c", "annotate").deaths == []


def test_an_attempt_that_ended_well_leaves_nothing_to_blame(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    Attempt(store, 1, "6f1c", "annotate").end()
    assert Attempt(store, 1, "6f1c", "annotate").deaths == []


def test_an_attempt_without_an_end_is_a_death_with_the_rows_that_were_in_flight(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    Attempt(store, 1, "6f1c", "annotate")  # dies at once
    Attempt(store, 1, "6f1c", "annotate").running("stream", [7, 41])
    assert Attempt(store, 1, "6f1c", "annotate").deaths == [Death("stream", None), Death("stream", (7, 41))]


def test_deaths_count_for_their_own_unit_stage_and_run_only(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    Attempt(store, 1, "6f1c", "annotate")
    assert Attempt(store, 1, "6f1c", "read").deaths == []
    assert Attempt(store, 1, "77aa", "annotate").deaths == []
    assert Attempt(store, 2, "6f1c", "annotate").deaths == []  # the driver of epoch 1 died: nobody is to blame


def test_a_withdrawn_attempt_keeps_the_deaths_before_it(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    Attempt(store, 1, "6f1c", "annotate")
    Attempt(store, 1, "6f1c", "annotate").withdraw()
    assert len(Attempt(store, 1, "6f1c", "annotate").deaths) == 1


def test_a_mark_that_was_torn_by_the_death_itself_still_counts(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    Attempt(store, 1, "6f1c", "annotate")
    store.mark("metadata/tmp/attempts-1/6f1c.annotate.0", b'{"phase": "st')
    assert Attempt(store, 1, "6f1c", "annotate").deaths == [Death("stream", None)]


def test_beside_others_nobody_is_blamed_but_all_in_flight_are_suspected() -> None:
    deaths = [Death("stream", None), Death("stream", (7, 41))]
    assert blamed_rows(deaths, 100) == set()
    assert suspected_rows(deaths, 100) == [7, 41]


def test_without_a_journal_every_row_is_suspected() -> None:
    assert suspected_rows([Death("stream", None), Death("stream", None)], 3) == [0, 1, 2]


def test_who_dies_alone_is_blamed_and_no_longer_suspected() -> None:
    deaths = [Death("stream", None), Death("stream", (7, 41)), Death("trial", (41,))]
    assert blamed_rows(deaths, 100) == {41}
    assert suspected_rows(deaths, 100) == [7]


def test_a_micro_batch_that_dies_after_its_rows_passed_alone_is_blamed_whole() -> None:
    deaths = [Death("stream", None), Death("stream", (7,)), Death("whole", (7, 8, 9))]
    assert blamed_rows(deaths, 100) == {7, 8, 9}
