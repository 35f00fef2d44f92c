"""--config FILE[:ARGUMENT] and --config.KEY=VALUE: from words to a nested dict that `config.parse` checks."""

import contextlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from rmt_jax.training.config import Word

PREFIX = "--config."


def load_config(path: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """The nested dict of a config file, with changes from the command line.

    Args:
        path: a Python file with a function `get_config`; what follows a colon is its argument.
        words: --config.KEY=VALUE or --config.KEY VALUE, KEY with dots between its parts.

    Raises:
        ValueError: no such file, one without `get_config`, or words that are none of these.
    """
    file, _, argument = path.partition(":")
    if not pathlib.Path(file).is_file():
        known = sorted(str(found) for found in pathlib.Path(file).parent.glob("*.py"))
        raise ValueError(f"--config={path}: there is no file {file}. There are: {', '.join(known) or 'none'}.")
    spec = importlib.util.spec_from_file_location("config", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={path}: {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    with _importable(pathlib.Path(file).resolve().parent.parent):
        spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(
            f"--config={path}: {file} is no recipe: it has no function get_config, as configs/digits.py has."
        )
    if argument and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"--config={path}: {file} takes no argument; leave out :{argument}.")
    config = module.get_config(argument) if argument else module.get_config()
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    for key, value in _pairs(words):
        *groups, name = key.split(".")
        group = values
        for step in groups:
            group = group.setdefault(step, {})
            if not isinstance(group, dict):
                raise ValueError(f"{PREFIX}{key}: {step} is a value, not a group of keys.")
        group[name] = Word(value)
    return values


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    """Config files import each other as `configs.NAME`, whatever program reads them."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """[--config.a=1, --config.b, 2] -> [(a, 1), (b, 2)]"""
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith(PREFIX):
            raise ValueError(
                f"Unexpected argument {word!r}. Values of the configuration are given as {PREFIX}KEY=VALUE."
            )
        key, equals, value = word.removeprefix(PREFIX).partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{word} needs a value: {word}=VALUE.")
            value = rest.pop(0)
        pairs.append((key, value))
    return pairs
