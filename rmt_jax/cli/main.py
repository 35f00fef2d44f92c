"""From the words of a command line to a subcommand."""

import argparse
import contextlib
import itertools
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from rmt_jax.cli import benchmark, compile, convert, data, doctor, labels, models, plot, predict
from rmt_jax.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0 done, 1 done with a finding (see the subcommand), 2 something to mend in what was given, 130 or 143 after
    Ctrl-C or SIGTERM. Messages for the user go to standard error.
    """
    parser = argparse.ArgumentParser(prog="rmt", description="RMT in JAX. To train, see: python main.py --help")
    parser.add_argument("--version", action="version", version=f"rmt_jax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    for command in (models, convert, predict, data, labels, compile, benchmark, plot, doctor):
        command.add_parser(commands)
    words, config_words = _split(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(words)
    if (config_words or rest) and "config_words" not in options:
        parser.error(f"unrecognized arguments: {' '.join([*config_words, *rest])}")
    options.config_words = [*config_words, *rest]  # which are checked where they are used
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports what it does
    with _sigterm_raises():
        try:
            return options.run(options)
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other words, --config.KEY=VALUE or --config.KEY VALUE): argparse would take values with spaces for its own."""
    others, config_words, rest = [], [], iter(words)
    for word in rest:
        if word.startswith("--config."):
            config_words += [word] if "=" in word else [word, *itertools.islice(rest, 1)]
        else:
            others.append(word)
    return others, config_words


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends by an exception, so that what is half written is removed."""
    numbers = signal.SIGTERM, signal.SIGALRM
    before = [signal.signal(number, _terminate) for number in numbers]
    hook = sys.unraisablehook

    def raise_again(unraisable: Any) -> None:
        """In a callback of the garbage collector the exception is lost: it comes anew once that is over."""
        if isinstance(unraisable.exc_value, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook(unraisable)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)
