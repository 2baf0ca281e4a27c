"""A generator of small loop nests: `generate(17)` is always the same kernel, its space, problems and NumPy reference.

A plan is one or two statements over 1-4 named dimensions. A statement stores an expression tree of array elements
(broadcast, transposed, strided, shifted or gathered through an index array), or reduces it over some dimensions. From
one plan come the C++ text, in a style of its own (names, indexing, loop order), and the reference, which evaluates the
same tree with NumPy. So that a model must read, the words of the text are drawn apart from what it computes.
"""

import dataclasses
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodel.records import Config, Device, Kernel, Problem, SearchSpace, TensorSpec, UserError, Workload

Tree = tuple[Any, ...]  # ("load", array, offsets) | ("const", value) | (operation, operand, ...)

C_TYPE = {"f32": "float", "f64": "double", "i32": "int"}
NUMPY_TYPE = {"f32": np.float32, "f64": np.float64, "i32": np.int32}
LONGEST_SUM = 1 << 22  # points of an integer reduction: with INTEGER_BOUND below 2**31
INTEGER_BOUND = 256
POINTS = (2_000, 6_000_000)  # of an iteration space; the reference must stay quick
TARGET_US = {"small": 250.0, "large": 2500.0, "odd": 900.0}

LOOPS = ("ijkl", "xyzw", "pqrs", "abcd", "rcde", "hwuv", "tuvw", "mnop")
SIZES = (("N", "M", "K", "L"), ("n", "m", "k", "l"), ("H", "W", "D", "C"), ("rows", "cols", "depth", "lanes"),
         ("n0", "n1", "n2", "n3"), ("nx", "ny", "nz", "nt"), ("batch", "length", "width", "inner"), ("P", "Q", "R", "S"))  # fmt: skip
ARRAYS = ("src", "in", "lhs", "rhs", "img", "table", "weights", "grid", "field", "left", "right", "bias", "scale",
          "state", "u", "v", "A", "B", "X", "Y", "data", "mass", "rho", "phi", "keys", "values", "mask", "gain",
          "query", "price", "noise", "frame", "plane", "coef")  # fmt: skip
OUTPUTS = ("dst", "out", "result", "Z", "res", "target", "next", "sum_of", "y_out", "acc_out", "answer", "store")
INDICES = ("idx", "perm", "lookup", "order", "ids", "where")
TABLES = ("entries", "vocab", "T", "slots", "pool")
SUMS = ("acc", "total", "s", "best", "part", "run")
FUNCTIONS = ("f", "combine", "op", "body", "mix", "step", "kernel_of")
HELPERS = {"max": ("larger", "mx", "hi", "max_of"), "min": ("smaller", "mn", "lo", "min_of"),
           "square": ("sq", "square", "pow2"), "cubic": ("series", "cubic", "poly")}  # fmt: skip


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
    family = rng.choices(("map", "stencil", "reduce", "contract", "gather", "pair"), (3, 4, 5, 4, 3, 5))[0]
    depth = {"map": rng.choice((1, 2, 2, 3, 4)), "stencil": rng.choice((1, 2, 2, 3)), "contract": rng.choice((2, 3, 3, 4)),
             "gather": rng.choice((1, 2, 2, 3)), "reduce": rng.choice((1, 2, 2, 3, 3, 4)), "pair": rng.choice((1, 2, 2, 3))}[family]  # fmt: skip
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
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and,
    "xor": np.bitwise_xor, "abs": np.abs, "half": lambda x: x >> 1, "square": np.square,
    "sqrt": lambda x: np.sqrt(np.abs(x) + 0.5), "exp": lambda x: np.exp(-np.abs(x)),
    "cubic": lambda x: x * (1 + x * (0.5 + x * 0.125)), "ratio": lambda x, y: x / (1 + np.abs(y)), "select": lambda a, b, x, y: np.where(a < b, x, y),
}  # fmt: skip


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


# ---- how it is written ----


