"""How a generated loop nest is written: C++ text from a plan, in a style that is drawn apart from what it computes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from costmodel.workloads import load_module

# Files here are loaded by path, so a neighbour is too.
_plan = load_module(Path(__file__).with_name("loop_nest_plan.py"))
Array, Axis, Plan, Statement, Tree = _plan.Array, _plan.Axis, _plan.Plan, _plan.Statement, _plan.Tree
leaves_of, operations = _plan.leaves_of, _plan.operations

C_TYPE = {"f32": "float", "f64": "double", "i32": "int"}
SIGNS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "xor": "^"}
SUMS = ("acc", "total", "s", "best", "part", "run")
FUNCTIONS = ("f", "combine", "op", "body", "mix", "step", "kernel_of")
HELPERS = {
    "max": ("larger", "mx", "hi", "max_of"),
    "min": ("smaller", "mn", "lo", "min_of"),
    "square": ("sq", "square", "pow2"),
    "cubic": ("series", "cubic", "poly"),
}


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be tuned. `inner` is the innermost loop's parameter: UNROLL, SIMD, ACC or none."""

    params: tuple[tuple[str, tuple[int, ...]], ...]
    orders: tuple[tuple[int, ...], ...]
    tile: int  # the dimension that is cut in strips of TILE, or -1

    def has(self, name: str) -> bool:
        return name in dict(self.params)


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
    unrolled: str  # the constant that holds UNROLL: the pragma takes no macro
    words: dict[str, str]  # names of the inline functions
    wide_sum: bool  # f32 sums in a double


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
        unrolled=rng.choice(("TIMES", "COPIES", "WAYS", "FACTOR")),
        words={operation: rng.choice(choices) for operation, choices in HELPERS.items()},
        wide_sum=plan.dtype == "f32" and (full or rng.random() < 0.15),
    )


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
        constants = [f"constexpr int {self.style.unrolled} = UNROLL;"] if self.choices.has("UNROLL") else []
        head = f'extern "C" void run(void* const* {buffers}, const long long* {sizes}) {{'
        return "\n".join([*self.comment(), *constants, *self.helpers.values(), head, *self.lines, *body, "}", ""])

    def comment(self) -> list[str]:
        plan = self.plan
        parts = []
        for statement in plan.statements:
            over = ", ".join(plan.loops[dim] for dim in statement.reduced)
            parts.append(f"{statement.how} over {over}" if statement.how else "an expression at each point")
        loops = "one loop" if plan.depth == 1 else f"{plan.depth} nested loops"
        return [f"// {loops} in {self.type}: {'; then '.join(parts)}."]

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
            left = text if text.isidentifier() or (text.endswith("]") and " " not in text) else f"({text})"
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

    def expression(self, tree: Tree, leaf: Callable[[Tree], str]) -> str:
        if tree[0] == "const":
            return self.constant(tree[1])
        if tree[0] == "load":
            return leaf(tree)
        return self.operation(tree[0], [self.expression(operand, leaf) for operand in tree[1:]])

    def constant(self, value: float) -> str:
        return str(value) if self.plan.dtype == "i32" else f"{float(value)}{self.suffix}"

    def operation(self, name: str, operands: list[str]) -> str:
        """C++ for one operation on parenthesised operands."""
        x, *rest = (part if simple(part) else f"({part})" for part in operands)
        y = rest[0] if rest else ""
        half, one = self.constant(0.5), self.constant(1)
        if name in ("add", "sub", "mul", "and", "xor"):
            return f"{x} {SIGNS[name]} {y}"
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
            self.directive(f"#pragma GCC unroll {self.style.unrolled}")
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


def simple(text: str) -> bool:
    """An expression that needs no parentheses as an operand: a name, a number, an element or a call."""
    depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == " " and depth == 0:
            return False
    return not text.startswith("-")


def sums_in_scalar(plan: Plan, statement: Statement, order: tuple[int, ...]) -> bool:
    """All reduced dimensions are innermost, so that one scalar can hold the sum."""
    return set(order[plan.depth - len(statement.reduced) :]) == set(statement.reduced)
