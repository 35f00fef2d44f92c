"""From the command line to a run: the program behind main.py."""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from rmt_jax.training.config import parse
from rmt_jax.training.loop import evaluate_only, train
from rmt_jax.training.steplog import NonFiniteLossError

MODES = {"train": train, "eval": evaluate_only}


def run(config: ml_collections.ConfigDict | Mapping[str, Any], workdir: str | pathlib.Path, mode: str = "train") -> int:
    """Run a configuration in a workdir; returns the exit code.

    0 done, 1 stopped by a loss that is not finite, 2 something to mend in what was given, 130 or 143 saved after Ctrl-C
    or SIGTERM. Messages for the user go to standard error.

    Args:
        config: what a file in configs/ returns.
        workdir: folder of the run; one that holds an interrupted run is gone on with.
        mode: "train", or "eval" for the latest checkpoint there.
    """
    try:
        return MODES[mode](parse(config), pathlib.Path(workdir))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
