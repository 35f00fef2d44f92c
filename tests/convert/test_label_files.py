"""Label maps between the published tree of PyTorch files and our one file."""

import pathlib

import numpy as np
import pytest
import torch

from rmt_jax.convert.label_files import find_maps, pack, unpack
from rmt_jax.data.label_maps import LabelMaps
from rmt_jax.data.label_writer import LabelMapWriter


def label_map(seed):
    """As published: half floats, the classes moved to the front of a map that was made with them last."""
    rng = np.random.default_rng(seed)
    both = np.stack([rng.standard_normal((18, 18, 5)) * 5, rng.integers(1000, size=(18, 18, 5))])
    return torch.from_numpy(both).half().permute(0, 3, 1, 2)


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "label_top5_train_nfnet"
    for seed, picture in enumerate(("n01440764/n01440764_10026", "n01440764/n01440764_9", "n02/a/n02_7", "n01_1")):
        save(folder / f"{picture}.pt", label_map(seed))
    (folder / "README.txt").write_text("not a map")
    save(folder / ".hidden" / "x.pt", "not a map")
    return folder


def content(folder):
    files = sorted(path for path in folder.rglob("*.pt") if ".hidden" not in path.parts)
    return {str(path.relative_to(folder)): torch.load(path, weights_only=True) for path in files}


def test_packed_and_unpacked_is_the_same(tree, tmp_path):
    found = find_maps(tree)
    assert found.others == 1
    assert sorted(found.maps) == sorted(content(tree))
    seen = []
    pack(tree, found.maps, tmp_path / "labels", advance=seen.append)
    assert sum(seen) == 4
    maps = LabelMaps(tmp_path / "labels")
    scores, ids = maps["n01440764_10026.JPEG"]
    np.testing.assert_array_equal(scores, label_map(0)[0])
    np.testing.assert_array_equal(ids, label_map(0)[1])
    unpack(maps, tmp_path / "back")
    before, after = content(tree), content(tmp_path / "back")
    assert before.keys() == after.keys()
    for name in before:
        assert after[name].dtype == torch.float16
        assert before[name].numpy().tobytes() == after[name].numpy().tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "label_top5_train_nfnet", "labels"]


def test_broken_maps_are_counted_and_named(tree, tmp_path):
    save(tree / "n03/shape.pt", label_map(0)[:, :4])
    save(tree / "n03/type.pt", label_map(0).float())
    bad = label_map(0).clone()
    bad[0, 0, 0, 0] = float("nan")
    save(tree / "n03/nan.pt", bad)
    save(tree / "n03/ids.pt", label_map(0) - 0.5)
    save(tree / "n03/code.pt", pathlib.Path)
    (tree / "n03/empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"6 of 10 label maps in .* are broken, so nothing was written") as error:
        pack(tree, find_maps(tree).maps, tmp_path / "labels")
    words = str(error.value)
    assert "n03/code.pt: " in words
    assert "n03/nan.pt: holds NaN" in words
    assert "n03/shape.pt: expected float16 (2, 5, 18, 18), found float16 (2, 4, 18, 18)" in words
    assert "..." in words
    assert not (tmp_path / "labels").exists()


def test_no_tree(tmp_path):
    with pytest.raises(ValueError, match=r"is no folder: expected the unpacked tree"):
        find_maps(tmp_path / "absent")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"holds no .pt files"):
        find_maps(tmp_path)


def test_unpack_replaces_nothing(tree, tmp_path):
    pack(tree, find_maps(tree).maps, tmp_path / "labels")
    with pytest.raises(FileExistsError, match="is no empty folder"):
        unpack(LabelMaps(tmp_path / "labels"), tree)
    (tmp_path / "empty").mkdir()
    unpack(LabelMaps(tmp_path / "labels"), tmp_path / "empty")
    assert len(content(tmp_path / "empty")) == 4


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_unpack_stays_in_its_folder(tmp_path, name):
    with LabelMapWriter(tmp_path / "labels", {}) as writer:
        writer.add(name, label_map(0).contiguous().numpy())
    with pytest.raises(ValueError, match="leads out of a folder"):
        unpack(LabelMaps(tmp_path / "labels"), tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
