"""How far the array functions of detection are from upstream's recorded results: python -m tests.parity_boxes

Float32 under the highest matmul precision. The tests hold every row to its tolerance. Where results are choices (which
boxes, which classes) a row is the number of those that differ, and nothing may.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax import ops
from rmt_jax.tasks import paste_mask
from tests import parity_targets
from tests.golden import golden
from tests.parity import OUTPUT_TOLERANCE, Row, print_table, relative_error
from tests.parity_targets import RCNN_STDS, RETINANET_STRIDES, RPN_STRIDES, all_of, differing, meta


def nms_rows() -> Iterator[Row]:
    """The best hundred of all classes, with boxes of their own or shared."""
    expected = golden.expected("fn_multiclass_nms")
    scores = jnp.asarray(expected["in/scores_with_bg_last"])[:, :-1]
    for name, boxes in (("agnostic", expected["in/boxes"]), ("per_class", expected["in/boxes_per_class"])):
        found = jax.jit(ops.classwise_nms)(jnp.asarray(boxes).reshape(len(boxes), -1, 4), scores)
        yield from _detection_rows(
            "fn_multiclass_nms", name, found, expected[f"{name}_dets"], expected[f"{name}_labels"]
        )


def _detection_rows(
    fixture: str, case: str, found: ops.Detections, boxes: np.ndarray, labels: np.ndarray
) -> Iterator[Row]:
    rows = np.concatenate([found.boxes, found.scores[:, None]], axis=1)[found.valid]
    yield Row(fixture, f"{case}: boxes and scores", _row_error(rows, boxes), OUTPUT_TOLERANCE)
    yield Row(fixture, f"{case}: classes", differing(found.labels[found.valid], labels), 0)


def _row_error(ours: np.ndarray, expected: np.ndarray) -> float:
    """Of (x1, y1, x2, y2, score): the larger of the relative errors of the boxes and of the scores."""
    return max(relative_error(ours[:, part], expected[:, part]) for part in (slice(4), slice(4, 5)))


def _by_position(maps: np.ndarray, channels: int) -> jax.Array:
    """Upstream's [batch anchors*channels height width] -> [batch positions*anchors channels]."""
    return jnp.asarray(maps.transpose(0, 2, 3, 1).reshape(len(maps), -1, channels))


def proposal_rows() -> Iterator[Row]:
    """Proposals of an RPN in training and in testing, and with few of them."""
    about, expected = meta("fn_rpn_proposals"), golden.expected("fn_rpn_proposals")
    logits = [_by_position(expected[f"in/cls_{level}"], 1)[..., 0] for level in range(5)]
    deltas = [_by_position(expected[f"in/reg_{level}"], 4) for level in range(5)]
    sizes = [expected[f"in/cls_{level}"].shape[2:] for level in range(5)]
    pictures = jnp.asarray([[128, 160], [101, 140]])
    for name in ("train_cfg_2000_1000", "test_cfg_1000_1000", "cascade_train_2000_2000", "small_100_50"):
        numbers = {"before_nms": about[name]["nms_pre"], "most": about[name]["max_per_img"]}

        def of_picture(logits: Any, deltas: Any, size: jax.Array, numbers: Any = numbers) -> ops.Proposals:
            anchors = ops.anchor_boxes(sizes, RPN_STRIDES, ops.RPN_SCALES)
            return ops.rpn_proposals(logits, deltas, anchors, list(map(all_of, anchors)), size, **numbers)

        found = jax.jit(jax.vmap(of_picture))(logits, deltas, pictures)
        rows = np.concatenate([found.boxes, found.scores[..., None]], axis=-1)
        errors = [_row_error(rows[i][found.valid[i]], expected[f"{name}_img{i}"]) for i in range(2)]
        yield Row("fn_rpn_proposals", f"{name}: boxes and scores", max(errors), OUTPUT_TOLERANCE)


def retinanet_rows() -> Iterator[Row]:
    """What a RetinaNet finds in two pictures of different sizes on one canvas."""
    about, expected = meta("fn_retina_get_bboxes"), golden.expected("fn_retina_get_bboxes")
    logits = [_by_position(expected[f"in/cls_{level}"], 80) for level in range(5)]
    deltas = [_by_position(expected[f"in/reg_{level}"], 4) for level in range(5)]
    sizes = jnp.asarray([shape[:2] for shape in about["img_shapes"]])
    scales = jnp.asarray([[y, x] for x, y, *_ in about["scale_factors"]], jnp.float32)
    for name, before_nms in (("cfg", 1000), ("nms_pre50", 50)):

        def of_picture(logits: Any, deltas: Any, *sizes: jax.Array, before_nms: int = before_nms) -> ops.Detections:
            anchors = ops.anchor_boxes(about["feature_sizes"], RETINANET_STRIDES, ops.RETINANET_SCALES)
            valid = list(map(all_of, anchors))
            return ops.retinanet_detections(logits, deltas, anchors, valid, *sizes, before_nms=before_nms)

        found = jax.jit(jax.vmap(of_picture))(logits, deltas, sizes, scales)
        for index in range(2):
            one = jax.tree.map(lambda array, index=index: array[index], found)
            boxes, labels = (expected[f"{name}_img{index}_{part}"] for part in ("dets", "labels"))
            yield from _detection_rows("fn_retina_get_bboxes", f"{name}, picture {index}", one, boxes, labels)


