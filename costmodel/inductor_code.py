"""The programs that torch.compile's Inductor writes for a GPU: their Triton kernels, read from the text alone.

Such a program holds each kernel as a string (`NAME = async_compile.triton('NAME', '''...''')`) and a function that
allocates buffers and calls `NAME.run(tensors..., sizes..., stream=...)`. `parse` joins the two: the jit function, its
tunable parameters, and each argument of its first call with shape, stride and type. It reads what torch 2.11 to 2.13
write, and needs neither torch nor a GPU; what it cannot make a kernel of its own is returned with the reason.

The text of a kernel is kept but for four things: its name loses the running number; a matmul template's tile sizes,
which Inductor writes into the body, become parameters; a tensor that is updated in place becomes two, one read and
one written, so that a kernel can be started twice on the same inputs; comments and layout are lost.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from costmodel.records import UserError

# Triton's names of element types -> ours.
TYPES = {
    "fp64": "f64", "fp32": "f32", "fp16": "f16", "bf16": "bf16", "fp8e4nv": "f8_e4m3", "fp8e5": "f8_e5m2",
    "i64": "i64", "i32": "i32", "i16": "i16", "i8": "i8", "u8": "u8", "i1": "bool",
}  # fmt: skip
KINDS = ("pointwise", "reduction", "persistent_reduction", "template")
GRIDS = ("Grid1D", "Grid2D", "Grid3D", "Grid2DWithYZOverflow", "FixedGrid")
MATMUL_PARAMETERS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "EVEN_K")
BEFORE = "_before"
_TRANSCENDENTAL = {"sqrt", "rsqrt", "sqrt_rn", "log", "log1p", "log2", "log10", "pow", "lgamma"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A pointer argument. `buffer` is the program's name of what it holds: before the call if it is read, after it if
    it is written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    written: bool = False
    buffer: str = ""

    @property
    def extent(self) -> int:
        """Elements from the first to the last that it may touch."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True, slots=True)
class Number:
    """A size, or another number, that the kernel takes."""

    name: str
    value: int | float


@dataclass(frozen=True, slots=True)
class GeneratedKernel:
    """One kernel of a program, with the arguments of its first call.

    program: its name in the program. tunable: constants that it takes by name. fixed: numbers that stand in its body:
    block sizes (R0_BLOCK of a reduction that holds a row at once), or M, N, K and the batch B of a matmul template.
    grid: one of GRIDS; a FixedGrid is one block a tile of a matmul, B times. default: a template's config. heuristic:
    the call by which Inductor chooses configs, as text. operations: arithmetic per point. index_below: a bound on
    integers it loads (0: none). positive: whether it takes roots or logarithms.
    """

    name: str
    program: str
    kind: str
    source: str
    arguments: tuple[Tensor | Number, ...]
    tunable: tuple[str, ...]
    fixed: Mapping[str, int]
    grid: str
    default: Mapping[str, int]
    heuristic: str
    operations: int
    index_below: int
    positive: bool


@dataclass(frozen=True, slots=True)
class Left:
    """What a program runs and `parse` makes no kernel of, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A variable of the program: its layout, and the variable whose memory it took over."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    before: str = ""


class _Unreadable(Exception):
    """Why a kernel cannot stand on its own."""


def parse(text: str) -> tuple[list[GeneratedKernel], list[Left]]:
    """The kernels of a generated program in the order of their first calls, and what is left out."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"got text that is no Python ({error}), expected a program written by torch.compile") from error
    sources = dict(_kernel_texts(tree))
    if "async_compile" not in text and "extern_kernels" not in text:
        raise UserError("got a text without async_compile, expected a program written by torch.compile (output_code)")
    kernels: dict[str, GeneratedKernel] = {}
    left: dict[str, Left] = {}
    for call in _calls(tree):
        if call.kernel not in sources:
            left.setdefault(call.kernel, Left(call.kernel, "runs in a library or a fallback: it has no text here"))
        elif call.kernel not in kernels:
            try:
                kernels[call.kernel] = _kernel(call.kernel, sources[call.kernel], call)
                left.pop(call.kernel, None)
            except _Unreadable as error:
                left[call.kernel] = Left(call.kernel, str(error))
    called = {*kernels, *left}
    left |= {name: Left(name, "is never called") for name in sources if name not in called}
    return list(kernels.values()), list(left.values())


