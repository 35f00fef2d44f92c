"""Detectors: sizes, shapes, initialisation, gradients. Their numbers are in tests/reference."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import (
    FPN,
    Backbone,
    BoxHead,
    CascadeMaskRCNN,
    MaskHead,
    MaskRCNN,
    RetinaHead,
    RetinaNet,
    RPNHead,
    create_model,
    task_of,
    variant,
)
from rmt_jax.models.detection_heads import Upsample
from rmt_jax.models.flops import count_detector_flops
from rmt_jax.models.initializers import XAVIER
from tests.golden import golden
from tests.models.small import SIZES, abstract, arrays, flat, images, jaxtyping_disabled, small

PARAMETERS = json.loads((golden.ROOT / "dense" / "param_counts.json").read_text())
CONFIGS = {
    f"{config}_{size}": (f"rmt_{name}", head)
    for config, names, head in (
        ("retinanet", "tsbl", "retinanet"),
        ("maskrcnn", "tsbl", "mask_rcnn"),
        ("casrcnn", "sb", "cascade_mask_rcnn"),
    )
    for size, name in zip({"tsbl": "tsml", "sb": "sm"}[names], names, strict=True)
}

# Published, in units of 1e9, of 1280x800 pixels.
FLOPS = {
    "retinanet": {"rmt_t": 199, "rmt_s": 244, "rmt_b": 355, "rmt_l": 537},
    "mask_rcnn": {"rmt_t": 218, "rmt_s": 262, "rmt_b": 373, "rmt_l": 557},
    "cascade_mask_rcnn": {"rmt_s": 741, "rmt_b": 852},
}
HEADS = {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN, "cascade_mask_rcnn": CascadeMaskRCNN}


@pytest.mark.parametrize(
    "config", [pytest.param(config, marks=[pytest.mark.slow] * (CONFIGS[config][0] != "rmt_s")) for config in CONFIGS]
)
def test_number_of_parameters(config: str) -> None:
    """As counted upstream."""
    name, head = CONFIGS[config]
    model = abstract(name, task="detection", head=head)
    recorded = next(row["params"] for key, row in PARAMETERS.items() if key.startswith(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(arrays(model)[1])) == recorded
    assert type(model) is HEADS[head]
    assert model.config == variant(name, extra_norms=True, num_classes=80)
    assert task_of(model) == ("detection", head)


@pytest.mark.parametrize("head", FLOPS)
def test_multiply_accumulates_are_nearly_those_published(head: str) -> None:
    """Which are rounded to units of 1e9 and count biases and norms."""
    for name, published in FLOPS[head].items():
        ours = count_detector_flops(variant(name, num_classes=80), head, 800, 1280) / 1e9
        assert -0.5 < published - ours < 0.004 * published + 0.5


def test_outputs_of_all_anchors() -> None:
    """Levels are a quarter of the picture's size and halves of each other, rounded up."""
    sizes = ((25, 33), (13, 17), (7, 9), (4, 5), (2, 3), (1, 2))
    for head, first, anchors, classes in (("retinanet", 1, 9, 5), ("mask_rcnn", 0, 3, 1)):
        model = abstract("rmt_s", task="detection", head=head, dtype="bfloat16", **SIZES)
        model.eval()
        outputs = jax.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 97, 131, 3), jnp.float32))
        counts = [height * width * anchors for height, width in sizes[first : first + 5]]
        assert outputs.logits == tuple(jax.ShapeDtypeStruct((2, count, classes), jnp.float32) for count in counts)
        assert outputs.deltas == tuple(jax.ShapeDtypeStruct((2, count, 4), jnp.float32) for count in counts)
        assert model.strides == ((8, 16, 32, 64, 128) if first else (4, 8, 16, 32, 64))
        model.train()


def test_outputs_of_regions() -> None:
    regions = [jax.ShapeDtypeStruct((6, size, size, 256), jnp.float32) for size in (7, 14)]
    for head, stage in (("mask_rcnn", 0), ("cascade_mask_rcnn", 2)):
        model = abstract("rmt_s", task="detection", head=head, dtype="bfloat16", **SIZES)

        def run(model: MaskRCNN, boxes: Any, masks: Any, stage: int = stage) -> Any:
            return *model.boxes(boxes, stage=stage), model.masks(masks, stage=stage)

        shapes = [output.shape for output in jax.eval_shape(run, model, *regions)]
        assert shapes == [(6, 6), (6, 5, 4), (6, 28, 28, 5)]


