"""Writes HLO: a computation at a time, with the helpers in which ATen operators are put (reduce, broadcast, dot, ...).

    module = ModuleBuilder("mlp")
    b = module.computation("entry")
    x = b.parameter("x", "f32", (4, 8))
    b.emit("tanh", x.dtype, x.dims, [x])
    module.build(entry=b, results=[...])

Every helper infers the shape of its result. Shapes carry no layout: the text states what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from costmodel.graph import AnyShape, Computation, Instruction, Module, Shape, TupleShape

FLOATS = ("f16", "bf16", "f32", "f64")
INTEGERS = ("s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64")
# The value at which a reduction begins: of a float, of an integer, of a truth value.
_BEGIN = {
    "add": ("0", "0", "false"), "multiply": ("1", "1", "true"), "maximum": ("-inf", "least", "false"),
    "minimum": ("inf", "most", "true"), "and": ("1", "-1", "true"), "or": ("0", "0", "false"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """An array that an instruction makes."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        return Shape(self.dtype, self.dims)

    @property
    def rank(self) -> int:
        return len(self.dims)


class ModuleBuilder:
    """Names, and the computations that others call: equal ones are written once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.finished: list[Computation] = []
        self.by_key: dict[object, str] = {}
        self._taken: dict[str, int] = {}

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem.1`, ... where it is taken. XLA keeps names that begin with two underscores for itself."""
        stem = stem.strip("_") or "x"
        count = self._taken.get(stem, 0)
        self._taken[stem] = count + 1
        return f"{stem}.{count}" if count else stem

    def computation(self, stem: str) -> Builder:
        return Builder(self, self.fresh(stem))

    def reducer(self, opcode: str, dtype: str) -> str:
        """The name of a computation of two scalars."""
        key = (opcode, dtype)
        if key not in self.by_key:
            b = self.computation(f"{opcode}_{dtype}")
            x, y = b.parameter("x", dtype, ()), b.parameter("y", dtype, ())
            self.by_key[key] = self.finish(b, [b.binary(opcode, x, y)], as_tuple=False)
        return self.by_key[key]

    def finish(self, builder: Builder, results: Sequence[Value], *, as_tuple: bool) -> str:
        """Close a computation; what its results do not need is left out. Returns its name."""
        if as_tuple:
            shape: AnyShape = TupleShape(tuple(value.shape for value in results))
            root = builder.append("tuple", shape, [value.name for value in results])
        else:
            root = results[0].name
        needed = {root}
        for i in reversed(builder.instructions):
            if i.name in needed:
                needed.update(i.operands)
        kept = [i for i in builder.instructions if i.name in needed or i.opcode == "parameter"]
        kept.sort(key=lambda i: i.name == root)  # the root stands last
        last = kept[-1]
        kept[-1] = Instruction(last.name, last.shape, last.opcode, last.operands, last.attributes, last.literal, True)
        self.finished.append(Computation(builder.name, tuple(kept)))
        return builder.name

    def build(self, entry: Builder, results: Sequence[Value]) -> Module:
        """The module whose entry is `entry`, its result a tuple. Computations that nothing calls are left out."""
        name = self.finish(entry, results, as_tuple=True)
        by_name = {computation.name: computation for computation in self.finished}
        needed, waiting = {name}, [name]
        while waiting:
            called = {c for i in by_name[waiting.pop()].instructions for c in i.called}
            waiting += called - needed
            needed |= called
        return Module(self.name, (), tuple(c for c in self.finished if c.name in needed), name)


