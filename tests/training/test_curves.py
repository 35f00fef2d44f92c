"""Curves of a run and of several: what is drawn, and odd inputs that do not break the end of a run."""

import math

import numpy as np
import PIL.Image
import pytest

from rmt_jax.training import curves


def metric_lines(steps: int) -> list[dict[str, float]]:
    train = [
        {
            "step": step,
            "epoch": step / 10,
            "train/loss": 2 / step,
            "train/lr": 1e-3,
            "train/images_per_second": 500.0,
        }
        for step in range(1, steps + 1)
    ]
    return [*train, {"step": steps, "epoch": steps / 10, "val/top1": 90.0, "val_ema/top1": 90.1}]


@pytest.mark.parametrize(
    "metrics",
    [
        metric_lines(200),
        metric_lines(1),
        metric_lines(200)[:-1],  # not evaluated yet
        [line | {"train/loss": math.nan, "val/top1": math.inf} for line in metric_lines(20)],
        [{"step": step, "train/loss": 1.0, "train/lr": 0.0} for step in range(20)],  # no epochs, a learning rate of 0
        [{"step": 1, "epoch": 1.0, "val/mIoU": 40.0}],
        [],
    ],
    ids=["usual", "one point", "no evaluation", "not finite", "no epochs", "segmentation", "empty"],
)
def test_curves(tmp_path, metrics):
    curves.plot_curves(metrics, tmp_path / "curves.png")
    with PIL.Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1320, 780)
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_curves_say_what_was_left_out():
    metrics = metric_lines(20)
    metrics[3]["train/loss"] = math.nan
    series = curves._series(metrics, "epoch", "train/loss")
    assert series.omitted == 1
    assert len(series.x) == len(series.y) == 19


def test_smoothing_keeps_a_constant_and_does_not_lag():
    np.testing.assert_allclose(curves._smooth(np.full(100, 3.0)), 3.0)
    ramp = np.arange(100.0)
    np.testing.assert_allclose(curves._smooth(ramp)[10:-10], ramp[10:-10])


@pytest.mark.parametrize("heights", [[0.5, 0.5], [0.9, 0.92], [0.92, 0.9], [0.1, 0.9], [0.4]])
def test_labels_keep_apart_and_in_order(heights):
    spread = curves._spread(heights)
    if len(heights) == 2:
        assert abs(spread[0] - spread[1]) >= 0.14 - 1e-9
        assert (spread[0] >= spread[1]) == (heights[0] >= heights[1])
    else:
        assert spread == heights


def lines_of(axes):
    """Those that hold data, legends aside."""
    return [line for line in axes.lines if len(line.get_xdata())]


def test_several_runs_have_a_colour_each_and_a_legend_with_their_last_values():
    slow = [line | {"train/loss": 5.0} for line in metric_lines(8)[:-1]]
    figure = curves.draw_curves({"fast_$1": metric_lines(8), "_slow": slow})
    loss, validation, rate, speed = figure.axes
    for panel, key in ((loss, "train/loss"), (rate, "train/lr"), (speed, "train/images_per_second")):
        first, second = lines_of(panel)
        for line, metrics in ((first, metric_lines(8)), (second, slow)):
            np.testing.assert_allclose(line.get_ydata(), [entry[key] for entry in metrics if key in entry])
            np.testing.assert_allclose(line.get_xdata(), [entry["epoch"] for entry in metrics if key in entry])
        assert (first.get_color(), second.get_color()) == curves.PALETTE[:2]
    raw, ema = lines_of(validation)
    assert (raw.get_ydata().tolist(), ema.get_ydata().tolist()) == ([90.0], [90.1])
    assert raw.get_color() == ema.get_color() == curves.PALETTE[0]
    assert raw.get_markerfacecolor() != ema.get_markerfacecolor()
    texts = figure.legends[0].get_texts()
    assert [text.get_text().strip() for text in texts] == ["fast_$1: 90.00 % / 90.10 %", "_slow"]
    assert not any(text.get_parse_math() for text in texts)


def test_curves_of_one_run_have_their_own_colours_and_no_legend_of_runs():
    figure = curves.draw_curves({"run": metric_lines(20)})
    logged, smoothed = lines_of(figure.axes[0])
    np.testing.assert_allclose(logged.get_ydata(), [2 / step for step in range(1, 21)])
    assert len(smoothed.get_ydata()) == 20
    assert [line.get_color() for line in lines_of(figure.axes[1])] == [curves.BLUE, curves.ORANGE]
    assert figure.legends == []


def test_steps_where_one_of_the_runs_has_no_epochs():
    bare = [{"step": 7, "train/loss": 1.0}]
    figure = curves.draw_curves({"a": metric_lines(3), "b": bare})
    assert [line.get_xdata().tolist() for line in lines_of(figure.axes[0])] == [[1, 2, 3], [7]]
    assert figure.axes[2].get_xlabel() == "step"


def test_runs_that_do_not_go_into_one_picture():
    other = [{"step": 1, "epoch": 1.0, "val/mIoU": 40.0}]
    with pytest.raises(ValueError, match=r"not of one task: a has top-1 accuracy, b has mIoU"):
        curves.draw_curves({"a": metric_lines(1), "b": other, "c": []})
    with pytest.raises(ValueError, match="22 runs: at most 21"):
        curves.draw_curves({str(index): [] for index in range(22)})
