"""What follows from shapes alone: arithmetic, traffic and memory of each instruction and of a module.

The counts are those of the textbook, per execution: 2MNK for a product of matrices, one operation per element of an
elementwise instruction, each operand read once and each result written once. Instructions that only rename memory
(tuples, bitcasts, reshapes) move nothing. A fusion is one instruction: the arithmetic inside it, the traffic outside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from costmodel.graph.hlo import AnyShape, Computation, Instruction, Module, Shape
from costmodel.graph.order import callees_first
from costmodel.records import UserError

# Rename or name what is in memory, or only order others.
FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "reshape", "after-all", "add-dependency",
    "domain", "partition-id", "replica-id", "opt-barrier", "get-dimension-size", "set-dimension-size",
})  # fmt: skip
TRANSCENDENTAL = frozenset({
    "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "sine", "cosine", "tan",
    "power", "rsqrt", "sqrt", "cbrt", "erf", "atan2", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cosh",
    "sinh",
})  # fmt: skip
ELEMENTWISE = TRANSCENDENTAL | frozenset({
    "abs", "add", "and", "ceil", "clamp", "compare", "complex", "count-leading-zeros", "divide", "floor",
    "imag", "is-finite", "maximum", "minimum", "multiply", "negate", "not", "or", "popcnt", "real",
    "reduce-precision", "remainder", "round-nearest-afz", "round-nearest-even", "select", "shift-left",
    "shift-right-arithmetic", "shift-right-logical", "sign", "stochastic-convert", "subtract", "xor",
})  # fmt: skip
# Of these only so much of the first operand is read as is written.
PARTIAL_READ = frozenset({"slice", "dynamic-slice", "gather"})
RENAMES = FREE | {"while"}  # the result lies where the operands lie
CONTROL = frozenset({"while", "conditional", "call", "async-start"})  # their cost is that of what they call

_NUMBERS = re.compile(r"\d+")
_TRIPS = re.compile(r'"known_trip_count"\s*:\s*\{\s*"n"\s*:\s*"?(\d{1,18})"?')
_WINDOW_SIZE = re.compile(r"\bsize=([\dx]+)")


@dataclass(frozen=True, slots=True)
class Cost:
    """One instruction of one computation. All but `count` are per execution; `count` is how often a run executes it,
    as far as the text says (a loop of unknown length counts once; of a conditional, every branch counts once)."""

    computation: str
    name: str
    opcode: str
    dtype: str  # of the first array of the result
    elements: int  # of the result, all arrays of it
    flops: int
    transcendentals: int  # of the flops, those that are no add or multiply
    bytes_read: int
    bytes_written: int
    count: float = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Totals over a run of the module: the sum of its costs by their counts."""

    flops: float
    transcendentals: float
    bytes_read: float
    bytes_written: float
    parameter_bytes: int
    result_bytes: int
    peak_bytes: int  # parameters, constants and live results, in printed order
    num_instructions: int
    num_executed: float


def costs(module: Module) -> tuple[Cost, ...]:
    """The instructions that run, fusions whole: those of the entry and of all that it calls, in printed order.

    The bodies of fusions, reductions and sorts are not listed: their arithmetic is in the instruction that calls them.
    """
    counts = _executions(module)
    arithmetic = _Arithmetic(module)
    found = []
    for computation in module.computations:
        if count := counts.get(computation.name):
            found += [
                _cost(computation, instruction, arithmetic, count)
                for instruction in computation.instructions
                if instruction.opcode not in CONTROL
            ]
    return tuple(found)


def facts(module: Module) -> Facts:
    """Totals and peak memory."""
    listed = costs(module)
    entry = module.entry_computation

    def total(value: Callable[[Cost], int]) -> float:
        return sum(cost.count * value(cost) for cost in listed)

    return Facts(
        flops=total(lambda c: c.flops),
        transcendentals=total(lambda c: c.transcendentals),
        bytes_read=total(lambda c: c.bytes_read),
        bytes_written=total(lambda c: c.bytes_written),
        parameter_bytes=sum(i.shape.bytes for i in entry.parameters),
        result_bytes=entry.root.shape.bytes,
        peak_bytes=peak_bytes(module),
        num_instructions=module.num_instructions,
        num_executed=sum(c.count for c in listed if c.opcode not in FREE),
    )


