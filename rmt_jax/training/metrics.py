"""The numbers of a run on disk: metrics.jsonl, one JSON object a line, and the same as TensorBoard events."""

import contextlib
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, SupportsFloat


class MetricsWriter:
    """Appends to workdir/metrics.jsonl and workdir/tensorboard, flushing at every write.

    resume_step: the step of the checkpoint that the run goes on from, 0 for a run from the start. What an interrupted
    run logged after it is removed, since those steps are about to be repeated: every step is there once.
    enabled: False writes nothing, for all but one of several processes.

    Raises ValueError where metrics.jsonl holds something else than metrics before its last line.
    """

    def __init__(self, workdir: pathlib.Path, *, resume_step: int, enabled: bool = True) -> None:
        self._enabled = enabled
        if not enabled:
            return
        from tensorboardX import SummaryWriter  # which imports PyTorch for two seconds, where that is installed

        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _drop_repeated(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        # NaN may be meant: the AP of large objects where there are none.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=resume_step + 1 if resume_step > 0 else 0,
            # tensorboardX names files by the second and overwrites: a quick restart must not lose the first part.
            filename_suffix=f".{time.time_ns()}",
        )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, SupportsFloat], *, epoch: SupportsFloat | None) -> None:
        """Writes one line: {"step": ..., "epoch": ..., **values}.

        epoch: passes over the training set so far, may be fractional; None leaves it out. JSON has no NaN nor infinity:
        both become null in metrics.jsonl. TensorBoard gets them as they are.
        """
        if not self._enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line: dict[str, float | None] = {"step": step}
        if epoch is not None:
            line["epoch"] = float(epoch)
        line |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def sync(self) -> None:
        """Sees that what is written outlives the machine, as the checkpoint does that belongs to it."""
        if self._enabled:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes both files; no harm in calling it twice."""
        if self._enabled:
            self._file.close()
            self._tensorboard.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; null, written for NaN and infinity, is given back as NaN.

    A last line cut short by a killed process is left out. Raises FileNotFoundError, and ValueError for any other line
    that is not a JSON object with a step.
    """
    return [
        {name: math.nan if value is None else value for name, value in entry.items()} for _, entry in _read_lines(path)
    ]


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees either the old content or the new, never a part of it."""
    with replacement(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacement(path: pathlib.Path) -> Iterator[BinaryIO]:
    """`replace_file` for what is written piece by piece: to the file that is given, which gets its name at the end."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines and what they say, without a last one that was cut short."""
    parsed = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        entry = _parse(line)
        if entry is not None:
            parsed.append((line, entry))
        elif number < len(lines):
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a step, got {line[:80]!r}. "
                "Mend or remove that line."
            )
    return parsed


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def _drop_repeated(path: pathlib.Path, resume_step: int) -> None:
    """Removes the lines that a run going on after `resume_step` will write again."""
    if not path.exists():
        return
    # A run from the start keeps nothing: it writes the line of step 0, if any, again.
    kept = [line for line, entry in _read_lines(path) if 0 < resume_step >= entry["step"]]
    replace_file(path, "".join(line + "\n" for line in kept).encode())