def rcnn_rows() -> Iterator[Row]:
    """What a box head finds among 200 regions."""
    expected = golden.expected("fn_rcnn_get_bboxes")
    horizontal, vertical = expected["in/scale_factor"][:2]
    rois, logits, deltas = (jnp.asarray(expected[f"in/{name}"]) for name in ("rois", "cls_score", "bbox_pred"))
    found = jax.jit(functools.partial(ops.rcnn_detections, stds=RCNN_STDS))(
        rois[:, 1:],
        all_of(rois),
        logits,
        deltas.reshape(-1, 80, 4),
        jnp.asarray([128, 160]),
        jnp.asarray([vertical, horizontal]),
    )
    yield from _detection_rows("fn_rcnn_get_bboxes", "detections", found, expected["dets"], expected["labels"])


def roi_align_rows() -> Iterator[Row]:
    """Boxes within the map, across its border, outside, without an area; at 7 and 14 bins."""
    expected = golden.expected("fn_roi_align")
    maps = jnp.asarray(expected["in/features_nchw"].transpose(0, 2, 3, 1))
    pictures, rois = expected["in/rois_stride4"][:, 0].astype(int), jnp.asarray(expected["in/rois_stride4"][:, 1:])
    for size in (7, 14):
        for name, ratio in (("adaptive", 0), ("ratio1", 1), ("ratio2", 2)):
            align = functools.partial(ops.roi_align, size=size, scale=1 / 4, sampling_ratio=ratio)
            both = jax.jit(jax.vmap(align, in_axes=(0, None)))(maps, rois)
            ours = both[pictures, np.arange(len(rois))].transpose(0, 3, 1, 2)
            error = relative_error(ours, expected[f"out{size}_{name}"])
            yield Row("fn_roi_align", f"{size}x{size}, {name}", error, OUTPUT_TOLERANCE)


def mask_target_rows() -> Iterator[Row]:
    """Masks in boxes that leave the picture and in tiny ones."""
    expected = golden.expected("fn_mask_target")
    masks, boxes = expected["in/bitmaps_from_pycocotools"], jnp.asarray(expected["in/proposals"])
    index = jnp.asarray(expected["in/gt_index"], jnp.int32)
    targets = jax.jit(ops.mask_targets)(jnp.asarray(np.packbits(masks, axis=-1)), index, boxes)
    yield Row("fn_mask_target", "targets", differing(targets, expected["targets_bitmap"]), 0)
    # Recorded from the memory of pycocotools' arrays, which are column by column, read row by row: other masks, which
    # the recorded targets are not those of, and numbers as good.
    reread = np.stack([mask.T.reshape(mask.shape) for mask in masks])
    coverage = jax.jit(functools.partial(ops.mask_coverage, size=28))(
        jnp.asarray(np.packbits(reread, axis=-1)), index, boxes
    )
    error = relative_error(coverage, expected["targets_bitmap_before_threshold"])
    yield Row("fn_mask_target", "before the threshold", error, OUTPUT_TOLERANCE)


def mask_paste_rows() -> Iterator[Row]:
    """Masks in the picture, one of them in a box without a width."""
    expected = golden.expected("fn_mask_paste")
    masks = np.asarray(jax.nn.sigmoid(expected["in/mask_logits_of_label"]))
    boxes = expected["in/det_boxes_test_scale"] / expected["in/scale_factor"]
    size = tuple(meta("fn_mask_paste")["ori_shape"])
    ours = np.stack([paste_mask(mask, box, size) for mask, box in zip(masks, boxes, strict=True)])
    yield Row("fn_mask_paste", "pixels of six masks", differing(ours, expected["masks"]), 0)


SECTIONS: Mapping[str, Callable[[], Iterator[Row]]] = {
    "fn_anchors": parity_targets.anchor_rows,
    "fn_bbox_coder": parity_targets.coder_rows,
    "fn_assigner": parity_targets.assigner_rows,
    "fn_assigner_ties": parity_targets.tie_rows,
    "fn_sampler": parity_targets.sampler_rows,
    "fn_losses": parity_targets.loss_rows,
    "fn_multiclass_nms": nms_rows,
    "fn_rpn_proposals": proposal_rows,
    "fn_retina_get_bboxes": retinanet_rows,
    "fn_rcnn_get_bboxes": rcnn_rows,
    "fn_roi_align": roi_align_rows,
    "fn_mask_target": mask_target_rows,
    "fn_mask_paste": mask_paste_rows,
    "loss_retinanet_t, targets": parity_targets.retinanet_target_rows,
    "loss_maskrcnn_s, RPN targets": parity_targets.rpn_target_rows,
    "loss_maskrcnn_s, RoI targets": parity_targets.roi_target_rows,
}


if __name__ == "__main__":
    print_table(SECTIONS)
