"""How far detectors are from the numbers recorded from upstream, as one table: python -m tests.parity_detection

Float32 under the highest matmul precision. The tests hold every row to its tolerance. Backbone, pyramid and the raw
outputs of every head; what is made of them is in `tests.parity_boxes`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax.convert import from_torch
from rmt_jax.models import Backbone, DenseOutputs, MaskRCNN, RetinaNet, abstract_model, create_model
from rmt_jax.ops import decode_boxes
from tests.golden import golden
from tests.parity import Row, images, print_table
from tests.parity_segmentation import meta, row

HEADS = {"retinanet": "retinanet", "maskrcnn": "mask_rcnn", "cascade": "cascade_mask_rcnn"}
FINEST = 56  # sqrt(area) of regions in the middle of the finest level
CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))

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


BACKBONES = ("det_backbone_t", "det_backbone_s", "det_backbone_t_posgain01", "det_backbone_s_posgain01")
SECTIONS: Mapping[str, Callable[[], Iterator[Row]]] = {
    **{fixture: functools.partial(backbone_rows, fixture) for fixture in BACKBONES},
    "retinanet_t": functools.partial(retinanet_rows, "retinanet_t"),
    "retinanet_s": functools.partial(retinanet_rows, "retinanet_s"),
    "maskrcnn_s": functools.partial(rcnn_rows, "maskrcnn_s"),
    "cascade_s": functools.partial(rcnn_rows, "cascade_s"),
}


if __name__ == "__main__":
    print_table(SECTIONS)
