"""The core of `python -m tests.damage`: real runs, real damage, real disks."""

import pytest

from tests.damage import CASES, Bench, problems

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Bench:
    return Bench(tmp_path_factory.mktemp("damage"), environment)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("one bit changed", ["Checkpoint 10 is damaged (model/", "its content has changed", "going on from 5."]),
        ("metrics.jsonl deleted", ["metrics.jsonl ends at step 0, before the checkpoint of step 10"]),
        ("all damaged", ["error: No checkpoint in ", "Checkpoint 10 is damaged", "Checkpoint 5 is damaged"]),
        ("second run, then kill -9", ["is in use by process ", "Wait for that run or stop it"]),
        ("full disk, then space", ["stopped: ", "no space left on the disk", "the same command goes on", "free some"]),
    ],
)
def test_a_damaged_run_started_again(case: str, says: list[str], bench: Bench) -> None:
    try:
        row = CASES[case][0](bench)
    except PermissionError as error:
        pytest.skip(f"mounting is not allowed here: {error}")
    output = "\n".join(start.output for start in row.starts)
    assert problems(row) == [], output
    said = "\n".join(start.message for start in row.starts)
    assert [words for words in says if words.lower() not in said.lower()] == []