def trip_count(instruction: Instruction) -> int:
    """How often a loop runs, where its backend configuration knows; 1 where not."""
    known = _TRIPS.search(instruction.attribute("backend_config"))
    return int(known[1]) if known else 1


def _executions(module: Module) -> dict[str, float]:
    """How often each computation runs as a list of instructions of its own (inside a fusion or a reduction: never)."""
    counts = {module.entry: 1.0}
    for computation in reversed(callees_first(module)):
        if count := counts.get(computation.name):
            for instruction in computation.instructions:
                if instruction.opcode in CONTROL:
                    trips = trip_count(instruction) if instruction.opcode == "while" else 1
                    for called in instruction.called:
                        counts[called] = min(counts.get(called, 0.0) + count * trips, 1e100)
    return counts


# -------------------------------------------------------------------------------------------------------- arithmetic


class _Arithmetic:
    """(operations, transcendental ones) of instructions; what is called is counted once and remembered."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.inside: dict[str, tuple[int, int]] = {}
        for computation in callees_first(module):
            pairs = [self.of(computation, instruction) for instruction in computation.instructions]
            self.inside[computation.name] = _capped(sum(p[0] for p in pairs)), _capped(sum(p[1] for p in pairs))

    def of(self, computation: Computation, i: Instruction) -> tuple[int, int]:
        size = sum(leaf.elements for leaf in i.shape.leaves())
        shapes = [computation.by_name[operand].shape for operand in i.operands]
        if i.opcode in ELEMENTWISE or i.opcode == "convert":
            return size, size if i.opcode in TRANSCENDENTAL else 0
        if i.opcode == "dot":
            return 2 * size * _contracted(i, shapes), 0
        if i.opcode == "convolution":
            return 2 * size * _per_output(i, shapes), 0
        if i.opcode == "fft":
            return _fft(i, max([size, *(leaf.elements for shape in shapes for leaf in shape.leaves())])), 0
        if i.opcode in ("fusion", *CONTROL):
            return self._called(i, trip_count(i) if i.opcode == "while" else 1)
        if i.opcode in ("reduce", "all-reduce", "reduce-scatter", "reduce-window", "map", "scatter", "sort"):
            return self._called(i, _applications(i, shapes, size))
        if i.opcode == "select-and-scatter" and len(shapes) == 3:
            return self._called(i, sum(leaf.elements for leaf in shapes[1].leaves()))
        return 0, 0

    def _called(self, i: Instruction, times: int) -> tuple[int, int]:
        pairs = [self.inside[name] for name in i.called]
        return _capped(times * sum(p[0] for p in pairs)), _capped(times * sum(p[1] for p in pairs))


def _capped(value: int) -> int:
    """Calls that double at each level would grow numbers without end; no machine does 2^200 operations."""
    return min(value, 1 << 200)


def _applications(i: Instruction, shapes: list[AnyShape], size: int) -> int:
    """How often the computation is applied."""
    first = shapes[0] if shapes else i.shape
    taken = sum(leaf.elements for leaf in first.leaves())
    if i.opcode == "sort":
        length = _dimensions(first, i.attribute("dimensions"), i)
        return round(taken * math.log2(max(length, 2)))
    if i.opcode == "reduce-window":
        window = _WINDOW_SIZE.search(i.attribute("window"))
        return size * math.prod(int(n[:9]) for n in _NUMBERS.findall(window[1])[:16]) if window else size
    if i.opcode == "scatter":
        return sum(leaf.elements for leaf in shapes[-1].leaves()) if shapes else 0
    return taken


def _contracted(i: Instruction, shapes: list[AnyShape]) -> int:
    """The elements that one element of a dot's result sums over."""
    if len(shapes) < 2:
        raise UserError(f"got {len(shapes)} operands of dot {i.name!r}, expected two")
    return _dimensions(shapes[0], i.attribute("lhs_contracting_dims"), i)


