"""Where the time of a compiled program goes, by the parts of the network: the scopes that the models name."""

import dataclasses
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

from rmt_jax.training.hlo import computations, instructions

OTHER = "other"
PARTS = (
    "stem",
    "position",
    "retention",
    "masa",
    "lepe",
    "ffn",
    "dwconv",
    "downsample",
    "norms",
    "head",
    "optimizer",
)

_SCOPE = re.compile(rf"\b(?:(stage\d+)|({'|'.join(PARTS)}))\b")
_GRAPHS = "--xla_gpu_enable_command_buffer"
_CONTAINERS = frozenset({"while", "call", "conditional"})  # what they run has entries of its own


class Place(NamedTuple):
    """What an operation belongs to.

    Attributes:
        stage: "stage1" to "stage4", or "".
        part: one of `PARTS`, the innermost, or `OTHER`.
        backward: whether it is of the backward pass.
    """

    stage: str
    part: str
    backward: bool


@dataclasses.dataclass(frozen=True)
class Profile:
    """Seconds that the operations of one call take, together: more than the call, where some run beside each other.

    Attributes:
        places: of each place.
        operations: of each operation of the program, the longest first: (name, its place, seconds).
    """

    places: dict[Place, float]
    operations: list[tuple[str, Place, float]]

    @property
    def total(self) -> float:
        """Of all operations."""
        return sum(self.places.values())


def name_all_operations() -> None:
    """Before jax starts: what GPUs run as graphs, nearly all of a program, the profiler sees without names.

    So XLA is told to make none. The operations take as long, but the time between them is longer.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _GRAPHS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_GRAPHS}=".strip()


def profile(run: Callable[[], object], hlo: str, *, calls: int = 5) -> Profile:
    """Profile `calls` calls of a function that runs a program and waits for it.

    Args:
        run: calls the program once.
        hlo: the program's text, `compiled.as_text()`.
        calls: how many to take the mean of.

    Raises:
        RuntimeError: the profiler saw no operation of the program.
    """
    places = operation_places(hlo)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    run()
    with tempfile.TemporaryDirectory(prefix="rmt_jax-profile-") as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(calls):
                run()
        files = [str(file) for file in pathlib.Path(folder).rglob("*.xplane.pb")]
        seconds = _seconds(files, places.keys())
    if not seconds:
        raise RuntimeError(f"The profiler of {jax.default_backend()} recorded none of the program's operations.")
    by_place: dict[Place, float] = {}
    for name, spent in seconds.items():
        by_place[places[name]] = by_place.get(places[name], 0.0) + spent / calls
    operations = [(name, places[name], spent / calls) for name, spent in seconds.items()]
    return Profile(by_place, sorted(operations, key=lambda operation: -operation[2]))


def operation_places(hlo: str) -> dict[str, Place]:
    """The place of each operation of a program that does work itself."""
    return {
        instruction.name: place_of(instruction.scope)
        for lines in computations(hlo).values()
        for instruction in instructions(lines)
        if instruction.kind not in _CONTAINERS
    }


def place_of(operation_name: str) -> Place:
    """The place that a path of scopes such as "jit(f)/transpose(jvp(stage1))/ffn/dot_general" says."""
    names = _SCOPE.findall(operation_name)
    stage = next((stage for stage, _ in reversed(names) if stage), "")
    part = next((part for _, part in reversed(names) if part), OTHER)
    return Place(stage, part, "transpose(" in operation_name)


def _seconds(files: Iterable[str], operations: Iterable[str]) -> dict[str, float]:
    known, found = frozenset(operations), dict[str, float]()
    for file in files:
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op", event.name)
                    if name in known:
                        found[name] = found.get(name, 0.0) + event.duration_ns / 1e9
    return found