# ---- the program: what is allocated, what is called ----


def _kernel_texts(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "async_compile.triton":
            name, source = (ast.literal_eval(argument) for argument in node.args[:2])
            yield name, source


@dataclass(frozen=True, slots=True)
class _Call:
    kernel: str
    arguments: tuple[ast.expr, ...]
    buffers: Mapping[str, _Buffer] = field(default_factory=dict)
    written: frozenset[str] = frozenset()


def _calls(tree: ast.Module) -> Iterator[_Call]:
    """The calls of kernels and of library routines, in the order of the text, each with what was known by then."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and (function.name == "call" or function.name.startswith("partition")):
            yield from _Reader().read(function.body)


class _Reader:
    """Follows the statements of one function."""

    def __init__(self) -> None:
        self.buffers: dict[str, _Buffer] = {}
        self.written: set[str] = set()

    def read(self, statements: list[ast.stmt]) -> Iterator[_Call]:
        for statement in statements:
            if isinstance(statement, ast.With):
                yield from self.read(statement.body)
            elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                yield from self.assign(statement.targets[0], statement.value)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                yield from self.call(statement.value)

    def assign(self, target: ast.expr, value: ast.expr) -> Iterator[_Call]:
        if not isinstance(target, ast.Name):
            return
        if isinstance(value, ast.Name) and value.id in self.buffers:
            self.buffers[target.id] = dataclasses.replace(self.buffers[value.id], before=value.id)
        elif isinstance(value, ast.Call):
            function = ast.unparse(value.func)
            if function.startswith("empty_strided"):
                self.buffers[target.id] = _Buffer(*_layout(*value.args[:2]))
            elif function == "reinterpret_tensor" and isinstance(value.args[0], ast.Name):
                self.buffers[target.id] = _Buffer(*_layout(*value.args[1:3]), before=value.args[0].id)
            elif function.startswith(("extern_kernels.", "torch.ops.")):
                yield from self.call(value)
                self.written.add(target.id)

    def call(self, node: ast.Call) -> Iterator[_Call]:
        function = ast.unparse(node.func)
        if function == "assert_size_stride" and isinstance(node.args[0], ast.Name):
            name = node.args[0].id
            if name not in self.buffers:  # a graph input or a library's result
                self.buffers[name] = _Buffer(*_layout(*node.args[1:3]))
                self.written.add(name)
        elif function.endswith(".run") and isinstance(node.func, ast.Attribute):
            kernel = ast.unparse(node.func.value)
            yield _Call(kernel, tuple(node.args), dict(self.buffers), frozenset(self.written))
            self.written |= {argument.id for argument in node.args if isinstance(argument, ast.Name)}
        elif function.startswith(("extern_kernels.", "torch.ops.")):
            yield _Call(function, ())
            for keyword in node.keywords:
                inner = keyword.value.args[0] if isinstance(keyword.value, ast.Call) else keyword.value
                if keyword.arg == "out" and isinstance(inner, ast.Name):
                    self.written.add(inner.id)


def _layout(shape: ast.expr, stride: ast.expr) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, stride); a size that is not a number makes both empty, and whoever uses the buffer is told."""
    try:
        return tuple(ast.literal_eval(shape)), tuple(ast.literal_eval(stride))
    except ValueError:
        return (-1,), (1,)


# ---- a kernel and its call ----


def _kernel(program: str, source: str, call: _Call) -> GeneratedKernel:
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    found = [
        (f, d)
        for f in functions
        for d in f.decorator_list
        if isinstance(d, ast.Call) and "heuristics." in ast.unparse(d.func)
    ]
    if len(found) != 1:
        raise _Unreadable("its function is under none of Inductor's heuristics")
    function, heuristic = found[0]
    kind = ast.unparse(heuristic.func).rpartition(".")[2]
    facts = {keyword.arg: _literal(keyword.value) for keyword in heuristic.keywords}
    meta, inductor = facts.get("triton_meta", {}), facts.get("inductor_meta", {})
    grid = inductor.get("grid_type")
    if kind not in KINDS or grid not in GRIDS:
        raise _Unreadable(f"it is a {kind} kernel with the grid {grid}, which is started in a way of its own")
    if inductor.get("atomic_add_found"):
        raise _Unreadable("it adds to what its output held before (atomics)")
    parameters = [argument.arg for argument in function.args.args]
    constants = [a.arg for a in function.args.args if a.annotation and "constexpr" in ast.unparse(a.annotation)]
    names = [name for name in parameters if name not in constants]
    arguments = _arguments(names, meta["signature"], call)
    default: dict[str, int] = {}
    if kind == "template":
        launched = [int(_number(node)) for node in call.arguments[len(names) :]]
        default = {key: value for key, value in facts.items() if key in ("num_warps", "num_stages")}
        default |= {key: int(v) for key, v in inductor.get("config_args", {}).items() if key in MATMUL_PARAMETERS}
        fixed = _lift_tiles(function, default, launched)
        constants = list(MATMUL_PARAMETERS)
    else:
        fixed = _fixed_blocks(function)
    unread = _split_in_place(function)
    arguments = tuple(a for a in arguments if a.name not in unread)
    _check_written(arguments, kind)
    function.name = re.sub(r"_+", "_", re.sub(r"_\d+$", "", function.name))
    function.decorator_list = [ast.parse("triton.jit", mode="eval").body]
    text = "\n\n\n".join(ast.unparse(ast.fix_missing_locations(f)) for f in functions)  # its helpers come first
    return GeneratedKernel(
        name=function.name, program=program, kind=kind, source=text, arguments=arguments, tunable=tuple(constants),
        fixed=fixed, grid=grid, default=default, heuristic=ast.unparse(heuristic),
        operations=_operations(function), index_below=_index_below(function),
        positive=any(isinstance(n, ast.Attribute) and n.attr in _TRANSCENDENTAL for n in ast.walk(function)),
    )  # fmt: skip


def _literal(node: ast.expr) -> Any:
    """The value of nested literals; what is no literal (DeviceProperties(...)) stays text."""
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _number(node: ast.expr) -> int | float:
    value = _literal(node)
    if not isinstance(value, int | float):
        raise _Unreadable(f"its argument {value} is no number: compile it with sizes that are known")
    return value


def _arguments(names: list[str], signature: Mapping[str, str], call: _Call) -> tuple[Tensor | Number, ...]:
    if len(call.arguments) < len(names):
        raise _Unreadable(f"its call gives {len(call.arguments)} arguments, its function takes {len(names)}")
    found: list[Tensor | Number] = []
    for name, node in zip(names, call.arguments, strict=False):
        kind = signature.get(name, "")
        if not kind.startswith("*"):
            found.append(Number(name, _number(node)))
            continue
        if kind[1:] not in TYPES:
            raise _Unreadable(f"its argument {name} has the type {kind}")
        if not name.startswith(("in_ptr", "out_ptr", "in_out_ptr", "arg_")):
            raise _Unreadable(f"its argument {name} is neither an input nor an output")
        shape, stride, buffer = _resolve(node, call)
        if name.startswith("in_out_ptr"):
            found.append(Tensor(name + BEFORE, TYPES[kind[1:]], shape, stride, False, _held_before(buffer, call)))
        found.append(Tensor(name, TYPES[kind[1:]], shape, stride, "out_ptr" in name, buffer))
    return tuple(found)


def _resolve(node: ast.expr, call: _Call) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """(shape, stride, name of the buffer) of what stands at a call for a tensor."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "reinterpret_tensor":
        (shape, stride), base = _layout(*node.args[1:3]), node.args[0]
        name = base.id if isinstance(base, ast.Name) else ""
    elif isinstance(node, ast.Name) and node.id in call.buffers:
        name = node.id
        shape, stride = call.buffers[name].shape, call.buffers[name].stride
    else:
        raise _Unreadable(f"the shape of its argument {ast.unparse(node)} stands nowhere in the program")
    if any(size < 0 for size in shape):
        raise _Unreadable(f"its argument {ast.unparse(node)} has a size that is no number: give sizes that are known")
    return shape, stride, name


def _held_before(buffer: str, call: _Call) -> str:
    """The name under which the memory of a buffer was last written before this call."""
    while buffer and buffer not in call.written:
        buffer = call.buffers[buffer].before if buffer in call.buffers else ""
    return buffer


def _fixed_blocks(function: ast.FunctionDef) -> dict[str, int]:
    """ "R0_BLOCK: tl.constexpr = 512" in the body."""
    return {
        node.target.id: node.value.value
        for node in function.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.endswith("BLOCK")
        and isinstance(node.value, ast.Constant) and isinstance(node.value.value, int)
    }  # fmt: skip


def _lift_tiles(function: ast.FunctionDef, default: Mapping[str, int], grid: list[int]) -> dict[str, int]:
    """Make parameters of a matmul template's tile sizes; returns M, N, K and B. Raises where the template is none."""
    sizes = {
        node.targets[0].id: node.value.value
        for node in function.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant) and isinstance(node.value.value, int)
    }  # fmt: skip
    if not {"M", "N", "K"} <= set(sizes) or not set(MATMUL_PARAMETERS) <= set(default):
        raise _Unreadable("it is a template other than a matmul's")
    tiles = math.ceil(sizes["M"] / default["BLOCK_M"]) * math.ceil(sizes["N"] / default["BLOCK_N"])
    if len(grid) != 3 or grid[0] != tiles or grid[2] != 1:
        raise _Unreadable(f"its grid {grid} is not one block for each of {tiles} tiles")
    function.body = [
        node
        for node in function.body
        if not (isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in MATMUL_PARAMETERS)
    ]
    constexpr = ast.parse("tl.constexpr", mode="eval").body
    function.args.args += [ast.arg(arg=name, annotation=constexpr) for name in MATMUL_PARAMETERS]
    return {"M": sizes["M"], "N": sizes["N"], "K": sizes["K"], "B": grid[1]}


