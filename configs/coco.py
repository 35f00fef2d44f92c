"""COCO's objects with RMT: RetinaNet, Mask R-CNN and Cascade Mask R-CNN, as the authors train them.

    python main.py --config configs/coco.py:rmt_s,head=mask_rcnn,schedule=1x --workdir /data/rmt_s_mask_rcnn \\
        --config.init_from=RMT-S.pth --config.data.dir=/data/coco

The arguments are the model, the head and the schedule: 1x is 12 epochs of pictures of 1333x800; 3x is 36 epochs of
pictures of eleven sizes, a half of them cropped. Of these the authors have published RetinaNet 1x and Mask R-CNN 1x of
RMT-T/S/B/L, Mask R-CNN 3x of S/B/L and Cascade Mask R-CNN 3x of S/B; other combinations are refused. Published AP of
boxes: RetinaNet 45.1 / 47.8 / 49.1 / 49.4, Mask R-CNN 1x 47.1 / 49.0 / 51.1 / 51.6, 3x 50.7 / 52.2 of S/B, Cascade
53.2 / 54.5; none of them trained with this code yet. bfloat16 stands where the authors have float16. `init_from` is a
classifier trained on ImageNet without token labels; only its backbone is taken.

Data: train2017, val2017 and annotations/instances_{train,val}2017.json (docs/data.md). To evaluate, also converted
checkpoints of the authors:

    python main.py --config configs/coco.py:rmt_s,head=mask_rcnn,schedule=1x --mode=eval --workdir /data/eval \\
        --config.init_from=maskrcnn_s_1x --config.data.dir=/data/coco

Often changed: --config.batch_size (the learning rate follows). Paper: arXiv 2309.11523.
"""

import ml_collections

PUBLISHED = {
    ("retinanet", "1x"): ("rmt_t", "rmt_s", "rmt_b", "rmt_l"),
    ("mask_rcnn", "1x"): ("rmt_t", "rmt_s", "rmt_b", "rmt_l"),
    ("mask_rcnn", "3x"): ("rmt_s", "rmt_b", "rmt_l"),
    ("cascade_mask_rcnn", "3x"): ("rmt_s", "rmt_b"),
}
# The others have 4e-4.
HALF_RATE = {
    ("rmt_l", "retinanet", "1x"),
    ("rmt_l", "mask_rcnn", "1x"),
    ("rmt_b", "mask_rcnn", "3x"),
    ("rmt_l", "mask_rcnn", "3x"),
    ("rmt_b", "cascade_mask_rcnn", "3x"),
}


def get_config(arguments: str = "rmt_s,head=mask_rcnn,schedule=1x") -> ml_collections.ConfigDict:
    """The recipe for MODEL,head=HEAD,schedule=SCHEDULE."""
    model, head, schedule = _parse(arguments)
    # RMT-L's 3x is the only one with one picture a GPU.
    single = (model, head, schedule) == ("rmt_l", "mask_rcnn", "3x")
    masks = head != "retinanet"
    decay = {"retinanet": "all", "mask_rcnn": "all_but_norms", "cascade_mask_rcnn": "all_but_norm_layers"}[head]
    return ml_collections.ConfigDict(
        {
            "task": "detection",
            "seed": 0,
            "batch_size": 8 if single else 16,
            "reference_batch_size": 8 if single else 16,
            "eval_batch_size": 8,
            "epochs": 12 if schedule == "1x" else 36,
            "ema_decay": 0.0,
            "model": {"name": model, "dtype": "bfloat16"},
            "detection": {"head": head, "normalizer": "picture" if single else "pair"},
            "data": {
                "name": "coco_json",
                "train_split": "train2017",
                "eval_split": "val2017",
                "detection": {"masks": masks, **(_several_scales() if schedule == "3x" else {})},
                "num_workers": 8,
            },
            "optimizer": {
                "learning_rate": 2e-4 if (model, head, schedule) in HALF_RATE else 4e-4,
                "weight_decay": 0.05 if masks else 1e-4,
                "decay": decay,
            },
            "schedule": {
                "kind": "drops",
                "drop_epochs": (8, 11) if schedule == "1x" else (27, 33),
                "warmup_steps": 500,
                "warmup_ratio": 1e-3,
            },
        }
    )


def _parse(arguments: str) -> tuple[str, str, str]:
    model, *rest = arguments.split(",")
    chosen = {"head": "mask_rcnn", "schedule": "1x"} | dict(part.partition("=")[::2] for part in rest)
    if set(chosen) != {"head", "schedule"}:
        raise ValueError(
            f"{arguments!r}: expected MODEL,head=HEAD,schedule=SCHEDULE, as rmt_s,head=mask_rcnn,schedule=1x"
        )
    head, schedule = chosen["head"], chosen["schedule"]
    if model not in PUBLISHED.get((head, schedule), ()):
        recipes = "; ".join(f"head={h},schedule={s} of {', '.join(models)}" for (h, s), models in PUBLISHED.items())
        raise ValueError(f"{arguments!r} is none of the published recipes, which are: {recipes}")
    return model, head, schedule


def _several_scales() -> dict[str, object]:
    return {
        "scales": tuple((1333, shortest) for shortest in range(480, 801, 32)),
        "crop_scales": tuple((1333, shortest) for shortest in (400, 500, 600)),
        "flip_first": True,
    }