def _per_output(i: Instruction, shapes: list[AnyShape]) -> int:
    """Products that one element of a convolution's result sums: the kernel's elements per output feature."""
    kernel = shapes[1] if len(shapes) > 1 else None
    labels = re.fullmatch(r"\w+_(\w+)->\w+", i.attribute("dim_labels"))
    if not isinstance(kernel, Shape) or labels is None or len(labels[1]) != len(kernel.dims) or "o" not in labels[1]:
        raise UserError(
            f"got convolution {i.name!r} without a kernel that its dim_labels fit, expected b01f_01io->b01f"
        )
    return kernel.elements // max(abs(kernel.dims[labels[1].index("o")]), 1)


def _fft(i: Instruction, size: int) -> int:
    """5 N log2 N for N complex numbers, half of that where one side is real."""
    length = math.prod(int(n[:9]) for n in _NUMBERS.findall(i.attribute("fft_length"))[:3])
    return round((5 if i.attribute("fft_type") in ("FFT", "IFFT") else 2.5) * size * math.log2(max(length, 1)))


def _dimensions(shape: AnyShape, listed: str, i: Instruction) -> int:
    """The product of the listed dimensions of the first array of a shape."""
    dims = next((leaf.dims for leaf in shape.leaves()), ())
    numbers = [int(n[:9]) for n in _NUMBERS.findall(listed)]
    if any(n >= len(dims) for n in numbers):
        raise UserError(f"got dimensions {listed[:40]} in {i.name!r}, expected less than {len(dims)}")
    return math.prod(abs(dims[n]) for n in numbers)


# ----------------------------------------------------------------------------------------------------------- traffic


def _cost(computation: Computation, i: Instruction, arithmetic: _Arithmetic, count: float) -> Cost:
    flops, transcendentals = arithmetic.of(computation, i)
    read, written = _traffic(computation, i)
    leaves = list(i.shape.leaves())
    dtype = leaves[0].dtype if leaves else "tuple"
    elements = sum(leaf.elements for leaf in leaves)
    return Cost(computation.name, i.name, i.opcode, dtype, elements, flops, transcendentals, read, written, count)


def _traffic(computation: Computation, i: Instruction) -> tuple[int, int]:
    if i.opcode in FREE or i.opcode.endswith(("-done", "-update")):
        return 0, 0
    sizes = [computation.by_name[operand].shape.bytes for operand in i.operands]
    if i.opcode in PARTIAL_READ:
        return i.shape.bytes + sum(sizes[1:]), i.shape.bytes
    if i.opcode == "dynamic-update-slice" and len(sizes) > 1:  # in place: the update alone moves
        return sum(sizes[1:]), sizes[1]
    distinct = dict(zip(i.operands, sizes, strict=True))
    return sum(distinct.values()), i.shape.bytes


# ------------------------------------------------------------------------------------------------------------ memory


def peak_bytes(module: Module) -> int:
    """The most bytes alive at once, in printed order: results until their last use, parameters and the entry's result
    to the end. What renames memory owns none; a call adds the peak of what it calls beyond its own parameters."""
    peaks: dict[str, int] = {}
    for computation in callees_first(module):
        peaks[computation.name] = _capped(_peak(computation, peaks))
    return peaks[module.entry] + sum(i.shape.bytes for i in module.entry_computation.parameters)


def _peak(computation: Computation, peaks: dict[str, int]) -> int:
    """Beyond the parameters. One pass backwards finds last uses: what renames memory hands on its own."""
    instructions = computation.instructions
    last = {computation.root.name: len(instructions)}
    for at in range(len(instructions) - 1, -1, -1):
        i = instructions[at]
        own = last.setdefault(i.name, at)
        for operand in i.operands:
            last[operand] = max(last.get(operand, 0), own if i.opcode in RENAMES else at)
    dying: dict[int, int] = {}
    alive = peak = 0
    for at, i in enumerate(instructions):
        owned = 0 if i.opcode == "parameter" or (i.opcode in RENAMES and i.operands) else i.shape.bytes
        dying[last[i.name]] = dying.get(last[i.name], 0) + owned
        inside = max((peaks[name] for name in i.called), default=0) if i.opcode in CONTROL else 0
        alive += owned
        peak = max(peak, alive + inside)
        alive -= dying.pop(at, 0)
    return peak
