"""Backbones of detectors and segmentors: the norms of their four maps."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from rmt_jax.models import Classifier, abstract_model, create_model, variant
from rmt_jax.models.layers import LayerNorm
from tests.models.small import SIZES, images, jaxtyping_disabled

SMALL = {key: value for key, value in SIZES.items() if key != "num_classes"}


def layer_norm(norm: LayerNorm, x: np.ndarray) -> np.ndarray:
    """PyTorch's, with upstream's epsilon for these norms."""
    weight, bias = (torch.from_numpy(np.array(array[...])) for array in (norm.scale, norm.bias))
    return torch.nn.functional.layer_norm(torch.from_numpy(x), x.shape[-1:], weight, bias, eps=1e-5).numpy()


@pytest.mark.slow
def test_each_map_is_normalised_and_the_next_stage_sees_the_other() -> None:
    normed = create_model("rmt_s", task="backbone", extra_norms=True, **SMALL)
    plain = create_model("rmt_s", task="backbone", **SMALL)
    rng = np.random.default_rng(0)
    for norm in normed.extra_norms:
        norm.scale[...] = rng.uniform(0.5, 1.5, norm.scale[...].shape).astype(np.float32)
        norm.bias[...] = rng.standard_normal(norm.bias[...].shape).astype(np.float32)
    normed.eval()
    plain.eval()
    for norm, ours, fmap in zip(normed.extra_norms, normed(images()), plain(images()), strict=True):
        np.testing.assert_allclose(ours, layer_norm(norm, np.array(fmap)), rtol=1e-5, atol=1e-5)


def test_epsilon() -> None:
    """Seen on inputs whose variance is not far above it; the 1e-6 of the other norms would be off by 2 %."""
    model = create_model("rmt_s", task="backbone", extra_norms=True, **SMALL)
    x = 0.01 * np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(
        model.extra_norms[0](jax.numpy.asarray(x)), layer_norm(model.extra_norms[0], x), rtol=1e-5, atol=1e-6
    )


def test_there_are_four_with_the_channels_of_their_stages() -> None:
    model = create_model("rmt_s", task="backbone", extra_norms=True, **SMALL)
    assert [norm.scale[...].shape for norm in model.extra_norms] == [(8,), (8,), (16,), (16,)]
    assert create_model("rmt_s", task="backbone", **SMALL).extra_norms is None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("rmt_t", 12_783_776), ("rmt_s", 25_416_800), ("rmt_b", 52_604_680), ("rmt_l", 93_784_280)],
)
def test_parameters_of_detectors_backbones(name: str, parameters: int) -> None:
    """As counted upstream."""
    model = abstract_model(lambda rngs: create_model(name, task="backbone", extra_norms=True, rngs=rngs))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def test_not_for_classifiers() -> None:
    with pytest.raises(ValueError, match="extra_norms belong to the backbone of detectors and segmentors"):
        Classifier(variant("rmt_nano", extra_norms=True), rngs=nnx.Rngs(0))


def test_unknown_task() -> None:
    with jaxtyping_disabled(), pytest.raises(ValueError, match="task must be one of classification, backbone"):
        create_model("rmt_nano", task="tracking")
