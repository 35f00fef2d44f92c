"""The task of segmentation: its loss, and predictions at the original size, against plain NumPy and double resizes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.models import Segmentor, variant
from rmt_jax.ops import resize_bilinear
from rmt_jax.tasks import Segmentation, SegmentationConfig, normalize
from rmt_jax.tasks.segmentation import pixel_loss, sliding_logits

CLASSES = 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Pretend(Segmentor):
    """In the place of a model: logits of a quarter of the size, from the pictures by a fixed product."""

    weights = np.random.default_rng(1).standard_normal((3, CLASSES)).astype(np.float32)

    def __init__(self) -> None:
        pass

    def __call__(self, images: jax.Array, *, rngs: Any = None) -> jax.Array:
        quarter = [-(-side // 4) for side in images.shape[1:3]]
        return resize_bilinear(images, quarter) @ self.weights


def task(**changes: Any) -> Segmentation:
    return Segmentation(variant("rmt_nano", num_classes=CLASSES), "float32", MEAN, STD, SegmentationConfig(**changes))


def local_batch(*sizes: tuple[int, int], shapes: tuple[tuple[int, int], ...] = ((33, 47),)) -> dict[str, Any]:
    """As the loader gives it, for pictures of these original sizes."""
    rng = np.random.default_rng(0)
    names = ["image", *(f"image_{index}" for index in range(1, len(shapes)))]
    pictures = {
        name: rng.integers(0, 256, (len(sizes), *shape, 3), dtype=np.uint8)
        for name, shape in zip(names, shapes, strict=True)
    }
    return pictures | {"original_size": np.array(sizes, np.int32), "mask": np.ones(len(sizes), bool)}


def predict(of: Segmentation, local: dict[str, Any]) -> np.ndarray:
    batch = {name: jnp.asarray(array) for name, array in of.device_batch(local).items()}
    return np.asarray(jax.jit(lambda batch: of.predict(Pretend(), batch))(batch)["classes"])


def upstream(local: dict[str, Any], index: int, *, names: tuple[str, ...] = ("image",), flip: bool = False) -> Any:
    """Probabilities of a picture by two resizes one after the other; of several pictures the mean."""
    size, scores = tuple(local["original_size"][index].tolist()), []
    for name in names:
        for mirrored in (False, True) if flip else (False,):
            images = normalize(jnp.asarray(local[name][index : index + 1]), MEAN, STD)
            images = images[:, :, ::-1] if mirrored else images
            logits = resize_bilinear(resize_bilinear(Pretend()(images), images.shape[1:3]), size)
            scores.append(jax.nn.softmax(logits[:, :, ::-1] if mirrored else logits)[0])
    return np.mean(scores, axis=0)


def assert_classes(found: np.ndarray, scores: np.ndarray) -> None:
    """The likeliest, where the two best are not equal but for rounding."""
    best = np.sort(scores, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    assert clear.mean() > 0.99
    height, width = clear.shape
    np.testing.assert_array_equal(found[:height, :width][clear], scores.argmax(axis=-1)[clear])


@pytest.mark.parametrize("flip", [False, True])
def test_predictions_are_those_of_two_resizes(flip: bool) -> None:
    local = local_batch((61, 83), (20, 31), (150, 130))
    found = predict(task(flip=flip), local)
    assert found.shape == (3, 256, 256)  # rounded up, so that few programs are compiled
    assert found.dtype == np.uint8
    for index in range(3):
        assert_classes(found[index], upstream(local, index, flip=flip))


def test_predictions_at_several_scales_are_averaged() -> None:
    local = local_batch((40, 50), shapes=((33, 47), (66, 94)))
    assert_classes(predict(task(), local)[0], upstream(local, 0, names=("image", "image_1")))


def test_sliding_windows_cover_a_picture_and_are_averaged() -> None:
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 10, 7, 3)), jnp.float32)
    seen: list[tuple[int, ...]] = []

    def window(part: jax.Array) -> jax.Array:
        seen.append(part.shape[1:3])
        return part + len(seen)

    found = sliding_logits(window, images, (4, 8), (3, 8))
    assert seen == [(4, 7)] * 3  # rows 0..3, 3..6 and 6..9
    offset = np.array([1, 1, 1, 1.5, 2, 2, 2.5, 3, 3, 3])
    np.testing.assert_allclose(found - images, np.broadcast_to(offset[None, :, None, None], images.shape), atol=1e-6)


def test_one_window_over_everything_is_the_whole_picture() -> None:
    local = local_batch((40, 50))
    slid = predict(task(mode="slide", window=(64, 64), stride=(32, 32)), local)
    assert_classes(slid[0], upstream(local, 0))


@pytest.mark.parametrize("count_ignored", [False, True])
def test_loss_by_hand(count_ignored: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 4, CLASSES)).astype(np.float32)
    label = rng.integers(0, CLASSES, (2, 3, 4))
    label[0, :2] = 255
    loss, right = pixel_loss(jnp.asarray(logits), jnp.asarray(label), count_ignored=count_ignored)
    known = label != 255
    chosen = logits[known]
    of_label = np.take_along_axis(chosen, label[known][:, None], axis=-1)[:, 0]
    losses = np.log(np.exp(chosen).sum(axis=-1)) - of_label
    np.testing.assert_allclose(loss, losses.sum() / (label.size if count_ignored else known.sum()), rtol=1e-6)
    np.testing.assert_allclose(right, (chosen.argmax(axis=-1) == label[known]).mean(), rtol=1e-6)


def test_a_batch_without_labels_costs_nothing() -> None:
    loss, right = pixel_loss(jnp.ones((1, 2, 2, 3)), jnp.full((1, 4, 4), 255), count_ignored=False)
    assert (float(loss), float(right)) == (0, 0)


def test_padding_is_zero_after_normalising() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    batch = {"image": images, "label": np.zeros((2, 6, 8), np.uint8), "picture_size": np.array([[6, 8], [4, 3]])}
    prepared = task().prepare({name: jnp.asarray(array) for name, array in batch.items()}, jax.random.key(0))
    whole = np.asarray(normalize(jnp.asarray(images), MEAN, STD))
    np.testing.assert_array_equal(prepared["image"][0], whole[0])
    np.testing.assert_array_equal(prepared["image"][1, :4, :3], whole[1, :4, :3])
    assert not prepared["image"][1, 4:].any()
    assert not prepared["image"][1, :, 3:].any()
    assert prepared["label"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 1.0}, "segmentation.dropout=1.0"),
        ({"aux_weight": -1.0}, "segmentation.aux_weight=-1.0"),
        ({"window": (16, 64)}, "windows of 32 pixels"),
        ({"stride": (600, 341)}, "leaves gaps"),
        ({"overlays": -1}, "segmentation.overlays=-1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationConfig(**changes)
