"""What can go wrong, as a tree; `exit_code` is what `corpusmill` answers with.

    CorpusmillError            1
    ├── JobError               2   the job file or the command line is wrong
    │   ├── ModelError         2   a model cannot be found, pinned, trusted or loaded
    │   ├── CorpusError        2   the corpus cannot be planned: nothing there, no such column, drift
    │   ├── OutputError        2   the output folder is refused: foreign, changed, inside the corpus
    │   └── PlacementError     2   the cluster cannot hold what was asked for
    ├── RunError               1   the run failed half-way; what is committed stays
    │   ├── LeaseError         1   another run holds this output
    │   └── WorkerDiedError    1   a process died of what it computed, or for want of memory
    └── Interrupted          130   somebody stopped the run; the same command goes on

A message names the value, the bound, the place and what to do. A bad row never raises: it is quarantined with one of
`pipeline.quarantine.Reason`. Three codes belong to no error: 3 done, but over the quarantine limit; 4 `verify` found a
fault or an unfinished output; 5 a trained model did not pass its gate.
"""

from typing import ClassVar


class CorpusmillError(Exception):
    """The root: everything that a user may have to read."""

    exit_code: ClassVar[int] = 1


class JobError(CorpusmillError):
    """The job file or the command line is wrong; nothing was computed."""

    exit_code = 2


class ModelError(JobError):
    """A model cannot be found, pinned, trusted or loaded."""


class CorpusError(JobError):
    """The corpus cannot be planned."""


class OutputError(JobError):
    """The output folder is refused."""


class PlacementError(JobError):
    """The machine or cluster cannot hold what was asked for."""


class RunError(CorpusmillError):
    """The run failed half-way; what is committed stays and the same command goes on."""


class LeaseError(RunError):
    """Another run holds this output."""


class WorkerDiedError(RunError):
    """A process died of what it computed, or for want of memory."""


class Interrupted(CorpusmillError):  # noqa: N818 - it is not a fault
    """Somebody stopped the run."""

    exit_code = 130
