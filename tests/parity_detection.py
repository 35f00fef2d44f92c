"""How far detectors are from the numbers recorded from upstream, as one table: python -m tests.parity_detection

Float32 under the highest matmul precision. The tests hold every row to its tolerance. Backbone, pyramid and the raw
outputs of every head, the losses of a training batch with their gradients; what lies between is in
`tests.parity_boxes`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax.convert import from_torch, to_torch
from rmt_jax.models import Backbone, DenseOutputs, MaskRCNN, RetinaNet, abstract_model, create_model
from rmt_jax.ops import Proposals, decode_boxes, evenly
from rmt_jax.tasks import Detection, DetectionConfig, detection
from rmt_jax.training.state import split_model
from tests.compilation import IN_FULL
from tests.golden import golden
from tests.parity import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, Row, images, print_table, relative_error
from tests.parity_segmentation import Sides, meta, relus_taking, row
from tests.parity_targets import ground_truths, padded

HEADS = {"retinanet": "retinanet", "maskrcnn": "mask_rcnn", "cascade": "cascade_mask_rcnn"}
FINEST = 56  # sqrt(area) of regions in the middle of the finest level
CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))

# As in `parity_segmentation`.
SIDES: Mapping[str, Sides] = {
    "loss_retinanet_t": {1: {(0, 0, 4, 135): True}, 32: {(1, 1, 0, 245): False}},
    "loss_maskrcnn_s": {6: {(42, 201): True, (118, 353): True, (639, 840): False}},
}

Outputs = dict[str, Any]


def detector(fixture: str) -> RetinaNet | MaskRCNN:
    """The model of retinanet_t, maskrcnn_s, ... with the weights that they were recorded with, in evaluation mode."""
    head, size = fixture.split("_")
    # Scanned stages compile in half the time, and are equal but for rounding.
    build: Any = functools.partial(create_model, f"rmt_{size}", task="detection", head=HEADS[head], scan=True)
    model = abstract_model(lambda rngs: build(rngs=rngs))
    from_torch(golden.state_dict(fixture), model)
    model.eval()
    return model


def backbone_rows(fixture: str) -> Iterator[Row]:
    """The four maps at two sizes, and the stages before the norms of the maps."""
    about = meta(fixture)
    size = fixture.split("_")[2]
    build: Any = functools.partial(create_model, f"rmt_{size}", task="backbone", extra_norms=True, scan=True)
    model: Backbone = abstract_model(lambda rngs: build(rngs=rngs))
    from_torch(golden.state_dict(fixture), model)
    model.eval()
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, x: jax.Array) -> Outputs:
        model = nnx.merge(graph, state)
        outputs = {f"out{i}": fmap for i, fmap in enumerate(model(x))}
        outputs["patch_embed_nhwc"] = model.patch_embed(x)
        model.extra_norms = None
        return outputs | {f"stage{i}_before_extra_norm_nhwc": fmap for i, fmap in enumerate(model(x))}

    outputs = run(state, images(about["seed"], about["input_shape"]))
    odd = about["odd_input"]
    outputs |= {f"odd_{name}": x for name, x in run(state, images(odd["seed"], odd["shape"])).items() if "out" in name}
    for name in _all_recorded(fixture, outputs):
        # `row` brings maps to upstream's layout, which these have already.
        yield row(fixture, name, outputs[name].transpose(0, 2, 3, 1) if "nhwc" in name else outputs[name])


def retinanet_rows(fixture: str) -> Iterator[Row]:
    """Pyramid and outputs of all anchors."""
    about, model = meta(fixture), detector(fixture)
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, x: jax.Array) -> Outputs:
        model = nnx.merge(graph, state)
        levels = model.features(x)
        return _dense_outputs(levels, model.dense(levels), ("cls", "reg"), first=3)

    outputs = run(state, images(about["seed"], about["input_shape"]))
    for name in _all_recorded(fixture, outputs):
        yield row(fixture, name, outputs[name])


def rcnn_rows(fixture: str) -> Iterator[Row]:
    """Pyramid, outputs of the RPN and, for some regions, of the heads; of a cascade also one stage after another."""
    about, expected, model = meta(fixture), golden.expected(fixture), detector(fixture)
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, x: jax.Array) -> tuple[Outputs, Any]:
        model = nnx.merge(graph, state)
        levels = model.features(x)
        return _dense_outputs(levels, model.dense(levels), ("rpn_cls", "rpn_reg"), first=2), levels

    @functools.partial(jax.jit, static_argnums=3)
    def heads(state: Any, boxes: jax.Array, masks: jax.Array, stage: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        return *model.boxes(boxes, stage=stage), model.masks(masks, stage=stage)

    outputs, levels = run(state, images(about["seed"], about["input_shape"]))
    maps = [np.asarray(level, np.float64) for level in levels[:4]]
    rois = expected["in/rois"]
    outputs["roi_levels"] = np.array([_level(roi) for roi in rois])
    regions = [jnp.asarray(_regions(maps, rois, size)) for size in (7, 14)]
    outputs["roi_feats_7x7"], outputs["roi_feats_14x14"] = regions
    for stage in range(model.STAGES):
        prefix = f"s{stage}_" if model.STAGES > 1 else ""
        logits, deltas, masks = heads(state, *regions, stage)
        outputs[f"{prefix}cls_score"], outputs[f"{prefix}bbox_pred"] = logits, deltas.reshape(len(rois), -1)
        outputs[f"{prefix}mask_pred_28x28"] = masks
    if model.STAGES > 1:
        boxes = functools.partial(heads, masks=regions[1])
        outputs |= _chain(lambda regions, stage: boxes(state, regions, stage=stage), maps, expected["in/rois_grouped"])
        outputs = {name: output for name, output in outputs.items() if not name.startswith("roi")}
    for name in _all_recorded(fixture, outputs):
        yield row(fixture, name, outputs[name])


def _chain(heads: Callable[..., Any], maps: list[np.ndarray], rois: np.ndarray) -> Outputs:
    """Stages of a cascade as in a test: boxes go where their best class says; logits are averaged."""
    outputs, logits = {}, []
    for stage, stds in enumerate(CASCADE_STDS):
        of_classes, deltas, _ = heads(jnp.asarray(_regions(maps, rois, 7)), stage)
        logits.append(of_classes)
        if stage == 2:
            outputs["chain_s2_bbox_pred"] = deltas.reshape(len(rois), -1)
            break
        best = deltas[np.arange(len(rois)), of_classes[:, :-1].argmax(axis=-1)]
        moved = decode_boxes(jnp.asarray(rois[:, 1:]), best, stds, (128, 160))
        rois = np.concatenate([rois[:, :1], np.asarray(moved)], axis=1)
        outputs[f"chain_rois_after_s{stage}"] = rois
    return outputs | {"chain_mean_cls_score": sum(logits) / len(logits)}


def _dense_outputs(levels: Any, dense: DenseOutputs, names: tuple[str, str], first: int) -> Outputs:
    """Maps of the levels and of the outputs of their anchors, under upstream's names."""
    outputs = {}
    for i, (level, *of_anchors) in enumerate(zip(levels, *dense, strict=True), first):
        outputs[f"fpn_P{i}"] = level
        for name, output in zip(names, of_anchors, strict=True):
            outputs[f"{name}_P{i}"] = output.reshape(*level.shape[:3], -1)
    return outputs


