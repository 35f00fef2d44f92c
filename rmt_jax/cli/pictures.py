"""What the commands share that read pictures: the words that name them, and what becomes of those that are damaged."""

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rmt_jax.cli.output import say

if TYPE_CHECKING:  # what is heavy is imported where it is used
    from rmt_jax.convert import Weights
    from rmt_jax.data.pictures import File, Picture, Unreadable

WEIGHTS_HELP = """\
WEIGHTS is whatever rmt_jax.load_pretrained takes: a directory of `rmt convert`, a checkpoint of the authors, the
workdir of a training run, user/name on the Hugging Face hub. A PICTURE is a file, a folder with all pictures and videos
below it, a glob in quotes, or a video, whose frames are called VIDEO@00012.
"""
EXIT_CODES = "Exit codes: 0 done, 1 pictures that could not be read were left out, 2 refused, or none could be read."


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the weights, for `read_given_weights`."""
    parser.add_argument("source", metavar="WEIGHTS")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="which weights (default: the moving average where there is one)"
    )


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add the weights, the pictures, and how they are worked on."""
    add_weights(parser)
    parser.add_argument("pictures", metavar="PICTURE", nargs="+")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default: 32)")
    parser.add_argument(
        "--every", type=int, default=30, metavar="N", help="of a video, take every Nth frame (default: 30)"
    )


def read_given_weights(options: argparse.Namespace) -> "Weights":
    """The weights; of a classifier that does not say how its pictures were prepared, standard error is told."""
    from rmt_jax.convert import IMAGENET, read_weights

    weights = read_weights(options.source, weights=options.weights)
    if weights.task == "classification" and weights.preprocessing is None:
        say(f"{options.source} does not say how its pictures were prepared: taken to be {IMAGENET}.", stderr=True)
    return weights


class Pictures:
    """The pictures that a command is given.

    Args:
        options: of `add_pictures`.

    Raises:
        ValueError: numbers that make no sense.
        FileNotFoundError: a word that names nothing.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from rmt_jax.data.pictures import find_pictures

        for name in ("batch_size", "every"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)}: expected 1 or more.")
        self._every = options.every
        self._files: list[File] = find_pictures(options.pictures, every=options.every)
        self.total = sum(file.pictures for file in self._files)
        self.skipped: list[Unreadable] = []

    def read(self, advance: Callable[[int], None]) -> "Iterator[Picture]":
        """Those that can be read; of others standard error is told, and they are kept in `skipped`.

        `advance` is called for the others alone: those that are read are not done yet.

        Raises:
            ValueError: at the end, if none could be read.
        """
        from rmt_jax.data.pictures import Unreadable, read_pictures

        readable = 0
        for picture in read_pictures(self._files, every=self._every):
            if isinstance(picture, Unreadable):
                say(f"skipped: {picture.problem}", stderr=True)
                self.skipped.append(picture)
                advance(1)
            else:
                readable += 1
                yield picture
        if not readable:
            raise ValueError(f"None of the {len(self.skipped):,} pictures can be read.")

    def finish(self, done: int) -> int:
        """Say how many were left out, if any; returns the exit code."""
        if not self.skipped:
            return 0
        say(f"{len(self.skipped):,} of {done + len(self.skipped):,} pictures could not be read.", stderr=True)
        return 1
