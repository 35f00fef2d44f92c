"""What happens to a run whose files are damaged, as one table: python -m tests.damage [CASE...]

A tiny run on the digits is trained to its end. Each case takes a copy of it as a kill after step 10 would have left it,
damages the copy, starts `python main.py` on it again, a process of its own, and compares its last weights, bit for bit,
and its metrics with those of the run without damage. Disks are small tmpfs, so those cases need the right to mount.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from rmt_jax.convert import read_weights
from rmt_jax.data import prepare_digits
from rmt_jax.training.lock import LOCK_FILE
from rmt_jax.training.metrics import read_metrics
from tests.training.conftest import REPOSITORY, quick_environment, tiny_words

DEADLINE = 300  # seconds for one start
LAST, NEWEST, BEFORE = 15, 10, 5  # the last step, and the checkpoints that a case finds
OUTPUT = (
    *("error:", "stopped:", "Checkpoint", "The checkpoint", "The save", "No checkpoint", "  Checkpoint", "Put back"),
    "metrics.jsonl",
)


class Start(NamedTuple):
    """How a start of main.py ended: exit code, what it said of the damage, and all of its output."""

    code: int
    message: str
    output: str


class Row(NamedTuple):
    """A line of the table: the starts in their order, and whether the run came to the undamaged one's end."""

    case: str
    starts: list[Start]
    same_end: bool | None  # None where the last start was to be refused


class Bench:
    """A trained run in `folder`, and processes on copies of it."""

    def __init__(self, folder: pathlib.Path, environment: Mapping[str, str]):
        digits = folder / "data"
        prepare_digits(str(digits))
        self.folder, self.environment = folder, dict(environment)
        self.words = [*tiny_words(str(digits)), "--config.epochs=3", "--config.checkpoint.keep_last=3"]
        self.reference = folder / "reference"
        first = self.start(self.reference)
        if first.code:
            raise RuntimeError(first.output)

    def copy(self, name: str, parent: pathlib.Path | None = None) -> pathlib.Path:
        """The run as a kill during the third epoch leaves it."""
        workdir = (parent or self.folder) / name.replace(" ", "_")
        shutil.copytree(self.reference, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(LAST))
        (workdir / "evaluation.json").unlink()
        return workdir

    def start(self, workdir: pathlib.Path, *more: str) -> Start:
        """Run main.py to its end."""
        with self.started(workdir, *more) as process:
            return finish(process)

    @contextlib.contextmanager
    def started(self, workdir: pathlib.Path, *more: str) -> Iterator[subprocess.Popen[str]]:
        """A process of main.py, which does not outlive the block."""
        command = [sys.executable, "main.py", f"--workdir={workdir}", *self.words, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, text=True, **pipes)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def same_end(self, workdir: pathlib.Path) -> bool:
        """Whether the last weights have the bits, and the metrics the numbers, of the undamaged run."""
        for kind in ("raw", "ema"):
            ours, theirs = (read_weights(folder, weights=kind).arrays for folder in (workdir, self.reference))
            if ours.keys() != theirs.keys() or any(np.any(ours[path] != theirs[path]) for path in ours):
                return False
        return numbers(workdir) == numbers(self.reference)


def finish(process: subprocess.Popen[str]) -> Start:
    """Wait for a process of main.py."""
    output = process.communicate(timeout=DEADLINE)[0]
    lines = [line for line in output.splitlines() if line.startswith(OUTPUT)]
    return Start(process.returncode, "\n".join(lines), output)


def numbers(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what depends on the machine's speed."""
    speed = ("train/images_per_second", "train/data_wait")
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in speed} for row in rows]


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until something is so."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to be so")
        time.sleep(0.02)


def data_file(workdir: pathlib.Path, step: int = NEWEST) -> pathlib.Path:
    """The file with the values of the raw weights."""
    files = (workdir / "checkpoints" / str(step) / "model" / "ocdbt.process_0" / "d").iterdir()
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(workdir: pathlib.Path) -> None:
    os.truncate(data_file(workdir), 1000)


