"""The task of detection: its losses in cases that can be worked out by hand, and against loops."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import DenseOutputs, MaskRCNN, variant
from rmt_jax.ops import RETINANET_SCALES, RPN_SCALES, at_random, multilevel_roi_align, sigmoid_focal_loss
from rmt_jax.tasks import Detection, DetectionConfig
from rmt_jax.tasks.detection_dense import AnchorGrid, Total, Truth, retinanet_losses, rpn_losses
from rmt_jax.tasks.detection_regions import Boxes, Pyramid, region_losses

CLASSES = 5
CANVAS = (64, 96)
RETINANET_GRID = AnchorGrid(CANVAS, (8, 16, 32, 64, 128), RETINANET_SCALES)
RPN_GRID = AnchorGrid(CANVAS, (4, 8, 16, 32, 64), RPN_SCALES)
# Compiled: op by op they take ten times as long.
retinanet = jax.jit(retinanet_losses, static_argnames="grid")
rpn = jax.jit(rpn_losses, static_argnames=("grid", "cascade", "choice"))
OBJECTS = np.array([[8, 4, 40, 36], [50, 10, 82, 42]], np.float32)


def task(**changes: Any) -> Detection:
    config = variant("rmt_nano", num_classes=CLASSES, pyramid_features=8)
    return Detection(config, "float32", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), DetectionConfig(**changes))


def truth(*objects: np.ndarray, padding: int = 0, masks: bool = False) -> Truth:
    """Of a batch; padding rows hold a box that would match, and a class that there is not."""
    slots = max(map(len, objects)) + padding
    boxes = np.tile(np.array([8, 4, 40, 36], np.float32), (len(objects), slots, 1))
    labels, valid = np.full((len(objects), slots), 77), np.zeros((len(objects), slots), bool)
    for row, boxes_of_picture in enumerate(objects):
        count = len(boxes_of_picture)
        boxes[row, :count], valid[row, :count] = boxes_of_picture, True
        labels[row, :count] = np.arange(count) % CLASSES
    sizes = jnp.tile(jnp.array(CANVAS), (len(objects), 1))
    bits = np.random.default_rng(3).integers(0, 256, (len(objects), slots, CANVAS[0], CANVAS[1] // 8), np.uint8)
    made = Truth(jnp.asarray(boxes), jnp.asarray(labels, jnp.int32), jnp.asarray(valid), sizes, sizes)
    return made._replace(masks=jnp.asarray(bits)) if masks else made


def outputs(grid: AnchorGrid, classes: int, pictures: int, seed: int = 0) -> DenseOutputs:
    """Any of a dense head."""
    rng = np.random.default_rng(seed)
    counts = [rows * columns * 3 * len(grid.scales) for rows, columns in grid.sizes]
    logits, deltas = (
        tuple(jnp.asarray(rng.standard_normal((pictures, n, width)), jnp.float32) for n in counts)
        for width in (classes, 4)
    )
    return DenseOutputs(logits, deltas)


def keys(pictures: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), pictures)


def assert_same(found: dict[str, Total], expected: dict[str, Total]) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("normalizer", ["pair", "picture", "batch"])
def test_a_loss_is_divided_in_pairs_pictures_or_all_together(normalizer: str) -> None:
    totals, counts = [3.0, 5.0, 7.0, 0.0], [1.0, 4.0, 0.0, 0.0]
    groups = {"pair": [(0, 1), (2, 3)], "picture": [(0,), (1,), (2,), (3,)], "batch": [(0, 1, 2, 3)]}[normalizer]
    expected = np.mean([sum(totals[i] for i in g) / max(sum(counts[i] for i in g), 1) for g in groups])
    of = task(normalizer=normalizer)
    assert of.normalized(Total(jnp.array(totals), jnp.array(counts))) == pytest.approx(expected)
    assert of.normalized(Total(jnp.array([6.0]), jnp.array([4.0]))) == 1.5  # one picture alone
    assert of.inseparable == {"pair": 2, "picture": 1, "batch": 1}[normalizer]


def test_retinanet_without_objects_learns_background_everywhere() -> None:
    dense = outputs(RETINANET_GRID, CLASSES, pictures=1)
    losses = retinanet(dense, RETINANET_GRID, truth(OBJECTS[:0], padding=2))
    logits = jnp.concatenate(dense.logits, axis=1)[0]
    # The level of stride 128 has one cell that lies on the padded picture, as all others do.
    background = sigmoid_focal_loss(logits, jnp.full(len(logits), CLASSES)).sum()
    np.testing.assert_allclose(losses["loss_cls"].total, [background], rtol=1e-5)
    np.testing.assert_array_equal(losses["loss_bbox"].total, [0])
    np.testing.assert_array_equal(losses["loss_cls"].divisor, [1])


def test_padded_objects_change_nothing() -> None:
    dense, of_rpn = outputs(RETINANET_GRID, CLASSES, pictures=2), outputs(RPN_GRID, 1, pictures=2)
    options: dict[str, Any] = {"grid": RPN_GRID, "keys": keys(2), "cascade": True, "choice": at_random}
    plain, padded = truth(OBJECTS, OBJECTS), truth(OBJECTS, OBJECTS, padding=3)
    assert_same(retinanet(dense, RETINANET_GRID, padded), retinanet(dense, RETINANET_GRID, plain))
    assert_same(rpn(of_rpn, truth=padded, **options), rpn(of_rpn, truth=plain, **options))


def test_an_rpn_without_objects_samples_background_alone() -> None:
    dense = outputs(RPN_GRID, 1, pictures=1)
    sure = DenseOutputs(tuple(jnp.full_like(level, -50) for level in dense.logits), dense.deltas)
    losses = rpn(sure, RPN_GRID, truth(OBJECTS[:0], padding=1), keys(1), cascade=False, choice=at_random)
    np.testing.assert_allclose(losses["loss_rpn_cls"].total, [0], atol=1e-6)
    np.testing.assert_array_equal(losses["loss_rpn_bbox"].total, [0])
    np.testing.assert_array_equal(losses["loss_rpn_cls"].divisor, [257])  # of none as of one


class Pretend(MaskRCNN):
    """In the place of a model: it says nothing of any region."""

    def __init__(self, stages: int) -> None:
        self.STAGES = stages  # type: ignore[misc]
        self.HEAD = "mask_rcnn" if stages == 1 else "cascade_mask_rcnn"  # type: ignore[misc]
        self.taken: Any = nnx.data([])

    def boxes(self, regions: Any, *, stage: int = 0, taken: Any = None) -> Any:
        self.taken.append(int(taken.sum()))
        return jnp.zeros((len(regions), CLASSES + 1)), jnp.zeros((len(regions), CLASSES, 4))

    def masks(self, regions: Any, *, stage: int = 0) -> Any:
        return jnp.zeros((len(regions), 28, 28, CLASSES))


@pytest.mark.parametrize("stages", [1, 3])
def test_losses_of_regions_of_a_head_that_knows_nothing(stages: int) -> None:
    proposals = np.concatenate([OBJECTS + 4, np.array([[0, 0, 16, 16], [60, 40, 90, 60]], np.float32)])
    batch = Boxes(jnp.asarray(proposals)[None], jnp.array([[True, True, True, False]]))
    levels = tuple(jnp.zeros((1, CANVAS[0] // stride, CANVAS[1] // stride, 2)) for stride in (4, 8, 16, 32))
    pyramid, model = Pyramid(levels, (4, 8, 16, 32), None, 0), Pretend(stages)
    objects = truth(OBJECTS, padding=1, masks=True)
    losses = region_losses(model, pyramid, batch, objects, keys(1), slots=512, choice=at_random)
    # The objects, the proposals on them, which overlap them by 0.62, and one that is on none. A stage of a cascade has
    # the samples of the one before without the objects, and adds these again; the third asks for 0.7.
    positives = [4, 4, 2][:stages]
    assert model.taken == [5] * stages
    for index, (count, weight) in enumerate(zip(positives, (1, 0.5, 0.25), strict=False)):
        prefix = f"s{index}_" if stages > 1 else ""
        of_classes, of_masks = losses[f"{prefix}loss_cls"], losses[f"{prefix}loss_mask"]
        np.testing.assert_allclose(of_classes.total, [weight * 5 * np.log(CLASSES + 1)], rtol=1e-5)
        np.testing.assert_array_equal(of_classes.divisor, [5])
        np.testing.assert_allclose(of_masks.total, [weight * count * 28**2 * np.log(2)], rtol=1e-5)
        np.testing.assert_array_equal(of_masks.divisor, [count * 28**2])
    if stages == 1:  # four pixels to the left and up, in sides of 32, over 0.1: twice for each of two proposals
        np.testing.assert_allclose(losses["loss_bbox"].total, [2 * 2 * (4 / 32) / 0.1], rtol=1e-5)
    else:
        shared, around = 28 * 28, 36 * 36
        union = 2 * 32**2 - shared
        giou = shared / union - (around - union) / around
        np.testing.assert_allclose(losses["s0_loss_bbox"].total, [10 * 2 * (1 - giou)], rtol=1e-5)
        np.testing.assert_allclose(losses["s2_loss_bbox"].total, [0], atol=1e-5)


def test_regions_end_where_the_picture_does() -> None:
    rng = np.random.default_rng(0)
    small = [jnp.asarray(rng.standard_normal((side, side, 3)), jnp.float32) for side in (12, 6)]
    large = [jnp.pad(x, ((0, 5), (0, 9), (0, 0)), constant_values=1e3) for x in small]
    boxes = jnp.array([[0, 0, 48, 48], [30, 20, 48, 47.5], [3, 40, 20, 48]], jnp.float32)
    options: Any = {"size": 7, "scales": [1 / 4, 1 / 8]}
    valid = [jnp.array(x.shape[:2]) for x in small]
    found = multilevel_roi_align(large, boxes, **options, valid=valid)
    np.testing.assert_allclose(found, multilevel_roi_align(small, boxes, **options), atol=1e-6)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"detection.sampling_ratio=-1: expected 0 or more"):
        DetectionConfig(sampling_ratio=-1)
    with pytest.raises(ValueError, match=r"detection.proposals=0: expected 1 or more"):
        DetectionConfig(proposals=0)
    with pytest.raises(ValueError, match=r"detection.samples=3: expected 4 or more"):
        DetectionConfig(samples=3)


def test_proposals_are_as_many_as_upstream_s_or_as_set() -> None:
    of_cascade = DetectionConfig(head="cascade_mask_rcnn")
    assert [of_cascade.proposal_counts(training=training) for training in (True, False)] == [(2000, 2000), (1000, 1000)]
    assert DetectionConfig().proposal_counts(training=True) == (2000, 1000)
    few = dataclasses.replace(of_cascade, proposals=100)
    assert [few.proposal_counts(training=training) for training in (True, False)] == [(200, 100), (100, 100)]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_pictures_are_found_alike_on_any_canvas(head: str) -> None:
    """Masked canvases, in evaluation: the detections of a picture are those of the picture alone."""
    of = dataclasses.replace(task(head=head), fills_canvas=False)
    model = of.init_model(nnx.Rngs(0))
    model.eval()
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    predict = jax.jit(lambda batch: of.predict(model, batch))

    def found(canvas: tuple[int, int], scale: float) -> Any:
        image = np.full((1, *canvas, 3), 128, np.uint8)
        image[0, :60, :90] = picture
        sizes = {"image_size": jnp.array([[60, 90]]), "pad_size": jnp.array([[64, 96]])}
        return predict({"image": jnp.asarray(image), **sizes, "scale_factor": jnp.full((1, 4), scale, jnp.float32)})

    alone, larger = found((64, 96), 1), found((96, 160), 2)
    np.testing.assert_array_equal(alone["valid"], larger["valid"])
    np.testing.assert_array_equal(alone["labels"], larger["labels"])
    np.testing.assert_allclose(alone["scores"], larger["scores"], rtol=1e-4)
    np.testing.assert_allclose(alone["boxes"], 2 * larger["boxes"], atol=1e-2)
    if head == "mask_rcnn":
        assert alone["valid"].any()
        np.testing.assert_allclose(alone["masks"], larger["masks"], atol=1e-4)
