"""How far anchors, assignment, samples, targets and losses of detectors are from upstream's recorded results.

Rows of the table that `python -m tests.parity_boxes` prints. Where results are choices (which boxes, which objects) a
row is the number of those that differ, and nothing may.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax import ops
from tests.golden import golden
from tests.parity import OUTPUT_TOLERANCE, Row, relative_error

RPN_STRIDES, RETINANET_STRIDES = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)
RCNN_STDS = (0.1, 0.1, 0.2, 0.2)
SLOTS = 8  # for the objects of a picture
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


def all_anchors(sizes: Any, strides: tuple[int, ...], scales: tuple[float, ...]) -> jax.Array:
    """Anchors of all levels, one after the other."""
    return jax.jit(lambda: jnp.concatenate(ops.anchor_boxes(sizes, strides, scales)))()


def anchor_rows() -> Iterator[Row]:
    """Anchors to the bit, and which of them belong to a picture on a larger canvas, or are inside it."""
    about, expected = meta("fn_anchors"), golden.expected("fn_anchors")
    for name, strides, scales in (
        ("rpn", RPN_STRIDES, ops.RPN_SCALES),
        ("retina", RETINANET_STRIDES, ops.RETINANET_SCALES),
    ):
        sizes = about[f"{name}_feature_sizes"]
        grid = all_anchors(sizes, strides, scales)

        def on_maps(size: jax.Array, sizes: Any = sizes, strides: Any = strides, scales: Any = scales) -> jax.Array:
            return jnp.concatenate(ops.anchors_on_maps(sizes, strides, 3 * len(scales), size))

        valid = jax.jit(on_maps)(jnp.asarray([96, 128]))
        inside = valid & jax.jit(ops.anchors_inside)(grid, jnp.asarray([90, 120]))
        yield Row("fn_anchors", f"{name}: coordinates", differing(grid, expected[f"{name}_grid_all_levels_concat"]), 0)
        wrong = differing(valid, expected[f"{name}_valid_flags_pad96x128"])
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
        "std1": (1.0, 1.0, 1.0, 1.0),
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
    anchors = all_anchors(sizes, RPN_STRIDES, ops.RPN_SCALES)
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
    assign = jax.jit(ops.assign, static_argnums=4)
    sample = jax.jit(ops.sample, static_argnums=(2, 3, 4))
    for head, rule, share, prepend in (("rpn", "rpn", 0.5, False), ("rcnn", "rcnn_mask", 0.25, True)):
        found = assign(jnp.asarray(boxes), all_of(boxes), jnp.asarray(gts), all_of(gts), MATCH_RULES[rule])
        if prepend:
            _, found = ops.prepend_ground_truths(jnp.asarray(boxes), found, jnp.asarray(gts), all_of(gts))
        for choice, slots in (
            (choice, slots) for choice in (first, ops.evenly) for slots in (64, {"rpn": 256, "rcnn": 512}[head])
        ):
            samples = sample(jax.random.key(0), found, slots, share, choice)
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


def retinanet_target_rows() -> Iterator[Row]:
    """Labels and offsets of all anchors of two pictures, the second smaller than the canvas."""
    expected, sizes = golden.expected("loss_retinanet_t"), meta("fn_anchors")["retina_feature_sizes"]
    anchors = all_anchors(sizes, RETINANET_STRIDES, ops.RETINANET_SCALES)

    @jax.jit
    def of_picture(gts: jax.Array, valid: jax.Array, padded_size: jax.Array) -> tuple[ops.Assignment, jax.Array]:
        on_maps = jnp.concatenate(ops.anchors_on_maps(sizes, RETINANET_STRIDES, 9, padded_size))
        found = ops.assign(anchors, on_maps, gts, valid, MATCH_RULES["retina"])
        return found, ops.encode_boxes(anchors, gts[found.ground_truth])

    wrong, errors = 0, []
    for index, about in enumerate(meta("loss_retinanet_t")["img_metas"]):
        labels = padded(expected[f"in/gt_labels_{index}"])
        found, offsets = of_picture(*ground_truths(expected, index), jnp.asarray(about["pad_shape"][:2]))
        positive = np.asarray(found.positive)
        of_object = np.where(positive, labels[found.ground_truth], 80)
        wrong += differing(of_object, expected["target_labels_all_levels"][index])
        wrong += differing(positive | found.negative, expected["target_label_weights"][index])
        wrong += differing(positive, expected["target_bbox_weights"][index])
        errors.append(relative_error(np.where(positive[:, None], offsets, 0), expected["target_bbox"][index]))
    yield Row("loss_retinanet_t", "labels of anchors", wrong, 0)
    yield Row("loss_retinanet_t", "offsets of anchors", max(errors), OUTPUT_TOLERANCE)


def rpn_target_rows() -> Iterator[Row]:
    """Which anchors of two pictures an RPN samples, and as what."""
    expected, sizes = golden.expected("loss_maskrcnn_s"), meta("fn_anchors")["rpn_feature_sizes"]
    anchors = all_anchors(sizes, RPN_STRIDES, ops.RPN_SCALES)

    @jax.jit
    def of_picture(gts: jax.Array, valid: jax.Array, padded_size: jax.Array) -> ops.Samples:
        on_maps = jnp.concatenate(ops.anchors_on_maps(sizes, RPN_STRIDES, 3, padded_size))
        found = ops.assign(anchors, on_maps, gts, valid, MATCH_RULES["rpn"])
        return ops.sample(jax.random.key(0), found, 256, 0.5, ops.evenly)

    wrong = 0
    for index, about in enumerate(meta("loss_maskrcnn_s")["img_metas"]):
        samples = of_picture(*ground_truths(expected, index), jnp.asarray(about["pad_shape"][:2]))
        taken, positive = (
            np.isin(np.arange(len(anchors)), samples.box[samples.valid & which]) for which in (True, samples.positive)
        )
        wrong += differing(taken, expected["rpn_target_label_weights"][index])
        wrong += differing(positive, expected["rpn_target_bbox_weights"][index])
        wrong += differing(~positive[taken], expected["rpn_target_labels_all_levels"][index][taken])
    yield Row("loss_maskrcnn_s", "sampled anchors", wrong, 0)


def roi_target_rows() -> Iterator[Row]:
    """The regions of two pictures that the heads of a Mask R-CNN learn from: their labels, offsets and masks."""
    expected = golden.expected("loss_maskrcnn_s")

    @jax.jit
    def of_picture(gts: jax.Array, valid: jax.Array, proposals: jax.Array, masks: jax.Array) -> tuple[Any, ...]:
        found = ops.assign(proposals, all_of(proposals), gts, valid, MATCH_RULES["rcnn_mask"])
        boxes, found = ops.prepend_ground_truths(proposals, found, gts, valid)
        samples = ops.sample(jax.random.key(0), found, 512, 0.25, ops.evenly)
        regions, of_object = boxes[samples.box], found.ground_truth[samples.box]
        offsets = ops.encode_boxes(regions, gts[of_object], RCNN_STDS)
        return samples, of_object, regions, offsets, ops.mask_targets(masks, of_object[:128], regions[:128])

    parts: list[tuple[np.ndarray, ...]] = []
    for index in range(2):
        packed = expected[f"in/gt_masks_{index}"]
        masks = np.zeros((SLOTS, 128, 20), np.uint8)
        masks[tuple(map(slice, packed.shape))] = packed
        samples, of_object, regions, offsets, targets = of_picture(
            *ground_truths(expected, index), jnp.asarray(expected[f"in/proposals_{index}"][:, :4]), jnp.asarray(masks)
        )
        labels = np.where(samples.positive, padded(expected[f"in/gt_labels_{index}"])[of_object], 80)
        offsets = np.where(samples.positive[:, None], offsets, 0)
        parts.append((regions, labels, offsets, np.packbits(targets[samples.positive[:128]], axis=-1)))
    regions, labels, offsets, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
    wrong = differing(regions, np.concatenate([expected["sampled_boxes_0"], expected["sampled_boxes_1"]]))
    wrong += differing(labels, expected["rcnn_labels"])
    yield Row("loss_maskrcnn_s", "sampled regions and labels", wrong, 0)
    error = relative_error(offsets, expected["rcnn_bbox_targets"])
    yield Row("loss_maskrcnn_s", "offsets of regions", error, OUTPUT_TOLERANCE)
    yield Row("loss_maskrcnn_s", "masks of regions", differing(targets, expected["mask_targets_packed"]), 0)


def padded(array: np.ndarray) -> np.ndarray:
    """With zeros for the objects that there are slots for."""
    return np.pad(array, [(0, SLOTS - len(array)), *[(0, 0)] * (array.ndim - 1)])


def ground_truths(expected: Mapping[str, np.ndarray], index: int) -> tuple[jax.Array, jax.Array]:
    """Boxes of a picture, and which of them are no padding."""
    boxes = expected[f"in/gt_bboxes_{index}"]
    return jnp.asarray(padded(boxes)), jnp.arange(SLOTS) < len(boxes)
