"""RMT-nano on the handwritten digits that scikit-learn ships: 1,797 real pictures, no download.

    python main.py

Trains on 1,437 pictures, tests on the other 360. RMT-nano is a small model of this project for demonstrations and
tests; it is not one of the paper's. The measured accuracy and time are in docs/digits.md.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The whole recipe; what is not named here keeps the default of `rmt_jax.training.config.Config`."""
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
