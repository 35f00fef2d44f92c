"""`rmt plot`: what the augmentation sheet holds, and what the commands say, write and refuse."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.data import eval_transform
from rmt_jax.data.randaugment import OPERATIONS, Operation, apply_operation, mean_color
from rmt_jax.training import curves
from rmt_jax.training.augment_sheet import sample_photographs, sections
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import Word, parse
from rmt_jax.training.confusion import Confusion, write_confusion

SMALL = {"image_size": Word(64)}


def recipe(path, **changes):
    values = load_config(path)
    values["data"] |= SMALL | changes.pop("data", {})
    return parse(values | changes)


@pytest.fixture(scope="module")
def photographs():
    return sample_photographs()


@pytest.fixture(scope="module")
def sheet(photographs):
    return sections(recipe("configs/rmt_s.py"), *photographs, seed=1)


def test_the_sections_of_the_plain_recipe(sheet, photographs):
    first, training, device, operations = sheet
    np.testing.assert_array_equal(first.panels[0].picture, np.asarray(photographs[0]))
    np.testing.assert_array_equal(
        first.panels[1].picture, eval_transform(photographs[0], recipe("configs/rmt_s.py").data)
    )
    assert len({panel.picture.tobytes() for panel in training.panels}) == 18
    assert "erased with probability 0.25, mixup or CutMix with probability 1" in device.heading
    assert len(device.panels) == 6
    assert len({panel.caption for panel in device.panels}) > 1
    assert "magnitude 9: 2 are drawn for a picture, each applied with probability 0.5" in operations.heading


def test_every_operation_is_shown_under_its_name(sheet):
    evaluated, operations = Image.fromarray(sheet[0].panels[1].picture), sheet[-1].panels
    assert [panel.caption.split()[0] for panel in operations] == list(OPERATIONS)
    captions = {panel.caption.split()[0]: panel for panel in operations}
    assert captions["Posterize"].caption == "Posterize to 1 bit"
    for name, level in {"Invert": 0.0, "Posterize": 1.0, "Solarize": 26.0, "SolarizeAdd": 99.0}.items():
        expected = apply_operation(evaluated, Operation(name, level, "bicubic"), mean_color((0.485, 0.456, 0.406)))
        np.testing.assert_array_equal(captions[name].picture, np.asarray(expected))


def test_what_the_model_sees_is_the_hosts_picture_where_nothing_changes_it(photographs):
    config = recipe("configs/digits.py", data={"augment": {}})
    first, _, device = sections(config, *photographs, seed=0)
    assert device.heading.endswith("neither erased nor mixed")
    for panel in device.panels:
        assert panel.caption == ""
        np.testing.assert_allclose(panel.picture * 255, first.panels[1].picture, atol=0.01)


def test_the_share_is_that_of_the_photograph(photographs):
    white, black = (Image.new("RGB", photographs[0].size, color) for color in ("white", "black"))
    config = recipe("configs/digits.py", data={"augment": {}}, mix={"mixup": 0.8, "cutmix": 1.0, "group": 64})
    *_, device = sections(config, white, black, seed=0)
    for panel in device.panels:
        assert panel.caption == f"target {100 * panel.picture.mean():.0f} % itself"
    large = dataclasses.replace(config.data, image_size=160)  # five tokens along each side
    tokens = dataclasses.replace(
        config, data=large, mix=dataclasses.replace(config.mix, mixup=0.0, cutmix=0.0, mix_token=True)
    )
    *_, device = sections(tokens, white, black, seed=0)
    assert "exchanged after the stem" in device.heading
    assert len({panel.caption for panel in device.panels}) > 1
    for panel in device.panels:
        assert panel.caption == f"target {100 * panel.picture.mean():.0f} % itself"


def test_token_labels_show_the_crop_on_what_was_cropped(photographs):
    _, wholes, crops, *_ = sections(recipe("configs/rmt_s.py:token_label"), *photographs, seed=2)
    for whole, crop in zip(wholes.panels, crops.panels, strict=True):
        left, top, width, height = whole.box
        cut = Image.fromarray(whole.picture).resize((64, 64), 2, box=(left, top, left + width, top + height))
        difference = np.abs(np.asarray(cut, np.float32) - crop.picture)
        assert difference.mean() < 4  # the interpolation may be the other one
        assert np.abs(np.asarray(photographs[0].resize((64, 64)), np.float32) - crop.picture).mean() > 8


def test_the_command_writes_a_sheet_of_ones_own_picture(tmp_path, capsys):
    picture, output = tmp_path / "mine.png", tmp_path / "sheet.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    words = [
        "--config.data.image_size=32",
        "--config.data.augment.rotate=0",
        f"--image={picture}",
        f"--output={output}",
    ]
    assert main(["plot", "augment", "--config", "configs/digits.py", *words]) == 0
    assert capsys.readouterr().out.split() == [str(output)]
    with Image.open(output) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(axis=1).mean() > 0.3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.png", "sheet.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/none.py"], "there is no file configs/none.py"),
        (["configs/digits.py", "--config.dat.name=x"], "Did you mean data?"),
        (["configs/digits.py", "--output=sheet.jpg"], "ends in .png, .svg, .pdf"),
        (["configs/digits.py", "--output=nowhere/x.png"], "a file in a directory that exists"),
        (["configs/digits.py", "--seed=-1"], "--seed=-1: expected"),
        (["configs/digits.py", "--image=nothing.jpg"], "nothing.jpg"),
        (["configs/digits.py", "--image=pyproject.toml"], "cannot decode the picture"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refusals_of_augment(words, message, capsys):
    assert main(["plot", "augment", "--config", *words]) == 2
    assert message in capsys.readouterr().err


DIGITS = str(pathlib.Path("notebooks/rmt_nano_digits.safetensors").absolute())


@pytest.fixture
def workdirs(tmp_path, monkeypatch):
    """The working directory, with two runs, a measurement and a picture."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [{"step": step, "epoch": float(step), "train/loss": 1 / step} for step in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = np.diag([4, 5]) + 1
    write_confusion(tmp_path / "a", Confusion(counts, ("cat", "dog"), "pictures", "title"))
    config = {"model": {"name": "rmt_t", "dtype": "float32"}, "batch_size": 2, "data": {"image_size": 64}}
    speed = {"measure": "model", "config": config, "devices": "1 x TPU", "seconds": {"rmt_jax": [0.1, 0.2]}}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "mine.png")
    return tmp_path


MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["curves", "a"], "curves.png"),
        (["curves", "a", "b", "--output=both.pdf"], "both.pdf"),
        (["confusion", "a"], "confusion.png"),
        (["throughput", "speed.json", "speed.json"], "throughput.png"),
        (["decay", "rmt_nano", "--image-size=64", "--output=decay.SVG"], "decay.SVG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_figure_is_where_the_command_says(words, written, workdirs, capsys):
    before = set(workdirs.iterdir())
    assert main(["plot", *words]) == 0
    assert capsys.readouterr().out == f"{written}\n"
    assert set(workdirs.iterdir()) - before == {workdirs / written}
    assert (workdirs / written).read_bytes().startswith(MAGIC[pathlib.Path(written).suffix.lower()])


def test_the_same_figure_is_the_same_file(workdirs):
    for suffix in MAGIC:
        for name in ("one", "two"):
            assert main(["plot", "confusion", "a", f"--output={name}{suffix}"]) == 0
        assert (workdirs / f"one{suffix}").read_bytes() == (workdirs / f"two{suffix}").read_bytes()


def test_attention_of_trained_weights(workdirs, capsys):
    words = ["--image-size=32", "--stage=3", "--position", "20", "11", "--head", "1", "4"]
    assert main(["plot", "attention", DIGITS, "mine.png", *words]) == 0
    assert capsys.readouterr().out == "attention.png\n"
    with Image.open("attention.png") as sheet:
        assert sheet.width > 800


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["curves", "none"], "There is no none/metrics.jsonl: expected the --workdir of a training run"),
        (["curves", "a", "a"], "The same workdir is given twice"),
        (["curves", "a", "--output=curves"], "ends in .png, .svg, .pdf"),
        (["confusion", "none"], "There is no directory none"),
        (["confusion", "b"], "There is no confusion.npz in b"),
        (["throughput", "a/metrics.jsonl"], "holds no timings"),
        (["throughput", "speed.json", "--output=x.gif"], "ends in .png, .svg, .pdf"),
        (["decay", "rmt_x"], "rmt_x"),
        (["decay", "rmt_s", "--image-size=31"], "32 pixels or more"),
        (["attention", DIGITS, "none.png"], "There is no picture none.png"),
        (["attention", DIGITS, "speed.json"], "cannot decode the picture"),
        (["attention", DIGITS, "mine.png", "--stage=5"], "--stage 5: the stages are 1 to 4"),
        (["attention", DIGITS, "mine.png", "--block=2"], "--block 2: stage 1 has the blocks 0 to 0"),
        (["attention", DIGITS, "mine.png", "--head=2"], "--head 2: stage 1 has the heads 0 to 1"),
        (["attention", DIGITS, "mine.png", "--position", "40", "0"], "the picture has 40x30 pixels"),
        (["attention", DIGITS, "mine.png", "--image-size=16"], "32 pixels or more"),
    ],
    ids=lambda value: " ".join(value[0:1] + value[-1:]).replace(DIGITS, "") if isinstance(value, list) else "",
)
def test_refusals(words, message, workdirs, capsys):
    before = set(workdirs.iterdir())
    assert main(["plot", *words]) == 2
    assert message in capsys.readouterr().err
    assert set(workdirs.iterdir()) == before


def test_runs_of_one_name_are_told_apart_by_their_paths(workdirs, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves, "draw_curves", lambda runs: drawn.update(runs) or Figure())
    (workdirs / "b" / "a").mkdir()
    (workdirs / "b" / "a" / "metrics.jsonl").write_text("")
    assert main(["plot", "curves", "a", "b/a", "b"]) == 0
    assert list(drawn) == ["a", "b/a", "b"]
