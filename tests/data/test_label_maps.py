"""Files of label maps, and maps that follow their pictures."""

import concurrent.futures
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image, ImageOps

from rmt_jax.data import label_writer
from rmt_jax.data.label_maps import GRID, MAP_SHAPE, LabelMaps, MissingLabelMapError, flip_map, warp_map
from rmt_jax.data.label_writer import LabelMapWriter, coverage, map_problem
from rmt_jax.data.randaugment import GEOMETRIC, OPERATIONS, Operation, apply_operation

NAMES = [f"n{folder:08d}/n{folder:08d}_{picture}" for folder in (3, 1, 2) for picture in (10, 9, 1001)]


def a_map(seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.standard_normal(MAP_SHAPE[1:]) * 5, rng.integers(1000, size=MAP_SHAPE[1:])]).astype(np.float16)


def write(path, names=NAMES, provenance=None):
    with LabelMapWriter(path, provenance or {}) as writer:
        for seed, name in enumerate(names):
            writer.add(name, a_map(seed))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "labels", provenance={"teacher": "NFNet-F6"})


def same(maps, picture_id, seed):
    scores, ids = maps[picture_id]
    expected = a_map(seed)
    assert scores.dtype == np.float16
    assert ids.dtype == np.int16
    return scores.tobytes() == expected[0].tobytes() and np.array_equal(ids, expected[1])


def test_every_map_is_found_by_its_picture(file):
    maps = LabelMaps(file)
    assert len(maps) == len(NAMES)
    assert sorted(maps.names()) == sorted(NAMES)
    assert maps.provenance == {"teacher": "NFNet-F6"}
    assert maps.num_classes == 1 + max(int(a_map(seed)[1].max()) for seed in range(len(NAMES)))
    for seed, name in enumerate(NAMES):
        stem = name.split("/")[1]
        for picture_id in (f"{name}.JPEG", f"{stem}.JPEG", stem, f"{stem}.png", f"elsewhere/{stem}.jpg"):
            assert same(maps, picture_id, seed)
            assert picture_id in maps


def test_another_process_and_many_threads_read_the_same(tmp_path):
    names = [f"picture_{number}" for number in range(300)]
    maps = pickle.loads(pickle.dumps(LabelMaps(write(tmp_path / "labels", names))))
    wanted = np.random.default_rng(0).integers(300, size=4000).tolist()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda number: same(maps, names[number], number), wanted))


@pytest.mark.parametrize("picture_id", ["n00000009_1.JPEG", "", "n00000003_1", "n00000003_10010000000.JPEG"])
def test_an_absent_picture_is_named(file, picture_id):
    maps = LabelMaps(file)
    assert picture_id not in maps
    with pytest.raises(MissingLabelMapError, match=r"rmt labels check .*docs/token_labels.md") as error:
        maps[picture_id]
    assert repr(picture_id) in str(error.value)


def test_pictures_of_one_name_are_told_apart_by_their_folder(tmp_path):
    maps = LabelMaps(write(tmp_path / "labels", ["cat/1", "dog/1", "cat/2"]))
    assert same(maps, "cat/1.png", 0)
    assert same(maps, "dog/1.png", 1)
    assert same(maps, "2.png", 2)
    assert "1.png" not in maps
    with pytest.raises(ValueError, match="1 pictures have the name of another, the first is '1'"):
        write(tmp_path / "labels2", ["cat/1", "dog/1", "cat/1"])
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_a_missing_file_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rmt labels pack .*rmt labels make .*docs/token_labels.md"):
        LabelMaps(tmp_path / "labels")


def test_other_files_are_refused(tmp_path, file):
    for number, content in enumerate((b"", b"no maps", file.read_bytes()[:-40_000], bytes(200_000))):
        path = tmp_path / f"other{number}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no file of label maps, or a damaged one"):
            LabelMaps(path)
    writer = ArrayRecordWriter(str(tmp_path / "pictures"), "group_size:1")
    writer.write(b"a picture")
    writer.close()
    with pytest.raises(ValueError, match="no file of label maps, or a damaged one"):
        LabelMaps(tmp_path / "pictures")


def test_a_later_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(label_writer, "VERSION", 2)
    path = write(tmp_path / "labels")
    with pytest.raises(ValueError, match=r"version 2, 5 classes on a 18x18 grid: this version reads .* version 1"):
        LabelMaps(path)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    old = write(tmp_path / "labels", ["old"])

    def interrupted():
        yield "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(old, interrupted())
    assert list(LabelMaps(old).names()) == ["old"]
    assert list(tmp_path.iterdir()) == [old]


def broken(part, value):
    label_map = a_map(0)
    label_map[part, 2, 3, 4] = value
    return label_map


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        (a_map(0)[:, :4], "found float16 (2, 4, 18, 18)"),
        (a_map(0).astype(np.float32), "found float32 (2, 5, 18, 18)"),
        ({"a": 1}, "found dict"),
        (broken(0, np.nan), "NaN"),
        (broken(0, np.inf), "infinite"),
        (broken(1, np.nan), "NaN"),
        (broken(1, -1), "found -1"),
        (broken(1, 7.5), "found 7.5"),
    ],
)
def test_broken_maps(tmp_path, label_map, words):
    assert words in map_problem(label_map)
    if isinstance(label_map, np.ndarray):
        with pytest.raises(ValueError, match="label map of 'x': "), LabelMapWriter(tmp_path / "labels", {}) as writer:
            writer.add("x", label_map)
    assert map_problem(a_map(0)) == ""