class Builder:
    """One computation in the making."""

    def __init__(self, module: ModuleBuilder, name: str) -> None:
        self.module, self.name = module, name
        self.instructions: list[Instruction] = []
        self.num_parameters = 0
        self._unshaped: dict[str, Value] = {}  # what a reshape was made of

    # ------------------------------------------------------------------------------------------------- instructions

    def append(
        self,
        opcode: str,
        shape: AnyShape,
        operands: Iterable[str] = (),
        attributes: Mapping[str, str] | None = None,
        *,
        literal: str = "",
        stem: str = "",
    ) -> str:
        name = self.module.fresh(stem or opcode)
        pairs = tuple((attributes or {}).items())
        self.instructions.append(Instruction(name, shape, opcode, tuple(operands), pairs, literal))
        return name

    def emit(
        self, opcode: str, dtype: str, dims: Iterable[int], operands: Sequence[Value] = (), **attributes: str
    ) -> Value:
        dims = tuple(dims)
        return Value(self.append(opcode, Shape(dtype, dims), [o.name for o in operands], attributes), dtype, dims)

    def parameter(self, stem: str, dtype: str, dims: Iterable[int]) -> Value:
        dims, number = tuple(dims), str(self.num_parameters)
        self.num_parameters += 1
        return Value(self.append("parameter", Shape(dtype, dims), literal=number, stem=stem), dtype, dims)

    def elements(self, name: str, shapes: Sequence[Shape]) -> list[Value]:
        """The arrays of a tuple."""
        return [self.emit_of(name, i, shape) for i, shape in enumerate(shapes)]

    def emit_of(self, name: str, index: int, shape: Shape) -> Value:
        made = self.append("get-tuple-element", shape, [name], {"index": str(index)})
        return Value(made, shape.dtype, shape.dims)

    # ---------------------------------------------------------------------------------------------------- constants

    def constant(self, value: float | bool, dtype: str) -> Value:
        return Value(self.append("constant", Shape(dtype, ()), literal=literal(value, dtype)), dtype, ())

    def full(self, value: float | bool, dtype: str, dims: Iterable[int]) -> Value:
        return self.expand(self.constant(value, dtype), tuple(dims))

    def iota(self, dtype: str, dims: Sequence[int], dimension: int) -> Value:
        return self.emit("iota", dtype, dims, iota_dimension=str(dimension))

    # -------------------------------------------------------------------------------------------------- elementwise

    def unary(self, opcode: str, x: Value) -> Value:
        return self.emit(opcode, x.dtype, x.dims, [x])

    def binary(self, opcode: str, x: Value, y: Value) -> Value:
        """Of operands that are brought to one shape first; they must have one type."""
        dims = broadcast_dims(x.dims, y.dims)
        return self.emit(opcode, x.dtype, dims, [self.expand(x, dims), self.expand(y, dims)])

    def with_number(self, opcode: str, x: Value, number: float) -> Value:
        return self.binary(opcode, x, self.constant(number, x.dtype))

    def compare(self, direction: str, x: Value, y: Value) -> Value:
        dims = broadcast_dims(x.dims, y.dims)
        return self.emit("compare", "pred", dims, [self.expand(x, dims), self.expand(y, dims)], direction=direction)

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        dims = broadcast_dims(broadcast_dims(condition.dims, x.dims), y.dims)
        return self.emit("select", x.dtype, dims, [self.expand(v, dims) for v in (condition, x, y)])

    def convert(self, x: Value, dtype: str) -> Value:
        if x.dtype == dtype:
            return x
        if dtype == "pred":
            return self.compare("NE", x, self.constant(0, x.dtype))
        return self.emit("convert", dtype, x.dims, [x])

    def wide(self, x: Value) -> Value:
        """Half-precision numbers as f32, in which sums are kept."""
        return self.convert(x, "f32") if x.dtype in ("f16", "bf16") else x

    # -------------------------------------------------------------------------------------------------------- views

    def reshape(self, x: Value, dims: Iterable[int]) -> Value:
        """One reshape, however many are asked for in a row."""
        dims, x = tuple(dims), self._unshaped.get(x.name, x)
        if dims == x.dims:
            return x
        made = self.emit("reshape", x.dtype, dims, [x])
        self._unshaped[made.name] = x
        return made

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        if list(order) == list(range(x.rank)):
            return x
        return self.emit("transpose", x.dtype, [x.dims[i] for i in order], [x], dimensions=listed(order))

    def broadcast(self, x: Value, dims: Sequence[int], at: Sequence[int]) -> Value:
        """Dimension i of x becomes dimension at[i]; the others repeat it."""
        return self.emit("broadcast", x.dtype, dims, [x], dimensions=listed(at))

    def expand(self, x: Value, dims: tuple[int, ...]) -> Value:
        """To a larger shape by the rules of NumPy."""
        if x.dims == dims:
            return x
        shift = len(dims) - x.rank
        kept = [i for i, size in enumerate(x.dims) if size == dims[i + shift] and size != 1]
        if len(kept) == x.rank == len(dims):
            return x
        return self.broadcast(self.reshape(x, [x.dims[i] for i in kept]), dims, [i + shift for i in kept])

    def slice(self, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
        if (start, stop, step) == (0, x.dims[dim], 1):
            return x
        bounds = [(0, size, 1) for size in x.dims]
        bounds[dim] = (start, stop, step)
        dims = [max(0, -(-(b - a) // s)) for a, b, s in bounds]
        text = ", ".join(f"[{a}:{b}]" if s == 1 else f"[{a}:{b}:{s}]" for a, b, s in bounds)
        return self.emit("slice", x.dtype, dims, [x], slice="{" + text + "}")

    def concatenate(self, values: Sequence[Value], dim: int) -> Value:
        if len(values) == 1:
            return values[0]
        dims = list(values[0].dims)
        dims[dim] = sum(value.dims[dim] for value in values)
        return self.emit("concatenate", values[0].dtype, dims, values, dimensions=listed([dim]))

    def pad(self, x: Value, low: Sequence[int], high: Sequence[int], value: float) -> Value:
        dims = [size + a + b for size, a, b in zip(x.dims, low, high, strict=True)]
        padding = "x".join(f"{a}_{b}" for a, b in zip(low, high, strict=True))
        return self.emit("pad", x.dtype, dims, [x, self.constant(value, x.dtype)], padding=padding)

    # --------------------------------------------------------------------------------- reductions and contractions

    def reduce(self, opcode: str, x: Value, over: Sequence[int], *, keep: bool = False) -> Value:
        dims = [size for i, size in enumerate(x.dims) if i not in over]
        begin = Value(self.append("constant", Shape(x.dtype, ()), literal=identity(opcode, x.dtype)), x.dtype, ())
        reducer = self.module.reducer(opcode, x.dtype)
        y = self.emit("reduce", x.dtype, dims, [x, begin], dimensions=listed(sorted(over)), to_apply=reducer)
        return self.reshape(y, [1 if i in over else size for i, size in enumerate(x.dims)]) if keep else y

    def mean(self, x: Value, over: Sequence[int], *, keep: bool = False) -> Value:
        total = self.reduce("add", x, over, keep=keep)
        return self.with_number("divide", total, float(math.prod(x.dims[i] for i in over)))

    def reduce_window(self, opcode: str, x: Value, window: Mapping[str, str], dims: Sequence[int]) -> Value:
        begin = Value(self.append("constant", Shape(x.dtype, ()), literal=identity(opcode, x.dtype)), x.dtype, ())
        reducer = self.module.reducer(opcode, x.dtype)
        text = "{" + " ".join(f"{key}={value}" for key, value in window.items()) + "}"
        return self.emit("reduce-window", x.dtype, dims, [x, begin], window=text, to_apply=reducer)

    def dot(self, x: Value, y: Value, *, batch: int, contract: tuple[int, int]) -> Value:
        """The first `batch` dimensions of both go together; one more of each is summed over."""
        at = list(range(batch))
        dims = [*x.dims[:batch], *(s for i, s in enumerate(x.dims) if i >= batch and i != contract[0])]
        dims += [s for i, s in enumerate(y.dims) if i >= batch and i != contract[1]]
        shared = {"lhs_batch_dims": listed(at), "rhs_batch_dims": listed(at)} if batch else {}
        sums = {"lhs_contracting_dims": listed([contract[0]]), "rhs_contracting_dims": listed([contract[1]])}
        return self.emit("dot", x.dtype, dims, [x, y], **shared, **sums)


# ------------------------------------------------------------------------------------------------------------- text


def listed(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def broadcast_dims(x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(x), len(y))
    x, y = (1,) * (rank - len(x)) + x, (1,) * (rank - len(y)) + y
    return tuple(b if a == 1 else a for a, b in zip(x, y, strict=True))


def literal(value: float | bool, dtype: str) -> str:
    """A scalar as HLO writes it."""
    if dtype == "pred":
        return "true" if value else "false"
    if dtype in INTEGERS:
        return str(int(value))
    number = float(value)
    if math.isinf(number) or math.isnan(number):
        return str(number)
    return str(int(number)) if number.is_integer() and abs(number) < 1e6 else repr(number)


def identity(opcode: str, dtype: str) -> str:
    """The value that a reduction begins with."""
    of_float, of_integer, of_truth = _BEGIN[opcode]
    if dtype == "pred":
        return of_truth
    if dtype in FLOATS:
        return of_float
    bits = int(dtype[1:])
    least, most = (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {"least": str(least), "most": str(most)}.get(of_integer, of_integer)
