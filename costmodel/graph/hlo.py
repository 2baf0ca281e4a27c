"""The nouns of a graph, as HLO has them, and their text.

A module holds computations, one of them the entry; a computation holds instructions, operands before their users; an
instruction has a shape, an opcode, operands (instructions of the same computation, by name) and attributes, among
them the computations it calls. Attributes are kept as the text that XLA prints, since only the canonical form and the
costs read some of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

Attributes = tuple[tuple[str, str], ...]

# Of an element; those narrower than a byte are packed.
BITS = {
    "pred": 8, "token": 0, "opaque": 0, "tuple": 0, "s1": 1, "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64,
    "u1": 1, "u2": 2, "u4": 4, "u8": 8, "u16": 16, "u32": 32, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "f4e2m1fn": 4, "f8e8m0fnu": 8, "f8e3m4": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3fnuz": 8, "f8e4m3b11fnuz": 8,
    "f8e5m2": 8, "f8e5m2fnuz": 8, "c64": 64, "c128": 128,
}  # fmt: skip

CALLS = (
    "to_apply", "calls", "condition", "body", "true_computation", "false_computation", "branch_computations",
    "called_computations", "select", "scatter",
)  # fmt: skip
_NAME = re.compile(r"%?([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True, slots=True)
class Shape:
    """An array: `dims` from major to minor. `layout` is what XLA prints inside the braces, "" where it prints none.

    `dynamic` lists the positions of the dimensions that are only bounded (`<=8`); an unbounded one (`?`) is -1.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""
    dynamic: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """How many; an unbounded dimension counts as 1."""
        return math.prod(abs(dim) for dim in self.dims)

    @property
    def bytes(self) -> int:
        return math.ceil(self.elements * BITS[self.dtype] / 8)

    def leaves(self) -> Iterator[Shape]:
        yield self

    def text(self, *, layout: bool = True) -> str:
        dims = ",".join("?" if d < 0 else f"<={d}" if i in self.dynamic else str(d) for i, d in enumerate(self.dims))
        return f"{self.dtype}[{dims}]" + (f"{{{self.layout}}}" if layout and self.layout else "")

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True, slots=True)
class TupleShape:
    """Shapes beside each other, nested to any depth that the parser allows. `prefix` is "b" for a buffer, `b(...)`."""

    elements: tuple[AnyShape, ...]
    prefix: str = ""

    @property
    def bytes(self) -> int:
        return sum(leaf.bytes for leaf in self.leaves())

    def leaves(self) -> Iterator[Shape]:
        """The arrays, from left to right."""
        stack: list[AnyShape] = [self]
        while stack:
            shape = stack.pop()
            if isinstance(shape, TupleShape):
                stack.extend(reversed(shape.elements))
            else:
                yield shape

    def text(self, *, layout: bool = True) -> str:
        return f"{self.prefix}({_listed([element.text(layout=layout) for element in self.elements])})"

    def __str__(self) -> str:
        return self.text()


AnyShape = Shape | TupleShape


@dataclass(frozen=True, slots=True)
class Instruction:
    """`name = shape opcode(operands), attributes`. `literal` is the value of a constant, the number of a parameter."""

    name: str
    shape: AnyShape
    opcode: str
    operands: tuple[str, ...] = ()
    attributes: Attributes = ()
    literal: str = ""
    is_root: bool = False

    def attribute(self, name: str, default: str = "") -> str:
        """The first attribute of that name."""
        for key, value in self.attributes:
            if key == name:
                return value
        return default

    @property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that this instruction calls, in printed order."""
        found: list[str] = []
        for key, value in self.attributes:
            if key in CALLS:
                found += _NAME.findall(_COMMENT.sub("", value))
        return tuple(found)


@dataclass(frozen=True)  # no slots: the index is kept
class Computation:
    """`header` is the text of parameters and result, `(x: f32[2]) -> f32[2]`, "" where none is printed."""

    name: str
    instructions: tuple[Instruction, ...]
    header: str = ""
    attributes: Attributes = ()

    @property
    def root(self) -> Instruction:
        """The instruction marked ROOT; the last one where none is."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def parameters(self) -> tuple[Instruction, ...]:
        """By number."""
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.literal)))


@dataclass(frozen=True)  # no slots: the index is kept
class Module:
    """`preamble` holds the tables between the first line and the first computation (file names, stack frames)."""

    name: str
    attributes: Attributes
    computations: tuple[Computation, ...]
    entry: str
    preamble: str = ""

    @cached_property
    def by_name(self) -> dict[str, Computation]:
        return {computation.name: computation for computation in self.computations}

    @property
    def entry_computation(self) -> Computation:
        return self.by_name[self.entry]

    @property
    def num_instructions(self) -> int:
        return sum(len(computation.instructions) for computation in self.computations)


def to_text(module: Module, *, percent: bool = True, metadata: bool = True, layouts: bool = True) -> str:
    """The text that XLA would print: `parse` reads the same module back.

    Without `percent`, names stand bare, as XLA prints them before optimization; without `metadata`, all that names a
    file or a line of the program (and the tables before the first computation) is left out.
    """
    sign = "%" if percent else ""
    lines = [f"HloModule {module.name}" + _attributes(module.attributes), ""]
    if module.preamble and metadata:
        lines += [module.preamble, ""]
    for computation in module.computations:
        entry = "ENTRY " if computation.name == module.entry else ""
        header = f" {computation.header}" if computation.header else ""
        lines.append(f"{entry}{sign}{computation.name}{header} {{")
        for i in computation.instructions:
            root = "ROOT " if i.is_root else ""
            inner = i.literal or (_listed([sign + o for o in i.operands]) if percent else ", ".join(i.operands))
            kept = i.attributes if metadata else tuple(pair for pair in i.attributes if pair[0] != "metadata")
            shape = i.shape.text(layout=layouts)
            lines.append(f"  {root}{sign}{i.name} = {shape} {i.opcode}({inner}){_attributes(kept)}")
        lines += ["}" + _attributes(computation.attributes), ""]
    return "\n".join(lines)


def _attributes(pairs: Attributes) -> str:
    return "".join(f", {key}={value}" for key, value in pairs)


def _listed(texts: list[str]) -> str:
    """Joined by commas, every fifth one with its index, as XLA does for the reader's sake."""
    return ", ".join(f"/*index={i}*/{text}" if i and i % 5 == 0 else text for i, text in enumerate(texts))
