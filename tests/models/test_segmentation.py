"""Segmentors: sizes, shapes, dropout, initialisation, gradients. Their numbers are in tests/reference."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import FPN, Backbone, FCNHead, Segmentor, SemanticFPNHead, UPerHead, create_model, task_of, variant
from rmt_jax.models.flops import count_segmentor_flops
from rmt_jax.models.layers import Dropout2d
from tests.golden import golden
from tests.models.small import SIZES, abstract, arrays, flat, images, jaxtyping_disabled, small

HEADS = ("semantic_fpn", "upernet")
PARAMETERS = json.loads((golden.ROOT / "dense" / "param_counts.json").read_text())
CONFIGS = {
    f"RMT_{config}_{size}": (f"rmt_{name}", head)
    for config, sizes, head in (("FPN", "tsml", "semantic_fpn"), ("Uper", "sml", "upernet"))
    for size, name in zip(sizes, "tsbl"[-len(sizes) :], strict=True)
}

# Published, in units of 1e9, with the height and width that they are of.
FLOPS = {
    ("rmt_t", "semantic_fpn"): (33.7, 512, 512),
    ("rmt_s", "semantic_fpn"): (180.5, 512, 2048),
    ("rmt_b", "semantic_fpn"): (294, 512, 2048),
    ("rmt_l", "semantic_fpn"): (482, 512, 2048),
    ("rmt_s", "upernet"): (937.1, 512, 2048),
    ("rmt_b", "upernet"): (1051, 512, 2048),
    ("rmt_l", "upernet"): (1241, 512, 2048),
}


def segmentor(head: str, name: str = "rmt_s", **options: Any) -> Segmentor:
    """A small one, abstract."""
    return abstract(name, task="segmentation", head=head, **{**SIZES, **options})


@pytest.mark.parametrize("config", CONFIGS)
def test_number_of_parameters(config: str) -> None:
    """As counted upstream."""
    name, head = CONFIGS[config]
    model = abstract(name, task="segmentation", head=head)
    recorded = next(row["params"] for key, row in PARAMETERS.items() if key.startswith(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(arrays(model)[1])) == recorded
    assert model.config == variant(name, extra_norms=True, num_classes=150)
    assert task_of(model) == ("segmentation", head)


@pytest.mark.parametrize(("name", "head"), FLOPS)
def test_multiply_accumulates_are_nearly_those_published(name: str, head: str) -> None:
    published, height, width = FLOPS[name, head]
    ours = count_segmentor_flops(variant(name, num_classes=150), head, height, width) / 1e9
    assert 0.996 < ours / published < 1  # without biases and norms


@pytest.mark.parametrize(("head", "dtype"), [("semantic_fpn", "float32"), ("upernet", "bfloat16")])
def test_logits_at_a_quarter_of_the_size_rounded_up(head: str, dtype: str) -> None:
    model = segmentor(head, dtype=dtype)
    x = jax.ShapeDtypeStruct((2, 97, 131, 3), jnp.float32)

    def outputs(model: Segmentor, x: Any) -> Any:
        training = model(x, rngs=nnx.Rngs(0))
        return training, nnx.view(model, deterministic=True, use_running_average=True)(x)

    training, evaluation = jax.eval_shape(outputs, model, x)
    logits = jax.ShapeDtypeStruct((2, 25, 33, 5), jnp.float32)
    assert evaluation == logits
    assert training == ((logits, jax.ShapeDtypeStruct((2, 7, 9, 5), jnp.float32)) if head == "upernet" else logits)


def random_maps(self: Backbone, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
    """In the place of the backbone's, which takes long to compile: normal noise through the norms of the maps."""
    rng, sizes = np.random.default_rng(0), (9, 5, 3, 2)
    maps = [rng.standard_normal((3, size, size, dim)) for size, dim in zip(sizes, self.config.embed_dims, strict=True)]
    return tuple(norm(jnp.asarray(x, jnp.float32)) for norm, x in zip(self.extra_norms, maps, strict=True))


