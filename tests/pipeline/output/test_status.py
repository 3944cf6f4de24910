"""A glance at an output: how far it is, who runs it, what is set aside."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import OutputError
from pipeline.output.lease import Lease
from pipeline.output.status import status

if TYPE_CHECKING:
    from tests.pipeline.output.conftest import Small


def test_a_finished_output(finished: "Small") -> None:
    found = status(finished.store.root)
    assert (found.finished, found.running, found.epoch, found.damaged) == (True, None, 1, ())
    assert (found.units_done, found.units_total, found.units_quarantined) == (4, 4, 1)
    assert (found.rows_done, found.rows_total, found.rows_out, found.rows_quarantined) == (180, 180, 167, 13)
    assert found.reasons == {"blank_text": 3, "damaged_row_group": 10, "not_parquet": 1}


def test_an_output_that_somebody_runs(small: "Small") -> None:
    small.run(small.plan.units[:1], finish=False)
    with Lease.acquire(small.store, "r2"):
        found = status(small.store.root)
        assert found.running is not None
        assert (found.running.run_id, found.finished, found.epoch) == ("r2", False, 2)
    assert (found.units_done, found.rows_done, found.rows_out) == (1, 80, 78)
    assert status(small.store.root).running is None


def test_a_damaged_receipt_is_told(finished: "Small") -> None:
    finished.store.write("metadata/receipts/a1.json", b"torn")
    found = status(finished.store.root)
    assert (found.finished, found.units_done) == (False, 3)
    assert found.damaged[0].startswith("metadata/receipts/a1.json: it is not JSON")


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no output of corpusmill"):
        status(str(tmp_path / "nowhere"))
