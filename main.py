"""Trains or evaluates RMT.

    python main.py                                     RMT-nano on the embedded digits
    python main.py --config configs/rmt_s.py           RMT-S on ImageNet-1k
    python main.py --config configs/rmt_s.py --config.batch_size=512 --workdir /data/rmt_s
    python main.py --config configs/rmt_s.py --workdir /data/rmt_s --mode=eval

A workdir that holds an interrupted run is gone on with. Every key is in rmt_jax/training/config.py.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from rmt_jax.training import run

CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/digits.py",
    "The recipe; --config.KEY=VALUE changes a value.",
    lock_config=False,
    accept_new_attributes=True,  # a config file holds only what differs from the defaults; run() checks every key
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; workdir/NAME_OF_THE_CONFIG by default.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate the latest checkpoint.")


def main(argv: list[str]) -> int:
    """Exit code of the run."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]).stem
    return run(CONFIG.value, WORKDIR.value or pathlib.Path("workdir") / name, MODE.value)


if __name__ == "__main__":
    sys.exit(app.run(main))
