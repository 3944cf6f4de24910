"""A task that costs nothing: counts characters, and leaves a line for each unit that it computed.

Used by tests as a user's own `task: path/to/counting.py`. Words in a text make it misbehave.
"""

import os
import signal
import time
from pathlib import Path

import pyarrow as pa

from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation, AnnotationSettings, Task, Texts


class Counting(Task):
    """Characters of each text."""

    class Config(AnnotationSettings):
        """What it does besides counting."""

        log: str | None = None
        """A file that gets a line for each unit computed."""

        pause: float = 0.0
        """Seconds that each unit takes."""

    def fields(self) -> list[pa.Field]:
        return [pa.field("chars", pa.int32()), pa.field("label", pa.string())]

    def annotate(self, texts: Texts) -> Annotation:
        if any("KILL" in text for text in texts.values):
            os.kill(os.getpid(), signal.SIGKILL)
        if any("RAISE" in text for text in texts.values):
            raise ValueError("asked to raise")
        if any("HUGE" in text for text in texts.values):
            bytearray(1 << 50)  # more than any machine can address
        time.sleep(self.config.pause)
        if self.config.log is not None:
            with Path(self.config.log).open("a") as log:
                log.write(f"{len(texts.values)} {texts.values[:1]}\n")
        failures = {
            row: Failure(Reason.MODEL_FAILED, "asked to fail")
            for row, text in enumerate(texts.values)
            if "FAIL" in text
        }
        chars = [None if row in failures else len(text) for row, text in enumerate(texts.values)]
        labels = [None if count is None else ("long" if count > 20 else "short") for count in chars]
        columns = {"chars": pa.array(chars, pa.int32()), "label": pa.array(labels, pa.string())}
        every = Annotation.of(columns, len(chars))
        return Annotation(every.columns, every.tokens_R, every.truncated_R, failures)
