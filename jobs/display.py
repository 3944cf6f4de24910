"""What a person sees while a job runs: a live bar on a terminal, a plain line now and then elsewhere.

    ⠹ annotating ━━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  43%
      24,576/56,684 rows · 21,060 tokens/s · 1:32 left · 1 quarantined · 4% padding

    [   0:19] 4,096 of 56,684 rows (7%), 20,870 tokens/s, 3:42 left, 1 quarantined, 4% padding

Both go to standard error; what a command answers goes to standard output (`jobs.summary`).
"""

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipeline.progress import Snapshot

INTERVAL_SECONDS = 10.0
"""Between two plain lines."""


def duration(seconds: float) -> str:
    """`0:07`, `1:32`, `2:05:09`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def share(snapshot: Snapshot) -> float:
    """Rows done among all, 0 to 1."""
    return min(1.0, snapshot.rows_done / snapshot.rows_total) if snapshot.rows_total else 1.0


def facts(snapshot: Snapshot) -> list[str]:
    """What is to be told of a snapshot besides its rows, in the order of weight."""
    told = []
    if snapshot.tokens_per_second is not None:
        told.append(f"{snapshot.tokens_per_second:,.0f} tokens/s")
    if snapshot.eta_seconds is not None and snapshot.rows_done < snapshot.rows_total:
        told.append(f"{duration(snapshot.eta_seconds)} left")
    if snapshot.rows_quarantined:
        told.append(f"{snapshot.rows_quarantined:,} quarantined")
    if snapshot.tokens:
        told.append(f"{snapshot.padding_share:.0%} padding")
    return told


class LiveBar:
    """A bar that lives in the last two lines of a terminal and leaves one line behind."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.last: Snapshot | None = None
        self._console = Console(file=stream)
        self._clock = clock
        self._began = clock()
        self._spinner = Spinner("dots", style="cyan")
        self._phase = "starting"
        # What libraries print goes to a log (`jobs.quiet`), not above the bar: Live leaves the standard streams alone.
        self._live = Live(
            console=self._console,
            get_renderable=self._view,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        """Show the bar."""
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was, with one line of what came of it."""
        self._live.stop()
        if self.last is not None:
            self._console.print(
                Text(stamped(progress(self.last), self._clock() - self._began), style="dim"), soft_wrap=True
            )

    def phase(self, text: str) -> None:
        """Shown beside the spinner."""
        self._phase = text

    def advance(self, snapshot: Snapshot) -> None:
        """Move the bar; the live display draws it at its own pace."""
        self.last = snapshot

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def _view(self) -> Group:
        head = Table.grid(expand=True, padding=(0, 1, 0, 0))
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True, overflow="ellipsis", max_width=max(12, self._console.width // 3))
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        if self.last is None:
            head.add_row(self._spinner, Text(self._phase), "", Text(duration(self._clock() - self._began), style="dim"))
            return Group(head)
        done = share(self.last)
        bar = ProgressBar(total=1.0, completed=done, complete_style="cyan", finished_style="green")
        head.add_row(self._spinner, Text(self._phase), bar, Text(f"{done:.0%}"))
        told = " · ".join([f"{self.last.rows_done:,}/{self.last.rows_total:,} rows", *facts(self.last)])
        return Group(head, Padding(Text(told, style="dim", no_wrap=True, overflow="ellipsis"), (0, 0, 0, 2)))


class PlainLines:
    """A line at each new phase, one with the first receipts, then one an interval, and one at the end."""

    def __init__(
        self,
        stream: TextIO,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.last: Snapshot | None = None
        self._stream = stream
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._began = clock()
        self._told_at: float | None = None
        self._phase: str | None = None

    def __enter__(self) -> Self:
        """Nothing to show yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clear."""

    def phase(self, text: str) -> None:
        """One line, unless the phase is the same."""
        if text != self._phase:
            self._phase = text
            self._print(text)

    def advance(self, snapshot: Snapshot) -> None:
        """One line when it is time for one."""
        self.last = snapshot
        now = self._clock()
        finished = snapshot.units_done >= snapshot.units_total
        if finished or self._told_at is None or now - self._told_at >= self._interval_seconds:
            self._told_at = now
            self._print(progress(snapshot))

    def note(self, text: str) -> None:
        """One line."""
        self._print(text)

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads any more: that must not end a run
            print(stamped(text, self._clock() - self._began), file=self._stream, flush=True)


def progress(snapshot: Snapshot) -> str:
    """`4,096 of 56,684 rows (7%), 20,870 tokens/s, 3:42 left, 1 quarantined, 4% padding`."""
    rows = f"{snapshot.rows_done:,} rows"
    if snapshot.rows_done < snapshot.rows_total:
        rows = f"{snapshot.rows_done:,} of {snapshot.rows_total:,} rows ({share(snapshot):.0%})"
    return ", ".join([rows, *facts(snapshot)])


def stamped(text: str, seconds: float) -> str:
    """A line with the time since the start: `[   0:19] starting 2 actors`."""
    return f"[{duration(seconds):>7}] {text}"


def watcher(stream: TextIO) -> LiveBar | PlainLines:
    """The watcher that suits a stream: a bar on a terminal that can move its cursor, lines elsewhere."""
    console = Console(file=stream)
    return LiveBar(stream) if console.is_terminal and not console.is_dumb_terminal else PlainLines(stream)
