"""One sweep over all models at full size, as shapes only."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rmt_jax.models import Classifier, create_model, list_models, variant
from rmt_jax.models.flops import count_flops
from tests.models.small import abstract, arrays

# The published sizes; rmt_nano is ours.
PARAMETERS = {
    "rmt_t": 14_334_216,
    "rmt_s": 26_967_240,
    "rmt_b": 54_154_896,
    "rmt_l": 95_464_864,
    "rmt_s_star": 27_480_240,
    "rmt_b_star": 54_667_896,
    "rmt_l_star": 96_105_864,
    "rmt_nano": 791_228,
}

DIMS = {
    "rmt_t": (64, 128, 256, 512),
    "rmt_s": (64, 128, 256, 512),
    "rmt_b": (80, 160, 320, 512),
    "rmt_l": (112, 224, 448, 640),
    "rmt_s_star": (64, 128, 256, 512),
    "rmt_b_star": (80, 160, 320, 512),
    "rmt_l_star": (112, 224, 448, 640),
    "rmt_nano": (24, 48, 96, 128),
}

# Multiply-accumulates in units of 1e9 as fvcore counts them.
FLOPS = {
    ("rmt_t", 224): 2.651,
    ("rmt_s", 224): 4.800,
    ("rmt_b", 224): 10.414,
    ("rmt_l", 224): 19.545,
    ("rmt_t", 384): 8.948,
    ("rmt_s", 384): 14.642,
    ("rmt_b", 384): 31.608,
    ("rmt_l", 384): 58.827,
}


def count_parameters(model: Classifier) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(arrays(model)[1]))


def pictures(batch: int, height: int, width: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)


def test_the_sweep_covers_all_models() -> None:
    assert list_models() == list(PARAMETERS) == list(DIMS)


@pytest.mark.parametrize("name", list_models())
def test_number_of_parameters(name: str) -> None:
    assert count_parameters(abstract(name)) == PARAMETERS[name]


def test_the_short_cut_to_shapes_is_sound() -> None:
    """`abstract` draws no separate keys; the model made the documented way has the same arrays."""
    honest = arrays(nnx.eval_shape(lambda: create_model("rmt_nano")))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), honest[1:]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), arrays(abstract("rmt_nano"))[1:]
    )


def test_token_labelled_small_model_with_the_released_head() -> None:
    """Upstream's released RMT-S* has an auxiliary head as wide as the projection."""
    assert count_parameters(abstract("rmt_s_star", aux_tap="proj")) == 27_992_240


@pytest.mark.parametrize("name", list_models())
def test_maps_at_sizes_that_are_not_multiples_of_32(name: str) -> None:
    """33 x 47 pixels: every halving rounds up. One block a stage, since blocks keep the size."""
    backbone = abstract(name, depths=(1, 1, 1, 1)).backbone
    maps = jax.eval_shape(lambda backbone, x: backbone(x, rngs=nnx.Rngs(0)), backbone, pictures(2, 33, 47))
    sizes = [(9, 12), (5, 6), (3, 3), (2, 2)]
    assert [m.shape for m in maps] == [(2, *size, dim) for size, dim in zip(sizes, DIMS[name], strict=True)]
    assert [tuple(info) for info in backbone.feature_info] == list(zip(DIMS[name], (4, 8, 16, 32), strict=True))


@pytest.mark.parametrize("name", list_models())
def test_logits_and_token_logits_at_224(name: str) -> None:
    outputs = jax.eval_shape(lambda model, x: model(x, rngs=nnx.Rngs(0)), abstract(name), pictures(3, 224, 224))
    expected = [(3, 1000), (3, 7, 7, 1000)] if name.endswith("star") else [(3, 1000)]
    assert [y.shape for y in jax.tree.leaves(outputs)] == expected
    assert {y.dtype for y in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (96, 160), (256, 65)])
def test_maps_of_other_sizes(height: int, width: int) -> None:
    backbone = abstract("rmt_nano").backbone
    maps = jax.eval_shape(lambda backbone, x: backbone(x), backbone, pictures(2, height, width))
    for m, info in zip(maps, backbone.feature_info, strict=True):
        assert m.shape == (2, -(-height // info.stride), -(-width // info.stride), info.channels)


@pytest.mark.parametrize(("name", "size"), FLOPS)
def test_multiply_accumulates_as_published(name: str, size: int) -> None:
    assert round(count_flops(variant(name), size, size) / 1e9, 3) == FLOPS[name, size]


@pytest.mark.parametrize(("tap", "features"), [("features", 512), ("proj", 1024)])
def test_auxiliary_head_costs_one_product_a_token(tap: str, features: int) -> None:
    star, plain = variant("rmt_s_star", aux_tap=tap), variant("rmt_s")
    assert count_flops(star, 224, 224) - count_flops(plain, 224, 224) == 7 * 7 * features * 1000


def test_multiply_accumulates_follow_sizes_rounded_up() -> None:
    config = variant("rmt_t")
    assert count_flops(config, 221, 97) == count_flops(config, 222, 98) > count_flops(config, 220, 96)