def _regions(maps: list[np.ndarray], rois: np.ndarray, size: int) -> np.ndarray:
    """RoIAlign without a limit on the boxes, some of which are three times as long as the picture; `ops` has one."""
    regions = []
    for roi in rois:
        level = _level(roi)
        x = maps[level][int(roi[0])]
        x1, y1, x2, y2 = roi[1:].astype(np.float64) / (4 * 2**level) - 0.5
        rows, columns = (_weights(a, b, n, size) for a, b, n in ((y1, y2, x.shape[0]), (x1, x2, x.shape[1])))
        regions.append(np.einsum("ph,hwc,qw->pqc", rows, x, columns))
    return np.stack(regions).astype(np.float32)


def _weights(start: float, end: float, cells: int, bins: int) -> np.ndarray:
    """[bins cells]: the mean of ceil(length of a bin) samples, each interpolated."""
    length = (end - start) / bins
    count = int(np.ceil(length))
    weights = np.zeros((bins, cells))
    for i in range(bins):
        for sample in range(count):
            position = start + length * (i + (sample + 0.5) / count)
            if -1 <= position <= cells:
                distance = np.abs(np.clip(position, 0, cells - 1) - np.arange(cells))
                weights[i] += np.maximum(1 - distance, 0) / count
    return weights


def _level(roi: np.ndarray) -> int:
    side = np.sqrt((roi[3] - roi[1]) * (roi[4] - roi[2]))
    return int(np.clip(np.floor(np.log2(side / FINEST + 1e-6)), 0, 3))


def _all_recorded(fixture: str, outputs: Outputs) -> list[str]:
    """Names of the outputs, which must be all that are recorded."""
    if outputs.keys() != meta(fixture)["outputs"].keys():
        raise ValueError(f"other outputs: {outputs.keys() ^ meta(fixture)['outputs'].keys()}")
    return list(outputs)


