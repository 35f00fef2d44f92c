"""Completion for shells, of everything that the commands take."""

import argparse

import shtab

from rmt_jax.models import list_models

# By what an argument is called in the help; choices are completed anyway.
_FILES = ("DESTINATION", "FILE", "FOLDER", "PATH", "PICTURE", "WEIGHTS")
_DIRECTORIES = ("DIR", "WORKDIR")
_MODELS = ("MODEL",)


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell is to source.

    Args:
        parser: with all commands.
        shell: "bash", "zsh" or "tcsh".
    """
    _mark(parser)
    return shtab.complete(parser, shell)


def _mark(parser: argparse.ArgumentParser) -> None:
    """Say of every argument, as shtab wants it, what completes it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = None  # what the help suppresses would not be completed
            for subparser in action.choices.values():
                _mark(subparser)
        elif action.metavar in _MODELS:
            action.choices = list_models()
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
