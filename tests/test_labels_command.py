"""`rmt labels`: what it says, writes and refuses; maps of a teacher against direct calls of the model."""

import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

import rmt_jax
from rmt_jax.cli import main
from rmt_jax.convert import read_weights
from rmt_jax.data import DataConfig, open_source
from rmt_jax.data.label_maps import MAP_SHAPE, LabelMaps
from rmt_jax.models import abstract_model
from rmt_jax.training import label_maker
from rmt_jax.training.label_maker import make_maps, make_teacher, token_logits
from tests.convert.upstream import save, state_dict

CLASSES = 6
PICTURES = {f"c{label}": [f"a_{label}.png", f"b_{label}.JPEG"] for label in range(CLASSES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve noisy pictures of six classes, and a damaged one."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, files in PICTURES.items():
        (root / "train" / name).mkdir(parents=True)
        for file in files:
            coarse = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
            coarse.resize((80, 60), Image.Resampling.BICUBIC).save(root / "train" / name / file)
    (root / "train" / "c3" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def teacher_file(path):
    path.parent.mkdir()
    return save(path, {"model": state_dict("rmt_nano", num_classes=CLASSES)})


def direct(model, images):
    """Logits of every position, written out."""
    features = model.backbone(images)[-1]
    x = model.norm(model.proj(features))
    x = x * jax.nn.sigmoid(x)
    if model.aux_head is None:
        return model.head(x)
    return model.aux_head({"features": features, "activation": x}[model.config.aux_tap])


@pytest.mark.parametrize("changes", [{}, {"aux_head": True}, {"aux_head": True, "aux_tap": "activation"}], ids=str)
def test_logits_of_every_position(changes):
    graph, state = nnx.split(
        abstract_model(
            lambda rngs: rmt_jax.create_model("rmt_nano", CLASSES, depths=(1, 1, 1, 1), rngs=rngs, **changes)
        )
    )
    rng = np.random.default_rng(0)  # quicker than drawing them on the device
    draw = {1: lambda shape: rng.uniform(0.5, 1.5, shape)}
    weights = jax.tree.map(lambda x: draw.get(x.ndim, rng.standard_normal)(x.shape).astype(np.float32) / 4, state)
    model = nnx.merge(graph, weights)
    model.eval()
    images = rng.standard_normal((2, 32, 64, 3)).astype(np.float32)
    logits, expected = jax.jit(lambda images: (token_logits(model, images), direct(model, images)))(images)
    assert logits.shape == (2, 1, 2, CLASSES)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert np.ptp(expected, axis=2).max() > 1e-2 * np.abs(expected).max()


def source(folder):
    return open_source(DataConfig(name="folder", dir=str(folder), eval_split="train"), "train")


@pytest.mark.slow
def test_maps_of_a_teacher_are_its_best_logits_everywhere(folder, tmp_path, capsys):
    file, teacher = tmp_path / "labels", teacher_file(tmp_path / "teacher" / "nano.pth")
    words = ["labels", "make", str(file), f"--teacher={teacher}", "--data-name=folder", f"--data-dir={folder}"]
    assert main([*words, "--batch-size=8"]) == 1
    said, messages = capsys.readouterr()
    assert "nano.pth labels 13 pictures" in messages
    assert "12 label maps" in said
    assert "1 pictures cannot be decoded and have no map: c3/damaged.png" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "teacher"]
    maps = LabelMaps(file)
    assert maps.provenance["teacher"]["sha256"] == read_weights(teacher).provenance["sha256"]
    names, pixels = ("c0/a_0.png", "c5/b_5.JPEG"), []
    for name in names:
        with Image.open(folder / "train" / name) as image:
            pixels.append(np.asarray(image.resize((576, 576), Image.Resampling.BICUBIC), np.float32) / 255)
    mean, std = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)
    model = rmt_jax.load_pretrained(teacher)
    logits = np.asarray(jax.jit(lambda images: direct(model, images))((np.stack(pixels) - mean) / std))
    assert logits.shape == (2, 18, 18, CLASSES)
    for name, expected in zip(names, logits.transpose(0, 3, 1, 2), strict=True):
        scores, ids = maps[name]
        best = np.sort(expected, axis=0)[::-1][:5]
        np.testing.assert_allclose(scores, best, rtol=1e-3, atol=1e-4)  # rounded to float16
        np.testing.assert_allclose(np.take_along_axis(expected, ids.astype(int), 0), best, atol=1e-4)
    assert main(words) == 2
    assert "exists: give another name, or --force" in capsys.readouterr().err


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A teacher whose maps are the pictures' colours, to see what goes where without a network."""

    def maps(model, preprocessing, images):
        grey = images.astype(np.float32).mean(axis=(1, 2, 3))
        return (
            jax.numpy.broadcast_to(grey[:, None, None, None, None], (len(images), *MAP_SHAPE)).round().astype("float16")
        )

    monkeypatch.setattr(label_maker, "label_maps", maps)
    return read_weights(teacher_file(tmp_path / "teacher" / "nano.pth"))


def test_interrupted_work_goes_on_where_it_was(quick, folder, tmp_path, monkeypatch):
    data, file = source(folder), tmp_path / "labels"
    teacher = make_teacher(quick, data, "float32")
    whole = make_maps(teacher, data, tmp_path / "whole", batch_size=8, part=4)
    assert whole.maps == 12
    assert whole.unreadable == ["c3/damaged.png"]

    def interrupt(count):
        done.append(count)
        if sum(done) > 6:
            raise KeyboardInterrupt

    done = []
    with pytest.raises(KeyboardInterrupt):
        make_maps(teacher, data, file, batch_size=8, part=4, advance=interrupt)
    assert not file.exists()
    assert [path.name for path in sorted((tmp_path / "labels.parts").iterdir())] == [
        "000000000.array_record",
        "job.json",
    ]
    read = []
    original = type(data).__getitem__
    monkeypatch.setattr(type(data), "__getitem__", lambda self, index: read.append(index) or original(self, index))
    seen = []
    assert make_maps(teacher, data, file, batch_size=8, part=4, advance=seen.append) == whole
    assert sorted(read) == list(range(4, 13))
    assert sum(seen) == 13
    assert not (tmp_path / "labels.parts").exists()
    first, second = LabelMaps(file), LabelMaps(tmp_path / "whole")
    assert list(first.names()) == list(second.names())
    for rank, name in enumerate(first.names()):
        assert first.stored(rank).tobytes() == second.stored(rank).tobytes()
        with Image.open(next((folder / "train").glob(f"{name}.*"))) as image:
            grey = np.asarray(image.resize((576, 576), Image.Resampling.BICUBIC)).mean()
        assert abs(first.stored(rank)[0, 0, 0, 0] - grey) <= 1


def test_parts_of_other_work_are_not_mixed_in(quick, folder, tmp_path):
    data, file = source(folder), tmp_path / "labels"
    teacher = make_teacher(quick, data, "float32")
    parts = tmp_path / "labels.parts"
    parts.mkdir()
    (parts / "job.json").write_text(json.dumps({"teacher": "another"}))
    with pytest.raises(ValueError, match=r"labels.parts holds parts .*teacher.* remove .*labels.parts to start over"):
        make_maps(teacher, data, file, batch_size=8)


def test_what_cannot_label_is_refused(quick, folder, tmp_path):
    data = source(folder)
    teacher = make_teacher(quick, data, "float32")
    for size in (224, 577, 544):
        with pytest.raises(ValueError, match="label maps have 18x18 cells of 32 pixels: use 576"):
            make_maps(teacher, data, tmp_path / "x", batch_size=8, image_size=size)
    with pytest.raises(ValueError, match=r"batch_size=3 must be a multiple of the 8 device"):
        make_maps(teacher, data, tmp_path / "x", batch_size=3)
    other = read_weights(save(tmp_path / "other.pth", {"model": state_dict("rmt_nano", num_classes=7)}))
    with pytest.raises(ValueError, match=r"The teacher has 7 classes, .* has 6"):
        make_teacher(other, data, "float32")
    assert not (tmp_path / "x.parts").exists()


def a_tree(folder, names, largest=5):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        both = torch.stack([torch.rand(5, 18, 18), torch.randint(largest, (5, 18, 18)).float()]).half()
        both[1, 0, 0, 0] = largest
        torch.save(both, folder / f"{name}.pt")
    return folder


def test_pack_check_unpack(folder, tmp_path, capsys):
    names = [f"{name}/{file.split('.')[0]}" for name, files in PICTURES.items() for file in files]
    tree, file = a_tree(tmp_path / "tree", [*names, "c3/damaged"]), str(tmp_path / "labels")
    data = ["--data-name=folder", f"--data-dir={folder}"]
    assert main(["labels", "pack", str(tree), file, *data]) == 0
    said = capsys.readouterr().out
    assert "labels: 13 label maps, 0.1 MB" in said
    assert "13 of 13 pictures have a label map." in said
    assert main(["labels", "pack", str(tree), file]) == 2
    assert "--force to replace it" in capsys.readouterr().err
    a_tree(tree, ["c9/new"])
    (tree / "c0" / "a_0.pt").unlink()
    assert main(["labels", "pack", str(tree), file, "--force"]) == 0
    assert main(["labels", "check", file, *data]) == 1
    said = capsys.readouterr().out
    assert "12 of 13 pictures have a label map." in said
    assert "1 have none: c0/a_0.png" in said
    assert "1 maps are of other pictures: c9/new" in said
    assert main(["labels", "unpack", file, str(tmp_path / "back")]) == 0
    assert len(list((tmp_path / "back").rglob("*.pt"))) == 13
    assert main(["labels", "unpack", file, str(tmp_path / "back")]) == 2


def test_check_finds_maps_of_other_classes(folder, tmp_path, capsys):
    names = [f"{name}/{file.split('.')[0]}" for name, files in PICTURES.items() for file in files]
    tree, file = a_tree(tmp_path / "tree", [*names, "c3/damaged"], largest=6), str(tmp_path / "labels")
    assert main(["labels", "pack", str(tree), file, "--data-name=folder", f"--data-dir={folder}"]) == 1
    assert "The maps name the class 6, but" in capsys.readouterr().out


def test_check_reads_a_recipe(tmp_path, capsys):
    tree = a_tree(tmp_path / "tree", ["digit_0000", "digit_0002"])
    assert main(["labels", "pack", str(tree), str(tmp_path / "labels")]) == 0
    assert main(["labels", "check", str(tmp_path / "labels"), "--config=configs/digits.py"]) == 1
    assert "of 1,437 pictures have a label map." in capsys.readouterr().out
    assert main(["labels", "check", str(tmp_path / "labels"), "--config=configs/digits.py", "--split=test"]) == 1
    assert "of 360 pictures have a label map." in capsys.readouterr().out
    assert main(["labels", "check", str(tmp_path / "labels")]) == 2
    assert "Which data set? Give --config RECIPE" in capsys.readouterr().err