def random_maps(
    self: Backbone, images: jax.Array, *, rngs: nnx.Rngs | None = None, valid: Any = None
) -> tuple[jax.Array, ...]:
    """In the place of the backbone's, which takes long to compile: normal noise through the norms of the maps."""
    rng, sizes = np.random.default_rng(0), (16, 8, 4, 2)
    maps = [rng.standard_normal((3, size, size, dim)) for size, dim in zip(sizes, self.config.embed_dims, strict=True)]
    return tuple(norm(jnp.asarray(x, jnp.float32)) for norm, x in zip(self.extra_norms, maps, strict=True))


@pytest.mark.parametrize(
    "head", ["retinanet", *(pytest.param(head, marks=pytest.mark.slow) for head in list(HEADS)[1:])]
)
def test_every_parameter_learns_and_every_statistic_moves(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of neck, heads and norms of the maps."""
    monkeypatch.setattr(Backbone, "__call__", random_maps)
    graph, params, stats = arrays(small("rmt_s", task="detection", head=head))
    rng = np.random.default_rng(1)
    regions = [jnp.asarray(rng.standard_normal((6, size, size, 256)), jnp.float32) for size in (7, 14)]

    def loss(params: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, stats)
        outputs = jax.tree.leaves(model(x, rngs=nnx.Rngs(0)))
        for stage in range(getattr(model, "STAGES", 0)):
            outputs += [*model.boxes(regions[0], stage=stage), model.masks(regions[1], stage=stage)]
        weights = [np.random.default_rng(7).standard_normal(y.shape).astype(np.float32) for y in outputs]
        total = sum((y * w).sum() / y.size**0.5 for y, w in zip(outputs, weights, strict=True))
        return jnp.asarray(total), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    grads, moved = jax.jit(jax.grad(loss, has_aux=True))(params, stats, images(3))
    read = [path for path in flat(params) if not path.startswith(("backbone/layers/", "backbone/patch_embed/"))]
    # The pyramid of a RetinaNet begins with the second map.
    read = [path for path in read if head != "retinanet" or not path.startswith("backbone/extra_norms/0/")]
    norms = {path: np.linalg.norm(np.asarray(flat(grads)[path]).ravel()) for path in read}
    assert np.isfinite(list(norms.values())).all()
    assert not [path for path, norm in norms.items() if norm < 1e-5 * max(norms.values())]
    old = {path: leaf for path, leaf in flat(stats).items() if not path.startswith("backbone/")}
    assert len(old) == (24 if head == "cascade_mask_rcnn" else 0)
    assert not [path for path, leaf in old.items() if np.array_equal(leaf, flat(moved)[path])]


def quick(head: BoxHead, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One compiled call that updates statistics in place."""
    graph, state = nnx.split(head)

    def run(state: nnx.State, *arguments: jax.Array) -> Any:
        module = nnx.merge(graph, state)
        return module(*arguments), nnx.state(module, nnx.BatchStat)

    outputs, statistics = jax.jit(run)(state, *arguments)
    nnx.update(head, statistics)
    return outputs


def test_regions_that_are_padding_leave_statistics_alone() -> None:
    head = BoxHead(3, num_convs=1, num_fcs=1, features=4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    regions = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7, 7, 4)), jnp.float32)
    norm = head.shared_convs[0].bn
    expected, _ = quick(head, regions[:3])
    alone = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    norm.mean[...], norm.var[...] = jnp.zeros(4), jnp.ones(4)
    found, _ = quick(head, regions, jnp.arange(5) < 3)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose((norm.mean[...], norm.var[...]), alone, rtol=1e-5, atol=1e-7)


