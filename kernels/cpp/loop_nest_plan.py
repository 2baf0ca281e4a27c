"""What a generated loop nest computes, and what it should give.

A plan is one or two statements over 1-4 dimensions. A statement stores an expression tree of array elements
(broadcast, transposed, strided, shifted or gathered through an index array), or reduces it over some dimensions.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodel.records import Problem

Tree = tuple[Any, ...]  # ("load", array, offsets) | ("const", value) | (operation, operand, ...)

NUMPY_TYPE = {"f32": np.float32, "f64": np.float64, "i32": np.int32}
INTEGER_BOUND = 256  # of the magnitude of an integer tree: a sum of 2**22 of them stays below 2**31

LOOPS = ("ijkl", "xyzw", "pqrs", "abcd", "rcde", "hwuv", "tuvw", "mnop")
SIZES = tuple(
    tuple(words.split())
    for words in (
        "N M K L",
        "n m k l",
        "H W D C",
        "rows cols depth lanes",
        "n0 n1 n2 n3",
        "nx ny nz nt",
        "batch length width inner",
        "P Q R S",
    )
)
ARRAYS = tuple(
    word
    for line in (
        "src in lhs rhs img table weights grid field left right bias scale state u v A B X Y data mass rho phi",
        "keys values mask gain query price noise frame plane coef",
    )
    for word in line.split()
)
OUTPUTS = ["dst", "out", "result", "Z", "res", "target", "next", "sum_of", "y_out", "acc_out", "answer", "store"]
INDICES = ["idx", "perm", "lookup", "order", "ids", "where"]
TABLES = ["entries", "vocab", "T", "slots", "pool"]
DEPTHS = {
    "map": (1, 2, 2, 3, 3, 4),
    "stencil": (1, 2, 2, 2, 3),
    "reduce": (1, 2, 2, 2, 3, 3, 3, 4),
    "contract": (2, 3, 3, 4),
    "gather": (1, 2, 2, 2, 3),
    "pair": (1, 2, 2, 2, 3, 3),
}


@dataclass(frozen=True, slots=True)
class Axis:
    """Element index along one axis: dim * stride + offset (0 <= offset <= halo), or index_array[dim]."""

    dim: int
    stride: int = 1
    halo: int = 0
    index: int = -1  # position of the index array among the inputs


@dataclass(frozen=True, slots=True)
class Array:
    """An input or an output; `table` marks an axis-0 extent of its own (the size of a gathered table)."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """arrays[out] = how over `reduced` of tree; how is "" for a plain store."""

    out: int
    reduced: tuple[int, ...]
    how: str
    tree: Tree


@dataclass(frozen=True, slots=True)
class Plan:
    """What is computed: dimensions are numbered 0..depth-1, arrays are the inputs and then the outputs."""

    depth: int
    dtype: str
    arrays: tuple[Array, ...]
    num_inputs: int
    statements: tuple[Statement, ...]
    sizes: tuple[str, ...]  # one name a dimension, then the table's
    loops: tuple[str, ...]

    @property
    def has_table(self) -> bool:
        return len(self.sizes) > self.depth


# ---- what is computed ----


def draw_plan(rng: random.Random) -> Plan:
    """A plan of one of six families."""
    family = rng.choices(list(DEPTHS), (3, 4, 5, 4, 3, 5))[0]
    depth = rng.choice(DEPTHS[family])
    dtype = rng.choices(("f32", "f64", "i32"), (6, 3, 2))[0]
    names = rng.sample(ARRAYS, 5)
    reduced = _reduced_dims(rng, family, depth)
    inputs = _draw_inputs(rng, family, depth, dtype, names, reduced)
    sizes: tuple[str, ...] = rng.choice(SIZES)[:depth]
    if family == "gather":
        inputs = _with_gather(rng, inputs, depth)
        sizes = (*sizes, rng.choice(TABLES))
    statements, outputs = _draw_statements(rng, family, depth, dtype, inputs, reduced)
    taken = {array.name for array in (*inputs, *outputs)} | set(sizes)
    loops = next(pool for pool in rng.sample(LOOPS, len(LOOPS)) if not taken & set(pool[:depth]))
    return Plan(depth, dtype, (*inputs, *outputs), len(inputs), statements, sizes, tuple(loops[:depth]))


def _reduced_dims(rng: random.Random, family: str, depth: int) -> tuple[int, ...]:
    if family == "contract":
        return (depth - 1,) if depth < 4 or rng.random() < 0.5 else (depth - 2, depth - 1)
    if family == "reduce" or (family == "gather" and rng.random() < 0.5):
        if depth == 1 or (depth == 2 and rng.random() < 0.15):
            return tuple(range(depth))
        return tuple(sorted(rng.sample(range(depth), rng.choice((1, 1, 2)) if depth > 2 else 1)))
    if family == "pair" and depth > 1 and rng.random() < 0.6:
        return (rng.randrange(depth),)
    return ()


def _permuted(rng: random.Random, dims: list[int], chance: float) -> list[int]:
    return rng.sample(dims, len(dims)) if rng.random() < chance else dims


def _draw_inputs(
    rng: random.Random, family: str, depth: int, dtype: str, names: list[str], reduced: tuple[int, ...]
) -> tuple[Array, ...]:
    everything = list(range(depth))
    if family == "contract":
        kept = [dim for dim in everything if dim not in reduced]
        cut = rng.choice((1, 2)) if len(kept) > 2 else 1
        shared = kept[:1] if len(kept) > 2 and rng.random() < 0.5 else []  # a batch dimension
        parts = [kept[:cut] + list(reduced), list(reduced) + sorted({*shared, *kept[cut:]})]
        return tuple(
            Array(names[i], dtype, tuple(Axis(dim) for dim in _permuted(rng, part, 0.4)))
            for i, part in enumerate(parts)
        )
    halo = rng.choice((1, 2, 2, 4)) if family == "stencil" else 0
    arrays = []
    for i in range(rng.choice((1, 1, 2)) if family == "stencil" else rng.choice((1, 2, 2, 3, 4))):
        dims = everything if i == 0 else sorted(rng.sample(everything, rng.randint(1, depth)))
        axes = []
        for dim in _permuted(rng, dims, 0.3):
            stride = rng.choice((2, 2, 3)) if rng.random() < 0.1 else 1
            axes.append(Axis(dim, stride, halo if i == 0 and rng.random() < 0.8 else 0))
        arrays.append(Array(names[i], dtype, tuple(axes)))
    return tuple(arrays)


def _with_gather(rng: random.Random, inputs: tuple[Array, ...], depth: int) -> tuple[Array, ...]:
    """One more input, read through an index array over one dimension; axis 0 of it is the table."""
    through = rng.randrange(depth)
    rest = [Axis(dim) for dim in range(depth) if dim != through and rng.random() < 0.6]
    inputs = inputs[:2]
    free = [name for name in ARRAYS if name not in {array.name for array in inputs}]
    index = Array(rng.choice(INDICES), "i32", (Axis(through),))
    table = Array(rng.choice(free), inputs[0].dtype, (Axis(through, index=len(inputs)), *rest))
    return (*inputs, index, table)


def _draw_statements(
    rng: random.Random, family: str, depth: int, dtype: str, inputs: tuple[Array, ...], reduced: tuple[int, ...]
) -> tuple[tuple[Statement, ...], tuple[Array, ...]]:
    how = rng.choices(("sum", "max", "min"), (6, 2, 1))[0] if reduced else ""
    names = rng.sample(OUTPUTS, 2)
    first, second = len(inputs), len(inputs) + 1

    def output(name: str, dims: list[int]) -> Array:
        return Array(name, dtype, tuple(Axis(dim) for dim in _permuted(rng, dims, 0.2)))

    kept = [dim for dim in range(depth) if dim not in reduced]
    outputs = [output(names[0], kept)]
    leaves = _leaves(rng, family, inputs)
    tree = _contraction(rng, leaves, dtype) if family == "contract" else draw_tree(rng, leaves, leaves, dtype)
    statements = [Statement(first, reduced, how, tree)]
    if family == "pair":
        if reduced and rng.random() < 0.5:  # two reductions of the same points
            other = "max" if how == "sum" else "sum"
            statements.append(Statement(second, reduced, other, draw_tree(rng, leaves, leaves, dtype)))
            outputs.append(output(names[1], kept))
        else:  # the second reads what the first wrote
            written: Tree = ("load", first, (0,) * len(kept))
            if dtype == "i32":
                written = ("and", written, ("const", 7))
            chosen = rng.sample(leaves, min(2, len(leaves)))
            outputs.append(output(names[1], list(range(depth))))
            statements.append(Statement(second, (), "", draw_tree(rng, [written, *chosen], leaves, dtype)))
    return tuple(statements), tuple(outputs)


def _leaves(rng: random.Random, family: str, inputs: tuple[Array, ...]) -> list[Tree]:
    """Every float input once; a stencil reads its first input at several offsets."""
    indices = {axis.index for array in inputs for axis in array.axes}
    leaves: list[Tree] = []
    for position, array in enumerate(inputs):
        if position in indices:
            continue
        offsets = {tuple(axis.halo // 2 for axis in array.axes)}
        if family == "stencil" and position == 0:
            for _ in range(rng.choice((2, 3, 4, 6, 8))):
                offsets.add(tuple(rng.randint(0, axis.halo) for axis in array.axes))
        leaves += [("load", position, offset) for offset in sorted(offsets)]
    return leaves


def _contraction(rng: random.Random, leaves: list[Tree], dtype: str) -> Tree:
    left, right = leaves
    choices: list[Tree] = [("mul", left, right)] * 4 + [("abs", ("sub", left, right)), ("max", left, right)]
    if dtype != "i32":
        difference = ("sub", left, right)
        choices += [("mul", difference, difference), ("exp", difference)]
    return rng.choice(choices)


def draw_tree(rng: random.Random, leaves: list[Tree], raw: list[Tree], dtype: str) -> Tree:
    """A random tree over all leaves. Floats: continuous except for comparisons, which see `raw` input elements only, so
    that rounding cannot flip one. Integers stay below INTEGER_BOUND."""
    nodes = list(leaves) + [_constant(rng, dtype) for _ in range(rng.choice((0, 1, 1, 2)))]
    unary = ("abs", "sqrt", "exp", "square", "cubic") if dtype != "i32" else ("abs", "half")
    binary = ("add", "add", "sub", "mul", "mul", "max", "min") + (("and", "xor") if dtype == "i32" else ("ratio",))
    rng.shuffle(nodes)
    while len(nodes) > 1 or nodes[0][0] == "const":
        if rng.random() < 0.2 or len(nodes) == 1:
            i = rng.randrange(len(nodes))
            nodes[i] = (
                (rng.choice(unary), nodes[i]) if nodes[i][0] != "const" else ("add", nodes[i], rng.choice(leaves))
            )
            continue
        left, right = nodes.pop(), nodes.pop(0)
        if rng.random() < 0.2:
            compared = rng.sample(raw, 2) if len(raw) > 1 else [raw[0], _constant(rng, dtype)]
            nodes.append(("select", *compared, left, right))
        else:
            nodes.append((rng.choice(binary), left, right))
        rng.shuffle(nodes)
    tree = nodes[0]
    if tree[0] == "load":
        tree = rng.choice((tree, (rng.choice(unary), tree), ("mul", tree, _constant(rng, dtype))))
    if dtype == "i32" and magnitude(tree) > INTEGER_BOUND:
        tree = ("and", tree, ("const", INTEGER_BOUND - 1))
    return tree


def _constant(rng: random.Random, dtype: str) -> Tree:
    return ("const", rng.randint(1, 9) if dtype == "i32" else rng.randint(-16, 16) / 16 or 0.375)


def magnitude(tree: Tree) -> int:
    """A bound on the absolute value of an integer tree; inputs lie in [-8, 8]."""
    if tree[0] == "load":
        return 8
    if tree[0] == "const":
        return abs(tree[1])
    bounds = [magnitude(operand) for operand in tree[1:]]
    if tree[0] == "select":
        return max(bounds[2:])
    if tree[0] in ("add", "sub"):
        return sum(bounds)
    if tree[0] == "mul":
        return bounds[0] * bounds[1]
    return 2 * max(bounds) if tree[0] in ("and", "xor") else max(bounds)


# ---- what it should give ----


def shape_of(plan: Plan, array: Array, sizes: dict[str, int]) -> tuple[int, ...]:
    """The extents of an array; a result without dimensions has one element."""
    extents = []
    for axis in array.axes:
        size = sizes[plan.sizes[axis.dim]]
        extents.append(sizes[plan.sizes[-1]] if axis.index >= 0 else (size - 1) * axis.stride + 1 + axis.halo)
    return tuple(extents) or (1,)


def make_inputs(plan: Plan, problem: Problem, seed: int) -> tuple[Any, ...]:
    """Floats in [-1, 1), integers in [-8, 8], index arrays within the table."""
    rng = np.random.default_rng(seed)
    sizes = {name: int(value) for name, value in problem.params}
    indices = {axis.index for array in plan.arrays for axis in array.axes}
    arrays = []
    for position, array in enumerate(plan.arrays[: plan.num_inputs]):
        shape = shape_of(plan, array, sizes)
        if position in indices:
            arrays.append(rng.integers(0, sizes[plan.sizes[-1]], shape, dtype=np.int32))
        elif array.dtype == "i32":
            arrays.append(rng.integers(-8, 9, shape, dtype=np.int32))
        else:
            arrays.append(rng.uniform(-1, 1, shape).astype(NUMPY_TYPE[array.dtype]))
    return tuple(arrays)


def reference(plan: Plan, problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Each statement's tree on the whole iteration space, in float64 or int64, reduced and cast at the end."""
    wide = np.int64 if plan.dtype == "i32" else np.float64
    sizes = [int(value) for _, value in problem.params]
    values = [array.astype(wide) for array in inputs]
    for statement in plan.statements:
        grid = np.asarray(evaluate(plan, statement.tree, values, sizes), dtype=wide)
        grid = np.broadcast_to(grid, sizes[: plan.depth])
        if statement.how:
            grid = {"sum": np.sum, "max": np.max, "min": np.min}[statement.how](grid, axis=statement.reduced)
        kept = [dim for dim in range(plan.depth) if dim not in statement.reduced]
        out = plan.arrays[statement.out]
        values.append(
            np.transpose(grid, [kept.index(axis.dim) for axis in out.axes]) if out.axes else np.reshape(grid, 1)
        )
    return tuple(np.ascontiguousarray(value, dtype=NUMPY_TYPE[plan.dtype]) for value in values[plan.num_inputs :])