def half_written(workdir: pathlib.Path) -> None:
    """As Orbax leaves it: under the temporary name, with a part of the files."""
    folder = workdir / "checkpoints"
    (folder / str(NEWEST)).rename(folder / f"{NEWEST}.orbax-checkpoint-tmp")
    shutil.rmtree(folder / f"{NEWEST}.orbax-checkpoint-tmp" / "ema")


def remove_manifest(workdir: pathlib.Path) -> None:
    (workdir / "checkpoints" / str(NEWEST) / "manifest.json").unlink()


def remove_item(workdir: pathlib.Path) -> None:
    shutil.rmtree(workdir / "checkpoints" / str(NEWEST) / "optimizer")


def damage_all(workdir: pathlib.Path) -> None:
    flip(data_file(workdir, BEFORE))
    truncate(workdir)


def cut_metrics(workdir: pathlib.Path) -> None:
    """The last row of the newest checkpoint's step, its evaluation, cut short by a kill."""
    path = workdir / "metrics.jsonl"
    rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= NEWEST]
    path.write_text("\n".join(rows)[:-30])


def garble_metrics(workdir: pathlib.Path) -> None:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join([*lines[:2], "\x00\x00\x00", *lines[2:]]) + "\n")


DAMAGE: Mapping[str, tuple[Callable[[pathlib.Path], object], int]] = {  # case: (what is done, exit code)
    "no damage": (lambda workdir: None, 0),
    "file cut short": (truncate, 0),
    "file deleted": (lambda workdir: data_file(workdir).unlink(), 0),
    "one bit changed": (lambda workdir: flip(data_file(workdir)), 0),
    "metadata damaged": (lambda workdir: flip(workdir / "checkpoints" / str(NEWEST) / "ema" / "_METADATA"), 0),
    "part of it deleted": (remove_item, 0),
    "its manifest deleted": (remove_manifest, 0),
    "half-written": (half_written, 0),
    "all damaged": (damage_all, 2),
    "config.json deleted": (lambda workdir: (workdir / "config.json").unlink(), 2),
    "metrics.jsonl cut short": (cut_metrics, 0),
    "metrics.jsonl deleted": (lambda workdir: (workdir / "metrics.jsonl").unlink(), 0),
    "garbage in metrics.jsonl": (garble_metrics, 2),
    "garbage in environment.json": (lambda workdir: (workdir / "environment.json").write_text("["), 2),
}


def damaged_files(bench: Bench, case: str) -> Row:
    """Damage files, start once."""
    workdir = bench.copy(case)
    before = listing(workdir / "checkpoints")
    DAMAGE[case][0](workdir)
    damaged = listing(workdir / "checkpoints")
    start = bench.start(workdir)
    if DAMAGE[case][1]:  # refused: nothing may have been touched
        unchanged = listing(workdir / "checkpoints") == damaged and damaged.keys() <= before.keys()
        return Row(case, [start], None if unchanged else False)
    if case == "metrics.jsonl deleted":  # its rows are gone for good; the weights are not
        shutil.copy(bench.reference / "metrics.jsonl", workdir)
    return Row(case, [start], bench.same_end(workdir))


def listing(folder: pathlib.Path) -> dict[str, int]:
    """{file: size} of a folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def damaged_evaluation(bench: Bench) -> Row:
    """--mode=eval of a run whose newest checkpoint is damaged."""
    workdir = bench.copy("eval")
    flip(data_file(workdir))
    return Row("--mode=eval, bit changed", [bench.start(workdir, "--mode=eval")], None)


def cut_evaluation(bench: Bench) -> Row:
    """The last checkpoint is there, but a kill cut its evaluation: that alone is left to do."""
    workdir = shutil.copytree(bench.reference, bench.folder / "evaluation")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    (workdir / "evaluation.json").unlink()
    start = bench.start(workdir)
    complete = (workdir / "evaluation.json").exists()
    return Row("killed in the last evaluation", [start], complete and bench.same_end(workdir))


def second_run(bench: Bench) -> Row:
    """A run on a workdir in use is refused; after a kill -9 of the first nothing is in the way."""
    workdir = bench.copy("second")
    with bench.started(workdir) as first:
        wait_for(lambda: str(first.pid) in (workdir / LOCK_FILE).read_text())
        first.send_signal(signal.SIGSTOP)  # so that it does not end too early
        second = bench.start(workdir)
        first.kill()
    return Row("second run, then kill -9", [second, bench.start(workdir)], bench.same_end(workdir))


@contextlib.contextmanager
def disk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of its own. Raises PermissionError where mounting is not allowed."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--recursive", str(folder)], check=True)


def mount(*words: str) -> None:
    """Call mount. Raises PermissionError where that is not allowed."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip())


