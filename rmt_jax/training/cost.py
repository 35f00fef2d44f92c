"""Operations of a traced program; the collectives of a compiled one, and what its loops add to its memory traffic."""

import collections
import dataclasses
import math
import re
from typing import Any

import jax

from rmt_jax.training.hlo import Instruction, array_sizes, computations, count_runs, instructions, members


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
        elif name == "pallas_call":
            # What it says of itself. Retention's kernels say nothing: the branch without a kernel is counted.
            total += params["cost_estimate"].flops if params["cost_estimate"] else 0
        elif name == "shard_map":  # shapes inside are those of a device
            total += params["mesh"].size * sum(map(count_flops, _inner(params)))
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


# The kind of all that goes from one slice to the next, by the network of the data centre.
BETWEEN_SLICES = "between slices"

_COLLECTIVE = re.compile(r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS = re.compile(r"replica_groups=(mesh.*?\{.*?\}|\[[\d,]+\]<=|\{\{[\d,]+\}|\{\})")

# Between slices TPU programs hand arrays to a runtime of the hosts, with the collective and the slices as attributes.
_SEND = re.compile(r"= (.+?) send\(.*\bxla_megascale_runtime\b")
_TRANSFER = re.compile(r"_xla_megascale_transfer_type=\"(\w+)\"")
_SLICES = re.compile(r"_xla_megascale_target=\"\{([\d,]+)\}x")
_SLICES_OF_DEVICES = re.compile(r"_xla_megascale_target=\{\{([\d,]+)\}")
_DEVICES_A_SLICE = 100_000  # the step in the devices' numbers there from one slice to the next


def collective_traffic(hlo: str, devices: int) -> dict[str, Traffic]:
    """{kind: Traffic} of a compiled program, what is in a loop as often as the loop runs.

    A sum of which each device keeps its part alone counts as reduce-scatter: TPU programs hold it as a fusion of an
    all-reduce and a slice. In a group of n devices an all-gather that gives N bytes, or a reduce-scatter that takes N,
    sends N (n - 1) / n; an all-reduce twice that; a permutation N. So do n slices with what a device hands to the
    network between them, all of which is one kind, `BETWEEN_SLICES`.

    Args:
        hlo: the compiled text.
        devices: in the whole mesh.
    """
    bodies = computations(hlo)
    runs, found = count_runs(bodies), collections.defaultdict[str, list[int]](lambda: [0, 0])
    seen: set[tuple[str, str]] = set()
    for name, lines in bodies.items():
        for line in lines if runs[name] else ():
            collective = _sent_between_slices(line) or _sent_within_slice(name, line, devices, seen)
            if collective is not None:
                kind, sent = collective
                found[kind][0] += runs[name]
                found[kind][1] += round(runs[name] * sent)
    return {kind: Traffic(*values) for kind, values in sorted(found.items())}


def _sent_between_slices(line: str) -> tuple[str, float] | None:
    """(kind, bytes that a device sends) of an instruction, None where it sends nothing to another slice."""
    match = _SEND.search(line)
    if match is None:
        return None
    size = sum(array_sizes(members(match[1])[0]))  # of (what is sent, context, token)
    transfer = _TRANSFER.search(line)
    return BETWEEN_SLICES, size * _share_of_slices(transfer[1] if transfer else "", _slice_count(line))


def _share_of_slices(transfer: str, slices: int) -> float:
    """What a device sends, as a multiple of what it hands over."""
    if transfer == "ALL_GATHER":
        return slices - 1.0
    share = (slices - 1) / slices
    return {"ALL_REDUCE": 2 * share, "REDUCE_SCATTER": share, "ALL_TO_ALL": share}.get(transfer, 1.0)


def _slice_count(line: str) -> int:
    """Of the text's forms "{1,2}x{0:3}", which names slices, and {{100000,200000}}, which names devices; else 2."""
    if named := _SLICES.search(line):
        return len(named[1].split(","))
    listed = _SLICES_OF_DEVICES.search(line)
    return len({int(device) // _DEVICES_A_SLICE for device in listed[1].split(",")}) if listed else 2


def _sent_within_slice(name: str, line: str, devices: int, seen: set[tuple[str, str]]) -> tuple[str, float] | None:
    """(kind, bytes that a device sends) of an instruction of a computation, None for other instructions.

    seen: of collectives in parts the (channel, type), which is added to.
    """
    match = _COLLECTIVE.search(line)
    if match is None:
        return None
    result, kind, start = match.groups()
    channel = _CHANNEL.search(line)
    if "fused_computation" in name or "async_collective" in name:
        # Parts of one asynchronous collective, each of which repeats it.
        identity = (channel[1] if channel else name, result.split("{")[0])
        if identity in seen:
            return None
        seen.add(identity)
    if name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    # An asynchronous start has (operands, results, semaphores), each a tuple where several travel together. But of an
    # all-reduce it has the results alone.
    parts = members(result) if start and kind != "all-reduce" else [result]
    size = sum(array_sizes(parts[1] if len(parts) > 1 else result))
    return kind, size * _share(kind, line, devices, whole=kind in name)


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


def _group_size(groups: str, devices: int) -> int:
    """Members of each group, of the text's forms {{0,1},{2,3}}, [4,2]<=[8] and mesh['axis'=4,...] {'axis'}."""
    if groups.startswith("mesh"):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", groups)}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", groups.rpartition("{")[2]))
    if groups.startswith("["):
        return int(groups.strip("[]<=").split(",")[-1])
    return len(groups.split(",")) if groups.startswith("{{") else devices


# Their results are parts of what is there already, or are counted where they come from.
_MOVES_NOTHING = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
    *("while", "conditional", "call", "copy-done", "async-done", "all-reduce-done", "collective-permute-done"),
}
_TAKES_PART = {"dynamic-slice", "slice", "gather"}


