"""Runs killed at random moments, and what became of them.

    python -m tests.kills                      50 trials, kill -9 and SIGTERM in turn
    python -m tests.kills --trials 10 --seed 1

One run of `python main.py` (the digits, a tiny model, a checkpoint every second step, asynchronous saves, evaluations)
goes undisturbed. Each trial starts the same run in a new workdir, sends a signal at a moment drawn uniformly over the
run's duration, start and end included, and gives the same command again until it ends. Every third trial is killed
twice. A run is lost where it does not end, ends with other bits, or with another metrics file.
"""

import argparse
import concurrent.futures
import hashlib
import itertools
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax

from rmt_jax.data import prepare_digits
from rmt_jax.training.metrics import read_metrics
from tests.saved import saved_arrays
from tests.training.conftest import ALL_PICTURES, REPOSITORY, quick_environment, tiny_words

EPOCHS = 8
STEPS = EPOCHS * (1437 // 256)
WORDS = [
    f"--config.epochs={EPOCHS}",
    "--config.eval_every_epochs=2",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=2",
    "--config.model.drop_path=0.2",
]
VARYING = ("train/images_per_second", "train/data_wait")
LATEST = 10  # starts after which a run that does not end is given up


class Start(NamedTuple):
    """One start of the command: what it was sent and when, and how it ended."""

    sent: str  # "", "SIGKILL" or "SIGTERM"
    where: str
    logged: int  # steps in metrics.jsonl when the signal was sent
    code: int
    resumed: int  # step that it went on from


class Trial(NamedTuple):
    """A run with its starts, and what is wrong with its end, if anything."""

    starts: list[Start]
    problem: str


def command(workdir: pathlib.Path, data: pathlib.Path) -> list[str]:
    """The run, the same at every start."""
    return [sys.executable, "main.py", "--workdir", str(workdir), *tiny_words(str(data)), *ALL_PICTURES, *WORDS]


def digest(workdir: pathlib.Path) -> str:
    """A hash of every array of the last checkpoint, with its path."""
    found = hashlib.sha256()
    for path, array in saved_arrays(workdir, STEPS).items():
        found.update(path.encode() + array.tobytes())
    return found.hexdigest()[:16]


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without the speeds."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in VARYING} for row in rows]


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """Steps that have a checkpoint."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def logged(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return max((row["step"] for row in read_metrics(path)), default=0) if path.exists() else 0


def phase(workdir: pathlib.Path, output: str) -> str:
    """What the run was doing, by its files and its output."""
    folder = workdir / "checkpoints"
    saving = folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())
    step = logged(workdir)
    if not output:
        what = "before the first line"
    elif step == 0:
        what = "compiling"
    elif step == STEPS:
        what = "finishing" if "Results" not in output else "after the results"
    else:
        rows = read_metrics(workdir / "metrics.jsonl")
        due = step % (2 * STEPS // EPOCHS) == 0 and not any("val/top1" in row for row in rows if row["step"] == step)
        what = f"step {step}" + (", evaluating" if due else "")
    return what + (", saving" if saving else "")


def start(
    words: list[str], workdir: pathlib.Path, environment: dict[str, str], delay: float | None, number: int
) -> Start:
    """Start the command; with a delay, send it a signal after so many seconds."""
    log = workdir.with_suffix(f".{time.monotonic_ns()}")
    with log.open("wb") as file:
        process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=file, stderr=file)
    sent = where = ""
    at = 0
    try:
        process.wait(delay if delay is not None else 600)
    except subprocess.TimeoutExpired:
        where, at, sent = phase(workdir, log.read_text()), logged(workdir), signal.Signals(number).name
        process.send_signal(number)
    code = process.wait(600)
    text = log.read_text()
    resumed = text.partition("resumes at step ")[2].split("\n")[0].strip().replace(",", "")
    return Start(sent, where, at, code, int(resumed or 0))


def judge(workdir: pathlib.Path, starts: list[Start], expected: tuple[str, Any, list[int]]) -> str:
    """What is wrong with a trial; "" for nothing."""
    if starts[-1].code != 0:
        return f"did not end: exit codes {[one.code for one in starts]}"
    for one, after in itertools.pairwise(starts):
        if one.sent == "SIGTERM" and one.where.startswith("step") and one.code != 143:
            return f"SIGTERM at {one.where} ended with {one.code}"
        # A step is in the metrics before its checkpoint is complete: two more may be under way.
        if one.logged - after.resumed > 4:
            return f"{one.logged - after.resumed} steps lost"
    if digest(workdir) != expected[0]:
        return "other bits"
    if metrics(workdir) != expected[1]:
        return "another metrics.jsonl"
    return "" if checkpoints(workdir) == expected[2] else f"other checkpoints: {checkpoints(workdir)}"


def trial(
    folder: pathlib.Path, number: int, seed: int, seconds: float, environment: dict[str, str], expected: Any
) -> Trial:
    """Kill a run once or twice, and let it end."""
    draw = random.Random(f"{seed}/{number}")
    workdir = folder / f"trial_{number}"
    words = command(workdir, folder / "data")
    kills = [signal.SIGKILL, signal.SIGTERM][number % 2 :: 2] * (2 if number % 3 == 2 else 1)
    starts: list[Start] = []
    for kill in kills:
        starts.append(start(words, workdir, environment, draw.uniform(0, seconds), kill))
        if starts[-1].code == 0:
            break
    while starts[-1].code != 0 and len(starts) < LATEST:
        starts.append(start(words, workdir, environment, None, 0))
    return Trial(starts, judge(workdir, starts, expected))


def run_trials(trials: int, seed: int, folder: pathlib.Path, *, at_a_time: int = 2) -> int:
    """Print a row for each trial and a summary; returns the number of runs that were lost."""
    prepare_digits(str(folder / "data"))
    environment = quick_environment(folder / "compiled")
    start(command(folder / "compiling", folder / "data"), folder / "compiling", environment, None, 0)
    began = time.monotonic()
    whole = start(command(folder / "whole", folder / "data"), folder / "whole", environment, None, 0)
    seconds = time.monotonic() - began
    assert whole.code == 0, "the undisturbed run failed"
    expected = digest(folder / "whole"), metrics(folder / "whole"), checkpoints(folder / "whole")
    # Two runs at a time take longer than one: draw over what they take, so that the end is reached as well.
    spread = seconds * (1.4 if at_a_time > 1 else 1.0)
    print(f"undisturbed: {STEPS} steps in {seconds:.1f} s, bits {expected[0]}; moments from 0 to {spread:.1f} s")
    print(f"{'trial':>5}  {'sent':8} {'where it landed':34} {'exit':>4} {'resumed at':>10}  end")
    lost = 0
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        jobs = [pool.submit(trial, folder, i, seed, spread, environment, expected) for i in range(trials)]
        for number, job in enumerate(jobs):
            found = job.result()
            lost += bool(found.problem)
            killed = [one for one in found.starts if one.sent]
            for index, one in enumerate(killed or found.starts[:1]):
                later = found.starts[min(index + 1, len(found.starts) - 1)].resumed
                end = (found.problem or "same bits, same metrics") if index == len(killed or [0]) - 1 else "..."
                where = one.where or "it had ended"
                print(f"{number:5}  {one.sent or '-':8} {where:34} {one.code:4} {later:10}  {end}", flush=True)
    print(f"{trials} trials, {lost} lost")
    return lost


def main() -> int:
    """The exit code: 1 where a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as name:
        return int(run_trials(options.trials, options.seed, pathlib.Path(name)) > 0)


if __name__ == "__main__":
    sys.exit(main())
