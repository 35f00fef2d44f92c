"""Stochastic depth: rates, masks, scale, and where the randomness comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import Classifier, list_models, variant
from rmt_jax.models.layers import DropPath
from tests.models.small import abstract, arrays, images, predict, small


def run(model: Classifier, x: jax.Array, seeds: tuple[int, ...]) -> list[jax.Array]:
    """Training-mode logits for each seed, by one compiled program."""
    graph, params, stats = arrays(model)
    step = jax.jit(lambda key: nnx.merge(graph, params, stats)(x, rngs=nnx.Rngs(key)))
    return [step(jax.random.key(seed)) for seed in seeds]


@pytest.fixture
def drawn_keys(monkeypatch: pytest.MonkeyPatch) -> list[jax.Array]:
    """What each DropPath of the model was given, in the order of the calls."""
    keys: list[jax.Array] = []

    def record(self: DropPath, x: jax.Array, key: jax.Array, rate: float | None) -> jax.Array:
        keys.append(jax.random.key_data(key))
        return x

    monkeypatch.setattr(DropPath, "__call__", record)
    return keys


@pytest.mark.parametrize("name", list_models())
def test_rates_rise_linearly_from_zero_over_all_blocks(name: str) -> None:
    model, config = abstract(name), variant(name)
    rates = [block.drop_path.rate for stage in model.backbone.layers for block in stage.blocks]
    assert len(rates) == sum(config.depths)
    expected = [config.drop_path * i / (len(rates) - 1) for i in range(len(rates))]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_published_rates() -> None:
    assert [variant(name).drop_path for name in list_models()] == [0.1, 0.15, 0.4, 0.5, 0.15, 0.4, 0.5, 0.0]


def test_whole_samples_are_dropped_and_the_others_scaled() -> None:
    x = images(200, 3, 2)
    ratio = np.asarray(DropPath(0.25)(x, jax.random.key(0)) / x)
    per_sample = ratio.reshape(200, -1)
    np.testing.assert_allclose(per_sample, np.repeat(per_sample[:, :1], 18, axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.unique(np.round(per_sample, 5)), [0, 1.33333])


def test_expectation_is_kept() -> None:
    y = DropPath(0.4)(jnp.ones((20_000, 1, 1, 1)), jax.random.key(1))
    # Standard deviation of the mean: sqrt(0.4 / 0.6 / 20000) = 0.0058; four of them.
    assert abs(float(y.mean()) - 1) < 0.023


def test_nothing_is_dropped_without_a_key_or_at_rate_zero() -> None:
    x = images(8, 2, 2)
    assert DropPath(0.5)(x, None) is x
    assert DropPath(0.0)(x, jax.random.key(0)) is x


def test_every_block_and_branch_draws_for_itself(drawn_keys: list[jax.Array]) -> None:
    graph, params, stats = arrays(small(drop_path=0.3, depths=(2, 1, 2, 1)))

    def both(key: jax.Array) -> list[jax.Array]:
        drawn_keys.clear()
        model, rngs = nnx.merge(graph, params, stats), nnx.Rngs(key)
        model(images(), rngs=rngs)
        model(images(), rngs=rngs)  # the next step, with the same Rngs object
        return list(drawn_keys)

    keys = {tuple(key.tolist()) for key in jax.jit(both)(jax.random.key(0))}
    assert len(drawn_keys) == 2 * 2 * 6
    assert len(keys) == len(drawn_keys)


def test_different_keys_give_independent_masks() -> None:
    """Half the samples agree between two draws at rate 1/2, whatever the neighbouring sample does."""
    ones = jnp.ones((4000, 1, 1, 1))
    first, second = (np.asarray(DropPath(0.5)(ones, key)).ravel() > 0 for key in jax.random.split(jax.random.key(3)))
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
