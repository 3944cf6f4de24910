"""Where a run's time went, as a picture: each stage has its bar, and the color that it has in the lanes."""

from typing import Any

import pytest

from pipeline.metrics import look
from pipeline.metrics.timeline import timeline
from pipeline.profile import Profile, Span, as_told

HANDS = (
    [Span("waiting for the GPU", 2.0, 0.5, 2), Span("forward", 2.5, 3.0, 2), Span("annotate", 1.5, 4.5, 1)],
    [Span("waiting for the GPU", 3.0, 2.5, 2), Span("forward", 5.5, 1.0, 2), Span("annotate", 2.0, 5.5, 1)],
)
"""Of an actor that has two units under way: while one thread computes on the GPU, the other one waits for it."""


@pytest.fixture
def profile() -> Profile:
    found = Profile(began=0.0)
    for hand, spans in enumerate(HANDS):
        unit = Span("unit", spans[-1].began - 0.5, spans[-1].seconds + 0.5)
        found.took(as_told("actor", [*spans, unit], hand))
    return found


def test_the_turns_that_threads_wait_for_on_a_gpu_are_a_stage_of_their_own(profile: Profile) -> None:
    assert profile.sums(ended=8.0)["actors"] == {
        "forward": 4.0,
        "waiting for the GPU": 3.0,
        "decode": 3.0,  # what `annotate` did beside both
        "waiting": pytest.approx(2.5),  # before a thread had its unit, and after it
        "rest": 1.0,
    }


def test_each_stage_has_its_bar_and_in_the_lanes_the_same_color(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    colors = pytest.importorskip("matplotlib.colors")
    drawn: list[Any] = []

    def png(figure: Any) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(look, "png", png)
    timeline(profile, ended=8.0, title="2 units")
    above, below = drawn[0].axes
    stages = [label.get_text() for label in below.get_yticklabels()]
    assert stages == list(profile.sums(ended=8.0)["actors"])
    bars = {stage: colors.to_hex(bar.get_facecolor()) for stage, bar in zip(stages, below.patches, strict=True)}
    assert len(set(bars.values())) == len(stages)
    assert {colors.to_hex(each.get_facecolor()[0]) for each in above.collections} == set(bars.values()) - {
        bars["waiting"]  # nobody did it
    }
