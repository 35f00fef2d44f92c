"""Confusion of classes: what is stored, and what is drawn of few classes and of many."""

import numpy as np
import pytest

from rmt_jax.training.confusion import Confusion, draw_confusion, read_confusion, write_confusion
from rmt_jax.training.confusion_overview import MOST_PAIRS, Pair, most_confused

COUNTS = np.array([[3, 0, 1], [0, 2, 0], [2000, 0, 6000]])
NAMES = (r"$\x$ is no formula", "a very long name of a class", "3")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_cells_are_shares_of_rows_and_numbers_are_counts():
    figure = draw_confusion(Confusion(COUNTS, NAMES, "pictures", "$title"))
    panel, bar = figure.axes
    np.testing.assert_allclose(panel.images[0].get_array(), [[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]])
    assert texts(panel) == ["3", "1", "2", "2,000", "6,000"]
    assert [label.get_text() for label in panel.get_yticklabels()] == [NAMES[0][:15] + "…", "a very long nam…", "3"]
    assert (panel.get_title(loc="left"), bar.get_ylabel()) == ("$title", "share of the true class")


def test_of_pixels_the_numbers_are_percent():
    panel, bar = draw_confusion(Confusion(COUNTS, NAMES, "pixels", "")).axes
    assert texts(panel) == ["75.0", "25.0", "100.0", "25.0", "75.0"]
    assert bar.get_ylabel() == "share of the true class (numbers: %)"


def test_no_numbers_where_they_would_not_fit():
    panel, _ = draw_confusion(Confusion(np.eye(21, dtype=int), tuple(map(str, range(21))), "pictures", "")).axes
    assert texts(panel) == []


def test_the_pairs_that_are_confused_most():
    counts = np.array([[5, 5, 1], [0, 9, 0], [5, 0, 0]])
    assert most_confused(counts) == [Pair(2, 0, 5, 1.0), Pair(0, 1, 5, 5 / 11), Pair(0, 2, 1, 1 / 11)]
    assert most_confused(counts, 1) == [Pair(2, 0, 5, 1.0)]
    assert most_confused(np.eye(4, dtype=int)) == []


@pytest.mark.parametrize("unit", ["pictures", "pixels"])
def test_of_a_thousand_classes_those_that_matter(unit):
    counts = np.diag(np.full(1000, 50))
    counts[7, 7], counts[7, 8] = 10, 40
    counts[9] = 0  # no pictures
    counts[11, 12] = 30
    figure = draw_confusion(Confusion(counts, tuple(f"class_{index}" for index in range(1000)), unit, "title"))
    panels = {panel.get_title(loc="left"): panel for panel in figure.axes}
    pairs = panels["Most confused pairs: true → predicted"]
    assert [bar.get_width() for bar in pairs.patches] == [40, 30]
    assert [label.get_text() for label in pairs.get_yticklabels()] == ["class_7 → class_8", "class_11 → class_12"]
    assert texts(pairs) == ["40 (80 %)", "30 (38 %)"]
    lowest = panels["Classes with the lowest accuracy"]
    assert len(lowest.patches) == MOST_PAIRS
    assert texts(lowest)[:2] == ["20 % of 50", "62 % of 80"]
    assert sum(bar.get_height() for bar in panels["Accuracy of 999 classes"].patches) == 999
    (dots,) = panels["Precision and accuracy"].collections
    assert len(dots.get_offsets()) == 999
    np.testing.assert_allclose(dots.get_offsets()[7], [100, 20])
    np.testing.assert_allclose(dots.get_offsets()[8], [100 * 50 / 90, 100])


def test_a_perfect_or_an_empty_matrix_is_drawn_too():
    names = tuple(map(str, range(60)))
    for counts in (np.eye(60, dtype=int), np.zeros((60, 60), int)):
        assert draw_confusion(Confusion(counts, names, "pictures", "")).axes


def test_what_is_written_is_read(tmp_path):
    given = Confusion(COUNTS, NAMES, "pixels", "$title")
    write_confusion(tmp_path, given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.npz", "confusion.png"]
    found = read_confusion(tmp_path)
    np.testing.assert_array_equal(found.counts, COUNTS)
    assert found[1:] == given[1:]


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no directory"):
        read_confusion(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no confusion.npz in .*--mode=eval"):
        read_confusion(tmp_path)
    for content in (b"", b"PK\x03\x04 cut off", b"no archive"):
        (tmp_path / "confusion.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_confusion(tmp_path)
    np.savez(tmp_path / "confusion.npz", counts=COUNTS)
    with pytest.raises(ValueError, match="is damaged"):
        read_confusion(tmp_path)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expected counts \[classes classes\] with a name for each class"):
        draw_confusion(Confusion(COUNTS, NAMES[:2], "pictures", ""))
