"""Pictures on a larger canvas: what is beside them changes neither outputs nor gradients nor statistics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.convert import from_torch
from rmt_jax.models import FPN, Backbone, abstract_model, create_model
from rmt_jax.models.initializers import XAVIER
from tests.golden import golden
from tests.models.small import arrays, flat, images, jaxtyping_disabled, small

# Sizes that no stage divides, and a canvas that is larger along both axes.
SIZE, CANVAS = (97, 70), (128, 160)


def on_canvas(pictures: list[np.ndarray], canvas: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """(pictures on canvases full of large noise, their sizes)."""
    noise = 100 * np.random.default_rng(9).standard_normal((len(pictures), *canvas, 3))
    for area, picture in zip(noise, pictures, strict=True):
        area[: picture.shape[0], : picture.shape[1]] = picture
    return jnp.asarray(noise, jnp.float32), jnp.array([picture.shape[:2] for picture in pictures])


def top_left(maps: Any, like: Any) -> list[np.ndarray]:
    """The part of each map that is of the picture."""
    return [np.asarray(x)[:, : y.shape[1], : y.shape[2]] for x, y in zip(maps, like, strict=True)]


def error(found: np.ndarray, expected: Any) -> float:
    return float(np.abs(found - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


@functools.cache
def loss_of_small_model() -> tuple[Any, Any]:
    """(the loss of a model in training mode, its parameters), with decomposed and with full retention."""
    graph, params, stats = arrays(small("rmt_t", task="backbone", extra_norms=True))

    def loss(params: Any, x: jax.Array, valid: Any) -> tuple[jax.Array, Any]:
        """(Loss of the picture's part, (maps, statistics after it))."""
        model = nnx.merge(graph, params, stats, copy=True)
        maps = model(x, valid=valid)
        total = jnp.zeros(())
        for stage, fmap in enumerate(maps):
            height, width = (-(-side // (4 * 2**stage)) for side in SIZE)
            part = fmap[:, :height, :width]
            total += (part * np.random.default_rng(stage).standard_normal(part.shape).astype(np.float32)).mean()
        return total, (maps, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    return loss, params


def test_maps_and_statistics_in_training_mode_are_those_of_the_picture_alone() -> None:
    loss, params = loss_of_small_model()
    picture = np.asarray(images(1, *SIZE))[0]
    run = jax.jit(loss)
    _, (expected_maps, expected_stats) = run(params, jnp.asarray(picture[None]), None)
    _, (maps, moved) = run(params, *on_canvas([picture], CANVAS))
    assert max(map(error, top_left(maps, expected_maps), expected_maps)) < 1e-5
    for path, leaf in flat(expected_stats).items():
        np.testing.assert_allclose(flat(moved)[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_gradients_are_those_of_the_picture_alone() -> None:
    loss, params = loss_of_small_model()
    picture = np.asarray(images(1, *SIZE))[0]
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    expected, _ = gradient(params, jnp.asarray(picture[None]), None)
    found, _ = gradient(params, *on_canvas([picture], CANVAS))
    scale = max(float(jnp.linalg.norm(leaf.ravel())) for leaf in jax.tree.leaves(expected))
    for path, leaf in flat(expected).items():
        # Biases before BatchNorm have no gradient but roundings.
        distance = np.linalg.norm((flat(found)[path] - leaf).ravel())
        assert distance < 1e-4 * np.linalg.norm(leaf.ravel()) + 1e-6 * scale, path


@pytest.mark.slow
@pytest.mark.parametrize("size", ["t", "s"])
def test_maps_and_pyramid_of_two_pictures_are_those_of_each_alone(size: str) -> None:
    """With weights by which late blocks matter."""
    build: Any = functools.partial(create_model, f"rmt_{size}", task="backbone", extra_norms=True, scan=True)
    model: Backbone = abstract_model(lambda rngs: build(rngs=rngs))
    from_torch(golden.state_dict(f"det_backbone_{size}_posgain01"), model)
    model.eval()
    neck = FPN((128, 256, 512), extra_levels="convolved", kernel_init=XAVIER, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split((model, neck))

    @jax.jit
    def run(state: Any, x: jax.Array, valid: Any) -> Any:
        model, neck = nnx.merge(graph, state)
        maps = model(x, valid=valid)
        return *maps, *neck(maps[1:], None if valid is None else -(-valid // 8))

    rng = np.random.default_rng(0)
    pictures = [rng.standard_normal((*sizes, 3)).astype(np.float32) for sizes in ((96, 160), (160, 97))]
    both, sizes = on_canvas(pictures, (192, 224))
    found = run(state, both, sizes)
    for index, picture in enumerate(pictures):
        alone = run(state, jnp.asarray(picture[None]), None)
        assert max(map(error, top_left([x[index : index + 1] for x in found], alone), alone)) < 1e-5
        # Which is not so where the sizes are not given.
        plain = run(state, both[index : index + 1], None)
        assert min(map(error, top_left(plain, alone), alone)) > 0.01


def test_sizes_that_are_none() -> None:
    model = small("rmt_nano", task="backbone")
    model.eval()
    with jaxtyping_disabled():
        for valid, got in (
            (jnp.array([64, 64]), r"int32 of shape \(2,\)"),
            (jnp.array([[64, 64]]), r"int32 of shape \(1, 2\)"),
            (jnp.ones((2, 2)), r"float32 of shape \(2, 2\)"),
        ):
            with pytest.raises(ValueError, match=rf"\(height, width\) of each of 2 images, .* \(2, 2\); got {got}"):
                model(images(), valid=valid)
