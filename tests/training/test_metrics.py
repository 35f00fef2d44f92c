"""metrics.jsonl and TensorBoard events, above all after an interruption."""

import json
import math
import pathlib
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rmt_jax.training.metrics import MetricsWriter, read_metrics, replace_file


def log_steps(workdir: pathlib.Path, resume_step: int, steps: range) -> None:
    with MetricsWriter(workdir, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, {"train/loss": step / 10}, epoch=step / 4)


def logged_steps(workdir: pathlib.Path) -> list[int]:
    return [entry["step"] for entry in read_metrics(workdir / "metrics.jsonl")]


def read_events(file: pathlib.Path) -> list[Event]:
    """The records of an event file: length, its checksum, data, its checksum."""
    content, events, at = file.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += length + 16
    return events


def test_one_object_a_line(tmp_path):
    with MetricsWriter(tmp_path / "run", resume_step=0) as writer:
        writer.write(10, {"train/loss": 0.5, "train/lr": np.float32(0.25)}, epoch=0.5)
        writer.write(20, {"val/top1": 98}, epoch=None)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()  # on disk before closing
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "epoch": 0.5, "train/loss": 0.5, "train/lr": 0.25},
        {"step": 20, "val/top1": 98.0},
    ]


def test_resume_leaves_no_gaps_and_no_doubles(tmp_path):
    log_steps(tmp_path, 0, range(1, 15))
    log_steps(tmp_path, 10, range(11, 21))
    assert logged_steps(tmp_path) == list(range(1, 21))


def test_resume_keeps_the_lines_of_the_checkpointed_step(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(10, {"train/loss": 0.5}, epoch=1.0)
        writer.write(10, {"val/top1": 90.0}, epoch=1.0)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    MetricsWriter(tmp_path, resume_step=10).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_from_the_start_keeps_nothing(tmp_path):
    log_steps(tmp_path, 0, range(5))
    log_steps(tmp_path, 0, range(3))
    assert logged_steps(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_last_line_cut_short_is_dropped(tmp_path, cut):
    log_steps(tmp_path, 0, range(1, 6))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    # Without only its line break the line is whole.
    assert logged_steps(tmp_path) == ([1, 2, 3, 4, 5] if cut == 1 else [1, 2, 3, 4])
    log_steps(tmp_path, 4, range(5, 8))
    assert logged_steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_zero_bytes_at_the_end_after_a_power_cut(tmp_path):
    log_steps(tmp_path, 0, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\x00" * 100)
    assert logged_steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("damage", ["not json", "[1]", '{"loss": 1}'])
def test_a_foreign_line_is_an_error_that_says_where(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object with a step"):
        MetricsWriter(tmp_path, resume_step=5)
    assert damage in path.read_text(), "left as it was"


def test_non_finite_values_stay_valid_json(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, {"train/loss": math.nan, "val/loss": math.inf, "val/top1": 1.0}, epoch=None)
    MetricsWriter(tmp_path, resume_step=1).close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "train/loss": None, "val/loss": None, "val/top1": 1.0}
    (entry,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(entry["train/loss"])
    assert math.isnan(entry["val/loss"])


def test_tensorboard_events_and_purge(tmp_path):
    log_steps(tmp_path, 0, range(1, 4))
    log_steps(tmp_path, 2, range(3, 5))
    # Two starts within one second: both files are there, in the order in which TensorBoard reads them.
    first, second = (read_events(file) for file in sorted((tmp_path / "tensorboard").iterdir()))
    scalars = [(event.step, value.tag, value.simple_value) for event in first for value in event.summary.value]
    assert scalars == [(step, "train/loss", pytest.approx(step / 10)) for step in (1, 2, 3)]
    starts = [event.step for event in second if event.session_log.status == SessionLog.START]
    assert starts == [3], "TensorBoard hides what an earlier file has from this step on"
    assert [event.step for event in second for _ in event.summary.value] == [3, 4]


def test_disabled_writer_touches_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", resume_step=0, enabled=False) as writer:
        writer.write(1, {"train/loss": 1.0}, epoch=0.1)
    assert not (tmp_path / "run").exists()


def test_replace_file_leaves_no_temporary(tmp_path):
    path = tmp_path / "file.txt"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
