"""Texts joined into sequences of a window's length, so that no step computes short ones: pure.

packed([5, 3, 9, 40, 2], room=20, gap=1)
-> [[Part(3, 0, 20)], [Part(3, 20, 40)], [Part(0, 0, 5), Part(1, 0, 3), Part(2, 0, 9)], [Part(4, 0, 2)]]
"""

from collections.abc import Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Tokens [start, stop) of a text."""

    row: int
    start: int
    stop: int


def packed(lengths_R: Sequence[int], room: int, gap: int) -> list[list[Part]]:
    """The sequences: in each at most `room` tokens, with `gap` tokens between two texts.

    A text that fits into a sequence is never cut, as cut texts make a worse model (Ding et al. 2024,
    arXiv:2404.10830); a longer one fills sequences of its own, and what is left of it is packed as a text.
    """
    assert room > 0
    assert gap >= 0
    sequences: list[list[Part]] = []
    current: list[Part] = []
    used = 0
    for row, length in enumerate(lengths_R):
        start = 0
        while length - start > room:
            sequences.append([Part(row, start, start + room)])
            start += room
        if start == length:
            continue
        if current and used + gap + length - start > room:
            sequences.append(current)
            current, used = [], 0
        used += (gap if current else 0) + length - start
        current.append(Part(row, start, length))
    return [*sequences, current] if current else sequences
