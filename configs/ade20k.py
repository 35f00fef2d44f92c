"""Semantic segmentation on ADE20K at 512x512, as the authors train it.

    python main.py --config configs/ade20k.py:rmt_s,head=upernet --workdir /data/rmt_s_upernet \\
        --config.init_from=RMT-S.pth --config.data.dir=/data/ADEChallengeData2016

The argument is the model and the head: semantic_fpn (80,000 steps, float32) or upernet (160,000 steps, bfloat16 where
the authors have float16). Published mIoU: Semantic FPN with RMT-T/S/B/L 46.4 / 49.4 / 50.4 / 51.4, UperNet with
RMT-S/B/L 49.8 / 52.0 / 52.8, none of them trained with this code yet. `init_from` is a classifier trained on ImageNet
without token labels; only its backbone is taken.

Data: ADEChallengeData2016 as MIT distributes it (docs/data.md). To evaluate, also converted checkpoints of the authors:

    python main.py --config configs/ade20k.py:rmt_s,head=upernet --mode=eval --workdir /data/eval \\
        --config.init_from=rmt_s_upernet --config.data.dir=/data/ADEChallengeData2016

Often changed: --config.batch_size (the learning rate follows), --config.segmentation.flip=True and
--config.data.segmentation.eval_ratios="(0.75, 1.0, 1.25)" for the evaluation. Paper: arXiv 2309.11523.
"""

import ml_collections

HEADS = ("semantic_fpn", "upernet")


def get_config(arguments: str = "rmt_s,head=upernet") -> ml_collections.ConfigDict:
    """The recipe for MODEL,head=HEAD."""
    model, _, rest = arguments.partition(",")
    key, _, head = (rest or "head=upernet").partition("=")
    if key != "head" or head not in HEADS:
        raise ValueError(f"{arguments!r}: expected MODEL,head=HEAD with a head of {' or '.join(HEADS)}")
    config = ml_collections.ConfigDict(
        {
            "task": "segmentation",
            "seed": 0,
            "batch_size": 16,
            "reference_batch_size": 16,
            "eval_batch_size": 8,
            "ema_decay": 0.0,
            "model": {"name": model},
            "segmentation": {"head": head},
            "data": {
                "name": "ade20k",
                "train_split": "training",
                "eval_split": "validation",
                "segmentation": {"reduce_zero_label": True},
                "num_workers": 8,
            },
        }
    )
    if head == "semantic_fpn":
        config.steps, config.eval_every_steps = 80_000, 4_000
        config.model.dtype = "float32"
        config.optimizer = {"learning_rate": 1e-4, "weight_decay": 1e-4, "decay": "all"}
        config.schedule = {"kind": "poly", "power": 0.9, "min_lr": 1e-6}
    else:
        config.steps, config.eval_every_steps = 160_000, 8_000
        config.model.dtype = "bfloat16"
        config.optimizer = {"learning_rate": 6e-5, "weight_decay": 0.01, "decay": "all_but_norms"}
        config.schedule = {"kind": "poly", "power": 1.0, "min_lr": 0.0, "warmup_steps": 1_500, "warmup_ratio": 1e-6}
    return config
