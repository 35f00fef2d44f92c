"""Operations of a traced program, and the collectives of a compiled one."""

import collections
import dataclasses
import functools
import math
import re
from typing import Any

import jax


def count_flops(jaxpr: Any) -> int:
    """Additions and multiplications of all matrix products and convolutions, what is recomputed included.

    jaxpr: of a function traced with global shapes: the count is that of all devices together. Loops count as often as
    they run, of branches the larger one.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
        elif name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in params["branches"])
        else:
            total += params.get("length", 1) * sum(map(count_flops, _inner(params)))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    jaxprs = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in a step.

    Attributes:
        runs: how often one runs.
        bytes: what each device puts on its links.
    """

    runs: int
    bytes: int


_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(")
_COLLECTIVE = re.compile(r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS = re.compile(r"replica_groups=(mesh.*?\{.*?\}|\[[\d,]+\]<=|\{\{[\d,]+\}|\{\})")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_TRIPS = re.compile(r"known_trip_count\D+(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def collective_traffic(hlo: str, devices: int) -> dict[str, Traffic]:
    """{kind: Traffic} of a compiled program, what is in a loop as often as the loop runs.

    A sum of which each device keeps its part alone counts as reduce-scatter: TPU programs hold it as a fusion of an
    all-reduce and a slice. In a group of n devices an all-gather that gives N bytes, or a reduce-scatter that takes N,
    sends N (n - 1) / n; an all-reduce twice that; a permutation N.

    Args:
        hlo: the compiled text.
        devices: in the whole mesh.
    """
    bodies = _computations(hlo)
    runs, found = _runs(bodies), collections.defaultdict[str, list[int]](lambda: [0, 0])
    seen: set[tuple[str, str]] = set()
    for name, lines in bodies.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match is None or not runs[name]:
                continue
            result, kind, start = match.groups()
            channel = _CHANNEL.search(line)
            if "fused_computation" in name or "async_collective" in name:
                # Parts of one asynchronous collective, each of which repeats it.
                identity = (channel[1] if channel else name, result.split("{")[0])
                if identity in seen:
                    continue
                seen.add(identity)
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            sent = _result_bytes(result, of_start=bool(start)) * _share(kind, line, devices, whole=kind in name)
            found[kind][0] += runs[name]
            found[kind][1] += round(runs[name] * sent)
    return {kind: Traffic(*values) for kind, values in sorted(found.items())}


def _share(kind: str, line: str, devices: int, *, whole: bool) -> float:
    """What a device sends of a collective, as a multiple of its result; whole: of the sum and not of the part kept."""
    if kind == "collective-permute":
        return 1.0
    groups = _GROUPS.search(line)
    members = _group_size(groups[1] if groups else "{}", devices)
    share = (members - 1) / members
    if kind == "all-reduce":
        return 2 * share
    return share * members if kind == "reduce-scatter" and not whole else share


def _computations(hlo: str) -> dict[str, list[str]]:
    """{name: lines}; the entry's name is "ENTRY"."""
    found: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        header = _HEADER.match(line) if line.endswith("{") else None
        if header is not None:
            lines = found.setdefault("ENTRY" if header[1] else header[2], [])
        elif line.startswith(" "):
            lines.append(line)
    return found


def _runs(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in a step; a loop of which the compiler does not know how often counts once."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            trips = _trip_count(line, bodies) if " while(" in line else 1
            for called in set(_CALLED.findall(line)) & bodies.keys():
                callers[called].append((name, trips))

    @functools.cache
    def count(name: str) -> int:
        return 1 if name == "ENTRY" else sum(times * count(caller) for caller, times in callers[name])

    return {name: count(name) for name in bodies}


def _trip_count(line: str, bodies: dict[str, list[str]]) -> int:
    """As the loop's line says, or as its condition does, which for a scan compares a counter with a constant."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    lines = bodies.get(condition[1], []) if condition else []
    limits = [int(match[1]) for match in map(_LIMIT.search, lines) if match]
    return limits[0] if len(limits) == 1 and any("direction=LT" in text for text in lines) else 1


def _result_bytes(result: str, *, of_start: bool) -> int:
    """Bytes of a result; that of an asynchronous start holds operand, result and semaphores: the largest array."""
    sizes = [
        math.prod(int(size) for size in shape.split(",") if size) * max(8, int(bits or 8)) // 8
        for bits, shape in _ARRAY.findall(result)
    ]
    return max(sizes) if of_start else sum(sizes)


def _group_size(groups: str, devices: int) -> int:
    """Members of each group, of the text's forms {{0,1},{2,3}}, [4,2]<=[8] and mesh['axis'=4,...] {'axis'}."""
    if groups.startswith("mesh"):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", groups)}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", groups.rpartition("{")[2]))
    if groups.startswith("["):
        return int(groups.strip("[]<=").split(",")[-1])
    return len(groups.split(",")) if groups.startswith("{{") else devices
