"""Which shape follows from an instruction's opcode, operands and attributes, so that no text need say it."""

from __future__ import annotations

import re
from dataclasses import replace

from costmodel.graph.costs import ELEMENTWISE
from costmodel.graph.hlo import AnyShape, Instruction, Shape, TupleShape

_NUMBERS = re.compile(r"\d{1,9}")
_RANGE = re.compile(r"\[(\d{1,18}):(\d{1,18})(?::(\d{1,18}))?\]")
# The shape of that operand, unchanged.
_AS_OPERAND = dict.fromkeys(ELEMENTWISE | frozenset({
    "copy", "reverse", "while", "opt-barrier", "all-reduce", "dynamic-update-slice",
    "add-dependency", "cholesky", "reduce-precision", "collective-permute", "domain", "outfeed",
}), 0) | {"select": 1, "clamp": 1, "triangular-solve": 1}  # fmt: skip
_TO_PRED = frozenset({"compare", "is-finite"})
_REAL = {"c64": "f32", "c128": "f64"}
CALLING = frozenset({"fusion", "call", "conditional"})


def plain(shape: AnyShape) -> AnyShape:
    """Without the layouts that are the default (major to minor)."""
    if isinstance(shape, TupleShape):
        return TupleShape(tuple(plain(element) for element in shape.elements), shape.prefix)
    default = ",".join(map(str, reversed(range(len(shape.dims)))))
    return replace(shape, layout="") if shape.layout == default else shape


def numbers(text: str) -> list[int]:
    return [int(n) for n in _NUMBERS.findall(text)]


def ranges(text: str) -> list[tuple[int, int, int]]:
    """(start, limit, stride) of each dimension of a slice."""
    return [(int(a), int(b), int(c or 1)) for a, b, c in _RANGE.findall(text)]


def follows(i: Instruction, operands: list[AnyShape], root: AnyShape | None) -> AnyShape | None:
    """The shape that a reader would expect; None where it cannot be told. Always a guess: the text says where the
    shape is another. `operands` and `root` (of the first computation called) are plain."""
    if i.opcode in _AS_OPERAND:
        at = _AS_OPERAND[i.opcode]
        shape = operands[at] if at < len(operands) else None
        if i.opcode in _TO_PRED and isinstance(shape, Shape):
            return replace(shape, dtype="pred")
        if i.opcode in ("real", "imag") and isinstance(shape, Shape):
            return replace(shape, dtype=_REAL.get(shape.dtype, shape.dtype))
        return shape
    if i.opcode == "tuple":
        return TupleShape(tuple(operands))
    if i.opcode in CALLING:
        return root
    if i.opcode in ("sort", "scatter", "reduce"):
        return _of_variadic(i, operands)
    if not operands:
        return None
    first = operands[0]
    if i.opcode == "get-tuple-element" and isinstance(first, TupleShape):
        index = (numbers(i.attribute("index")) or [0])[0]
        return first.elements[index] if index < len(first.elements) else None
    if not isinstance(first, Shape):
        return None
    if i.opcode == "convert":
        return first
    dims = first.dims
    listed = numbers(i.attribute("dimensions"))
    if i.opcode == "transpose" and all(n < len(dims) for n in listed):
        return Shape(first.dtype, tuple(dims[n] for n in listed))
    if i.opcode == "concatenate" and len(listed) == 1 and listed[0] < len(dims):
        along = sum(s.dims[listed[0]] for s in operands if isinstance(s, Shape) and len(s.dims) == len(dims))
        return Shape(first.dtype, (*dims[: listed[0]], along, *dims[listed[0] + 1 :]))
    if i.opcode == "slice":
        return Shape(first.dtype, tuple(-(-(b - a) // max(c, 1)) for a, b, c in ranges(i.attribute("slice"))))
    if i.opcode == "dot" and len(operands) == 2 and isinstance(operands[1], Shape):
        lhs = numbers(i.attribute("lhs_batch_dims")), numbers(i.attribute("lhs_contracting_dims"))
        rhs = numbers(i.attribute("rhs_batch_dims")), numbers(i.attribute("rhs_contracting_dims"))
        if all(n < len(dims) for n in lhs[0]):
            kept = [dims[n] for n in lhs[0]] + _others(dims, *lhs) + _others(operands[1].dims, *rhs)
            return Shape(first.dtype, tuple(kept))
    return None


def _others(dims: tuple[int, ...], *without: list[int]) -> list[int]:
    gone = {n for listed in without for n in listed}
    return [dim for n, dim in enumerate(dims) if n not in gone]


def _of_variadic(i: Instruction, operands: list[AnyShape]) -> AnyShape | None:
    """These take n arrays (a reduction n more as start, a scatter indices and updates) and give a tuple if n > 1."""
    count = {"sort": len(operands), "reduce": len(operands) // 2, "scatter": (len(operands) - 1) // 2}[i.opcode]
    shapes: list[AnyShape] = list(operands[: max(count, 1)])
    if i.opcode == "reduce":
        gone = numbers(i.attribute("dimensions"))
        shapes = [Shape(s.dtype, tuple(_others(s.dims, gone))) for s in shapes if isinstance(s, Shape)]
    return shapes[0] if len(shapes) == 1 else TupleShape(tuple(shapes)) if shapes else None
