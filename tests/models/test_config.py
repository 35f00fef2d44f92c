"""What create_model takes: every field has its effect, and every mistake its message."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import RMTConfig, create_model, list_models, variant
from rmt_jax.models.rmt import check_images
from tests.models.small import abstract, arrays, flat, images, jaxtyping_disabled, predict, primitives, small

NANO = variant("rmt_nano")


def shapes(**overrides: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flat(arrays(abstract("rmt_nano", **overrides))[1]).items()}


def changed(**overrides: Any) -> set[str]:
    """Paths of parameters that appear, vanish or change their shape."""
    before, after = shapes(), shapes(**overrides)
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"num_classes": 7}, {"head/kernel", "head/bias"}),
        ({"proj_dim": 64}, {"proj/kernel", "proj/bias", "norm/scale", "norm/bias", "head/kernel"}),
        ({"aux_head": True}, {"aux_head/kernel", "aux_head/bias"}),
        (
            {"mlp_ratios": (2, 2, 2, 3.5)},
            {f"backbone/layers/3/blocks/0/ffn/{p}" for p in ("fc1/kernel", "fc1/bias", "fc2/kernel")}
            | {f"backbone/layers/3/blocks/0/ffn/dwconv/{p}" for p in ("kernel", "bias")},
        ),
        (
            {"layer_scale": (None, 1e-3, None, None)},
            {"backbone/layers/1/blocks/0/gamma_1", "backbone/layers/1/blocks/0/gamma_2"},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_field_changes_exactly_its_parameters(override: dict[str, Any], expected: set[str]) -> None:
    assert changed(**override) == expected


def test_depths_add_blocks() -> None:
    new = changed(depths=(1, 3, 2, 1))
    assert {path.split("/blocks/")[0] for path in new} == {"backbone/layers/1"}
    assert {path.split("/blocks/")[1].split("/")[0] for path in new} == {"1", "2"}


def test_embed_dims_widen_their_stage() -> None:
    after = shapes(embed_dims=(24, 56, 96, 128))
    assert after["backbone/layers/1/blocks/0/retention/q_proj/kernel"] == (56, 56)
    assert after["backbone/layers/0/downsample/reduction/kernel"] == (3, 3, 24, 56)
    assert after["backbone/layers/1/downsample/reduction/kernel"] == (3, 3, 56, 96)


@pytest.mark.parametrize(
    "override",
    [
        {"num_heads": (2, 2, 4, 2)},
        {"decay_spans": (4, 4, 5, 6)},
        {"decay_start": 3},
        {"decomposed": (True, True, False, False)},
    ],
    ids=lambda override: next(iter(override)),
)
def test_field_without_parameters_changes_the_logits(override: dict[str, Any]) -> None:
    x = images()
    assert np.abs(predict(small(**override), x) - predict(small(), x)).max() > 1e-4


def test_drop_path_argument_overrides_the_variants() -> None:
    assert abstract("rmt_s", drop_path=0.3).config.drop_path == 0.3
    assert abstract("rmt_s", drop_path=0.0).config.drop_path == 0.0
    assert abstract("rmt_s").config.drop_path == 0.15


def test_every_field_is_tested_here() -> None:
    """A new field needs a test of its effect."""
    tested = {"num_classes", "proj_dim", "aux_head", "mlp_ratios", "layer_scale", "depths", "embed_dims", "num_heads"}
    tested |= {"decay_spans", "decay_start", "decomposed", "drop_path"}
    tested |= {"aux_tap", "remat", "scan", "extra_norms"}  # in test_starred.py, test_block_loop.py, test_extra_norms.py
    tested |= {"pyramid_features"}  # in test_segmentation.py
    assert {field.name for field in dataclasses.fields(RMTConfig)} == tested


@pytest.fixture
def unchecked_annotations() -> Iterator[None]:
    with jaxtyping_disabled():
        yield


@pytest.mark.usefixtures("unchecked_annotations")
def test_lists_become_tuples_so_that_a_config_can_be_hashed() -> None:
    config = variant("rmt_nano", depths=[1, 1, 1, 1])
    assert config.depths == (1, 1, 1, 1)
    assert hash(config) == hash(variant("rmt_nano", depths=(1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": (1, 1, 1)}, r"depths needs one entry for each of the four stages, got \(1, 1, 1\)"),
        ({"depths": (1, 0, 1, 1)}, r"depths must be positive whole numbers, got \(1, 0, 1, 1\)"),
        ({"embed_dims": (24, 50, 96, 128)}, r"Stage 2: 50 channels cannot be split into 4 heads.*multiple of 2 \*"),
        ({"num_heads": (2, 4, 0, 8)}, r"num_heads must be positive whole numbers"),
        ({"drop_path": 1.0}, r"drop_path is a probability in \[0, 1\), got 1\.0"),
        ({"drop_path": -0.1}, r"drop_path .* got -0\.1"),
        ({"proj_dim": -4}, r"proj_dim must be positive whole numbers, got -4"),
        ({"mlp_ratios": (1, 1, 1, 0)}, r"mlp_ratios must be positive"),
        ({"decay_start": 0}, r"need decay_start > 0 and decay_spans >= 0"),
        ({"num_classes": 0}, r"num_classes must be positive whole numbers, got 0"),
        ({"aux_tap": "head"}, r"aux_tap must be one of \('features', .*got 'head'"),
        ({"remat": "all"}, r"remat must be one of \('none', 'dots', 'full'\), got 'all'"),
        ({"depth": (1, 1, 1, 1)}, r"Unknown architecture field 'depth'\. Did you mean 'depths'\? Known: embed_dims"),
        ({"dtype": jnp.float16}, r"dtype must be float32 or bfloat16, got .*float16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_numbers_that_make_no_model(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("rmt_nano", **overrides)


def test_unknown_model_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"Unknown model 'rmt_x_star'.*Did you mean 'rmt_\w_star'.*Known.*rmt_nano"):
        variant("rmt_x_star")
    with pytest.raises(ValueError, match=r"Unknown model 'zzz'\. Known models: rmt_t"):
        create_model("zzz")


def test_names_are_listed_the_papers_first() -> None:
    assert list_models()[:4] == ["rmt_t", "rmt_s", "rmt_b", "rmt_l"]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.zeros((64, 64, 3)), r"\[batch height width 3\].*got shape \(64, 64, 3\).*images\[None\]"),
        (jnp.zeros((2, 3, 64, 64)), r"64 channels\. Channels come last here: images\.transpose\(0, 2, 3, 1\)"),
        (jnp.zeros((2, 64, 64, 1)), r"shape \(2, 64, 64, 1\) with 1 channels\.$"),
        (jnp.zeros((2, 64, 31, 3)), r"at least 32x32.*which is 64x31 pixels"),
        (jnp.zeros((2, 64, 64, 3), jnp.uint8), r"got uint8 .*Normalise them: \(images / 255 - mean\) / std"),
    ],
    ids=["no batch", "channels first", "grey", "too small", "integers"],
)
def test_images_of_another_kind(x: jax.Array, message: str) -> None:
    model = small()
    for call in (check_images, model, model.backbone, model.forward_features):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_smallest_images_are_taken() -> None:
    check_images(jnp.zeros((1, 32, 32, 3)))
    check_images(jnp.zeros((1, 32, 32, 3), jnp.bfloat16))


def test_features_and_head_make_the_logits() -> None:
    model = small()
    model.eval()

    def run(model: nnx.Module, x: jax.Array) -> tuple[jax.Array, ...]:
        features = model.forward_features(x)
        return model(x), features, model.forward_head(features), model.forward_head(features, pre_logits=True)

    logits, features, again, pooled = jax.jit(run)(model, images(2, 64, 96))
    assert (features.shape, pooled.shape) == ((2, 2, 3, 16), (2, 12))
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-6)
    expected = np.asarray(pooled) @ model.head.kernel[...] + model.head.bias[...]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_modes_switch_in_place_everywhere() -> None:
    model = small("rmt_s_star", drop_path=0.1)

    def modes() -> set[bool]:
        found = [m.deterministic for m in (model, model.backbone)]
        found += [m.use_running_average for _, m in nnx.iter_modules(model) if hasattr(m, "use_running_average")]
        assert len(found) == 2 + 8
        return set(found)

    assert modes() == {False}
    model.eval()
    assert modes() == {True}
    model.train()
    assert modes() == {False}


def test_view_in_evaluation_mode_leaves_the_model_in_training_mode() -> None:
    model = small("rmt_s_star", drop_path=0.1)
    view = nnx.view(model, deterministic=True, use_running_average=True)
    assert not model.deterministic
    assert view.head.kernel is model.head.kernel
    assert jax.eval_shape(lambda model, x: model(x), view, images()).shape == (2, 5)


def test_the_model_is_traced_without_constants_of_its_weights() -> None:
    """But for small tables of the rotation all is computed inside, so that any size runs with the same arrays."""
    model = small()
    jaxpr = jax.make_jaxpr(lambda model, x: model(x))(model, images())
    largest = max((np.size(c) for c in jaxpr.consts), default=0)
    assert largest <= 128 * 128
    assert len(primitives(jaxpr.jaxpr)) > 100