@pytest.mark.parametrize("head", ["semantic_fpn", pytest.param("upernet", marks=pytest.mark.slow)])
def test_every_parameter_learns_and_every_statistic_moves(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of neck, heads and norms of the maps."""
    monkeypatch.setattr(Backbone, "__call__", random_maps)
    model = small("rmt_s", task="segmentation", head=head)
    graph, params, stats = arrays(model)

    def loss(params: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, stats)
        outputs = jax.tree.leaves(model(x, rngs=nnx.Rngs(0)))
        weights = [np.random.default_rng(7).standard_normal(y.shape).astype(np.float32) for y in outputs]
        total = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
        return jnp.asarray(total), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    grads, moved = jax.jit(jax.grad(loss, has_aux=True))(params, stats, images(3))
    read = [path for path in flat(params) if not path.startswith(("backbone/layers/", "backbone/patch_embed/"))]
    norms = {path: np.linalg.norm(np.asarray(flat(grads)[path]).ravel()) for path in read}
    assert np.isfinite(list(norms.values())).all()
    # A 1x1 convolution and BatchNorm follow on these alone, which subtracts them again.
    zero = {f"backbone/extra_norms/{i}/bias" for i in (0, 1)} if head == "upernet" else set()
    assert {path for path, norm in norms.items() if norm < 1e-5 * max(norms.values())} == zero
    old = {path: leaf for path, leaf in flat(stats).items() if not path.startswith("backbone/")}
    assert not [path for path, leaf in old.items() if np.array_equal(leaf, flat(moved)[path])]


def test_dropout_drops_whole_channels_and_keeps_the_mean() -> None:
    x = jnp.ones((8, 3, 4, 512))
    y = np.asarray(Dropout2d(0.1)(x, jax.random.key(0)))
    assert set(np.unique(y).tolist()) == {0.0, np.float32(1) / np.float32(0.9)}
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert abs((y[:, 0, 0] == 0).mean() - 0.1) < 0.02
    assert len(np.unique(y[:, 0, 0], axis=0)) == 8
    assert Dropout2d(0.1)(x, None) is x
    assert Dropout2d(0.0)(x, jax.random.key(0)) is x


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keys as they are drawn by backbones and given to heads, None where there is none; nothing else is computed."""
    found: list[Any] = []

    def maps(self: Backbone, images: Any, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        if not self.deterministic:
            found.append(rngs.drop_path())
        return tuple(jnp.zeros((1, 1, 1, dim)) for dim in self.config.embed_dims)

    def logits(self: nnx.Module, maps: Any, key: Any) -> jax.Array:
        found.append(key)
        return jnp.zeros((1, 1, 1, SIZES["num_classes"]))

    monkeypatch.setattr(Backbone, "__call__", maps)
    monkeypatch.setattr(FPN, "__call__", lambda self, maps: maps)
    for head in (SemanticFPNHead, UPerHead, FCNHead):
        monkeypatch.setattr(head, "__call__", logits)
    return found


def own(head: str, **options: Any) -> Segmentor:
    """The abstract one, to be changed."""
    return nnx.merge(*nnx.split(segmentor(head, **options)))


def test_all_keys_differ_and_are_drawn_in_training_mode_only(keys: list[Any]) -> None:
    model = own("upernet")
    x = images(1, 32, 32)
    model(x, rngs=nnx.Rngs(0))
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3
    model.eval()
    del keys[:]
    model(x)
    assert keys == [None]  # the auxiliary head does not run
    model.train()
    model.freeze_backbone()
    del keys[:]
    model(x, rngs=nnx.Rngs(0))
    assert len(keys) == 2
    with pytest.raises(ValueError, match=r"dropout \(0.1\) needs randomness: pass rngs=nnx.Rngs\(seed\)"):
        model(x)


def test_no_dropout_needs_no_randomness(keys: list[Any]) -> None:
    model = own("semantic_fpn", dropout=0.0)
    model.freeze_backbone()
    model(images(1, 32, 32))
    assert keys == [None]


def test_a_frozen_backbone_keeps_its_statistics() -> None:
    model = own("semantic_fpn")
    model.freeze_backbone()
    assert model.backbone.deterministic
    assert model.backbone.patch_embed.proj[1].use_running_average
    assert not model.deterministic
    assert not model.decode_head.scale_heads[0][0].bn.use_running_average


def test_initialisation() -> None:
    """mmcv's for convolutions: kaiming normal by fan out; mmseg's for the last one."""
    rngs = nnx.Rngs(0)
    neck = FPN((64, 128), dtype=jnp.float32, rngs=rngs)
    head = SemanticFPNHead((64, 64), 150, features=128, dtype=jnp.float32, rngs=rngs)
    for conv, deviation in (
        (neck.lateral_convs[1].conv, 0.0884),
        (neck.fpn_convs[0].conv, 0.0295),
        (head.scale_heads[1][0].conv, (2 / (9 * 128)) ** 0.5),
        (head.conv_seg, 0.01),
    ):
        kernel = np.asarray(conv.kernel[...])
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
        assert np.abs(kernel).max() > 3.5 * deviation  # not cut off
        if conv.bias is not None:
            assert not np.any(conv.bias[...])
    assert head.scale_heads[1][0].conv.bias is None


@pytest.mark.parametrize("head", HEADS)
def test_a_narrow_pyramid(head: str) -> None:
    wide, narrow = (segmentor(head, pyramid_features=width) for width in (256, 32))
    assert count_segmentor_flops(narrow.config, head, 64, 64) < count_segmentor_flops(wide.config, head, 64, 64) / 4
    features = narrow.decode_head.conv_seg.kernel.shape[-2]
    assert features == {"semantic_fpn": 16, "upernet": 64}[head]


@pytest.mark.parametrize("head", HEADS)
def test_other_classes(head: str) -> None:
    model = small("rmt_s", task="segmentation", head=head)
    before = flat(arrays(model)[1])
    model.reset_classifier(21, rngs=nnx.Rngs(0))
    after = flat(arrays(model)[1])
    assert model.config.num_classes == 21
    changed = {path for path, leaf in after.items() if leaf.shape != before[path].shape}
    heads = ("decode_head", "auxiliary_head") if head == "upernet" else ("decode_head",)
    assert changed == {f"{part}/conv_seg/{leaf}" for part in heads for leaf in ("kernel", "bias")}
    assert all(after[path].shape[-1] == 21 for path in changed)


def test_numbers_of_run_time_reach_the_backbone() -> None:
    model = segmentor("upernet", drop_path=0.3, remat="full", scan=True, dropout=0.25)
    assert {(stage.remat, stage.scan) for stage in model.backbone.layers} == {("full", True)}
    assert model.backbone.layers[3].blocks[0].drop_path == 0.3
    assert isinstance(model.decode_head, UPerHead)
    assert model.decode_head.dropout.rate == model.auxiliary_head.dropout.rate == 0.25


def test_what_makes_no_segmentor() -> None:
    options: dict[str, Any] = {"task": "segmentation", "head": "upernet"}
    with jaxtyping_disabled():
        for name, changes, message in (
            ("rmt_s", {"head": None}, "A segmentor needs a head, one of semantic_fpn, upernet; got None"),
            ("rmt_s", {"head": "uper"}, "one of semantic_fpn, upernet; got 'uper'"),
            ("rmt_s", {"dropout": 1.0}, r"dropout is a probability in \[0, 1\), got 1.0"),
            ("rmt_s_star", {}, "use the name without _star"),
            ("rmt_s", {"task": "classification"}, "head='upernet' is of task='segmentation' or 'detection', and the t"),
            ("rmt_s", {"task": "backbone", "head": None, "dropout": 0.2}, "dropout=0.2 is of task='segmentation'"),
            ("rmt_s", {"task": "tracking"}, "task must be one of classification, backbone, segmentation, detection"),
        ):
            with pytest.raises(ValueError, match=message):
                create_model(name, **{**options, **changes})
