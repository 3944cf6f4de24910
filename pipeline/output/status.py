"""How far an output is, from its plan and receipts; a glance, where `verify` is a proof.

Status(path="out/topics", finished=False, running=Holder(pid=4711, …), epoch=2, units_done=7, units_total=12, …)
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.output import epoch, lease, manifest, planfile
from pipeline.output.receipts import Receipt, load_all, totals
from pipeline.output.storage import Store


@dataclass(frozen=True, slots=True)
class Status:
    """What stands in an output at this moment."""

    path: str
    finished: bool  # every unit has a receipt and the manifest is of the last run
    running: lease.Holder | None
    epoch: int  # of the last run that began
    units_done: int
    units_total: int
    units_quarantined: int
    rows_done: int  # read, before the filter
    rows_total: int
    rows_out: int
    rows_filtered: int
    rows_quarantined: int
    reasons: Mapping[str, int]
    tokens: int
    damaged: tuple[str, ...]  # one sentence for each receipt that cannot be trusted


def status(path: str) -> Status:
    """Look at an output; OutputError where there is none, or where its plan or epoch file was edited."""
    store = Store.at(path)
    plan = planfile.load(store)
    receipts, damaged = load_all(store)
    planned = {unit.id for unit in plan.units}
    done: dict[str, Receipt] = {unit: receipt for unit, receipt in receipts.items() if unit in planned}
    sums = totals(done)
    last = epoch.newest(store)
    written = manifest.load(store)
    return Status(
        path=path,
        finished=len(done) == len(planned) and not damaged and written is not None and written["epoch"] == last,
        running=lease.holder(store),
        epoch=last,
        units_done=len(done),
        units_total=len(planned),
        units_quarantined=sums["units_quarantined"],
        rows_done=sums["rows_read"],
        rows_total=plan.rows,
        rows_out=sums["rows_out"],
        rows_filtered=sums["rows_filtered"],
        rows_quarantined=sums["rows_quarantined"],
        reasons=sums["reasons"],
        tokens=sums["tokens"],
        damaged=tuple(damaged),
    )