def test_coverage_counts_and_names(file):
    seen = []
    ids = [f"{name}.JPEG" for name in NAMES[:4]] + [f"absent_{i}.JPEG" for i in range(7)]
    found = coverage(LabelMaps(file), iter(ids), seen.append)
    assert (found.pictures, found.missing, found.surplus) == (11, 7, 5)
    assert found.first_missing == [f"absent_{i}.JPEG" for i in range(5)]
    assert sorted(found.first_surplus) == sorted(NAMES[4:])
    assert sum(seen) == 11
    full = coverage(LabelMaps(file), NAMES)
    assert (full.missing, full.surplus, full.first_missing, full.first_surplus) == (0, 0, [], [])


# Geometry: every cell of a picture has a colour of its own, (row, column, 255).

FILL = (99, 99, 0)


def painted(cell_width, cell_height):
    rows, columns = np.repeat(np.arange(GRID), cell_height), np.repeat(np.arange(GRID), cell_width)
    pixels = np.full((len(rows), len(columns), 3), 255, np.uint8)
    pixels[..., 0], pixels[..., 1] = rows[:, None], columns
    return Image.fromarray(pixels)


def cells(image):
    """What a picture shows in the middle of every cell: number of the cell, or -1 for the fill."""
    pixels = np.asarray(image).astype(int)
    height, width = (side // GRID for side in pixels.shape[:2])
    middles = pixels[height // 2 :: height, width // 2 :: width]
    return np.where(middles[..., 2] == 255, middles[..., 0] * GRID + middles[..., 1], -1)


def numbered():
    """(scores, ids) with the number of the cell, other numbers for every rank."""
    numbers = np.arange(GRID * GRID).reshape(1, GRID, GRID) + 1000 * np.arange(5)[:, None, None]
    return (numbers + 1).astype(np.float32), numbers.astype(np.int16)


def test_a_flipped_map_is_the_flipped_pictures():
    scores, ids = flip_map(*numbered())
    expected = cells(ImageOps.mirror(painted(9, 9)))
    for rank in range(5):
        np.testing.assert_array_equal(ids[rank], expected + 1000 * rank)
        np.testing.assert_array_equal(scores[rank], expected + 1000 * rank + 1)


@pytest.mark.parametrize("size", [(9, 9), (15, 9), (7, 13)], ids=str)
@pytest.mark.parametrize("share", [-1.0, -0.613, 0.313, 0.887])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_warped_map_is_the_warped_pictures(name, share, size):
    operation = Operation(name, share * GEOMETRIC[name], "nearest")
    expected = cells(apply_operation(painted(*size), operation, FILL))
    assert (expected != np.arange(GRID * GRID).reshape(GRID, GRID)).any()
    assert (expected == -1).any()
    scores, ids = warp_map(*numbered(), operation, size[0] / size[1])
    for rank in range(5):
        np.testing.assert_array_equal(scores[rank], np.where(expected < 0, 0, expected + 1000 * rank + 1))
        np.testing.assert_array_equal(ids[rank][expected >= 0], (expected + 1000 * rank)[expected >= 0])


@pytest.mark.parametrize(
    ("name", "level", "source"),
    [
        ("TranslateX", 2 / 18, lambda row, column: (row, min(column + 2, 17))),
        ("TranslateX", -2 / 18, lambda row, column: (row, max(column - 2, 0))),
        ("TranslateY", 3 / 18, lambda row, column: (min(row + 3, 17), column)),
    ],
)
def test_ids_extend_beyond_the_edge(name, level, source):
    scores, ids = warp_map(*numbered(), Operation(name, level + 1e-6, "bilinear"))
    for row, column in np.ndindex(GRID, GRID):
        from_row, from_column = source(row, column)
        assert ids[0, row, column] == from_row * GRID + from_column
    assert (scores == 0).sum() == 5 * 18 * round(18 * abs(level))
    assert scores.dtype == np.float32
    assert ids.dtype == np.int16


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - set(GEOMETRIC)))
def test_colours_move_nothing(name):
    scores, ids = warp_map(*numbered(), Operation(name, 1.0, "bilinear"))
    np.testing.assert_array_equal(scores, numbered()[0])
    np.testing.assert_array_equal(ids, numbered()[1])


def test_half_floats_stay_half_floats(file):
    scores, _ = warp_map(*LabelMaps(file)[NAMES[0]], Operation("Rotate", 30.0, "bicubic"))
    assert scores.dtype == np.float16


def test_the_index_is_compact(file):
    """Arrays and not a dict of names: each worker process has a copy."""
    maps = LabelMaps(file)
    assert maps._stems.dtype.kind == "S"
    assert len(pickle.dumps(maps)) < 400