def _split_in_place(function: ast.FunctionDef) -> set[str]:
    """in_out_ptr0 -> in_out_ptr0_before, which is loaded up to the first store, and in_out_ptr0, which is stored.

    Returns the names that need no parameter: where a buffer was only taken over, nothing is loaded from it before.
    """
    unread: set[str] = set()
    for name in [a.arg for a in function.args.args if a.arg.startswith("in_out_ptr")]:
        pointers = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == name]
        first = min(((n.lineno, n.col_offset) for n in _stored(function) if n.id == name), default=(0, 0))
        early = [node for node in pointers if (node.lineno, node.col_offset) < first]
        for node in early:
            node.id = name + BEFORE
        if early:
            position = [a.arg for a in function.args.args].index(name)
            function.args.args.insert(position, ast.arg(arg=name + BEFORE))
        else:
            unread.add(name + BEFORE)
    return unread


def _stored(function: ast.FunctionDef) -> Iterator[ast.Name]:
    """The names in the addresses of tl.store."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.store":
            yield from (inner for inner in ast.walk(node.args[0]) if isinstance(inner, ast.Name))


def _check_written(arguments: tuple[Tensor | Number, ...], kind: str) -> None:
    """Every element of an output must be written, or its answers cannot be checked."""
    numels = {a.name: int(a.value) for a in arguments if isinstance(a, Number) and a.name.endswith("numel")}
    outside = math.prod(value for name, value in numels.items() if not name.startswith("r"))
    points = {outside, math.prod(numels.values())}
    for argument in arguments:
        if not isinstance(argument, Tensor) or not argument.written:
            continue
        size = math.prod(argument.shape)
        if size != argument.extent:
            raise _Unreadable(f"it writes a part of the buffer behind {argument.name}")
        if kind != "template" and size not in points:
            raise _Unreadable(f"it writes {argument.name} at places that its text does not state")


def _operations(function: ast.FunctionDef) -> int:
    """Arithmetic on values in the body: operators and calls on what Inductor names tmpN."""
    count = 0
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and re.fullmatch(r"_?tmp\d+(_\w+)?", ast.unparse(node.targets[0])):
            called = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
            moves = ("tl.load", "tl.full", "tl.broadcast_to", "tl.where", "tl.reshape")
            count += not called.startswith(moves) and not called.endswith(".to")
    return count


def _index_below(function: ast.FunctionDef) -> int:
    """The smallest bound that the kernel asserts of an index it loads; 0 where it asserts none."""
    bounds = [
        right.value
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.device_assert"
        for test in ast.walk(node)
        if isinstance(test, ast.Compare)
        for operator, right in zip(test.ops, test.comparators, strict=True)
        if isinstance(operator, ast.Lt) and isinstance(right, ast.Constant) and isinstance(right.value, int)
    ]
    return min(bounds, default=0)
