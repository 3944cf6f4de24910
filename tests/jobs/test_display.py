import contextlib
import io
import os
import pty
import re
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.display import LiveBar, PlainLines, duration, progress, watcher
from pipeline.progress import Snapshot

HALF = Snapshot(
    units_done=6,
    units_total=12,
    rows_done=24_576,
    rows_total=49_152,
    rows_quarantined=3,
    tokens=2_000_000,
    padding_tokens=80_000,
    tokens_per_second=21_060.4,
    eta_seconds=95.0,
)
DONE = replace(HALF, units_done=12, rows_done=49_152, eta_seconds=0.0)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal:
    """A real terminal of 80 columns, read by a thread of its own."""

    def __init__(self):
        self.controller, device = pty.openpty()
        self.stream = os.fdopen(device, "w", encoding="utf-8")
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        try:
            while piece := os.read(self.controller, 4096):
                self._seen += piece
        except OSError:  # the other end was closed
            pass

    def text(self):
        self.stream.close()
        self._reader.join()
        os.close(self.controller)
        return self._seen.decode()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0:00"), (7.4, "0:07"), (92, "1:32"), (7509, "2:05:09"), (-3, "0:00")]
)
def test_durations_are_short(seconds, told):
    assert duration(seconds) == told


def test_progress_tells_rows_speed_time_left_quarantine_and_padding():
    assert progress(HALF) == "24,576 of 49,152 rows (50%), 21,060 tokens/s, 1:35 left, 3 quarantined, 4% padding"


def test_progress_at_the_end_tells_no_share_and_no_time_left():
    assert progress(DONE) == "49,152 rows, 21,060 tokens/s, 3 quarantined, 4% padding"


def test_progress_before_the_first_receipt_tells_rows_alone():
    assert progress(Snapshot(0, 3, 0, 10, 0, 0, 0, None, None)) == "0 of 10 rows (0%)"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.none() | st.floats(0, 1e9), st.none() | st.floats(0, 1e9))
def test_progress_of_any_numbers_is_one_line(done, total, speed, left):
    snapshot = Snapshot(0, 1, done, total, 0, done, total, speed, left)
    assert "\n" not in progress(snapshot)


def test_plain_lines_come_first_soon_then_at_intervals_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with PlainLines(stream, interval_seconds=10, clock=clock) as lines:
        lines.phase("planning")
        lines.phase("planning")
        clock.now += 5
        lines.phase("starting 2 actors")
        for rows, seconds in ((4096, 14), (8192, 4), (12288, 7), (16384, 1)):
            clock.now += seconds
            lines.advance(replace(HALF, rows_done=rows))
        lines.note("2 files were added")
        clock.now += 1
        lines.advance(DONE)
    assert [line[:35].rstrip() for line in stream.getvalue().splitlines()] == [
        "[   0:00] planning",
        "[   0:05] starting 2 actors",
        "[   0:19] 4,096 of 49,152 rows (8%)",
        "[   0:30] 12,288 of 49,152 rows (25",
        "[   0:31] 2 files were added",
        "[   0:32] 49,152 rows, 21,060 token",
    ]
    assert lines.last == DONE


def test_plain_lines_go_on_when_nobody_reads_any_more():
    read_end, write_end = os.pipe()
    os.close(read_end)
    stream = os.fdopen(write_end, "w", buffering=1)
    PlainLines(stream).phase("planning")
    with contextlib.suppress(BrokenPipeError):  # what the stream still holds is lost
        stream.close()


def test_a_bar_shows_phase_rows_speed_and_leaves_one_line(terminal):
    clock = Clock()
    with LiveBar(terminal.stream, clock) as bar:
        bar.phase("starting 2 actors")
        bar._live.refresh()
        bar.note("2 files were added [since]")
        bar.phase("annotating")
        bar.advance(HALF)
        bar._live.refresh()
        clock.now += 95
        bar.advance(DONE)
    raw = terminal.text()
    shown = plain(raw)
    assert "starting 2 actors" in shown
    assert "2 files were added [since]" in shown
    assert "24,576/49,152 rows · 21,060 tokens/s · 1:35 left · 3 quarantined · 4% padding" in shown
    assert "50%" in shown
    assert shown.splitlines()[-1] == "[   1:35] 49,152 rows, 21,060 tokens/s, 3 quarantined, 4% padding"
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l"), "the cursor is shown again"


def test_what_a_library_prints_is_not_taken_into_the_bar(terminal, capsys):
    with LiveBar(terminal.stream):
        print("noise")
    assert "noise" not in plain(terminal.text())
    assert capsys.readouterr().out == "noise\n"


def test_a_bar_that_saw_no_receipt_leaves_nothing(terminal):
    with LiveBar(terminal.stream) as bar:
        bar.phase("planning")
    assert "rows" not in plain(terminal.text())


def test_no_color_means_no_colors(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with LiveBar(terminal.stream) as bar:
        bar.advance(HALF)
        bar._live.refresh()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.text())


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(terminal, monkeypatch):
    assert isinstance(watcher(terminal.stream), LiveBar)
    assert isinstance(watcher(io.StringIO()), PlainLines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(watcher(terminal.stream), PlainLines)
    terminal.text()
