"""Trains or evaluates RMT.

    python main.py                                     RMT-nano on the embedded digits
    python main.py --config configs/rmt_s.py           RMT-S on ImageNet-1k
    python main.py --config configs/rmt_s.py --config.batch_size=512 --workdir /data/rmt_s
    python main.py --config configs/rmt_s.py --workdir /data/rmt_s --mode=eval
    python main.py --config configs/rmt_s.py --workdir /shared/rmt_s \\
        --coordinator=HOST:PORT --num_processes=2 --process_id=0      one of two hosts; pods and SLURM need no flags

A workdir that holds an interrupted run is gone on with. Every key is in rmt_jax/training/config.py.
"""

import functools

from absl import app, flags, logging

from rmt_jax.training import Processes, run

CONFIG = flags.DEFINE_string("config", "configs/digits.py", "The recipe; --config.KEY=VALUE changes a value of it.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default workdir/NAME_OF_THE_CONFIG.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate the latest checkpoint.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where it is not found by itself.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the whole run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def main(words: list[str]) -> int:
    """The run's exit code; `words` are what absl did not take, the --config.KEY=VALUE."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes
    processes = Processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    return run(CONFIG.value, words[1:], workdir=WORKDIR.value, mode=MODE.value, processes=processes)


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(flags.FLAGS, known_only=True))
