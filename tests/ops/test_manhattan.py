"""Manhattan self-attention of whole maps: every formulation is the specification's, forward and backward."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from rmt_jax.ops import (
    Heads,
    axis_decay,
    depthwise_conv2d,
    formulations,
    full_retention,
    full_retention_by_rows,
    manhattan_decay,
    masa,
    pairs_to_halves,
)
from tests.ops.devices import per_device
from tests.ops.test_pallas_retention import errors, heads_of, maps, specification, with_gradients

Function = Callable[..., jax.Array]


def ours(heads: Heads, valid: jax.Array | None = None) -> Function:
    """Of maps with pairs side by side."""
    count = len(heads.log_rates)
    return lambda q, k, v: masa(pairs_to_halves(q, count), pairs_to_halves(k, count), v, heads, valid)


@pytest.mark.parametrize("full", [False, True])
def test_equals_the_specification(full: bool) -> None:
    arguments = maps(3, 5, 7, 24)
    ours_of_both = with_gradients(ours(heads_of(2, full)))(*arguments)
    result, *gradients = errors(ours_of_both, with_gradients(specification(2, full))(*arguments))
    assert result < 1e-6
    assert max(gradients) < 1e-5


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_by_rows_equals_all_at_once(rows: int) -> None:
    """Some rows of queries at a time; 3 of 5 are two blocks, of 3 and of 2."""
    *qkv, dout = (x[0].reshape(5, 7, 2, 12) for x in maps(1, 5, 7, 24))
    rates = np.asarray(heads_of(2, True).log_rates, np.float32)
    decays = axis_decay(7, rates), axis_decay(5, rates)
    by_rows = with_gradients(lambda q, k, v: full_retention_by_rows(q, k, v, *decays, rows=rows))(*qkv, dout)
    decay = manhattan_decay(5, 7, rates)
    result, *gradients = errors(by_rows, with_gradients(lambda q, k, v: full_retention(q, k, v, decay))(*qkv, dout))
    assert result < 1e-6
    assert max(gradients) < 1e-5


@pytest.mark.parametrize("full", [False, True])
def test_pictures_on_a_canvas_equal_the_specification_of_each_alone(full: bool) -> None:
    """Forward and backward, whatever is beside them."""
    sizes = ((5, 7), (6, 3))
    canvas, function = maps(2, 6, 9, 24), ours(heads_of(2, full), jnp.array(sizes))
    *qkv, dout = canvas
    inside = jnp.stack([jnp.pad(jnp.ones(size), ((0, 6 - size[0]), (0, 9 - size[1]))) for size in sizes])[..., None]
    found = with_gradients(function)(*qkv, dout * inside)
    for index, (height, width) in enumerate(sizes):
        part = (slice(index, index + 1), slice(height), slice(width))
        expected = with_gradients(specification(2, full))(*(x[part] for x in canvas))
        result, *gradients = errors([x[part] for x in found], expected)
        assert result < 1e-6
        assert max(gradients) < 1e-5
    # What is beside the pictures has no gradient.
    assert not any(np.any(np.asarray(gradient * (1 - inside))) for gradient in found[1:])


@pytest.mark.parametrize("canvas", [False, True])
def test_logits_of_a_detectors_map_are_never_all_there(canvas: bool) -> None:
    """Stage 3 of RMT-T at 800x1344, of which they are 564 MB for a picture; with gradients 1,142 MB are used then."""
    x, sizes = jax.ShapeDtypeStruct((1, 50, 84, 256), jnp.float32), jnp.array([[50, 84]])
    function = ours(heads_of(8, True), sizes if canvas else None)
    memory = with_gradients(function).lower(x, x, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 260e6


def kernels(x: jax.ShapeDtypeStruct, platform: str) -> int:
    """How many a program of retention and its gradients has."""
    with formulations.asking(platform):
        traced = with_gradients(ours(heads_of(4, False))).trace(x, x, x, x)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")


def test_each_platform_gets_its_formulation() -> None:
    x = jax.ShapeDtypeStruct((2, 56, 56, 64), jnp.bfloat16)
    assert {platform: kernels(x, platform) for platform in ("cpu", "tpu")} == {"cpu": 0, "tpu": 2}


def test_a_map_of_a_detector_needs_no_kernel() -> None:
    assert kernels(jax.ShapeDtypeStruct((2, 200, 336, 64), jnp.bfloat16), "tpu") == 0


def test_the_default_device_decides_where_nothing_asks() -> None:
    assert formulations.chosen_here("ffn") == "layers"
    with jax.default_device("tpu"):
        assert formulations.chosen_here("ffn") == "kernel"
        with formulations.asking("cpu"):
            assert formulations.chosen_here("ffn") == "layers"
    with jax.default_device(jax.devices("cpu")[0]):
        assert formulations.chosen_here("ffn") == "layers"


def test_no_block_is_called_that_has_grouped_convolutions() -> None:
    assert formulations.chosen("block_calls", "cpu") == "called"
    with formulations.asking(depthwise="convolution"):
        assert formulations.chosen("block_calls", "cpu") == "inlined"
    with formulations.asking(depthwise="convolution", block_calls="called"):
        assert "block_calls inlined" in formulations.describe("cpu")


def test_the_environment_decides_for_every_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, "retention=at_once, sums=reduction")
    x = jax.ShapeDtypeStruct((2, 56, 56, 64), jnp.bfloat16)
    assert [kernels(x, platform) for platform in ("cpu", "tpu")] == [0, 0]
    choices = (
        "retention at_once, halves strides, sums reduction, "
        "depthwise shifts, layer_norm plain, ffn layers, blocks few_pictures, block_calls called, reuse barrier"
    )
    assert formulations.describe("cpu") == f"{choices} (RMT_JAX_FORMULATIONS=retention=at_once, sums=reduction)"


@pytest.mark.parametrize("value", ["retention", "retention=fast", "attention=kernel"])
def test_an_unknown_formulation_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, value)
    known = r"retention=at_once\|kernel\|triton; halves=strides\|transpose; sums=by_parts\|reduction; depthwise="
    with pytest.raises(ValueError, match=f"is none of {known}"):
        formulations.overrides()


def test_the_environment_comes_before_what_a_program_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with formulations.asking(sums="reduction", retention="at_once"):
        assert formulations.chosen("sums", "cpu") == "reduction"
        monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, "sums=by_parts")
        assert formulations.overrides() == (("sums", "by_parts"), ("retention", "at_once"))
    assert formulations.overrides() == (("sums", "by_parts"),)


def test_what_is_asked_for_inside_is_added_to_what_is_asked_for_outside() -> None:
    with formulations.asking("tpu", sums="by_parts", depthwise="convolution"):
        with formulations.asking(sums="reduction"):
            assert formulations.overrides() == (("sums", "reduction"), ("depthwise", "convolution"))
            assert formulations.chosen_here("ffn") == "kernel"
        assert formulations.overrides() == (("sums", "by_parts"), ("depthwise", "convolution"))
    assert formulations.overrides() == ()


def test_a_function_is_traced_anew_for_another_formulation() -> None:
    run = jax.jit(depthwise_conv2d)
    arguments = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)), jnp.ones(2)
    for choice, count in {"shifts": 0, "convolution": 1}.items():
        with formulations.asking(depthwise=choice):
            assert run.trace(*arguments).lower().as_text().count("stablehlo.convolution") == count


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        (
            "tpu",
            "retention kernel, halves transpose, sums reduction, "
            "depthwise shifts, layer_norm plain, ffn kernel, blocks all_pictures, block_calls inlined, "
            "reuse by_compiler",
        ),
        (
            "cpu",
            "retention at_once, halves strides, sums by_parts, "
            "depthwise shifts, layer_norm plain, ffn layers, blocks few_pictures, block_calls called, reuse barrier",
        ),
        (
            "gpu",
            "retention triton, halves strides, sums reduction, "
            "depthwise triton, layer_norm triton, ffn layers, blocks all_pictures, block_calls inlined, "
            "reuse by_compiler",
        ),
    ],
)
def test_what_a_summary_says(platform: str, expected: str) -> None:
    assert formulations.describe(platform) == expected


def test_what_the_compiler_splits_over_devices_has_no_kernels() -> None:
    """Nor sums by parts, which would be on other devices; but what every device runs by itself has, backward, too."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    asked: list[str] = []

    @jax.custom_vjp
    def f(x: jax.Array) -> jax.Array:
        return x

    def backward(_: None, dy: jax.Array) -> tuple[jax.Array]:
        asked.extend(formulations.chosen(operation, "tpu") for operation in ("retention", "ffn"))
        asked.append(formulations.chosen("sums", "cpu"))
        return (dy,)

    f.defvjp(lambda x: (x, None), backward)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(jax.grad(lambda x: f(x).sum())).trace(jnp.ones((8, 3)))
        assert asked == ["at_once", "layers", "reduction"]
        jax.jit(jax.grad(lambda x: per_device(f, mesh)(x).sum())).trace(jnp.ones((8, 3)))
    assert asked[3:] == ["kernel", "kernel", "by_parts"]


def test_nothing_between_is_kept_for_the_backward_pass() -> None:
    """Queries, keys and values only: logits of 8x8 maps would be 16 times as large as they are."""
    x = jnp.zeros((2, 8, 8, 8))
    _, backward = jax.vjp(lambda q, k, v: masa(q, k, v, heads_of(2, True)), x, x, x)
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert kept <= 3 * x.size + np.prod((2, 64, 64)) / 8
