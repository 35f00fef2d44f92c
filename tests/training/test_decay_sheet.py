"""The sheet of decays: what its maps and lines hold."""

import numpy as np
import pytest

from rmt_jax.models import decay_map, variant
from rmt_jax.training.decay_sheet import draw_decay


@pytest.fixture(scope="module")
def figure():
    return draw_decay("rmt_t", variant("rmt_t"), (64, 96))


def test_the_map_is_the_product_of_the_factors_of_the_marked_rows(figure):
    across, down, both, _ = figure.subfigs[0].axes[:4]
    across, down, both = (panel.images[0].get_array() for panel in (across, down, both))
    assert (across.shape, down.shape, both.shape) == ((24, 24), (16, 16), (16, 24))
    np.testing.assert_allclose(both, np.outer(down[8], across[12]))
    expected = decay_map(variant("rmt_t"), stage=1, size=(16, 24), position=(8, 12))[2]
    np.testing.assert_allclose(both, expected, rtol=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_every_head_has_its_map_and_its_line(figure, stage):
    config, part = variant("rmt_t"), figure.subfigs[stage]
    heads, height, width = config.num_heads[stage - 1], 32 // 2**stage, 48 // 2**stage
    form = "full" if stage > 2 else "decomposed"
    assert f"{width}x{height} positions of {2 * 2**stage}x{2 * 2**stage} pixels, {form}" in part._suptitle.get_text()
    maps, falls = part.subfigs
    shown = [panel.images[0].get_array() for panel in maps.axes if panel.images]
    np.testing.assert_array_equal(
        shown, decay_map(config, stage=stage, size=(height, width), position=(height // 2, width // 2))
    )
    lines = falls.axes[0].lines[:-1]  # the last is the half
    assert len(lines) == len({tuple(line.get_color()) for line in lines}) == heads
    gamma = 1 - 2.0 ** (-2 - config.decay_spans[stage - 1] * np.arange(heads) / heads)
    for line, rate in zip(lines, gamma, strict=True):
        np.testing.assert_allclose(line.get_ydata(), rate ** line.get_xdata(), rtol=1e-5)
    assert maps.axes[0].get_title() == f"head 0, $\\gamma$ 0.7500\nhalf at {2.409 * 2 * 2**stage:.0f} px"


def test_the_smallest_picture_has_maps_of_one_position():
    assert len(draw_decay("rmt_l", variant("rmt_l"), (32, 32)).subfigs) == 5