OPERATIONS: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "xor": np.bitwise_xor,
    "abs": np.abs,
    "half": lambda x: x >> 1,
    "square": np.square,
    "sqrt": lambda x: np.sqrt(np.abs(x) + 0.5),
    "exp": lambda x: np.exp(-np.abs(x)),
    "cubic": lambda x: x * (1 + x * (0.5 + x * 0.125)),
    "ratio": lambda x, y: x / (1 + np.abs(y)),
    "select": lambda a, b, x, y: np.where(a < b, x, y),
}


def evaluate(plan: Plan, tree: Tree, values: list[Any], sizes: list[int]) -> Any:
    """A tree's value, broadcastable to the iteration space [sizes of dimensions 0..depth-1]."""
    if tree[0] == "const":
        return tree[1]
    if tree[0] != "load":
        return OPERATIONS[tree[0]](*(evaluate(plan, operand, values, sizes) for operand in tree[1:]))
    axes = plan.arrays[tree[1]].axes
    value = values[tree[1]]
    for position, (axis, offset) in enumerate(zip(axes, tree[2], strict=True)):
        reached = np.arange(sizes[axis.dim]) * axis.stride + offset if axis.index < 0 else values[axis.index]
        value = np.take(value, reached.astype(np.int64), axis=position)
    dims = [axis.dim for axis in axes]
    value = np.transpose(value, np.argsort(dims)) if axes else np.reshape(value, ())
    return value.reshape([sizes[dim] if dim in dims else 1 for dim in range(plan.depth)])


def operations(tree: Tree) -> int:
    """Arithmetic operations of one evaluation; a comparison with its choice is one, so is a root or an exponential."""
    return 0 if tree[0] in ("load", "const") else 1 + sum(operations(operand) for operand in tree[1:])


def leaves_of(tree: Tree) -> list[Tree]:
    if tree[0] in ("load", "const"):
        return [tree] if tree[0] == "load" else []
    return [leaf for operand in tree[1:] for leaf in leaves_of(operand)]


def node_names(tree: Tree) -> list[str]:
    """The names of all nodes, the leaves' among them."""
    operands = [] if tree[0] in ("load", "const") else tree[1:]
    return [tree[0], *(name for operand in operands for name in node_names(operand))]