def loss_rows(fixture: str) -> Iterator[Row]:
    """The task's losses of two pictures on one canvas, and the gradient norms of many parameters.

    Samples are evenly spaced in place of random ones, and regions are sampled from the recorded proposals: where two
    have nearly the same score, roundings would decide.
    """
    about, expected = meta(fixture), golden.expected(fixture)
    model = detector(fixture.removeprefix("loss_"))
    graph, params, statistics = split_model(model)
    task = Detection(
        model.config, "float32", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), DetectionConfig(head=model.HEAD), choice=evenly
    )
    batch = _training_batch(about, expected)

    def loss_fn(params: Any, statistics: Any, batch: Any) -> tuple[jax.Array, Outputs]:
        return task.loss(nnx.merge(graph, params, statistics), batch, nnx.Rngs(0))

    def recorded_proposals(*_: Any, **__: Any) -> Proposals:
        boxes = [expected[f"in/proposals_{index}"][:, :4] for index in range(2)]
        most = max(map(len, boxes))
        stacked = np.stack([np.pad(array, ((0, most - len(array)), (0, 0))) for array in boxes])
        valid = np.stack([np.arange(most) < len(array) for array in boxes])
        return Proposals(jnp.asarray(stacked), jnp.zeros(valid.shape), jnp.asarray(valid))

    with (
        mock.patch.object(detection, "proposals_of", recorded_proposals),
        relus_taking(SIDES.get(fixture, {})),
    ):
        gradients = jax.jit(jax.grad(loss_fn, has_aux=True), compiler_options=IN_FULL)
        grads, losses = gradients(params, statistics, batch)
    losses["total"] = losses.pop("loss")
    recorded = {name for name in about["outputs"] if name.startswith("loss_") or name == "total"}
    if losses.keys() != recorded:
        raise ValueError(f"other losses: {losses.keys() ^ recorded}")
    for name, loss in losses.items():
        # Upstream has one for each level of what comes from all of them.
        yield Row(fixture, name, relative_error(loss, expected[name].sum(dtype=np.float64)), OUTPUT_TOLERANCE)
    norms = {
        key: float(np.linalg.norm(value.astype(np.float64))) for key, value in to_torch(grads, "detection").items()
    }
    total, per_key = about["grad_l2_norm"]["total"], about["grad_l2_norm"]["per_key"]
    whole = float(np.linalg.norm(list(norms.values())))
    yield Row(fixture, "norm of all gradients", abs(whole / total - 1), GRADIENT_TOLERANCE)
    error = max(abs(norms[key] / norm - 1) for key, norm in per_key.items())
    yield Row(fixture, f"{len(per_key)} gradient norms", error, GRADIENT_TOLERANCE)


def _training_batch(about: Any, expected: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """As `Detection.prepare` leaves it."""
    boxes, valid = (jnp.stack(part) for part in zip(*(ground_truths(expected, i) for i in range(2)), strict=True))
    batch = {
        "image": images(about["seed"], about["input_shape"]),
        "boxes": boxes,
        "valid": valid,
        "labels": jnp.stack([jnp.asarray(padded(expected[f"in/gt_labels_{i}"]), jnp.int32) for i in range(2)]),
        "image_size": jnp.asarray([picture["img_shape"][:2] for picture in about["img_metas"]]),
        "pad_size": jnp.asarray([picture["pad_shape"][:2] for picture in about["img_metas"]]),
    }
    if "in/gt_masks_0" in expected:
        height, width = batch["image"].shape[1:3]
        masks = np.zeros((2, valid.shape[1], height, width // 8), np.uint8)
        for index in range(2):
            packed = expected[f"in/gt_masks_{index}"]
            masks[index][tuple(map(slice, packed.shape))] = packed
        batch["masks"] = jnp.asarray(masks)
    return batch


BACKBONES = ("det_backbone_t", "det_backbone_s", "det_backbone_t_posgain01", "det_backbone_s_posgain01")
LOSSES = ("loss_retinanet_t", "loss_maskrcnn_s")
SECTIONS: Mapping[str, Callable[[], Iterator[Row]]] = {
    **{fixture: functools.partial(backbone_rows, fixture) for fixture in BACKBONES},
    "retinanet_t": functools.partial(retinanet_rows, "retinanet_t"),
    "retinanet_s": functools.partial(retinanet_rows, "retinanet_s"),
    "maskrcnn_s": functools.partial(rcnn_rows, "maskrcnn_s"),
    "cascade_s": functools.partial(rcnn_rows, "cascade_s"),
    **{fixture: functools.partial(loss_rows, fixture) for fixture in LOSSES},
}


if __name__ == "__main__":
    print_table(SECTIONS)
