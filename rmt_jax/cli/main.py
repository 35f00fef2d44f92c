"""From the words of a command line to a subcommand."""

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from rmt_jax.cli import benchmark, compile, convert, data, doctor, labels, models, plot
from rmt_jax.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0 done, 1 done with a finding (see the subcommand), 2 something to mend in what was given, 130 or 143 after
    Ctrl-C or SIGTERM. Messages for the user go to standard error.
    """
    parser = argparse.ArgumentParser(prog="rmt", description="RMT in JAX. To train, see: python main.py --help")
    parser.add_argument("--version", action="version", version=f"rmt_jax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    for command in (models, convert, data, labels, compile, benchmark, plot, doctor):
        command.add_parser(commands)
    options, rest = parser.parse_known_args(arguments)
    if rest and "config_words" not in options:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.config_words = rest  # --config.KEY=VALUE, which is checked where it is used
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
