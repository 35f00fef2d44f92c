"""Models from weights, wherever they are."""

import dataclasses
import functools
import http.server
import json
import logging
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import rmt_jax
from rmt_jax.convert import Fit, Preprocessing, Weights, load_into, load_pretrained, read_weights, write_weights
from rmt_jax.models import Backbone, Classifier, RMTConfig, create_model, variant
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.state import split_model
from rmt_jax.training.workdir import open_workdir
from tests.convert.upstream import save, state_dict, torch_model
from tests.models.small import jaxtyping_disabled, small
from tests.training.conftest import TINY

NANO = state_dict("rmt_nano")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same weights in every form."""
    folder = tmp_path_factory.mktemp("weights")
    weights = read_weights(save(folder / "upstream.pth", {"model": NANO}))
    for name in ("directory", "file.safetensors", "file.pth"):
        write_weights(weights, folder / name)
    return folder


def output_shapes(model: Classifier | Backbone) -> Any:
    """Of one picture; nothing is computed."""
    outputs = nnx.eval_shape(lambda model, x: model(x), model, jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda leaf: leaf.shape, outputs)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flat_paths(model_arrays(model))}


@pytest.mark.parametrize("name", ["upstream.pth", "directory", "file.safetensors", "file.pth"])
def test_every_form_is_a_ready_model(name: str, folder: pathlib.Path) -> None:
    model = rmt_jax.load_pretrained(folder / name)
    assert isinstance(model, Classifier)
    assert model.deterministic
    assert model.norm.use_running_average
    assert model.config == variant("rmt_nano")
    np.testing.assert_array_equal(arrays(model)["proj/kernel"], NANO["proj.weight"].T)
    assert output_shapes(model) == (1, 1000)
    model.train()
    assert not model.deterministic


def test_another_number_of_classes_gets_a_fresh_head_aloud(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_pretrained(folder / "directory", num_classes=7)
    assert "Fresh head for 7 classes in the place of the one for 1000" in caplog.text
    assert isinstance(model, Classifier)
    assert model.config.num_classes == 7
    assert output_shapes(model) == (1, 7)
    kernel = np.asarray(model.head.kernel[...])
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.1)
    same = load_pretrained(folder / "directory", num_classes=7, rngs=nnx.Rngs(0))
    other = load_pretrained(folder / "directory", num_classes=7, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(same.head.kernel[...], kernel)
    assert not np.array_equal(other.head.kernel[...], kernel)
    np.testing.assert_array_equal(arrays(model)["proj/kernel"], NANO["proj.weight"].T)
    caplog.clear()
    load_pretrained(folder / "directory", num_classes=1000)
    assert caplog.text == ""


def test_a_starred_model_gets_both_heads_fresh(tmp_path: pathlib.Path) -> None:
    write_weights(weights_of("rmt_s_star"), tmp_path / "star")
    model = load_pretrained(tmp_path / "star", num_classes=3)
    assert isinstance(model, Classifier)
    assert model.aux_head is not None
    assert model.aux_head.kernel[...].shape == (16, 3)
    assert output_shapes(model) == (1, 3)


def weights_of(name: str, **changes: object) -> Weights:
    """Weights of a small model that keeps the flags of the named one."""
    model = small(name, seed=3, **changes)
    return Weights(name, "classification", model.config, arrays(model), provenance={"weights": "raw"})


def test_types_and_run_time_fields(folder: pathlib.Path) -> None:
    model = load_pretrained(folder / "directory", dtype=jnp.bfloat16, drop_path=0.3, remat="full")
    assert model.config == variant("rmt_nano", drop_path=0.3, remat="full")
    assert isinstance(model, Classifier)
    assert model.backbone.dtype == jnp.bfloat16
    assert {array.dtype for array in arrays(model).values()} == {np.dtype("float32")}


def test_fields_that_the_arrays_do_not_fit(folder: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"missing: backbone/layers/0/blocks/1/"):
        load_pretrained(folder / "directory", depths=(2, 1, 2, 1))
    with pytest.raises(ValueError, match="Unknown architecture field 'depth'"):
        load_pretrained(folder / "directory", depth=(2, 1, 2, 1))
    with jaxtyping_disabled(), pytest.raises(ValueError, match="dtype must be float32 or bfloat16"):
        load_pretrained(folder / "directory", dtype=jnp.float16)


def test_backbones(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "x.pth", state_dict("rmt_nano", headless=True, extra_norms=True))
    model = load_pretrained(path)
    assert isinstance(model, Backbone)
    assert [shape[-1] for shape in output_shapes(model)] == [24, 48, 96, 128]
    with pytest.raises(ValueError, match="is a backbone, which has no head"):
        load_pretrained(path, num_classes=3)


def test_a_damaged_configuration_that_claims_a_huge_model(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    weights = read_weights(folder / "directory")
    huge = dataclasses.replace(weights, config=variant("rmt_nano", depths=(1, 1, 10**9, 1)))
    for name in ("huge", "huge.safetensors", "huge.pth"):
        write_weights(huge, tmp_path / name)
        with pytest.raises(ValueError, match="Damaged: the configuration says 1000000003 blocks, and there are"):
            load_pretrained(tmp_path / name)


class Hub(http.server.BaseHTTPRequestHandler):
    """One file of one repository, as the hub serves it."""

    content = b""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        revision = self.path.split("/")[4] if self.path.startswith("/somebody/rmt-nano/resolve/") else None
        if revision not in ("main", "v1") or not self.path.endswith("/model.safetensors"):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", {"main": "a" * 40, "v1": "b" * 40}[revision])
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if with_body:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def hub(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on the loopback address, with an empty cache; its address."""
    from huggingface_hub import constants

    handler = type("Handler", (Hub,), {"content": (folder / "file.safetensors").read_bytes()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.05))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


