"""A program for test_processes.py: prints which records a process of a run opens in each of two steps."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import jax

from rmt_jax.data import Example, ImageSource
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.distributed import Processes, start_processes
from rmt_jax.training.setup import prepare
from tests.training.conftest import BATCH


class Recording:
    """A source that notes what is opened."""

    def __init__(self, source: ImageSource) -> None:
        self.source, self.opened = source, list[str]()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        self.opened.append(example.id)
        return example

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def steps() -> Iterator[list[str]]:
    coordinator, count, index, *words = sys.argv[1:]
    if count != "1":
        start_processes(Processes(coordinator, int(count), int(index)))
    loader = prepare(parse(load_config("configs/digits.py", words))).train_loader
    recording = Recording(loader.source)
    loader.source = recording  # type: ignore[assignment]
    for step in range(2):
        recording.opened = []
        batches = list(loader.batches(step, step + 1))
        assert len(recording.opened) == len(batches[0]["label"]) == BATCH // jax.process_count()
        yield recording.opened


if __name__ == "__main__":
    print(json.dumps(list(steps())))
