"""Attention and decay as maps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import Classifier, abstract_model, attention_map, create_model, decay_map
from rmt_jax.models.block import Retention
from rmt_jax.ops import log_decay_rates, masa, reference, rotary_phase
from tests.models.small import images, jaxtyping_disabled, small

DIM, HEADS = 8, 2


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def explicit(layer: Retention, x: jax.Array, row: int, column: int) -> np.ndarray:
    """[heads height width] for one picture, with loops over positions."""
    height, width, _ = x.shape
    rates = log_decay_rates(HEADS, 2, 4)
    phase = jnp.asarray(rotary_phase(height, width, DIM // HEADS))[:, :, None]
    q, k = (projection(x).reshape(height, width, HEADS, -1) for projection in (layer.q_proj, layer.k_proj))
    with jax.numpy_dtype_promotion("standard"):  # the specification multiplies complex by real numbers
        q, k = np.asarray(reference.rotate(q, phase)), np.asarray(reference.rotate(k * (DIM // HEADS) ** -0.5, phase))
    out = np.zeros((HEADS, height, width))
    rows, columns = np.arange(height), np.arange(width)
    for head, rate in enumerate(rates):
        if layer.heads.decomposed:
            down = softmax(k[:, column, head] @ q[row, column, head] + rate * np.abs(rows - row))
            for h in range(height):
                across = softmax(k[h, :, head] @ q[h, column, head] + rate * np.abs(columns - column))
                out[head, h] = down[h] * across
        else:
            distance = np.abs(rows - row)[:, None] + np.abs(columns - column)
            logits = k[:, :, head] @ q[row, column, head] + rate * distance
            out[head] = softmax(logits.reshape(-1)).reshape(height, width)
    return out


@pytest.mark.parametrize("decomposed", [True, False])
def test_attention_is_the_softmax_of_the_definition(decomposed: bool) -> None:
    layer = Retention(
        DIM, HEADS, decay_start=2, decay_span=4, decomposed=decomposed, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    layer.q_proj.kernel[...] *= 40  # logits that matter
    layer.k_proj.kernel[...] *= 40
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 8))
    found = layer.attention(x, 1, 2)
    assert found.shape == (2, 2, 3, 4)
    expected = np.stack([explicit(layer, picture, 1, 2) for picture in x])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_maps_of_a_model_sum_to_one_and_have_the_stages_size(stage: int) -> None:
    model = small("rmt_t", depths=(2, 1, 1, 1))
    model.eval()
    size = 64 // (2 * 2**stage)
    found = attention_map(model, images(), stage=stage, block=-1, position=(size - 1, 0))
    assert found.shape == (2, 2, size, size)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=(2, 3)), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        found,
        attention_map(
            model.backbone, images(), stage=stage, block=model.config.depths[stage - 1] - 1, position=(size - 1, 0)
        ),
    )


def test_the_block_before_sees_something_else() -> None:
    model = small("rmt_t", depths=(2, 1, 1, 1))
    model.eval()
    first, second = (attention_map(model, images(), stage=1, block=block, position=(3, 3)) for block in (0, 1))
    assert not np.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"stage": 0}, "stage is one of 1 to 4, got 0"),
        ({"stage": 5}, "stage is one of 1 to 4, got 5"),
        ({"block": 1}, "Stage 3 has 1 blocks, got block 1"),
        ({"position": (4, 0)}, r"The map of stage 3 is 4x4, got position \(4, 0\)"),
    ],
)
def test_mistakes(mistake: dict[str, Any], message: str) -> None:
    model = small("rmt_t")
    model.eval()
    with jaxtyping_disabled(), pytest.raises(ValueError, match=message):
        attention_map(model, images(), **{"stage": 3, "block": 0, "position": (0, 0), **mistake})


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        attention_map(small(), images(), stage=1, block=0, position=(0, 0))


def test_decay_falls_with_the_manhattan_distance() -> None:
    config = small("rmt_t").config
    found = decay_map(config, stage=2, size=(5, 7), position=(1, 2))
    assert found.shape == (2, 5, 7)
    gamma = 1 - 2.0 ** (-2 - 4 * np.arange(2) / 2)
    assert found[0, 1, 2] == 1
    np.testing.assert_allclose(found[:, 4, 0], gamma**5, rtol=1e-5)
    np.testing.assert_allclose(found[:, 0, 6], gamma**5, rtol=1e-5)


@pytest.mark.parametrize("decomposed", [True, False])
def test_the_weights_times_the_values_are_what_retention_gives(decomposed: bool) -> None:
    """For every position, against the operation that models use."""
    layer = Retention(
        DIM, HEADS, decay_start=2, decay_span=4, decomposed=decomposed, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    layer.q_proj.kernel[...] *= 40
    layer.k_proj.kernel[...] *= 40
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, DIM))
    values = layer.v_proj(x)
    expected = masa(*layer._queries_and_keys(x), values, layer.heads)
    heads = values.reshape(2, 3, 4, HEADS, -1)
    at = jax.jit(lambda row, column: jnp.einsum("bnhw,bhwnd->bnd", layer.attention(x, row, column), heads))
    found = jnp.stack([jnp.stack([at(row, column) for column in range(4)], 1) for row in range(3)], 1)
    largest = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found.reshape(expected.shape) / largest, expected / largest, rtol=0, atol=1e-6)


def test_in_bfloat16_the_weights_still_sum_to_one() -> None:
    layer = Retention(DIM, HEADS, decay_start=2, decay_span=4, decomposed=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    found = layer.attention(jax.random.normal(jax.random.key(1), (1, 9, 9, DIM), jnp.bfloat16), 4, 4)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.sum(axis=(2, 3)), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_within_a_segmentor_or_detector_it_is_the_layers_own_input(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps are those of what each retention layer is given in the backbone's forward pass."""
    head = {"segmentation": "semantic_fpn", "detection": "retinanet"}[kind]
    whole = functools.partial(create_model, "rmt_t", 3, task=kind, head=head, pyramid_features=8)
    model: Any = abstract_model(lambda rngs: whole(rngs=rngs))
    model.backbone = small("rmt_t", depths=(1, 1, 2, 1)).backbone  # whose weights take no drawing
    model.eval()
    given: list[tuple[Retention, jax.Array]] = []
    original = Retention.__call__
    monkeypatch.setattr(
        Retention, "__call__", lambda self, x, valid=None: (given.append((self, x)), original(self, x, valid))[1]
    )
    model.backbone(images())
    monkeypatch.undo()
    layer, x = given[3]  # the second block of the third stage
    assert x.shape[1:3] == (4, 4)
    found = attention_map(model, images(), stage=3, block=1, position=(2, 1))
    np.testing.assert_array_equal(found, layer.attention(x, 2, 1))


def test_compiled_once_for_all_positions() -> None:
    model = small("rmt_t")
    model.eval()
    traced = []

    @jax.jit
    def attend(model: Classifier, position: tuple[jax.Array, jax.Array]) -> jax.Array:
        traced.append(position)
        return attention_map(model, images(), stage=3, block=-1, position=position)

    for position in ((0, 1), (3, 2)):
        expected = attention_map(model, images(), stage=3, block=-1, position=position)
        np.testing.assert_allclose(attend(model, position), expected, rtol=1e-5, atol=1e-7)
    assert len(traced) == 1
