"""RMT-nano on the handwritten digits that scikit-learn ships: 1,797 real pictures, no download.

    python main.py

Trains on 1,437 pictures, tests on the other 360. RMT-nano is a small model of this project for demonstrations and
tests; it is not one of the paper's. The measured accuracy and time are in docs/digits.md.

    python main.py --config configs/digits.py:segmentation

Finds the same digits on photographs, a class for every pixel (docs/segmentation.md).

    python main.py --config configs/digits.py:detection,head=retinanet

Finds them with boxes; with head=mask_rcnn or head=cascade_mask_rcnn with masks as well (docs/detection.md).
"""

import pathlib

import ml_collections

# The weights of the first recipe that come with the notebooks.
CLASSIFIER = str(pathlib.Path(__file__).parents[1] / "notebooks" / "rmt_nano_digits.safetensors")
HEADS = ("retinanet", "mask_rcnn", "cascade_mask_rcnn")


def get_config(task: str = "classification") -> ml_collections.ConfigDict:
    """The whole recipe; what is not named here keeps the default of `rmt_jax.training.config.Config`."""
    name, _, head = task.partition(",head=")
    if task == "classification":
        return _classification()
    if task == "segmentation":
        return _segmentation()
    if name == "detection" and (head or "retinanet") in HEADS:
        return _detection(head or "retinanet")
    raise ValueError(
        f"no recipe {task!r}: leave it out, or give segmentation, or detection,head=HEAD with a head of "
        f"{', '.join(HEADS)}"
    )


def _detection(head: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "task": "detection",
            "seed": 0,
            "batch_size": 8,
            "reference_batch_size": 8,
            "eval_batch_size": 8,
            "epochs": 12,
            "ema_decay": 0.98,
            # With the 256 channels of COCO's recipes the head would be nearly all of the work.
            "model": {
                "name": "rmt_nano",
                "drop_path": 0.0,
                "dtype": "float32",
                "architecture": {"pyramid_features": 32},
            },
            "detection": {"head": head, "proposals": 64, "samples": 32},
            "data": {
                "name": "digits_detection",
                "eval_split": "test",
                "detection": {
                    "masks": head != "retinanet",
                    "scales": ((160, 160),),
                    "flip": 0.0,
                    "canvas": (160, 160),
                    "eval_scale": (160, 160),
                    "eval_canvases": True,
                    "max_boxes": 8,
                },
            },
            "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.05, "clip_norm": 10.0},
            "schedule": {"kind": "drops", "drop_epochs": (9,), "warmup_steps": 100, "warmup_ratio": 0.01},
            "eval_every_epochs": 3,
            "log_every_steps": 47,  # four times an epoch
        }
    )


def _segmentation() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "task": "segmentation",
            "seed": 0,
            "batch_size": 8,
            "reference_batch_size": 8,
            "epochs": 16,
            "ema_decay": 0.98,
            "init_from": CLASSIFIER,
            # With the authors' 256 channels the pyramid and its head would be 97 % of the work.
            "model": {
                "name": "rmt_nano",
                "drop_path": 0.0,
                "dtype": "float32",
                "architecture": {"pyramid_features": 64},
            },
            "segmentation": {"head": "semantic_fpn", "count_ignored": False},
            "data": {
                "name": "digits_segmentation",
                "eval_split": "test",
                "segmentation": {
                    "scale": (384, 96),
                    "eval_ratios": (1.0, 1.25),
                    "ratio_range": (0.9, 1.1),
                    "crop_size": (96, 96),
                    "cat_max_ratio": 1.0,
                    "flip": 0.0,
                    "photometric": False,
                },
            },
            # Fresh neck and head learn fast, while the backbone keeps what the classifier knows: with one rate for all
            # of them digits are told apart much later.
            "optimizer": {"learning_rate": 4e-3, "layer_decay": 0.5, "weight_decay": 0.05},
            "schedule": {"kind": "poly", "power": 0.9, "min_lr": 1e-5, "warmup_steps": 50, "warmup_ratio": 0.01},
            "eval_every_epochs": 4,
            "log_every_steps": 125,  # three times an epoch
        }
    )


def _classification() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "batch_size": 64,
            "reference_batch_size": 64,
            "epochs": 50,
            "label_smoothing": 0.1,
            "ema_decay": 0.99,
            "model": {"name": "rmt_nano", "drop_path": 0.05, "dtype": "float32"},
            "data": {
                "name": "digits",
                "eval_split": "test",
                "image_size": 32,
                "crop_ratio": 1.0,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                # The pictures are 8x8 pixels: small turns, shifts and changes of size are what handwriting varies in.
                "augment": {"rotate": 10.0, "translate": 0.1, "scale": (0.85, 1.15)},
            },
            "optimizer": {"learning_rate": 2e-3},
            "eval_every_epochs": 10,
            "log_every_steps": 22,  # once an epoch
        }
    )
