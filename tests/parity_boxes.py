"""How far the array functions of detection are from upstream's recorded results: python -m tests.parity_boxes

Float32 under the highest matmul precision. The tests hold every row to its tolerance. Where results are choices (which
boxes, which classes) a row is the number of those that differ, and nothing may.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax import ops
from rmt_jax.tasks.mask_paste import paste_mask
from tests.golden import golden
from tests.parity import OUTPUT_TOLERANCE, Row, print_table, relative_error

RPN_STRIDES, RETINANET_STRIDES = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)
RCNN_STDS = (0.1, 0.1, 0.2, 0.2)
MATCH_RULES = {
    "rpn": ops.MatchRule(0.7, 0.3, low_quality=0.3),
    "retina": ops.MatchRule(0.5, 0.4, low_quality=0.0),
    "rcnn_mask": ops.MatchRule(0.5, 0.5, low_quality=0.5),
    "cascade0": ops.MatchRule(0.5, 0.5),
    "cascade1": ops.MatchRule(0.6, 0.6),
    "cascade2": ops.MatchRule(0.7, 0.7),
}


@functools.cache
def meta(fixture: str) -> dict[str, Any]:
    """How a fixture was made."""
    return json.loads((golden.ROOT / "dense" / fixture / "meta.json").read_text())


def differing(ours: Any, expected: np.ndarray) -> int:
    """The number of entries that are not equal."""
    ours = np.asarray(ours)
    if ours.shape != expected.shape:
        raise ValueError(f"shapes differ: {ours.shape}, expected {expected.shape}")
    return int((ours != expected).sum())


def all_of(boxes: Any) -> jax.Array:
    """No padding."""
    return jnp.ones(len(boxes), bool)


def anchor_rows() -> Iterator[Row]:
    """Anchors to the bit, and which of them belong to a picture on a larger canvas, or are inside it."""
    about, expected = meta("fn_anchors"), golden.expected("fn_anchors")
    for name, strides, scales in (
        ("rpn", RPN_STRIDES, ops.RPN_SCALES),
        ("retina", RETINANET_STRIDES, ops.RETINANET_SCALES),
    ):
        sizes = about[f"{name}_feature_sizes"]
        grid = jnp.concatenate(ops.anchor_boxes(sizes, strides, scales))
        on_maps = jnp.concatenate(ops.anchors_on_maps(sizes, strides, 3 * len(scales), jnp.asarray([96, 128])))
        inside = on_maps & ops.anchors_inside(grid, (90, 120))
        yield Row("fn_anchors", f"{name}: coordinates", differing(grid, expected[f"{name}_grid_all_levels_concat"]), 0)
        wrong = differing(on_maps, expected[f"{name}_valid_flags_pad96x128"])
        wrong += differing(inside, expected[f"{name}_inside_flags_img90x120_border0"])
        yield Row("fn_anchors", f"{name}: valid, inside", wrong, 0)


def coder_rows() -> Iterator[Row]:
    """Offsets and boxes with the deviations of all heads; clipped or not, a box or one for each class."""
    expected = golden.expected("fn_bbox_coder")
    boxes, targets, deltas, of_classes = (
        jnp.asarray(expected[f"in/{name}"]) for name in ("boxes", "gts", "deltas", "deltas_3cls")
    )
    errors: dict[str, float] = {}
    for name, stds in {
        "std1": (1, 1, 1, 1),
        "std0": RCNN_STDS,
        "std_s1": (0.05, 0.05, 0.1, 0.1),
        "std_s2": (0.033, 0.033, 0.067, 0.067),
    }.items():
        of_each = ops.decode_boxes(boxes[:, None], of_classes.reshape(-1, 3, 4), stds, (100, 150)).reshape(-1, 12)
        for case, ours in {
            f"encode_{name}": ops.encode_boxes(boxes, targets, stds),
            f"decode_{name}_noclip": ops.decode_boxes(boxes, deltas, stds),
            f"decode_{name}_clip128x160": ops.decode_boxes(boxes, deltas, stds, (128, 160)),
            f"decode3cls_{name}_clip100x150": of_each,
        }.items():
            errors[case] = relative_error(ours, expected[case])
    for kind, case in (("encode", "offsets"), ("decode", "boxes")):
        error = max(error for name, error in errors.items() if name.startswith(kind))
        yield Row("fn_bbox_coder", f"{case}, four heads", error, OUTPUT_TOLERANCE)


def _upstreams_numbers(found: ops.Assignment) -> np.ndarray:
    """-1 for ignored boxes, 0 for background, 1 and more for objects."""
    return np.where(found.positive, found.ground_truth + 1, np.where(found.negative, 0, -1))


def assigner_rows() -> Iterator[Row]:
    """Six rules; an object that touches no box, and no objects but padding."""
    expected = golden.expected("fn_assigner")
    boxes, gts, far = (jnp.asarray(expected[f"in/{name}"]) for name in ("boxes", "gts", "gts_with_far_one"))
    assign = jax.jit(ops.assign, static_argnames="rule")
    for name, rule in MATCH_RULES.items():
        found = assign(boxes, all_of(boxes), gts, all_of(gts), rule)
        wrong = differing(_upstreams_numbers(found), expected[f"{name}_gt_inds"])
        wrong += differing(found.iou, expected[f"{name}_max_overlaps"])
        found = assign(boxes, all_of(boxes), far, all_of(far), rule)
        wrong += differing(_upstreams_numbers(found), expected[f"{name}_far_gt_inds"])
        found = assign(boxes[:20], all_of(boxes[:20]), gts, ~all_of(gts), rule)
        wrong += differing(_upstreams_numbers(found), expected[f"{name}_empty_gt_inds"])
        yield Row("fn_assigner", f"{name}: objects and overlaps", wrong, 0)


def tie_rows(**compiler_options: Any) -> Iterator[Row]:
    """The anchors of which many overlap an object best, equally but for roundings."""
    expected = golden.expected("fn_assigner_ties")
    sizes = meta("fn_anchors")["rpn_feature_sizes"]
    anchors = jnp.concatenate(ops.anchor_boxes(sizes, RPN_STRIDES, ops.RPN_SCALES))
    gts = jnp.asarray(expected["in/gts"])
    arguments = anchors, all_of(anchors), gts, all_of(gts)
    assign = jax.jit(functools.partial(ops.assign, rule=MATCH_RULES["rpn"]))
    found = assign.lower(*arguments).compile(compiler_options=compiler_options)(*arguments)
    wrong = differing(_upstreams_numbers(found), expected["gt_inds"]) + differing(found.iou, expected["max_overlaps"])
    yield Row("fn_assigner_ties", "objects and overlaps", wrong, 0)


def first(key: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """A choice for comparisons: the first ones."""
    del key, count
    return len(candidates) - jnp.arange(len(candidates), dtype=jnp.int32)


def sampler_rows() -> Iterator[Row]:
    """Two deterministic choices, with objects among the boxes or not, with boxes to spare or not."""
    expected = golden.expected("fn_sampler")
    boxes, gts, labels = (expected[f"in/{name}"] for name in ("boxes", "gts", "gt_labels"))
    for head, rule, share, prepend in (("rpn", "rpn", 0.5, False), ("rcnn", "rcnn_mask", 0.25, True)):
        found = ops.assign(jnp.asarray(boxes), all_of(boxes), jnp.asarray(gts), all_of(gts), MATCH_RULES[rule])
        if prepend:
            _, found = ops.prepend_ground_truths(jnp.asarray(boxes), found, jnp.asarray(gts), all_of(gts))
        for choice, slots in (
            (choice, slots) for choice in (first, ops.evenly) for slots in (64, {"rpn": 256, "rcnn": 512}[head])
        ):
            samples = ops.sample(jax.random.key(0), found, slots, share, choice)
            name = f"{'first' if choice is first else 'even'}_{head}_{slots}"
            taken = np.asarray(samples.box)[samples.valid & samples.positive]
            of_object = np.asarray(found.ground_truth)[taken]
            ours = {
                "pos_inds": taken,
                "neg_inds": np.asarray(samples.box)[samples.valid & ~samples.positive],
                "pos_assigned_gt_inds": of_object,
                "pos_is_gt": taken < (len(gts) if prepend else 0),
                "pos_gt_labels": labels[of_object],
            }
            wrong = sum(differing(array, expected[f"{name}_{part}"]) for part, array in ours.items())
            yield Row("fn_sampler", name, wrong, 0)


def loss_rows() -> Iterator[Row]:
    """Losses with the divisors of the heads, and their gradients."""
    expected = {name: jnp.asarray(array) for name, array in golden.expected("fn_losses").items()}
    inputs = {name.removeprefix("in/"): array for name, array in expected.items() if name.startswith("in/")}

    def weighted(loss: Callable[..., jax.Array], name: str, average: float) -> Callable[[jax.Array], jax.Array]:
        weight = inputs[f"{name}_weight"]
        targets = inputs.get(f"{name}_target", inputs.get(f"{name}_labels"))

        def total(predictions: jax.Array) -> jax.Array:
            losses = loss(predictions, targets)
            return (losses * weight.reshape(*weight.shape, *[1] * (losses.ndim - weight.ndim))).sum() / average

        return total

    inputs["giou_weight"] = inputs["giou_weight"].mean(axis=-1)
    cases = {
        "focal_avg7": (ops.sigmoid_focal_loss, "focal", 7),
        "l1_avg256": (ops.l1_loss, "reg", 256),
        "smoothl1_beta1_9_avg256": (ops.smooth_l1_loss, "reg", 256),
        "giou_w10_avg512": (lambda boxes, targets: 10 * ops.giou_loss(boxes, targets), "giou", 512),
        "softmax_ce_avg63": (ops.softmax_cross_entropy, "ce", 63),
        "rpn_bce_avg77": (lambda x, labels: ops.sigmoid_cross_entropy(x[:, 0], labels == 0), "rpn", 77),
    }
    for case, (loss, name, average) in cases.items():
        predictions = inputs[f"{name}_logits" if f"{name}_logits" in inputs else f"{name}_pred"]
        value, gradient = jax.jit(jax.value_and_grad(weighted(loss, name, average)))(predictions)
        errors = relative_error(value, expected[case]), relative_error(gradient, expected[f"grad_{case}"])
        yield Row("fn_losses", f"{case.split('_avg')[0]} and its gradient", max(errors), OUTPUT_TOLERANCE)
    value = ops.sigmoid_cross_entropy(inputs["mask_logits_of_gt_class"], inputs["mask_target"]).mean()
    yield Row("fn_losses", "mask_bce", relative_error(value[None], expected["mask_bce"]), OUTPUT_TOLERANCE)


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
    anchors = ops.anchor_boxes(sizes, RPN_STRIDES, ops.RPN_SCALES)
    valid = [all_of(level) for level in anchors]
    pictures = jnp.asarray([[128, 160], [101, 140]])
    for name in ("train_cfg_2000_1000", "test_cfg_1000_1000", "cascade_train_2000_2000", "small_100_50"):
        numbers = {"before_nms": about[name]["nms_pre"], "most": about[name]["max_per_img"]}
        of_picture = functools.partial(ops.rpn_proposals, **numbers)
        found = jax.jit(jax.vmap(of_picture, in_axes=(0, 0, None, None, 0)))(logits, deltas, anchors, valid, pictures)
        rows = np.concatenate([found.boxes, found.scores[..., None]], axis=-1)
        errors = [_row_error(rows[i][found.valid[i]], expected[f"{name}_img{i}"]) for i in range(2)]
        yield Row("fn_rpn_proposals", f"{name}: boxes and scores", max(errors), OUTPUT_TOLERANCE)


def retinanet_rows() -> Iterator[Row]:
    """What a RetinaNet finds in two pictures of different sizes on one canvas."""
    about, expected = meta("fn_retina_get_bboxes"), golden.expected("fn_retina_get_bboxes")
    logits = [_by_position(expected[f"in/cls_{level}"], 80) for level in range(5)]
    deltas = [_by_position(expected[f"in/reg_{level}"], 4) for level in range(5)]
    anchors = ops.anchor_boxes(about["feature_sizes"], RETINANET_STRIDES, ops.RETINANET_SCALES)
    valid = [all_of(level) for level in anchors]
    sizes = jnp.asarray([shape[:2] for shape in about["img_shapes"]])
    scales = jnp.asarray([[y, x] for x, y, *_ in about["scale_factors"]], jnp.float32)
    for name, before_nms in (("cfg", 1000), ("nms_pre50", 50)):
        of_picture = functools.partial(ops.retinanet_detections, before_nms=before_nms)
        found = jax.jit(jax.vmap(of_picture, in_axes=(0, 0, None, None, 0, 0)))(
            logits, deltas, anchors, valid, sizes, scales
        )
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
        rois[:, 1:], all_of(rois), logits, deltas.reshape(-1, 80, 4), (128, 160), jnp.asarray([vertical, horizontal])
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
    "fn_anchors": anchor_rows,
    "fn_bbox_coder": coder_rows,
    "fn_assigner": assigner_rows,
    "fn_assigner_ties": tie_rows,
    "fn_sampler": sampler_rows,
    "fn_losses": loss_rows,
    "fn_multiclass_nms": nms_rows,
    "fn_rpn_proposals": proposal_rows,
    "fn_retina_get_bboxes": retinanet_rows,
    "fn_rcnn_get_bboxes": rcnn_rows,
    "fn_roi_align": roi_align_rows,
    "fn_mask_target": mask_target_rows,
    "fn_mask_paste": mask_paste_rows,
}


if __name__ == "__main__":
    print_table(SECTIONS)
