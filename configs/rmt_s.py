"""RMT-S on ImageNet-1k at 224x224: 27 M parameters, 300 epochs; 84.1 % top-1 in the paper (arXiv 2309.11523).

    python main.py --config configs/rmt_s.py --workdir /data/rmt_s

Data: TFDS's imagenet2012 as array_record, or a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG:

    --config.data.name=folder --config.data.dir=/data/imagenet --config.data.eval_split=val

The batch, learning rate (5e-4 for each 512 pictures, so a peak of 2e-3), schedule, weight decay, EMA and drop path
are those of the authors' logs. Of their augmentation there are the random resized crop, the flip and label smoothing;
RandAugment, random erasing, mixup, CutMix and repeated augmentation are not here yet, so expect less than 84.1 %.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The recipe; the other sizes start from it."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "batch_size": 2048,
            "epochs": 300,
            "reference_batch_size": 512,
            "label_smoothing": 0.1,
            "ema_decay": 0.99996,
            "eval_every_epochs": 1,
            "model": {"name": "rmt_s", "dtype": "bfloat16"},
            "data": {
                "name": "imagenet2012",
                "eval_split": "validation",
                "image_size": 224,
                "crop_ratio": 0.875,
                "augment": {"crop_scale": (0.08, 1.0), "flip": 0.5},
                "num_workers": 16,
            },
            "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.05},
            "schedule": {"warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5},
        }
    )
