"""`rmt plot augment`: what is on the sheet, and what the command says, writes and refuses."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.data import eval_transform
from rmt_jax.data.randaugment import OPERATIONS, Operation, apply_operation, mean_color
from rmt_jax.training.augment_sheet import sample_photographs, sections
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import Word, parse

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
        (["configs/digits.py", "--output=sheet.svg"], "ends in .png"),
        (["configs/digits.py", "--output=nowhere/x.png"], "there is no directory nowhere"),
        (["configs/digits.py", "--seed=-1"], "--seed=-1: expected"),
        (["configs/digits.py", "--image=nothing.jpg"], "nothing.jpg"),
        (["configs/digits.py", "--image=pyproject.toml"], "cannot decode the picture"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refusals(words, message, capsys):
    assert main(["plot", "augment", "--config", *words]) == 2
    assert message in capsys.readouterr().err