def loop_factor(hlo: str) -> float:
    """How many times more bytes a program moves than if the body of each loop ran once, as XLA's cost analysis has it.

    Operands and results of all instructions are added up, of fused slices and updates the part that is touched. Only
    the ratio is of use: the compiler's own sum has paddings besides. RMT-T with scanned blocks comes within 3 % of the
    compiler's count for the unrolled program.
    """
    bodies = computations(hlo)
    runs, parsed = count_runs(bodies), {name: instructions(lines) for name, lines in bodies.items()}
    fusions = _Fusions(parsed)
    fused = {one.calls for body in parsed.values() for one in body if one.kind == "fusion"}
    once = total = 0
    for name, body in parsed.items():
        if name in fused or not runs[name]:
            continue
        results = {one.name: sum(array_sizes(one.result)) for one in body}
        moved = sum(_moved(one, results, fusions) for one in body if one.kind not in _MOVES_NOTHING)
        once, total = once + moved, total + moved * runs[name]
    return total / once if once else 1.0


def _moved(one: Instruction, results: dict[str, int], fusions: "_Fusions") -> int:
    """Bytes that an instruction reads and writes."""
    operands = [results.get(operand, 0) for operand in one.operands]
    if one.kind in _TAKES_PART:
        return 2 * results[one.name]
    if one.kind == "dynamic-update-slice":
        return 2 * operands[1]
    if one.kind == "fusion":
        read = [fusions.read(one.calls, index) for index in range(len(operands))]
        whole = [size if part is None else min(size, part) for size, part in zip(operands, read, strict=True)]
        return fusions.written(one.calls) + sum(whole)
    return results[one.name] + sum(operands)


class _Fusions:
    """What fused computations read of their operands and write of their results."""

    def __init__(self, parsed: dict[str, list[Instruction]]):
        self._parsed = parsed

    def read(self, name: str, index: int) -> int | None:
        """Bytes read of a parameter, None for all of it."""
        parameter = next(one.name for one in self._parsed[name] if one.kind == "parameter" and one.inside == str(index))
        return self._read(name, parameter)

    def _read(self, name: str, value: str) -> int | None:
        parts = [
            self._read_by(name, one, position)
            for one in self._parsed[name]
            for position, operand in enumerate(one.operands)
            if operand == value
        ]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _read_by(self, name: str, user: Instruction, position: int) -> int | None:
        if user.kind in _TAKES_PART and position == 0:
            return sum(array_sizes(user.result))
        if user.kind == "dynamic-update-slice" and position == 0:
            return 0
        if user.kind == "bitcast":
            return self._read(name, user.name)
        return self.read(user.calls, position) if user.kind == "fusion" else None

    def written(self, name: str) -> int:
        """Bytes written of the result."""
        body = {one.name: one for one in self._parsed[name]}
        return self._written(body, next(one for one in body.values() if one.is_root))

    def _written(self, body: dict[str, Instruction], one: Instruction) -> int:
        if one.kind == "dynamic-update-slice":
            return sum(array_sizes(body[one.operands[1]].result))
        if one.kind in ("bitcast", "tuple"):
            return sum(self._written(body, body[operand]) for operand in one.operands)
        return sum(array_sizes(one.result))