@dataclass(frozen=True, slots=True)
class Style:
    """The words: nothing here changes what is computed."""

    indexing: str  # flat: a[i * n + j]; strides: named row lengths; lambda: a_at(i, j); rows: a[i][j]
    body: str  # nested: one expression; temps: one name a node; function: an inline function of the elements
    helpers: str  # ternary: own larger/smaller functions; builtin: __builtin_fmax
    counter: str
    step: str
    indent: str
    accumulator: str
    arguments: tuple[str, str]
    function: str
    words: dict[str, str]  # names of the inline functions
    wide_sum: bool  # f32 sums in a double


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be tuned. `inner` is the innermost loop's parameter: UNROLL, SIMD, ACC or none."""

    params: tuple[tuple[str, tuple[int, ...]], ...]
    orders: tuple[tuple[int, ...], ...]
    tile: int  # the dimension that is cut in strips of TILE, or -1

    def has(self, name: str) -> bool:
        return name in dict(self.params)


def draw_style(rng: random.Random, plan: Plan) -> Style:
    words = [array.name for array in plan.arrays]
    full = any(len(statement.reduced) == plan.depth for statement in plan.statements)
    return Style(
        indexing=rng.choices(("flat", "strides", "lambda", "rows"), (4, 2, 2, 2))[0],
        body=rng.choice(("nested", "temps", "function")),
        helpers=rng.choice(("ternary", "ternary", "builtin")),
        counter=rng.choice(("long", "long long", "int")),
        step=rng.choice(("++{}", "{}++", "{} += 1")),
        indent=" " * rng.choice((2, 4)),
        accumulator=rng.choice([word for word in SUMS if word not in (*words, *plan.loops)]),
        arguments=(rng.choice(("buffers", "bufs", "ptrs", "args")), rng.choice(("sizes", "dims", "shape"))),
        function=rng.choice([word for word in FUNCTIONS if word not in words]),
        words={operation: rng.choice(choices) for operation, choices in HELPERS.items()},
        wide_sum=plan.dtype == "f32" and (full or rng.random() < 0.15),
    )


def starts_in_sum(plan: Plan, order: tuple[int, ...]) -> bool:
    """The outermost loop runs over a reduced dimension while others are kept: its turns cannot run in parallel."""
    return any(order[0] in statement.reduced and len(statement.reduced) < plan.depth for statement in plan.statements)


def sums_in_scalar(plan: Plan, statement: Statement, order: tuple[int, ...]) -> bool:
    """All reduced dimensions are innermost, so that one scalar can hold the sum."""
    return set(order[plan.depth - len(statement.reduced) :]) == set(statement.reduced)


def may_use_simd(plan: Plan, statement: Statement, order: tuple[int, ...]) -> bool:
    """The innermost loop carries no dependence, or only through a scalar that a reduction clause names."""
    return order[-1] not in statement.reduced or sums_in_scalar(plan, statement, order)


def draw_choices(rng: random.Random, plan: Plan) -> Choices:
    """4-40 configs that mean something for this plan: parameters are added in random order while they fit."""
    natural = tuple(range(plan.depth))
    permutations = [tuple(rng.sample(natural, plan.depth)) for _ in range(6)]
    orders = [natural if rng.random() < 0.65 else permutations[0]]
    if plan.depth > 1 and rng.random() < 0.6:
        orders += [order for order in dict.fromkeys([natural, *permutations]) if order not in orders][
            : rng.choice((1, 2))
        ]
    kept = [dim for dim in natural if not any(dim in statement.reduced for statement in plan.statements)]
    tiles = [dim for dim in kept if all(order[0] != dim for order in orders)]
    tile = rng.choice(tiles) if tiles and rng.random() < 0.4 else -1
    inner = [("UNROLL", rng.choice(((1, 2, 4, 8), (1, 4), (1, 8))))]
    if all(may_use_simd(plan, statement, order) for statement in plan.statements for order in orders):
        inner += [("SIMD", (0, 1))]
    lone = [s for s in plan.statements if len(s.reduced) == 1 and sums_in_scalar(plan, s, orders[0])]
    if lone and len(orders) == 1 and plan.depth > 1:
        inner += [("ACC", rng.choice(((1, 4, 8), (1, 4), (1, 2, 4, 8))))]
    optional: list[tuple[str, tuple[int, ...]]] = [("OPT", (2, 3)), ("VECTOR_BITS", (256, 512)), rng.choice(inner)]
    if plan.dtype != "i32":
        optional.append(("FASTMATH", (0, 1)))
    if plan.depth == 1 and rng.random() < 0.5:  # one loop: in parallel or unrolled, the pragmas do not combine
        optional[2] = ("THREADS", (1, 2))
    elif plan.depth > 1 and (tile >= 0 or not all(starts_in_sum(plan, order) for order in orders)):
        optional.append(("THREADS", (1, 2)))
    if len(plan.statements) == 2 and plan.statements[0].reduced == plan.statements[1].reduced:
        optional.append(("FUSE", (0, 1)))
    rng.shuffle(optional)
    params = [("ORDER", tuple(range(len(orders))))] if len(orders) > 1 else []
    params += [("TILE", rng.choice(((16, 64, 256), (32, 128), (8, 64))))] if tile >= 0 else []
    for name, values in optional:
        if math.prod(len(known) for _, known in params) * len(values) <= 40:
            params.append((name, values))
    return Choices(tuple(params), tuple(orders), tile)


