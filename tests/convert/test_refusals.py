"""Files are untrusted, and what does not fit is refused: one message, exit code 2, nothing written."""

import argparse
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from rmt_jax.cli import main
from rmt_jax.convert import directories
from tests.convert.upstream import StateDict, prefixed, save, state_dict, training_checkpoint

Refused = Callable[..., str]

NANO = state_dict("rmt_nano")


@pytest.fixture
def refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Convert a source by the command; returns the message of its refusal."""

    def refused(source: pathlib.Path | str, *options: str, destination: str = "model") -> str:
        before = {path.name for path in tmp_path.iterdir()}
        capsys.readouterr()
        code = main(["convert", str(source), str(tmp_path / destination), *options])
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("error: ") == 1
        assert {path.name for path in tmp_path.iterdir()} == before, "something was written"
        return err

    return refused


class Attack:
    """Unpickled by a careless reader, it runs a command."""

    def __init__(self, marker: pathlib.Path):
        self.command = f"touch {marker}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def attack_beside_weights(attack: Attack) -> object:
    return {"model": NANO, "epoch": attack}


def attack_in_options(attack: Attack) -> object:
    return training_checkpoint(NANO, None) | {"args": argparse.Namespace(lr=attack)}


def attack_as_file(attack: Attack) -> object:
    return attack


@pytest.mark.parametrize("content", [attack_beside_weights, attack_in_options, attack_as_file])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_crafted_pickle_runs_nothing(
    content: Callable[[Attack], object], zipped: bool, refused: Refused, tmp_path: pathlib.Path
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save(content(Attack(marker)), path, _use_new_zipfile_serialization=zipped)
    assert "posix.system, which is not a weight: the file could run code" in refused(path)
    assert main(["convert", "--list", str(path)]) == 2
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is a real one
    assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_crafted_plain_pickle_runs_nothing(protocol: int, refused: Refused, tmp_path: pathlib.Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": Attack(marker)}, protocol=protocol))
    refused(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_classes_beyond_the_one_that_upstream_saves(refused: Refused, tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "module.pth", {"model": torch.nn.Linear(2, 2)})
    assert "torch.nn.modules.linear.Linear, which is not a weight" in refused(path)


def truncated(path: pathlib.Path) -> None:
    save(path, NANO)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    path.touch()


def web_page(path: pathlib.Path) -> None:
    path.write_text("\n<!DOCTYPE html><html><title>Download</title></html>")


def lfs_pointer(path: pathlib.Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 108000000\n")


def noise(path: pathlib.Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def text(path: pathlib.Path) -> None:
    path.write_text("hello")


def other_zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")


DAMAGED = {
    truncated: "no PyTorch file, or a damaged one (an incomplete download?)",
    empty: "is empty (an interrupted download?)",
    web_page: "looks like a web page: was the page downloaded instead of the file?",
    lfs_pointer: "is a Git LFS pointer, not the file itself: run `git lfs pull`",
    noise: "no PyTorch file, or a damaged one",
    text: "no PyTorch file, or a damaged one",
    other_zip: "no PyTorch file, or a damaged one",
}


@pytest.mark.parametrize("make", DAMAGED, ids=lambda make: make.__name__)
def test_damaged_files(make: Callable[[pathlib.Path], None], refused: Refused, tmp_path: pathlib.Path) -> None:
    make(tmp_path / "x.pth")
    message = refused(tmp_path / "x.pth")
    assert DAMAGED[make] in message
    assert message.count("\n") == 1  # one line


@pytest.mark.parametrize("share", [0, 0.00001, 0.001, 0.5, 0.999])
def test_truncated_safetensors(share: float, refused: Refused, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(NANO, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refused(path)
    assert "damaged" in message or "is empty" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
def test_truncated_pytorch_files(position: float, refused: Refused, tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "x.pth", NANO)
    path.write_bytes(path.read_bytes()[: int(position * path.stat().st_size)])
    assert "damaged" in refused(path)


def test_directories_and_missing_files(refused: Refused, tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "neither a model directory (of `rmt convert`) nor a workdir" in refused(tmp_path / "folder")
    assert "nowhere.pth: no such file or directory" in refused(tmp_path / "nowhere.pth")


def test_damaged_model_directories(refused: Refused, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "good"
    assert main(["convert", str(save(tmp_path / "x.pth", NANO)), str(folder)]) == 0
    card = (folder / directories.CARD_FILE).read_text()
    for text, meaning in {
        "{": "damaged",
        "[]": "does not describe a model",
        card.replace('"rmt_jax": 1', '"rmt_jax": 2', 1): "is of format 2, this version reads 1: update rmt_jax",
        card.replace('"depths"', '"deepness"'): "does not describe a model",
        card.replace('"num_classes": 1000', '"num_classes": 10'): "shape: head/bias is (1000,), this model needs (10,)",
    }.items():
        (folder / directories.CARD_FILE).write_text(text)
        assert meaning in refused(folder)
    (folder / directories.CARD_FILE).write_text(card)
    weights = folder / directories.WEIGHTS_FOLDER
    largest = max(weights.rglob("d/*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert "is no Orbax checkpoint, or a damaged one" in refused(folder)
    (weights / "manifest.ocdbt").unlink()
    assert "is no Orbax checkpoint, or a damaged one" in refused(folder)


def test_a_missing_torch_is_named_with_what_to_install(
    refused: Refused, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.pth", NANO)
    safetensors.torch.save_file(NANO, tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs PyTorch: pip install 'rmt-jax[torch]'" in refused(path)
    assert "needs PyTorch: pip install 'rmt-jax[torch]'" in refused(tmp_path / "x.safetensors", destination="y.pth")
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "model")]) == 0  # which needs none


def without_weight(state_dict: StateDict) -> None:
    del state_dict["layers.0.blocks.0.ffn.fc1.bias"]


def with_more(state_dict: StateDict) -> None:
    state_dict["layers.0.blocks.0.ffn.subln.weight"] = torch.zeros(48)


def reshaped(state_dict: StateDict) -> None:
    state_dict["proj.bias"] = torch.zeros(255)


def with_nan(state_dict: StateDict) -> None:
    state_dict["layers.2.blocks.1.ffn.fc2.weight"] = state_dict["layers.2.blocks.1.ffn.fc2.weight"].clone()
    state_dict["layers.2.blocks.1.ffn.fc2.weight"][3, 4] = torch.nan


def with_infinities(state_dict: StateDict) -> None:
    state_dict["norm.running_var"] = state_dict["norm.running_var"].clone()
    state_dict["norm.running_var"][:2] = torch.tensor([torch.inf, -torch.inf])


def beyond_float32(state_dict: StateDict) -> None:
    state_dict["head.bias"] = torch.full((1000,), 1e300, dtype=torch.float64)


def other_constants(state_dict: StateDict) -> None:
    state_dict["layers.1.Relpos.decay"] = state_dict["layers.1.Relpos.decay"] * 1.00002


def of_integers(state_dict: StateDict) -> None:
    state_dict["norm.weight"] = torch.ones(256, dtype=torch.int32)


def sparse(state_dict: StateDict) -> None:
    state_dict["norm.bias"] = torch.zeros(256).to_sparse()


PROBLEMS = {
    without_weight: "missing: layers.0.blocks.0.ffn.fc1.bias (for backbone/layers/0/blocks/0/ffn/fc1/bias)",
    with_more: "unexpected: layers.0.blocks.0.ffn.subln.weight (48,)",
    reshaped: "shape: proj.bias is (255,), this model needs (256,)",
    with_nan: "not finite: layers.2.blocks.1.ffn.fc2.weight holds 1 NaN or infinite of 18432 values",
    with_infinities: "not finite: norm.running_var holds 2 NaN or infinite of 256 values",
    beyond_float32: "not finite: head.bias holds 1000 NaN or infinite of 1000 values",
    other_constants: "constant: layers.1.Relpos.decay differs by 2.0e-05 (relative) from this model's",
    of_integers: "type: norm.weight is int32, expected one of float16, bfloat16, float32, float64",
    sparse: "type: norm.bias is a Tensor, no array of numbers",
}


@pytest.mark.parametrize("spoil", PROBLEMS, ids=lambda spoil: spoil.__name__)
def test_weights_that_do_not_fit(spoil: Callable[[StateDict], None], refused: Refused, tmp_path: pathlib.Path) -> None:
    spoiled = dict(NANO)
    spoil(spoiled)
    message = refused(save(tmp_path / "x.pth", {"model": spoiled}))
    assert "x.pth: These weights do not fit rmt_nano, 1 problem(s):" in message
    assert PROBLEMS[spoil] in message


def test_everything_that_does_not_fit_is_listed_at_once(refused: Refused, tmp_path: pathlib.Path) -> None:
    spoiled = dict(NANO)
    for spoil in PROBLEMS:
        spoil(spoiled)
    message = refused(save(tmp_path / "x.pth", {"model": spoiled | {"optimizer.step": torch.ones(1)}}))
    assert f"{len(PROBLEMS) + 1} problem(s)" in message
    assert all(problem in message for problem in PROBLEMS.values())


def test_entries_outside_the_prefix(refused: Refused, tmp_path: pathlib.Path) -> None:
    strange = prefixed(NANO, "module.") | {"module2.weight": torch.zeros(3), "mask_token": torch.zeros(1, 4)}
    message = refused(save(tmp_path / "x.pth", strange))
    assert "2 problem(s)" in message
    assert "unexpected: module2.weight (3,)" in message
    assert "unexpected: mask_token (1, 4)" in message


def test_files_without_an_rmt(refused: Refused, tmp_path: pathlib.Path) -> None:
    other = save(tmp_path / "x.pth", {"model": {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "epoch": 90})
    message = refused(other)
    assert "No weights of RMT found: no key ends with patch_embed.proj.0.weight" in message
    assert "The file holds: model: dict of 1, epoch: 90" in message
    assert "The file holds: a list" in refused(save(tmp_path / "y.pth", [torch.zeros(1)]))
    assert "The file holds: nothing" in refused(save(tmp_path / "z.pth", {}))


def test_several_candidates(refused: Refused, tmp_path: pathlib.Path) -> None:
    several = save(tmp_path / "x.pth", {"student": NANO, "teacher": state_dict("rmt_nano", salt="teacher ")})
    assert "several candidates: student, teacher. Choose one with --entry." in refused(several)
    assert "No weights of RMT under 'pupil'; there are: student, teacher" in refused(several, "--entry=pupil")
    assert main(["convert", str(several), str(tmp_path / "model"), "--entry=teacher"]) == 0

    one_dict = save(tmp_path / "y.pth", prefixed(NANO, "student.") | prefixed(NANO, "teacher."))
    assert "several models, under the prefixes 'student.', 'teacher.'" in refused(one_dict, destination="other")


def test_weights_that_are_not_there(refused: Refused, tmp_path: pathlib.Path) -> None:
    bare, trained = save(tmp_path / "x.pth", NANO), save(tmp_path / "y.pth", training_checkpoint(NANO, None))
    message = "--weights=ema: the moving average (EMA) is not in the file; there are: "
    assert f"{message}the file itself" in refused(bare, "--weights=ema")
    assert f"{message}model" in refused(trained, "--weights=ema")


def test_another_model_than_the_one_given(refused: Refused, tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "x.pth", NANO)
    message = refused(path, "--model=rmt_t")
    assert "shape: patch_embed.proj.0.weight is (12, 3, 3, 3), this model needs (32, 3, 3, 3)" in message


def test_destinations(refused: Refused, tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "x.pth", NANO)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("mine")
    (tmp_path / "file.safetensors").write_text("mine")
    assert "exists: give another destination, or --force" in refused(path, destination="folder")
    assert "exists: give another destination, or --force" in refused(path, destination="file.safetensors")
    assert "no model directory, so it is not replaced" in refused(path, "--force", destination="folder")
    assert "is the source itself" in refused(path, "--force", destination="x.pth")
    assert "cannot write .onnx" in refused(path, destination="model.onnx")
    assert "is not a directory that you may write in" in refused(path, destination="file.safetensors/model")
    assert (tmp_path / "folder" / "precious.txt").read_text() == "mine"
    assert main(["convert", str(path)]) == 2
    assert main(["convert", "--list", str(path), str(tmp_path / "model")]) == 2


def test_force_replaces_what_is_there(tmp_path: pathlib.Path) -> None:
    first, second = save(tmp_path / "x.pth", NANO), save(tmp_path / "y.pth", state_dict("rmt_nano", salt="y "))
    for name in ("model", "model.safetensors", "model.pth"):
        assert main(["convert", str(first), str(tmp_path / name)]) == 0
        assert main(["convert", str(second), str(tmp_path / name), "--force"]) == 0
        assert main(["convert", str(tmp_path / name), str(tmp_path / "back.pth"), "--force"]) == 0
        back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
        assert torch.equal(back["proj.weight"], state_dict("rmt_nano", salt="y ")["proj.weight"])
    names = {"x.pth", "y.pth", "model", "model.safetensors", "model.pth", "back.pth"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("name", ["model", "model.safetensors", "model.pth"])
def test_a_failing_write_leaves_the_old_destination(
    name: str, refused: Refused, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.pth", NANO)
    assert main(["convert", str(path), str(tmp_path / name)]) == 0
    old = main(["convert", "--list", str(tmp_path / name)])

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rmt_jax.convert.destinations.os.replace", full_disk)
    monkeypatch.setattr("rmt_jax.convert.destinations.os.rename", full_disk)
    assert "No space left on device" in refused(path, "--force", destination=name)
    assert main(["convert", "--list", str(tmp_path / name)]) == old == 0


def test_a_signal_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    """SIGTERM in the middle of writing a large model."""
    large = state_dict("rmt_s", salt="large ")
    path = save(tmp_path / "large.pth", large)
    program = "import sys; from rmt_jax.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", program, "convert", str(path), str(tmp_path / "model")])
    deadline = time.monotonic() + 120
    while not any(entry.name.endswith(".partial") for entry in tmp_path.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert [entry.name for entry in tmp_path.iterdir()] == ["large.pth"]
