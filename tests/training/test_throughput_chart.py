"""Bars of measured speed: what is read, what they are as long as, and files that hold something else."""

import json

import numpy as np
import pytest

from rmt_jax.training.figures import PALETTE
from rmt_jax.training.throughput_chart import Measurement, draw_throughput, read_measurement

FILE = {
    "measure": "model",
    "config": {"model": {"name": "rmt_t", "dtype": "bfloat16"}, "batch_size": 8, "data": {"image_size": 224}},
    "devices": "4 x TPU v5e",
    "seconds": {"rmt_jax": [0.02, 0.01, 0.04], "torch eager": [0.08]},
    "environment": {"cpu": "Model X", "cores": 2},
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_the_benchmark(tmp_path):
    found = read_measurement(write(tmp_path / "a.json", FILE))
    assert found == Measurement("rmt_t, forward pass, bfloat16, 8 of 224x224\n4 x TPU v5e", 8, FILE["seconds"])
    on_cpu = read_measurement(write(tmp_path / "b.json", FILE | {"measure": "train", "devices": "1 x cpu"}))
    assert on_cpu.title == "rmt_t, training step, bfloat16, 8 of 224x224\nModel X, 2 cores"


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        {"measure": "compile"},
        FILE | {"measure": "input"},
        {key: value for key, value in FILE.items() if key != "seconds"},  # of --topology
        FILE | {"seconds": {"rmt_jax": []}},
        FILE | {"seconds": {}},
        FILE | {"seconds": {"rmt_jax": [0.0]}},
    ],
)
def test_other_files(content, tmp_path):
    with pytest.raises(ValueError, match=r"a.json holds no timings: "):
        read_measurement(write(tmp_path / "a.json", content))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.json"):
        read_measurement(tmp_path / "none.json")


def test_bars_are_medians_and_whiskers_reach_from_the_least_to_the_most():
    other = Measurement("two", 4, {"torch eager": [0.5], "torch compiled": [0.25, 0.25]})
    figure = draw_throughput([Measurement("one", 8, FILE["seconds"]), other])
    speed, latency = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in speed.patches], [400, 100, 8, 16])
    np.testing.assert_allclose([bar.get_width() for bar in latency.patches], [20, 80, 500, 250])
    np.testing.assert_allclose(speed.lines[0].get_xdata(), [200, 800])
    np.testing.assert_allclose(latency.lines[0].get_xdata(), [10, 40])
    assert [label.get_text() for label in speed.get_yticklabels()] == ["one", "two"]
    assert [text.get_text() for text in speed.texts] == ["400", "100", "8", "16"]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["rmt_jax", "torch eager", "torch compiled"]
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    assert [bar.get_facecolor() for bar in speed.patches] == [colours[0], colours[1], colours[1], colours[2]]
    assert len(set(colours)) == 3 <= len(PALETTE)