class Writer:
    """Writes one plan in one style."""

    def __init__(self, plan: Plan, style: Style, choices: Choices) -> None:
        self.plan, self.style, self.choices = plan, style, choices
        self.type = C_TYPE[plan.dtype]
        self.suffix = {"f32": "f", "f64": "", "i32": ""}[plan.dtype]
        self.lines: list[str] = []
        self.level = 1
        self.helpers: dict[str, str] = {}
        self.at = dict(enumerate(plan.loops))

    def text(self) -> str:
        """The whole file."""
        orders = self.choices.orders
        for number, order in enumerate(orders):
            if len(orders) > 1:
                self.directive(f"{'#if' if number == 0 else '#elif'} ORDER == {number}")
            self.statements(order)
        if len(orders) > 1:
            self.directive("#endif")
        body, self.lines = self.lines, []
        self.declare()
        buffers, sizes = self.style.arguments
        head = f'extern "C" void run(void* const* {buffers}, const long long* {sizes}) {{'
        return "\n".join([*self.comment(), *self.helpers.values(), head, *self.lines, *body, "}", ""])

    def comment(self) -> list[str]:
        plan = self.plan
        parts = []
        for statement in plan.statements:
            over = ", ".join(plan.loops[dim] for dim in statement.reduced)
            parts.append(f"{statement.how} over {over}" if statement.how else "an expression at each point")
        return [f"// {plan.depth} nested loops in {self.type}: {'; then '.join(parts)}."]

    def put(self, line: str) -> None:
        self.lines.append(self.style.indent * self.level + line)

    def directive(self, line: str) -> None:
        self.lines.append(line)

    # -- declarations --

    def declare(self) -> None:
        plan, (buffers, sizes) = self.plan, self.style.arguments
        self.put("const long " + ", ".join(f"{name} = {sizes}[{i}]" for i, name in enumerate(plan.sizes)) + ";")
        for position, array in enumerate(plan.arrays):
            const = "const " if position < plan.num_inputs else ""
            scalar = const + C_TYPE[array.dtype]
            extents = [self.extent(axis) for axis in array.axes]
            if self.style.indexing == "rows" and len(extents) > 1:
                inner = "".join(f"[{extent}]" for extent in extents[1:])
                self.put(f"{scalar} (*{array.name}){inner} = ({scalar} (*){inner}){buffers}[{position}];")
                continue
            self.put(f"{scalar}* __restrict {array.name} = ({scalar}*){buffers}[{position}];")
            if self.style.indexing == "strides":
                for axis in range(len(extents) - 1):
                    self.put(f"const long {array.name}_{axis} = {' * '.join(extents[axis + 1 :])};")
            if self.style.indexing == "lambda" and position < plan.num_inputs and array.axes:
                names = [plan.loops[axis.dim] for axis in array.axes]
                listed = ", ".join(f"long {name}" for name in names)
                self.put(
                    f"const auto {array.name}_at = [=]({listed}) {{ return {array.name}[{self.flat(array, names)}]; }};"
                )

    def extent(self, axis: Axis) -> str:
        if axis.index >= 0:
            return self.plan.sizes[-1]
        size = self.plan.sizes[axis.dim]
        if axis.stride > 1:
            return f"(({size} - 1) * {axis.stride} + {1 + axis.halo})"
        return f"({size} + {axis.halo})" if axis.halo else size

    def flat(self, array: Array, indices: list[str]) -> str:
        if not indices:
            return "0"
        text = indices[0]
        for axis, index in zip(array.axes[1:], indices[1:], strict=True):
            left = text if text.isidentifier() or text.endswith("]") and " " not in text else f"({text})"
            text = f"{left} * {self.extent(axis)} + {index}"
        return text

    # -- elements and expressions --

    def element(self, position: int, offsets: tuple[int, ...] = ()) -> str:
        """One array element at the current loop variables."""
        array = self.plan.arrays[position]
        indices = []
        for i, axis in enumerate(array.axes):
            index = self.at[axis.dim]
            if axis.index >= 0:
                index = f"{self.plan.arrays[axis.index].name}[{index}]"
            elif axis.stride > 1:
                index = f"({index}) * {axis.stride}" if " " in index else f"{index} * {axis.stride}"
            offset = offsets[i] if offsets else 0
            indices.append(f"{index} + {offset}" if offset else index)
        if self.style.indexing == "rows" and len(indices) > 1:
            return array.name + "".join(f"[{index}]" for index in indices)
        if self.style.indexing == "lambda" and position < self.plan.num_inputs:
            return f"{array.name}_at({', '.join(indices)})"
        if self.style.indexing == "strides" and len(indices) > 1:
            factors = [f"({index})" if " " in index else index for index in indices[:-1]]
            terms = [f"{factor} * {array.name}_{i}" for i, factor in enumerate(factors)]
            return f"{array.name}[{' + '.join([*terms, indices[-1]])}]"
        return f"{array.name}[{self.flat(array, indices)}]"

    def value(self, statement: Statement, tag: str) -> str:
        """The tree as a C++ expression; "temps" first puts its nodes on lines of their own."""
        if self.style.body == "function" and operations(statement.tree) > 1:
            loads = list(dict.fromkeys(leaves_of(statement.tree)))
            names = {load: f"e{i}" for i, load in enumerate(loads)}
            name = self.style.function + tag
            listed = ", ".join(f"{self.type} {names[load]}" for load in loads)
            body = self.expression(statement.tree, lambda load: names[load])
            self.helpers.pop(name, None)
            self.helpers[name] = f"static inline {self.type} {name}({listed}) {{ return {body}; }}"
            return f"{name}({', '.join(self.element(load[1], load[2]) for load in loads)})"
        if self.style.body == "temps":
            return self.temporaries(statement.tree, tag, [0])
        return self.expression(statement.tree, lambda load: self.element(load[1], load[2]))

    def temporaries(self, tree: Tree, tag: str, count: list[int]) -> str:
        if tree[0] == "const":
            return self.constant(tree[1])
        if tree[0] == "load":
            text = self.element(tree[1], tree[2])
        else:
            operands = [self.temporaries(operand, tag, count) for operand in tree[1:]]
            text = self.operation(tree[0], operands)
        count[0] += 1
        name = f"t{tag}{count[0]}"
        self.put(f"const {self.type} {name} = {text};")
        return name

    def expression(self, tree: Tree, leaf: Any) -> str:
        if tree[0] == "const":
            return self.constant(tree[1])
        if tree[0] == "load":
            return str(leaf(tree))
        return self.operation(tree[0], [self.expression(operand, leaf) for operand in tree[1:]])

    def constant(self, value: float) -> str:
        return str(value) if self.plan.dtype == "i32" else f"{float(value)}{self.suffix}"

    def operation(self, name: str, operands: list[str]) -> str:
        """C++ for one operation on parenthesised operands."""
        x, *rest = (part if simple(part) else f"({part})" for part in operands)
        y = rest[0] if rest else ""
        half, one = self.constant(0.5), self.constant(1)
        if name in ("add", "sub", "mul", "and", "xor"):
            return f"{x} {dict(add='+', sub='-', mul='*', xor='^')[name] if name != 'and' else '&'} {y}"
        if name == "select":
            return f"{x} < {y} ? {rest[1]} : {rest[2]}"
        if name == "half":
            return f"{x} >> 1"
        if name == "abs":
            return f"__builtin_{'abs' if self.plan.dtype == 'i32' else 'fabs' + self.suffix}({operands[0]})"
        if name == "sqrt":
            return f"__builtin_sqrt{self.suffix}(__builtin_fabs{self.suffix}({operands[0]}) + {half})"
        if name == "exp":
            return f"__builtin_exp{self.suffix}(-__builtin_fabs{self.suffix}({operands[0]}))"
        if name == "ratio":
            return f"{x} / ({one} + __builtin_fabs{self.suffix}({rest[0]}))"
        if name in ("max", "min") and self.style.helpers == "builtin" and self.plan.dtype != "i32":
            return f"__builtin_f{name}{self.suffix}({operands[0]}, {operands[1]})"
        return self.helper(name, operands)

    def helper(self, name: str, operands: list[str]) -> str:
        """A call of an own inline function, which is written at the top on first use."""
        kind, word = self.type, self.style.words[name]
        arguments = f"{kind} p, {kind} q" if len(operands) == 2 else f"{kind} p"
        if name in ("max", "min"):
            body = f"p {'>' if name == 'max' else '<'} q ? p : q"
        elif name == "square":
            body = "p * p"
        else:
            body = f"p * ({self.constant(1)} + p * ({self.constant(0.5)} + p * {self.constant(0.125)}))"
        line = f"static inline {kind} {word}({arguments}) {{ return {body}; }}"
        self.helpers.setdefault(word, line)
        return f"{word}({', '.join(operands)})"

    # -- loops --

    def statements(self, order: tuple[int, ...]) -> None:
        first, *others = self.plan.statements
        if self.choices.has("FUSE"):
            self.directive("#if FUSE")
            self.nest(self.plan.statements, order)
            self.directive("#else")
        for statement in (first, *others):
            self.nest((statement,), order)
        if self.choices.has("FUSE"):
            self.directive("#endif")

    def nest(self, group: tuple[Statement, ...], order: tuple[int, ...]) -> None:
        """The loops of statements that reduce over the same dimensions."""
        plan, reduced = self.plan, group[0].reduced
        scalar = bool(reduced) and sums_in_scalar(plan, group[0], order)
        if reduced and not scalar:
            self.clear(group, order)
        depth = self.level
        full = len(reduced) == plan.depth
        if full:
            self.declare_sums(group)
        if self.choices.tile >= 0:
            self.open_strips(group)
        for place, dim in enumerate(order):
            if scalar and not full and place == plan.depth - len(reduced):
                self.declare_sums(group)
            last = place == plan.depth - 1
            if last and scalar and self.choices.has("ACC") and len(reduced) == 1:
                self.partial_sums(group, dim)
                break
            self.open_loop(group, dim, outermost=place == 0, innermost=last, scalar=scalar)
        else:
            self.update(group, "acc" if scalar else "memory" if reduced else "")
            if scalar:
                self.close(self.level - len(reduced))
        if scalar:
            for number, statement in enumerate(group):
                self.put(f"{self.element(statement.out)} = {self.sum_name(number)};")
        self.close(depth)

    def close(self, level: int) -> None:
        while self.level > level:
            self.level -= 1
            self.put("}")

    def clear(self, group: tuple[Statement, ...], order: tuple[int, ...]) -> None:
        """Fill the outputs with the neutral element before they are accumulated in memory."""
        depth = self.level
        for dim in order:
            if dim not in group[0].reduced:
                self.put(self.header(dim))
                self.level += 1
        for statement in group:
            self.put(f"{self.element(statement.out)} = {self.neutral(statement.how)};")
        self.close(depth)

    def neutral(self, how: str) -> str:
        if how == "sum":
            return self.constant(0)
        largest = "2147483647" if self.plan.dtype == "i32" else f"1e30{self.suffix}"
        return largest if how == "min" else f"-{largest}"

    def header(self, dim: int, start: str = "0", limit: str = "") -> str:
        name = self.plan.loops[dim]
        step = self.style.step.format(name)
        return f"for ({self.style.counter} {name} = {start}; {name} < {limit or self.plan.sizes[dim]}; {step}) {{"

    def open_strips(self, group: tuple[Statement, ...]) -> None:
        dim = self.choices.tile
        name, size = self.plan.loops[dim] * 2, self.plan.sizes[dim]
        self.parallel(group)
        self.put(f"for ({self.style.counter} {name} = 0; {name} < {size}; {name} += TILE) {{")
        self.level += 1
        self.put(f"const long {name}_end = {name} + TILE < {size} ? {name} + TILE : {size};")

    def parallel(self, group: tuple[Statement, ...]) -> None:
        if self.choices.has("THREADS"):
            clause = self.reduction_clause(group) if len(group[0].reduced) == self.plan.depth else ""
            self.directive(f"#pragma omp parallel for num_threads(THREADS){clause}")

    def reduction_clause(self, group: tuple[Statement, ...]) -> str:
        signs = {"sum": "+", "max": "max", "min": "min"}
        return "".join(f" reduction({signs[s.how]} : {self.sum_name(i)})" for i, s in enumerate(group))

    def open_loop(
        self, group: tuple[Statement, ...], dim: int, *, outermost: bool, innermost: bool, scalar: bool
    ) -> None:
        summed = dim in group[0].reduced
        full = len(group[0].reduced) == self.plan.depth
        if outermost and self.choices.tile < 0 and (full or not summed):
            self.parallel(group)
        if innermost and self.choices.has("UNROLL"):
            self.directive("#pragma GCC unroll UNROLL")
        if innermost and self.choices.has("SIMD"):
            clause = self.reduction_clause(group) if scalar else ""
            self.directive(f"#if SIMD\n#pragma omp simd{clause}\n#endif")
        strip = self.plan.loops[dim] * 2
        self.put(self.header(dim, strip, f"{strip}_end") if dim == self.choices.tile else self.header(dim))
        self.level += 1

    # -- bodies --

    def sum_name(self, number: int) -> str:
        return self.style.accumulator + (str(number + 1) if number else "")

    def sum_type(self, how: str) -> str:
        return "double" if self.style.wide_sum and how == "sum" else self.type

    def declare_sums(self, group: tuple[Statement, ...]) -> None:
        for number, statement in enumerate(group):
            self.put(f"{self.sum_type(statement.how)} {self.sum_name(number)} = {self.neutral(statement.how)};")

    def update(self, group: tuple[Statement, ...], into: str, lane: str = "") -> None:
        for number, statement in enumerate(group):
            tag = "ab"[self.plan.statements.index(statement)]
            value = self.value(statement, tag)
            target = self.element(statement.out) if into != "acc" else self.sum_name(number) + lane
            self.put(self.assign(statement.how if into else "", target, value))

    def assign(self, how: str, target: str, value: str) -> str:
        if not how:
            return f"{target} = {value};"
        if how == "sum":
            return f"{target} += {value};"
        return f"{target} = {self.helper(how, [target, value])};"

    def partial_sums(self, group: tuple[Statement, ...], dim: int) -> None:
        """The innermost reduction in ACC independent sums, then the tail, then their total."""
        name, size = self.plan.loops[dim], self.plan.sizes[dim]
        for number, statement in enumerate(group):
            kind, lanes = self.sum_type(statement.how), self.sum_name(number) + "_lanes"
            self.put(f"{kind} {lanes}[ACC];")
            self.put(f"for (int lane = 0; lane < ACC; ++lane) {lanes}[lane] = {self.neutral(statement.how)};")
        self.put(f"long {name} = 0;")
        self.put(f"for (; {name} + ACC <= {size}; {name} += ACC) {{")
        self.level += 1
        self.directive("#pragma GCC unroll 8")
        self.put("for (int lane = 0; lane < ACC; ++lane) {")
        self.level += 1
        self.at[dim] = f"{name} + lane"
        for number, statement in enumerate(group):
            value = self.value(statement, "ab"[self.plan.statements.index(statement)])
            self.put(self.assign(statement.how, f"{self.sum_name(number)}_lanes[lane]", value))
        self.at[dim] = name
        self.close(self.level - 2)
        self.put(f"for (; {name} < {size}; {self.style.step.format(name)}) {{")
        self.level += 1
        self.update(group, "acc")
        self.close(self.level - 1)
        for number, statement in enumerate(group):
            total = self.assign(statement.how, self.sum_name(number), f"{self.sum_name(number)}_lanes[lane]")
            self.put(f"for (int lane = 0; lane < ACC; ++lane) {total}")


