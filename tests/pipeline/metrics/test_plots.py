import io
import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline.errors import JobError
from pipeline.metrics import plots

image = pytest.importorskip("matplotlib.image")

BLUE, LIGHT_BLUE, ORANGE, GREEN = (47, 111, 173), (139, 184, 222), (217, 119, 43), (61, 143, 106)
DARKEST = (23, 63, 105)  # of the confusion's shades
BINS = [
    {"low": 0.6, "high": 0.667, "rows": 20, "confidence": 0.63, "right": 0.3},
    {"low": 0.933, "high": 1.0, "rows": 1200, "confidence": 0.97, "right": 0.95},
]
TRAINING = [{"step": step, "loss": 3 / step} for step in range(1, 90)]
HELD_OUT = [{"step": step, "eval_loss": 3.3 / step, "eval_accuracy": step / 100} for step in (30, 60, 90)]
RATES = [{"step": step, "learning_rate": 3e-4 / step} for step in range(1, 90)]


def pixels(png):
    assert png.startswith(b"\x89PNG\r\n")
    return (image.imread(io.BytesIO(png))[:, :, :3] * 255).round().astype(int)


def share(png, color):
    """How much of a picture has that color, or nearly."""
    return (np.abs(pixels(png) - color).max(2) <= 6).mean()


def matrix(counts, without=None, labels=None):
    names = labels or [f"label {each}" for each in range(len(counts))]
    return {"labels": names, "counts": counts, "without_prediction": without or [0] * len(counts)}


def line(label, f1, gold, low=None, high=None):
    return {"label": label, "f1": f1, "f1_low": low, "f1_high": high, "gold": gold}


def test_where_all_is_right_the_diagonal_is_dark_and_where_it_is_spread_nothing_is():
    right, spread = (plots.confusion(matrix(counts)) for counts in (np.eye(4) * 9, np.ones((4, 4))))
    bar = share(spread, DARKEST)
    assert share(right, DARKEST) > bar + 0.05


def test_rows_without_prediction_make_a_gold_label_paler():
    whole, half = (plots.confusion(matrix([[5, 0], [0, 5]], without)) for without in ([0, 0], [5, 5]))
    assert share(half, DARKEST) < share(whole, DARKEST) / 4


def test_58_labels_get_the_room_that_their_names_need():
    few, many = (pixels(plots.confusion(matrix(np.eye(count)))) for count in (5, 58))
    assert many.shape[0] > 2 * few.shape[0]
    assert many.shape[0] / 58 > 25  # pixels a label


def test_200_labels_and_a_label_that_is_never_gold_are_drawn():
    counts = np.eye(200)
    counts[7] = 0
    assert max(pixels(plots.confusion(matrix(counts))).shape) < 5000


def test_names_are_drawn_as_they_are():
    plots.confusion(matrix([[1, 0], [0, 1]], labels=["$\\broken{", "ゲーム"]), title="of $x")
    plots.classes([line("$\\broken{", 0.5, 1), line("ゲーム", 0.5, 1), line("long " * 50, 0.5, 1)])
    assert pixels(plots.confusion(matrix([[1, 0], [0, 1]], labels=["x" * 500, "y"]))).shape[1] < 2000


def test_calibration_shows_what_is_right_and_the_gap():
    picture = plots.reliability(BINS, ece=0.03)
    assert share(picture, ORANGE) > 0.001
    assert pixels(plots.reliability(BINS)).shape[1] > 600


def test_a_bar_is_as_long_as_its_f1():
    long, short = (plots.classes([line(name, f1, 9) for name in "abcd"]) for f1 in (1.0, 0.25))
    assert share(long, LIGHT_BLUE) == pytest.approx(4 * share(short, LIGHT_BLUE), rel=0.05)


def test_intervals_are_drawn_where_there_are_some():
    without = plots.classes([line(name, 0.5, 9) for name in "abcd"])
    with_them = plots.classes([line(name, 0.5, 9, 0.2, 0.9) for name in "abcd"])
    assert share(with_them, LIGHT_BLUE) < share(without, LIGHT_BLUE)


def test_a_bar_is_as_long_as_its_rate_and_the_first_is_in_colour():
    drawn = plots.rates({"mine": (400.0, 350.0, 420.0), "other": (100.0, 90.0, 130.0)}, "tokens/s", "two")
    assert share(drawn, BLUE) / share(drawn, LIGHT_BLUE) == pytest.approx(4, rel=0.1)


def test_a_course_shows_what_was_logged():
    alone = plots.course(TRAINING)
    assert share(alone, BLUE) > 0
    assert share(alone, ORANGE) == share(alone, GREEN) == 0
    whole = plots.course([*TRAINING, *HELD_OUT, *RATES])
    assert share(whole, ORANGE) > 0
    assert share(whole, GREEN) > 0
    assert pixels(whole).shape[0] > pixels(alone).shape[0]


def test_one_step_a_loss_that_is_no_number_and_validation_alone_are_drawn():
    one = plots.course([{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}])
    assert share(one, BLUE) > 0
    assert share(plots.course(HELD_OUT), ORANGE) > 0


def test_without_a_loss_there_is_no_course():
    with pytest.raises(JobError, match=r"^there is no loss to draw: no logged step holds `loss` or `eval_loss`$"):
        plots.course([{"step": 1, "train_runtime": 3.0}])


def test_equal_figures_give_equal_files():
    assert plots.course(TRAINING) == plots.course(TRAINING)
    assert plots.confusion(matrix([[1, 0], [0, 1]])) == plots.confusion(matrix([[1, 0], [0, 1]]))


def test_no_display_and_no_shared_state_is_touched():
    code = (
        "import sys; from pipeline.metrics import plots; plots.course([{'step': 1, 'loss': 2.0}]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MPLBACKEND": "tkagg"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
