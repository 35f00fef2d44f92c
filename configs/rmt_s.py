"""RMT-S on ImageNet-1k at 224x224: 27 M parameters; 84.1 % top-1 in the paper, 84.8 % with token labels.

    python main.py --config configs/rmt_s.py --workdir /data/rmt_s
    python main.py --config configs/rmt_s.py:token_label --workdir /data/rmt_s_star \\
        --config.data.token_labels.file=/data/label_top5_train_nfnet.array_record

Data: TFDS's imagenet2012 as array_record. `rmt data imagenet` makes it from the tars that image-net.org gives; or train
on the tars themselves, or on folders train/CLASS/*.JPEG and val/CLASS/*.JPEG (docs/data.md):

    --config.data.name=tar --config.data.dir=/data/imagenet_tars
    --config.data.name=folder --config.data.dir=/data/imagenet --config.data.eval_split=val

This is what the authors' logs did (300 epochs, a global batch of 2048; with token labels 310). The learning rate is
5e-4 for each 512 pictures, a peak of 2e-3. For another batch give --config.batch_size: learning rate and EMA follow.
Label maps for token labelling: docs/token_labels.md. Paper: arXiv 2309.11523.
"""

import ml_collections


def get_config(recipe: str = "") -> ml_collections.ConfigDict:
    """The recipe; the other sizes start from it.

    Args:
        recipe: "" for RMT, "token_label" for the starred model with token labels.
    """
    if recipe not in ("", "token_label"):
        raise ValueError(f"no recipe {recipe!r}: leave it out, or give token_label")
    config = ml_collections.ConfigDict(
        {
            "seed": 0,
            "batch_size": 2048,
            "epochs": 300,
            "reference_batch_size": 512,
            "label_smoothing": 0.1,
            "erasing": 0.25,
            "ema_decay": 0.99996,
            "eval_every_epochs": 1,
            "model": {"name": "rmt_s", "dtype": "bfloat16"},
            "data": {
                "name": "imagenet2012",
                "eval_split": "validation",
                "image_size": 224,
                "crop_ratio": 0.875,
                "augment": {
                    "crop_scale": (0.08, 1.0),
                    "flip": 0.5,
                    "rand_augment": {"num_ops": 2, "magnitude": 9.0, "magnitude_std": 0.5, "probability": 0.5},
                },
                "repeats": 3,
                "repeat_replicas": 16,
                "num_workers": 16,
            },
            "mix": {"mixup": 0.8, "cutmix": 1.0, "cutmix_share": 0.5, "probability": 1.0, "group": 128},
            "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.05},
            "schedule": {"warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5},
        }
    )
    if recipe:
        config.model.name = "rmt_s_star"
        config.epochs = 310
        config.data.crop_ratio = 0.96
        config.data.repeats = 1
        config.data.token_labels = {"file": "label_top5_train_nfnet.array_record"}
        config.mix = {"mix_token": True, "group": 128}
    return config
