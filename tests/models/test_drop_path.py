"""Stochastic depth: rates, masks, scale, and where the randomness comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import Classifier, list_models, variant
from rmt_jax.models.block import Block
from rmt_jax.models.layers import drop_path
from tests.models.small import abstract, arrays, images, predict, small


def run(model: Classifier, x: jax.Array, seeds: tuple[int, ...]) -> list[jax.Array]:
    """Training-mode logits for each seed, by one compiled program."""
    graph, params, stats = arrays(model)
    step = jax.jit(lambda key: nnx.merge(graph, params, stats)(x, rngs=nnx.Rngs(key)))
    return [step(jax.random.key(seed)) for seed in seeds]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[jax.Array]:
    """What the branches of each block were multiplied with, in the order of the calls."""
    found: list[jax.Array] = []

    def record(self: Block, x: jax.Array, keep: jax.Array, valid: None) -> jax.Array:
        found.append(keep)
        return x

    monkeypatch.setattr(Block, "__call__", record)
    return found


def draw(rate: float, batch: int, seed: int = 0) -> np.ndarray:
    """What one block's two branches are multiplied with."""
    return np.asarray(drop_path(jax.random.split(jax.random.key(seed), 1), jnp.asarray([rate]), batch)[0])


@pytest.mark.parametrize("name", list_models())
def test_rates_rise_linearly_from_zero_over_all_blocks(name: str) -> None:
    model, config = abstract(name), variant(name)
    rates = [block.drop_path for stage in model.backbone.layers for block in stage.blocks]
    assert len(rates) == sum(config.depths)
    expected = [config.drop_path * i / (len(rates) - 1) for i in range(len(rates))]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_published_rates() -> None:
    assert [variant(name).drop_path for name in list_models()] == [0.1, 0.15, 0.4, 0.5, 0.15, 0.4, 0.5, 0.0]


def test_samples_are_dropped_and_the_others_scaled() -> None:
    np.testing.assert_allclose(np.unique(draw(0.25, 200)), [0, 1 / 0.75], rtol=1e-6)


def test_expectation_is_kept() -> None:
    # Standard deviation of the mean: sqrt(0.4 / 0.6 / 20000) = 0.0058; four of them.
    assert np.abs(draw(0.4, 20_000).mean(axis=1) - 1).max() < 0.023


def test_nothing_is_dropped_at_rate_zero() -> None:
    np.testing.assert_array_equal(draw(0.0, 50), np.ones((2, 50)))


def test_every_block_and_branch_draws_for_itself(given: list[jax.Array]) -> None:
    graph, params, stats = arrays(small(drop_path=0.5, depths=(2, 1, 2, 1)))

    def both(key: jax.Array) -> list[jax.Array]:
        given.clear()
        model, rngs = nnx.merge(graph, params, stats), nnx.Rngs(key)
        model(images(64), rngs=rngs)
        model(images(64), rngs=rngs)  # the next step, with the same Rngs object
        return list(given)

    drawn = np.stack(both(jax.random.key(0)))  # not compiled, so that what blocks are given is there
    assert drawn.shape == (2 * 6, 2, 64)
    dropping = drawn[[i for i in range(2 * 6) if i % 6]]  # the first block's rate is 0
    assert len({branch.tobytes() for block in dropping > 0 for branch in block}) == 2 * 2 * 5


def test_different_keys_give_independent_masks() -> None:
    """Half the samples agree between two draws at rate 1/2, whatever the neighbouring sample does."""
    keys = jax.random.split(jax.random.key(3))
    first, second = np.asarray(drop_path(keys, jnp.asarray([0.5, 0.5]), 4000))[:, 0] > 0
    # Standard deviation 0.008; four of them.
    assert abs((first == second).mean() - 0.5) < 0.032
    assert abs((first[1:] == first[:-1]).mean() - 0.5) < 0.032


def test_the_seed_decides() -> None:
    first, again, other = run(small(drop_path=0.5), images(), (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_evaluation_drops_nothing() -> None:
    np.testing.assert_array_equal(predict(small(drop_path=0.5), images()), predict(small(), images()))


def test_missing_rngs_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"drop path \(0\.5\).*rngs=nnx\.Rngs.*model\.eval\(\).*drop_path=0"):
        small(drop_path=0.5)(images())


@pytest.mark.parametrize("mode", ["eval", "rate 0"])
def test_rngs_are_optional_where_nothing_is_drawn(mode: str) -> None:
    model = small(drop_path=0.5 if mode == "eval" else 0.0)
    if mode == "eval":
        model.eval()
    assert jax.eval_shape(lambda model, x: model(x), model, images()).shape == (2, 5)
