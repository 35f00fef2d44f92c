"""Files are written, the order is right, odd inputs do not break the end of a run."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from rmt_jax.training import figures


def test_mistakes_come_first():
    labels = np.array([0, 0, 1, 1, 0])
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.8, 0.2], [0.51, 0.49]])
    # Wrong: 3 (80 % sure), 1 (70 %). Right: 4 (51 %), 2 (60 %), 0 (90 %).
    assert figures.order_predictions(labels, probabilities).tolist() == [3, 1, 4, 2, 0]


@pytest.mark.parametrize(
    ("count", "height", "expected"),
    [(60, 8, (1500, 864)), (3, 8, (720, 360)), (12, 96, (1500, 468))],
    ids=["more than fit", "few", "large pictures"],
)
def test_predictions(tmp_path, count, height, expected):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, height, height, 3), dtype=np.uint8)
    probabilities = generator.dirichlet([1.0] * 3, count).astype(np.float32)
    names = ["a very long name of a class", r"$\x$ is no formula", "3"]
    figures.plot_predictions(images, generator.integers(0, 3, count), probabilities, names, tmp_path / "p.png")
    with PIL.Image.open(tmp_path / "p.png") as picture:
        assert picture.size == expected
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_mistakes_are_marked_in_words_and_colour():
    panel = figures.Figure().subplots()
    image = np.zeros((8, 8, 3), np.uint8)
    figures._draw_prediction(panel, image, 1, np.array([0.75, 0.25]), ["three", "eight"])
    assert panel.get_title() == "✗ three  75 %\nis eight"
    assert panel.title.get_color() == figures._RED
    assert panel.images[0].get_interpolation() == "nearest"
    figures._draw_prediction(panel, image, 0, np.array([0.75, 0.25]), ["three", "eight"])
    assert panel.get_title() == "✓ three  75 %\n"


@pytest.mark.parametrize(
    ("mistakes", "count", "text"),
    [
        (5, 360, "shown: the mistakes, then the 35 least sure of the others"),
        (50, 360, "the 40 most confident mistakes are shown"),
        (0, 360, "the 40 least sure are shown"),
        (5, 40, "all shown: mistakes first, then the least sure"),
    ],
)
def test_title_says_what_is_shown(mistakes, count, text):
    assert figures._selection(mistakes, count, 40) == text


@pytest.mark.parametrize(
    ("images", "labels", "classes", "names"),
    [((4, 8, 8, 1), 4, 2, 2), ((4, 8, 8, 3), 3, 2, 2), ((4, 8, 8, 3), 4, 2, 3), ((0, 8, 8, 3), 0, 2, 2)],
    ids=["channels", "labels", "names", "no pictures"],
)
def test_shapes_that_do_not_fit(tmp_path, images, labels, classes, names):
    with pytest.raises(ValueError, match=r"expected images \[n height width 3\]"):
        figures.plot_predictions(
            np.zeros(images, np.uint8),
            np.zeros(labels, np.int64),
            np.zeros((images[0], classes)),
            [str(name) for name in range(names)],
            tmp_path / "p.png",
        )
    assert not list(tmp_path.iterdir())


def test_pyplot_is_not_loaded():
    check = "import sys, rmt_jax.training.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