def test_names_on_the_hub(hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in ("somebody/rmt-nano", "somebody/rmt-nano@v1"):
        model = load_pretrained(name)
        np.testing.assert_array_equal(arrays(model)["proj/kernel"], NANO["proj.weight"].T)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of this name could not be had from the hub"):
        load_pretrained("somebody/else")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'rmt-jax\[hub\]'"):
        load_pretrained("somebody/rmt-nano")


def test_a_local_folder_comes_before_the_hub(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    monkeypatch.chdir(folder.parent)
    load_pretrained(f"{folder.name}/directory")
    with pytest.raises(FileNotFoundError, match=r"nothing/here\.pth: no such file or directory\.$"):
        load_pretrained("nothing/here.pth")


def test_weights_go_into_a_model_with_another_head() -> None:
    weights, model = weights_of("rmt_s_star"), small("rmt_s", seed=4, num_classes=9)
    head = arrays(model)["head/kernel"]
    fit = load_into(model, weights, "x")
    assert sorted(fit.fresh) == ["head/bias", "head/kernel"]
    assert sorted(fit.unused) == ["aux_head/bias", "aux_head/kernel", "head/bias", "head/kernel"]
    assert str(fit).startswith("fresh: head/")
    found = arrays(model)
    np.testing.assert_array_equal(found["head/kernel"], head)
    for path in weights.arrays.keys() - set(fit.unused):
        np.testing.assert_array_equal(found[path], weights.arrays[path])


def test_many_arrays_are_named_by_their_modules() -> None:
    norms = [f"backbone/extra_norms/{i}/{name}" for i in range(4) for name in ("bias", "scale")]
    assert str(Fit(norms, [])) == f"fresh: {', '.join(norms)}"
    more = [*norms, "decode_head/conv_seg/kernel", "neck/convs/0/conv/kernel"]
    assert str(Fit(more, ["head/bias"])) == (
        "fresh: backbone/extra_norms (8), decode_head/conv_seg (1), neck/convs (1); not used: head/bias"
    )


def test_of_another_task_only_the_backbone_is_taken() -> None:
    weights = weights_of("rmt_s")
    sizes = {field: getattr(weights.config, field) for field in ("embed_dims", "depths", "num_heads")}
    dense = create_model("rmt_s", task="backbone", extra_norms=True, **sizes)
    fit = load_into(dense, weights, "x")
    assert sorted(fit.fresh) == sorted(f"extra_norms/{i}/{name}" for i in range(4) for name in ("bias", "scale"))
    assert {path.partition("/")[0] for path in fit.unused} == {"head", "norm", "proj"}
    for path, array in arrays(dense).items():
        if not path.startswith("extra_norms"):
            np.testing.assert_array_equal(array, weights.arrays[f"backbone/{path}"])

    back = Weights("rmt_s", "backbone", dense.config, arrays(dense))
    classifier = small("rmt_s", seed=5)
    fit = load_into(classifier, back, "x")
    assert {path.partition("/")[0] for path in fit.fresh} == {"head", "norm", "proj"}
    assert {path.rpartition("/")[0] for path in fit.unused} == {f"backbone/extra_norms/{i}" for i in range(4)}


def test_a_backbone_of_another_kind_is_refused_with_every_difference() -> None:
    weights = weights_of("rmt_s")
    with pytest.raises(ValueError, match=r"x is of another model \(rmt_s\)") as error:
        load_into(small("rmt_t", depths=(1, 1, 2, 1)), weights, "x")
    message = str(error.value)
    assert "depths: (1, 1, 1, 1) there, (1, 1, 2, 1) here" in message
    assert "decomposed: (True, True, True, False) there, (True, True, False, False) here" in message
    assert "backbone/layers/2/blocks/1/gamma" not in message
    assert "backbone/layers/2/blocks/1/ffn/fc1/kernel does not fit" in message


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What a run leaves: its configuration, and raw and averaged weights of two steps."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    words = [f"--config.model.architecture.{key}={value}" for key, value in TINY.items()]
    config = parse(load_config("configs/digits.py", [*words, "--config.model.drop_path=0.25"]))
    open_workdir(workdir, config, write=True)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    for step in (5, 12):
        parts = [split_model(build(config.model.resolve(10), seed=step + offset))[1:] for offset in (0, 1)]
        raw, ema = ({"params": params, "batch_stats": stats} for params, stats in parts)
        checkpoints.save(step, raw | {"ema": ema, "opt_state": {}, "step": jnp.array(step)})
    checkpoints.close()
    return workdir


def build(config: RMTConfig, seed: int) -> Classifier:
    return Classifier(config, rngs=nnx.Rngs(seed))


def test_the_latest_checkpoint_of_a_run(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = load_pretrained(workdir)
    assert isinstance(model, Classifier)
    assert (model.config.embed_dims, model.config.drop_path) == ((8, 8, 16, 16), 0.25)
    np.testing.assert_array_equal(model.head.kernel[...], build(model.config, seed=13).head.kernel[...])
    assert read_weights(workdir).class_names is None
    (workdir / "classes.json").write_text(json.dumps([str(digit) for digit in range(10)]))
    labelled = read_weights(workdir)
    assert labelled.class_names == tuple("0123456789")
    assert labelled.preprocessing == Preprocessing(32, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    raw = load_pretrained(workdir, weights="raw")
    np.testing.assert_array_equal(raw.head.kernel[...], build(model.config, seed=12).head.kernel[...])

    for name in ("model", "model.pth"):
        write_weights(read_weights(workdir), tmp_path / name)
        found = read_weights(tmp_path / name)
        provenance = found.provenance["before"]
        assert (provenance["source"], provenance["step"], provenance["weights"]) == ("digits", 12, "ema")
        torch_model(found.config).load_state_dict(
            {key: torch.from_numpy(array) for key, array in found.to_torch().items()}, strict=True
        )
        assert found.buffers["norm.num_batches_tracked"] == 12


def test_the_hash_of_a_run_is_that_of_the_weights_read(workdir: pathlib.Path) -> None:
    before = read_weights(workdir).provenance["sha256"]
    (workdir / "notes.txt").write_text("another file")
    assert read_weights(workdir).provenance["sha256"] == before
    assert read_weights(workdir, weights="raw").provenance["sha256"] != before


def test_runs_that_cannot_be_read(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="This workdir holds no checkpoint yet"):
        load_pretrained(tmp_path / "run")
    shutil.copytree(workdir / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match=r"config\.json does not describe a run"):
        load_pretrained(tmp_path / "run")
