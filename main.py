"""Trains or evaluates RMT.

    python main.py                                     RMT-nano on the embedded digits
    python main.py --config configs/rmt_s.py           RMT-S on ImageNet-1k
    python main.py --config configs/rmt_s.py --config.batch_size=512 --workdir /data/rmt_s
    python main.py --config configs/rmt_s.py --workdir /data/rmt_s --mode=eval

A workdir that holds an interrupted run is gone on with. Every key is in rmt_jax/training/config.py.
"""

import functools

from absl import app, flags, logging

from rmt_jax.training import run

CONFIG = flags.DEFINE_string("config", "configs/digits.py", "The recipe; --config.KEY=VALUE changes a value of it.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default workdir/NAME_OF_THE_CONFIG.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate the latest checkpoint.")


def main(words: list[str]) -> int:
    """The run's exit code; `words` are what absl did not take, the --config.KEY=VALUE."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes
    return run(CONFIG.value, words[1:], workdir=WORKDIR.value, mode=MODE.value)


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(flags.FLAGS, known_only=True))
