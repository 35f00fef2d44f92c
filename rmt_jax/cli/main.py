"""From the words of a command line to a subcommand."""

import argparse
import contextlib
import difflib
import importlib
import itertools
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

from rmt_jax.version import __version__

# The commands by what a user does, in that order, each with its line in `rmt --help`. A new command is one line here
# and a module of its name in this package, with a function `add_parser(commands, summary)`. Only the module of the
# command that is called is imported, and it imports what is heavy when it runs.
COMMANDS = {
    "models and weights": {
        "models": "list the models with their size and cost",
        "convert": "convert PyTorch checkpoints, both ways",
        "export": "models as ONNX or StableHLO, checked in their runtimes",
        "push": "weights with a model card to the Hugging Face hub",
    },
    "pictures": {
        "predict": "what weights say of pictures: classes, a class for every pixel, or objects",
        "features": "what weights make of pictures, as arrays in a file",
        "demo": "a web page for trying a model",
        "plot": "figures of runs, models, recipes and measurements",
    },
    "training (itself: python main.py --help)": {
        "data": "prepare and check data sets",
        "labels": "label maps for token labelling",
        "compile": "does a training step fit a TPU slice, and what does it cost",
        "doctor": "is everything sound for a long run",
    },
    "speed": {
        "benchmark": "what this machine achieves",
    },
}
SUMMARIES = {name: summary for group in COMMANDS.values() for name, summary in group.items()}

_EPILOG = """\
examples:
  rmt convert RMT-S.pth rmt_s         the authors' checkpoint to a model directory
  rmt predict rmt_s cat.jpg photos/   what is on pictures
  rmt predict --help                  more about a command, with examples

Exit codes: 0 done, 1 done with a finding (see the command), 2 something to mend in what was given.
Completion for your shell: rmt --print-completion bash|zsh|tcsh
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    0 done, 1 done with a finding (see the subcommand), 2 something to mend in what was given, 130, 141 or 143 after
    Ctrl-C, a reader that closed its end of the pipe, or SIGTERM. Messages for the user go to standard error.
    """
    try:
        try:
            return _main(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()  # here, and not when the interpreter ends and can only complain
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what was not written
        return 128 + signal.SIGPIPE


def build_parser(names: Iterable[str] = SUMMARIES) -> argparse.ArgumentParser:
    """The parser of the command line with these commands, or with all."""
    parser = argparse.ArgumentParser(
        prog="rmt",
        usage="rmt COMMAND ...",
        description=_description(),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rmt_jax {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        action=_PrintCompletion,
        help="a script for your shell to source",
    )
    # Not listed here, since the description has them all.
    commands = parser.add_subparsers(
        prog="rmt", dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for name in names:
        importlib.import_module(f"rmt_jax.cli.{name}").add_parser(commands, SUMMARIES[name])
    return parser


def _main(words: Sequence[str]) -> int:
    words, config_words = split_words(words)
    command = next((word for word in words if not word.startswith("-")), None)
    parser = build_parser([command] if command in SUMMARIES else [])
    if command is not None and command == words[0] and command not in SUMMARIES:
        near = difflib.get_close_matches(command, SUMMARIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        parser.error(f"there is no command {command!r}.{hint} Commands: {', '.join(SUMMARIES)}.")
    options, rest = parser.parse_known_args(words)
    if (config_words or rest) and "config_words" not in options:
        parser.error(f"unrecognized arguments: {' '.join([*config_words, *rest])}")
    options.config_words = [*config_words, *rest]  # which are checked where they are used
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports what it does
    with _sigterm_raises():
        try:
            with _results_alone(options):
                return options.run(options)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT


def _description() -> str:
    width = max(map(len, SUMMARIES))
    groups = (
        f"{title}:\n" + "".join(f"  {name:{width}}  {summary}\n" for name, summary in commands.items())
        for title, commands in COMMANDS.items()
    )
    return "RMT in JAX: weights, pictures, and what a training run needs before and after.\n\n" + "\n".join(groups)


class _PrintCompletion(argparse.Action):
    """Print a script that completes commands, flags, models and files."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:
        from rmt_jax.cli.completion import completion_script

        print(completion_script(build_parser(), values[1]))
        parser.exit()


@contextlib.contextmanager
def _results_alone(options: argparse.Namespace) -> Iterator[None]:
    """Where a flag such as --json sends results to standard output, nothing else goes there."""
    from rmt_jax.cli.output import Destination

    given = {name: value for name, value in vars(options).items() if isinstance(value, Destination)}
    for name, destination in given.items():
        destination.check(f"--{name}")
    streams = [f"--{name} -" for name, destination in given.items() if destination.stream is not None]
    if len(streams) > 1:
        raise ValueError(f"{' and '.join(streams)}: only one of them can go to standard output.")
    with contextlib.redirect_stdout(sys.stderr) if streams else contextlib.nullcontext():
        yield


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
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
