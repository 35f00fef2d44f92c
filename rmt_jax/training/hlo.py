"""The text of compiled programs, read: computations, their instructions, how often each runs."""

import functools
import math
import re
from typing import NamedTuple

ENTRY = "ENTRY"

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(([^)]*)\)(.*)")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_TRIPS = re.compile(r"known_trip_count\D+(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_SCOPE = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
        name: of its result.
        result: its type.
        kind: what it does, such as "fusion".
        inside: what stands between its brackets.
        operands: names of the instructions whose results it takes.
        calls: the computation that it runs, "" for none; of a loop none.
        is_root: whether its result is the computation's.
        scope: the path of scopes and primitives that it comes from, "" where that is not known.
    """

    name: str
    result: str
    kind: str
    inside: str
    operands: tuple[str, ...]
    calls: str
    is_root: bool
    scope: str


def computations(hlo: str) -> dict[str, list[str]]:
    """{name: lines}; the entry's name is `ENTRY`."""
    found: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        header = _HEADER.match(line) if line.endswith("{") else None
        if header is not None:
            lines = found.setdefault(ENTRY if header[1] else header[2], [])
        elif line.startswith(" "):
            lines.append(line)
    return found


def instructions(lines: list[str]) -> list[Instruction]:
    """Of a computation."""
    found = []
    for root, name, result, kind, inside, rest in (m.groups() for m in map(_INSTRUCTION.match, lines) if m):
        called = _CALLED.search(rest) if kind != "while" else None
        operands = tuple(_OPERAND.findall(inside))
        scope = _SCOPE.search(rest)
        calls = called[1] if called else ""
        found.append(Instruction(name, result, kind, inside, operands, calls, bool(root), scope[1] if scope else ""))
    return found


def count_runs(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in a step; a loop of which the compiler does not know how often counts once."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            trips = _trip_count(line, bodies) if " while(" in line else 1
            for called in set(_CALLED.findall(line)) & bodies.keys():
                callers[called].append((name, trips))

    @functools.cache
    def count(name: str) -> int:
        return 1 if name == ENTRY else sum(times * count(caller) for caller, times in callers[name])

    return {name: count(name) for name in bodies}


def _trip_count(line: str, bodies: dict[str, list[str]]) -> int:
    """As the loop's line says, or as its condition does, which for a scan compares a counter with a constant."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    lines = bodies.get(condition[1], []) if condition else []
    limits = [int(match[1]) for match in map(_LIMIT.search, lines) if match]
    return limits[0] if len(limits) == 1 and any("direction=LT" in text for text in lines) else 1


def array_sizes(result: str) -> list[int]:
    """Bytes of each array of a type, padding aside."""
    return [
        math.prod(int(size) for size in shape.split(",") if size) * max(8, int(bits or 8)) // 8
        for bits, shape in _ARRAY.findall(result)
    ]


def members(result: str) -> list[str]:
    """The types that a tuple's type consists of; of another type itself alone."""
    if not result.startswith("("):
        return [result]
    found, depth, start = [], 0, 1
    for index, character in enumerate(result):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 or (depth == 1 and character == ","):
            found.append(result[start:index].strip())
            start = index + 1
        if depth == 0:
            break
    return found
