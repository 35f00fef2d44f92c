"""Fine-tuning on your own pictures, from a few hundred on: a folder for each class, or any TFDS data set.

    python main.py --config configs/finetune.py:rmt_s --workdir /data/flowers_rmt_s \\
        --config.init_from=RMT-S.pth --config.data.dir=/data/flowers

The argument is the model, which must be the checkpoint's. `init_from` takes whatever `rmt_jax.load_pretrained` does: a
PyTorch checkpoint of the authors, what `rmt convert` wrote, the workdir of a training run, user/name on the Hugging
Face hub. The head is drawn anew for your classes.

Data: /data/flowers/train/CLASS/*.jpg and /data/flowers/val/CLASS/*.jpg; or /data/flowers/CLASS/*.jpg, of which a share
is held out, with --config.data.eval_fraction=0.2; or a TFDS data set (docs/data.md):

    --config.data.name=oxford_iiit_pet --config.data.dir=None --config.data.eval_split=test

Often changed: --config.epochs, --config.batch_size (the learning rate follows), --config.data.image_size (any multiple
of 32; above 224 set --config.data.crop_ratio=1.0), --config.optimizer.layer_decay (1 treats all layers alike),
--config.freeze_backbone=True (a linear probe; then --config.optimizer.learning_rate=1e-2), --config.loss=bce,
--config.distill.teacher=WEIGHTS (learn from a larger model too).
"""

import ml_collections


def get_config(model: str = "rmt_s") -> ml_collections.ConfigDict:
    """The recipe for a model, one of `rmt_jax.list_models()`."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "batch_size": 32,
            "epochs": 30,
            "reference_batch_size": 32,
            "label_smoothing": 0.1,
            "ema_decay": 0.99,
            "eval_every_epochs": 5,
            "log_every_steps": 10,
            "model": {"name": model},
            "data": {
                "name": "folder",
                "eval_split": "val",
                "image_size": 224,
                "crop_ratio": 0.875,
                "augment": {"crop_scale": (0.25, 1.0), "flip": 0.5, "color_jitter": 0.2},
            },
            "optimizer": {"learning_rate": 2e-4, "weight_decay": 0.05, "layer_decay": 0.85, "clip_norm": 1.0},
            "schedule": {"warmup_epochs": 3, "warmup_lr": 1e-6, "min_lr": 1e-6},
        }
    )
