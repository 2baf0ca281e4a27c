"""A program as a network reads it: one line of text per instruction, in canonical order, each with its floor.

    dot f32[64,512] f32[64,256] f32[256,512]
    output f32[8,20,16] f32[8,20,16] f32[16,16] f32[16] = dot{C,B} broadcast{c} add

A line has the opcode, the shapes of the result and of the operands, the attributes that decide cost and, after `=`,
what a called computation does. Order and folding are those of the canonical text (costmodel.graph.canonical), so
neither names nor the printed order matter; instructions that are folded into one word and read alike are one line,
whose floor is the sum of theirs. What has no floor (parameters, constants, tuples) has no line: its shape stands where
it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodel.graph import AnyShape, Computation, Cost, Instruction, Module, canonical_words, costs
from costmodel.graph.attributes import after_opcode, before_shape
from costmodel.graph.follows import plain
from costmodel.graph.order import callees_first, operands_first
from costmodel.graph_floor import floor_us
from costmodel.records import UserError, digest

MOST_INSIDE = 48  # instructions of a called computation that are written
MOST_OPERANDS = 12
MOST_CHARS = 1200  # of a line
MOST_LINES = 20_000  # of a program: a bound on time and memory
SILENT = frozenset({"parameter", "constant"})  # in a called computation


@dataclass(frozen=True, slots=True)
class Line:
    """`kind` is the opcode with those it calls, without sizes; `instructions` are (computation, name)."""

    text: str
    kind: str
    floor_us: float
    instructions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The instructions that run as a graph, for models that know graphs: kinds (n), numbers float32 (n, NUMBERS), edges
    int64 (2, m) from an operand to its user."""

    kinds: tuple[str, ...]
    numbers: np.ndarray
    edges: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A module, read. Programs of one `skeleton` have equal kinds in equal order: they differ in sizes."""

    lines: tuple[Line, ...]
    nodes: Nodes
    skeleton: str

    @property
    def floor_us(self) -> float:
        return math.fsum(line.floor_us for line in self.lines)


NUMBERS = ("elements", "flops", "transcendentals", "bytes_read", "bytes_written", "count", "floor_us")


def program_of(module: Module) -> Program:
    """UserError for a program of more than MOST_LINES lines, or with nothing to run."""
    listed = costs(module)
    floors = {(cost.computation, cost.name): floor_us(cost) for cost in listed}
    writer = _Writer(module)
    lines: list[Line] = []
    shape_of_program = []
    for word in canonical_words(module):
        alike: dict[str, list[tuple[str, str]]] = {}
        for place in word.instructions:
            if floors.get(place, 0.0) > 0:
                alike.setdefault(writer.text(*place), []).append(place)
        for text in sorted(alike):
            places = sorted(alike[text])
            kind = writer.kind(*places[0])
            lines.append(Line(text, kind, math.fsum(floors[place] for place in places), tuple(places)))
            shape_of_program.append((kind, len(places)))
    if not lines:
        raise UserError(
            f"got module {module.name[:60]!r} with nothing that takes time, expected a program that computes"
        )
    if len(lines) > MOST_LINES:
        raise UserError(f"got a program of {len(lines)} lines, expected at most {MOST_LINES}; give a part of it")
    return Program(tuple(lines), _nodes(module, listed, floors, writer), digest(shape_of_program))


class _Writer:
    """The texts of a module's instructions; computations are written once."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.inside: dict[str, tuple[str, ...]] = {}
        self.kinds_inside: dict[str, tuple[str, ...]] = {}
        for computation in callees_first(module):
            told = [i for i in operands_first(computation) if i.opcode not in SILENT][:MOST_INSIDE]
            texts: list[str] = []
            for i in told:
                texts += [before_shape(i) + after_opcode(i, _operands(computation, i)), *self._of_called(i)]
            self.inside[computation.name] = tuple(texts[:MOST_INSIDE])
            self.kinds_inside[computation.name] = tuple(i.opcode for i in told)

    def text(self, computation: str, name: str) -> str:
        found = self.module.by_name[computation]
        i = found.by_name[name]
        operands = _operands(found, i)
        shapes = [str(plain(i.shape)), *map(str, operands[:MOST_OPERANDS])]
        shapes += [f"+{len(operands) - MOST_OPERANDS}"] if len(operands) > MOST_OPERANDS else []
        head = " ".join([before_shape(i), *shapes]) + f" {after_opcode(i, operands)}".rstrip()
        called = self._of_called(i)
        return (head + (" = " + " ".join(called) if called else ""))[:MOST_CHARS]

    def kind(self, computation: str, name: str) -> str:
        i = self.module.by_name[computation].by_name[name]
        called = [kind for other in i.called for kind in self.kinds_inside[other]]
        return " ".join([i.opcode, *called[:MOST_INSIDE]])

    def _of_called(self, i: Instruction) -> list[str]:
        return [text for other in i.called for text in self.inside[other]][:MOST_INSIDE]


def _operands(computation: Computation, i: Instruction) -> list[AnyShape]:
    return [plain(computation.by_name[operand].shape) for operand in i.operands]


def _nodes(module: Module, listed: Sequence[Cost], floors: dict[tuple[str, str], float], writer: _Writer) -> Nodes:
    index = {(cost.computation, cost.name): n for n, cost in enumerate(listed)}
    kinds, edges = [], []
    numbers = np.empty((len(listed), len(NUMBERS)), dtype=np.float32)
    for n, cost in enumerate(listed):
        place = (cost.computation, cost.name)
        values = [*(getattr(cost, name) for name in NUMBERS[:-1]), floors[place]]
        numbers[n] = np.log2(1.0 + np.minimum(np.array(values, dtype=np.float64), 1e30))
        kinds.append(writer.kind(*place))
        operands = module.by_name[cost.computation].by_name[cost.name].operands
        edges += [(index[cost.computation, o], n) for o in operands if (cost.computation, o) in index]
    return Nodes(tuple(kinds), numbers, np.array(edges, dtype=np.int64).reshape(-1, 2).T)