def leaves_of(tree: Tree) -> list[Tree]:
    if tree[0] in ("load", "const"):
        return [tree] if tree[0] == "load" else []
    return [leaf for operand in tree[1:] for leaf in leaves_of(operand)]


def simple(text: str) -> bool:
    """An expression that needs no parentheses as an operand: a name, a number, an element or a call."""
    depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == " " and depth == 0:
            return False
    return not text.startswith("-")


# ---- sizes and the Workload ----


def draw_problems(rng: random.Random, plan: Plan) -> dict[str, dict[str, int]]:
    """Three contrasting sets of sizes, aimed at TARGET_US by a rough cost a point: operations and compulsory bytes."""
    width = 8 if plan.dtype == "f64" else 4
    full = sum(1 for array in plan.arrays if len(array.axes) == plan.depth)
    slow = sum(1 for statement in plan.statements for name in walk(statement.tree) if name in ("exp", "sqrt", "ratio"))
    points_us = 1e-3 * (0.06 * len(plan.statements) + 0.03 * sum(operations(s.tree) for s in plan.statements)
                        + 0.05 * width * full + 0.5 * slow)  # fmt: skip
    problems = {}
    for name, target_us in TARGET_US.items():
        points = min(max(target_us / points_us, POINTS[0]), POINTS[1])
        shares = [rng.uniform(0.7, 1.3) if name == "small" else rng.uniform(0.35, 1.65) for _ in range(plan.depth)]
        sizes = [max(2, round(points ** (share / sum(shares)))) for share in shares]
        sizes = [size | 1 if name == "odd" else size // 8 * 8 if size >= 16 else size for size in sizes]
        if plan.has_table:
            sizes.append({"small": 300, "large": 20_000, "odd": 4_001}[name])
        problems[name] = dict(zip(plan.sizes, sizes, strict=True))
    return problems


def walk(tree: Tree) -> list[str]:
    """The names of all nodes."""
    return [tree[0], *(name for operand in tree[1:] if isinstance(operand, tuple) for name in walk(operand) if operand)]


def make_problem(plan: Plan, op: str, sizes: dict[str, int]) -> Problem:
    """Any sizes from 1 on, up to LONGEST_SUM points where integers are summed."""
    if set(sizes) != set(plan.sizes) or min(sizes.values()) < 1:
        raise UserError(f"got sizes {sizes}, expected positive {', '.join(plan.sizes)}; give each of them")
    points = math.prod(sizes[name] for name in plan.sizes[: plan.depth])
    if plan.dtype == "i32" and points > LONGEST_SUM and any(s.how == "sum" for s in plan.statements):
        raise UserError(f"got {points} points, expected at most {LONGEST_SUM} where integers are summed; give fewer")
    specs = tuple(TensorSpec(shape_of(plan, array, sizes), array.dtype) for array in plan.arrays)
    width = {"f32": 4, "f64": 8, "i32": 4}
    return Problem(
        op=op,
        inputs=specs[: plan.num_inputs],
        params=tuple((name, sizes[name]) for name in plan.sizes),
        flops=points * sum(operations(s.tree) + bool(s.how) for s in plan.statements),
        bytes=sum(math.prod(spec.shape) * width[spec.dtype] for spec in specs),
    )


def is_valid(plan: Plan, choices: Choices, config: Config, device: Device) -> bool:
    """Threads have a core each, and only a loop whose turns are independent is shared among them."""
    if config.get("THREADS", 1) == 1:
        return True
    order = choices.orders[int(config.get("ORDER", 0))]
    return int(config["THREADS"]) <= device.num_units and (choices.tile >= 0 or not starts_in_sum(plan, order))


def generate(number: int) -> Workload:
    """The kernel of that number; `costmodel.workloads.load("loop_nest:17")` comes here."""
    rng = random.Random(f"loop nest {number}")
    plan = draw_plan(rng)
    choices = draw_choices(rng, plan)
    source = Writer(plan, draw_style(rng, plan), choices).text()
    space = SearchSpace(choices.params, lambda config, problem, device: is_valid(plan, choices, config, device))
    name = f"loop_nest:{number}"
    sizes = draw_problems(rng, plan)
    return Workload(
        kernel=Kernel(name, "cpp", source, choices.params),
        space=space,
        default=Config(
            tuple((key, values[len(values) // 2] if key == "TILE" else values[0]) for key, values in choices.params)
        ),
        problems={key: make_problem(plan, name, value) for key, value in sizes.items()},
        make_problem=lambda **sizes: make_problem(plan, name, sizes),
        make_inputs=lambda problem, seed: make_inputs(plan, problem, seed),
        reference=lambda problem, inputs: reference(plan, problem, inputs),
        tolerance={"f32": 2e-4, "f64": 1e-9, "i32": 0.0}[plan.dtype],
        path=Path(f"{Path(__file__).resolve()}:{number}"),
    )