def test_transposed_convolution_by_hand() -> None:
    """Each position becomes two by two, by a kernel of its own for each; nothing overlaps."""
    upsample = Upsample(2, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    upsample.bias[...] = jnp.arange(3.0)
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 2)).astype(np.float32)
    y, kernel = np.asarray(upsample(jnp.asarray(x))), np.asarray(upsample.kernel[...])
    assert y.shape == (1, 4, 6, 3)
    for row in range(4):
        for column in range(6):
            expected = x[0, row // 2, column // 2] @ kernel[row % 2, column % 2] + np.arange(3)
            np.testing.assert_allclose(y[0, row, column], expected, rtol=1e-5, atol=1e-6)


def test_initialisation() -> None:
    """mmdet's: normal, xavier uniform, kaiming normal by fan out; zero biases but RetinaNet's of the classes."""
    options: dict[str, Any] = {"features": 256, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    neck = FPN((48, 64), extra_levels="convolved", kernel_init=XAVIER, **options)
    retina, rpn, mask = RetinaHead(80, **options), RPNHead(**options), MaskHead(80, **options)
    box = BoxHead(80, num_convs=1, num_fcs=2, **options)
    for layer, deviation in (
        (neck.lateral_convs[0].conv, (2 / (48 + 256)) ** 0.5),
        (neck.fpn_convs[2].conv, (2 / (9 * (64 + 256))) ** 0.5),
        (neck.fpn_convs[3].conv, (2 / (9 * (256 + 256))) ** 0.5),
        (retina.cls_convs[3].conv, 0.01),
        (retina.retina_cls, 0.01),
        (retina.retina_reg, 0.01),
        (rpn.rpn_conv, 0.01),
        (rpn.rpn_reg, 0.01),
        (box.shared_convs[0].conv, (2 / (9 * 256)) ** 0.5),
        (box.shared_fcs[0], (2 / (256 * 49 + 1024)) ** 0.5),
        (box.shared_fcs[1], (2 / (1024 + 1024)) ** 0.5),
        (box.fc_cls, 0.01),
        (box.fc_reg, 0.001),
        (mask.convs[0].conv, (2 / (9 * 256)) ** 0.5),
        (mask.upsample, (2 / (4 * 256)) ** 0.5),
        (mask.conv_logits, (2 / 80) ** 0.5),
    ):
        np.testing.assert_allclose(np.asarray(layer.kernel[...]).std(), deviation, rtol=0.1)
        if layer is not retina.retina_cls and layer.bias is not None:
            assert not np.any(layer.bias[...])
    np.testing.assert_allclose(jax.nn.sigmoid(retina.retina_cls.bias[...]), 0.01, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_other_classes(head: str) -> None:
    model = nnx.merge(*nnx.split(abstract("rmt_s", task="detection", head=head, **SIZES)))
    before = flat(arrays(model)[1])
    model.reset_classifier(3, rngs=nnx.Rngs(0))
    after = flat(arrays(model)[1])
    assert model.config.num_classes == 3
    changed = {path.rpartition("/")[0] for path, leaf in after.items() if leaf.shape != before[path].shape}
    stages = {"retinanet": (), "mask_rcnn": ("",), "cascade_mask_rcnn": ("/0", "/1", "/2")}[head]
    layers = ("bbox_head{}/fc_cls", "bbox_head{}/fc_reg", "mask_head{}/conv_logits")
    expected = {f"roi_head/{layer.format(stage)}" for layer in layers for stage in stages}
    assert changed == (expected or {"bbox_head/retina_cls"})


def test_what_makes_no_detector() -> None:
    options: dict[str, Any] = {"task": "detection", "head": "mask_rcnn"}
    with jaxtyping_disabled():
        for name, changes, message in (
            (
                "rmt_s",
                {"head": None},
                "A detector needs a head, one of retinanet, mask_rcnn, cascade_mask_rcnn; got None",
            ),
            ("rmt_s", {"head": "upernet"}, "one of retinanet, mask_rcnn, cascade_mask_rcnn; got 'upernet'"),
            ("rmt_s_star", {}, "use the name without _star"),
            ("rmt_s", {"dropout": 0.1}, "dropout=0.1 is of task='segmentation', and the task is 'detection'"),
        ):
            with pytest.raises(ValueError, match=message):
                create_model(name, **{**options, **changes})