def full_disk(bench: Bench) -> Row:
    """The disk fills up while the run goes on; then there is space again."""
    with disk(bench.folder / "full") as root:
        workdir = bench.copy("run", root)
        with bench.started(workdir) as process:
            wait_for_second_start(workdir)
            space = os.statvfs(root)
            (root / "fill").write_bytes(b"0" * (space.f_bavail * space.f_frsize - 300_000))
            stopped = finish(process)
        refused = bench.start(workdir)
        (root / "fill").unlink()
        return Row("full disk, then space", [stopped, refused, bench.start(workdir)], bench.same_end(workdir))


def read_only_disk(bench: Bench) -> Row:
    """A disk that cannot be written at the start, then one that becomes so while the run goes on."""
    with disk(bench.folder / "read_only") as root:
        workdir = bench.copy("run", root)
        mount("-o", "remount,ro", str(root))
        refused = bench.start(workdir)
        mount("-o", "remount,rw", str(root))
        folder = str(workdir / "checkpoints")
        with bench.started(workdir) as process:
            wait_for_second_start(workdir)
            mount("--bind", folder, folder)
            mount("-o", "remount,bind,ro", folder)
            stopped = finish(process)
        subprocess.run(["umount", folder], check=True)
        return Row("read-only disk", [refused, stopped, bench.start(workdir)], bench.same_end(workdir))


def wait_for_second_start(workdir: pathlib.Path) -> None:
    """Until a run on a copy has read its checkpoint: it says so in environment.json, which is replaced as a whole."""
    wait_for(lambda: len(json.loads((workdir / "environment.json").read_text())["starts"]) == 2)


CASES: Mapping[str, tuple[Callable[[Bench], Row], tuple[int, ...]]] = {  # case: (what happens, exit codes)
    **{case: (functools.partial(damaged_files, case=case), (code,)) for case, (_, code) in DAMAGE.items()},
    "--mode=eval, bit changed": (damaged_evaluation, (2,)),
    "killed in the last evaluation": (cut_evaluation, (0,)),
    "second run, then kill -9": (second_run, (2, 0)),
    "full disk, then space": (full_disk, (1, 2, 0)),
    "read-only disk": (read_only_disk, (2, 1, 0)),
}


def problems(row: Row) -> list[str]:
    """What is not as it should be in a row: exit codes, a traceback, an end that is not the undamaged run's."""
    codes = tuple(start.code for start in row.starts)
    found = [] if codes == CASES[row.case][1] else [f"exit codes {codes}, expected {CASES[row.case][1]}"]
    if any("Traceback" in start.output for start in row.starts):
        found.append("a traceback")
    if row.same_end is False:
        found.append("another end")
    return found


def main() -> None:
    """Print the table; exit code 1 when a case is not as it should be."""
    from rich.console import Console
    from rich.table import Table

    jax.config.update("jax_platforms", "cpu")
    table = Table("case", "exit codes", "what it says", "end", title="A damaged run, started again", show_lines=True)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        bench = Bench(folder, quick_environment(folder / "compiled"))
        for case in sys.argv[1:] or CASES:
            try:
                row = CASES[case][0](bench)
            except PermissionError as error:
                table.add_row(case, "", str(error), "not run")
                continue
            wrong = problems(row)
            failed |= bool(wrong)
            says = "\n".join(filter(None, (start.message for start in row.starts))).replace(name, "")
            end = {True: "same bits", False: "DIFFERS", None: "nothing touched"}[row.same_end]
            table.add_row(case, ", ".join(str(start.code) for start in row.starts), says, "; ".join(wrong) or end)
            print(f"{case}: {'; '.join(wrong) or end}\n{says}", file=sys.stderr, flush=True)
            if wrong:
                print("\n".join(start.output for start in row.starts), file=sys.stderr, flush=True)
    Console(width=None if os.isatty(1) else 150).print(table)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
