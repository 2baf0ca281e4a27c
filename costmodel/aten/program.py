"""A torch module -> the program that eager torch runs, as HLO and as Python text. Both say the same operators.

`torch.export` gives the graph of ATen operators before any decomposition, which is what eager torch executes: one
`linear`, one `layer_norm`, one `scaled_dot_product_attention`. (Decomposed to core ATen the same model takes more
operators and so more time in eager mode.) Dead code is removed first, then the one graph is both printed and run:

- an operator that is one HLO instruction becomes that instruction;
- one that takes several becomes a fusion, whose computation says what it does: one kernel, one pass over memory, the
  arithmetic inside. Views (transpose, slice, broadcast, reshape) and what makes constants stand by themselves;
- one with no HLO here is taken apart by torch's own decompositions, and where that fails becomes a custom call whose
  target is its name. Nothing is left out and no operator is an error.

Parameters of the entry are the tensors that the program reads, in order: weights, buffers, constants, inputs.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from costmodel.aten import contracting, indexing, pointwise, recurrent, reducing, shaping
from costmodel.aten.builder import Builder, ModuleBuilder, Value
from costmodel.aten.call import Call, Unmapped
from costmodel.graph import Module, Shape, TupleShape
from costmodel.records import UserError

DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "s64",
    torch.int32: "s32", torch.int16: "s16", torch.int8: "s8", torch.uint8: "u8", torch.bool: "pred",
    torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip
OPERATORS: dict[str, Callable[..., Any]] = {
    **pointwise.OPERATORS, **shaping.OPERATORS, **contracting.OPERATORS, **reducing.OPERATORS, **indexing.OPERATORS,
    **recurrent.OPERATORS,
}  # fmt: skip
MAKERS = (
    "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "arange",
    "scalar_tensor",
)  # fmt: skip
# What export adds to a graph and eager torch does not run.
_CHECKS = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size")
Role = Literal["weight", "vector", "input", "integers"]


@dataclass(frozen=True, slots=True)
class Argument:
    """A tensor that a program reads, and how to fill it: `weight` ~ N(0, 1 / fan in) so that depth neither blows up nor
    starves values, `vector` (weights and buffers of one dimension) in 1/4 to 3/4, `input` ~ N(0, 1), `integers` from
    `low` to `high`, both among them (truth values too)."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # of torch: "float32"
    role: Role
    low: int = 0
    high: int = 0

    def encode(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Program:
    """`code` defines `forward(self, *arguments)`, returning a tuple; `self` is not used."""

    module: Module
    code: str
    arguments: tuple[Argument, ...]
    unmapped: tuple[str, ...]  # operators that became custom calls


def trace(model: torch.nn.Module, inputs: Sequence[Any], *, name: str = "module") -> Program:
    """The program of `model(*inputs)`. Weights may lie on the meta device: only shapes and types count, and of inputs
    and buffers of integers the range. UserError where torch.export gives up."""
    ranges = {id(x): _range(x) for x in inputs if isinstance(x, torch.Tensor)}
    buffers = dict(model.named_buffers())
    tensors = [*model.parameters(), *buffers.values(), *(x for x in inputs if isinstance(x, torch.Tensor))]
    if any(x.device.type == "meta" for x in tensors):
        if any(p.device.type != "meta" for p in (*model.parameters(), *buffers.values())):
            model = copy.deepcopy(model).to("meta")
        given, inputs = inputs, [x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs]
        ranges = {id(new): ranges[id(old)] for old, new in zip(given, inputs, strict=True) if id(old) in ranges}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(model.eval(), tuple(inputs), strict=False)
            if not all(_pure(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})
        except Exception as error:  # torch.export raises whatever the model raises
            first = str(error).strip().splitlines() or [""]
            raise UserError(
                f"got {type(model).__name__}, which torch.export does not take ({type(error).__name__}: "
                f"{first[0][:200]}), expected a module of fixed shapes without branches on values"
            ) from error
    graph = _cleaned(exported)
    arguments = _arguments(exported, graph, inputs, ranges, buffers)
    writer = _Writer(name, negative={argument.name for argument in arguments if argument.low < 0})
    module = writer.write(graph)
    return Program(module, graph.python_code("self").src, tuple(arguments), tuple(dict.fromkeys(writer.unmapped)))


def _range(x: torch.Tensor) -> tuple[int, int]:
    """Least and most of integers whose values are there; (0, 0) where not."""
    if x.dtype.is_floating_point or x.dtype.is_complex or x.device.type == "meta" or not x.numel():
        return 0, 0
    return int(x.min()), int(x.max())


def _pure(node: fx.Node) -> bool:
    """Whether an operator writes to nothing that is seen under another name: relu_ of what an operator has just made
    is read as relu, its operand as the result from then on."""
    if _is_functional(node):
        return True
    target = node.args[0]
    if (
        not isinstance(target, fx.Node)
        or target.op != "call_function"
        or _name(node).removesuffix("_") not in OPERATORS
    ):
        return False
    return not any(_name(other) in shaping.VIEWS for other in (target, *target.users))


# ---------------------------------------------------------------------------------------------------------- the graph


def _cleaned(exported: Any) -> fx.Graph:
    """One flat function of tensors that returns a tuple of tensors, without dead code."""
    graph: fx.Graph = exported.graph_module.graph
    graph.set_codegen(fx.graph.CodeGen())
    kept = {spec.arg.name for spec in exported.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"
            and hasattr(spec.arg, "name")}  # fmt: skip
    for node in list(graph.nodes):
        if node.op == "output":
            results = [x for x in node.args[0] if isinstance(x, fx.Node) and x.name in kept]
            node.args = (tuple(results),)
        elif node.op == "call_module" or _name(node) in _CHECKS:
            graph.erase_node(node)
        elif "device" in node.kwargs:  # the weights may have lain on the meta device
            node.kwargs = {**node.kwargs, "device": torch.device("cpu")}
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users:
            graph.erase_node(node)
    return graph


def _arguments(
    exported: Any,
    graph: fx.Graph,
    inputs: Sequence[Any],
    ranges: Mapping[int, tuple[int, int]],
    buffers: Mapping[str, torch.Tensor],
) -> list[Argument]:
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    given = [spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    flat = dict(zip(given, torch.utils._pytree.tree_leaves(tuple(inputs)), strict=False))
    values = {**exported.constants, **exported.state_dict, **buffers}
    found = []
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        fake, spec = node.meta["val"], specs[node.name]
        dtype = str(fake.dtype).removeprefix("torch.")
        role: Role
        low = high = 0
        if not (fake.dtype.is_floating_point or fake.dtype.is_complex):
            role = "integers"
            held = flat.get(node.name) if spec.kind.name == "USER_INPUT" else values.get(spec.target)
            low, high = ranges.get(id(held)) or (_range(held) if isinstance(held, torch.Tensor) else (0, 0))
        elif spec.kind.name == "USER_INPUT":
            role = "input"
        else:
            role = "weight" if fake.ndim > 1 else "vector"
        found.append(Argument(node.name, tuple(fake.shape), dtype, role, low, high))
    return found


def _schema(node: fx.Node) -> Any:
    """torch's declaration of the operator; None where the node is no operator."""
    return getattr(node.target, "_schema", None)


def _is_functional(node: fx.Node) -> bool:
    schema = _schema(node)
    return schema is None or not schema.is_mutable


def _name(node: fx.Node) -> str:
    """ "linear" of aten.linear.default, "" of what is no operator."""
    schema = _schema(node)
    return "" if schema is None else str(schema.name).split("::")[-1]


def _dtype(x: torch.Tensor) -> str:
    if x.dtype not in DTYPES:
        raise UserError(f"got a tensor of {x.dtype}, expected one of {', '.join(map(str, DTYPES))}; convert it before")
    return DTYPES[x.dtype]


def _shapes(node: fx.Node) -> tuple[Shape, ...]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if len(tensors) < len(values):
        raise Unmapped("a result that is no tensor")
    return tuple(Shape(_dtype(v), tuple(v.shape)) for v in tensors)


def _copies(node: fx.Node) -> bool:
    """Whether a view has to copy, since its operand's strides do not allow it."""
    name = _name(node)
    if name not in ("contiguous", "reshape", "flatten", "reshape_as") or not isinstance(node.args[0], fx.Node):
        return False
    source: torch.Tensor = node.args[0].meta["val"]
    result: torch.Tensor = node.meta["val"]
    if name == "contiguous":
        return not source.is_contiguous()
    try:
        torch.empty_strided(source.shape, source.stride(), device="meta").view(result.shape)
    except RuntimeError:
        return True
    return False


# ------------------------------------------------------------------------------------------------------------ writing


class _Writer:
    """A graph of ATen operators into a module."""

    def __init__(self, name: str, *, negative: set[str]) -> None:
        self.module = ModuleBuilder(name)
        self.negative = set(negative)  # nodes that hold integers below 0
        self.unmapped: list[str] = []
        self.fusions: dict[object, _Written] = {}

    def write(self, graph: fx.Graph) -> Module:
        entry = self.module.computation("main")
        made: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                fake = node.meta["val"]
                made[node] = entry.parameter(node.name, _dtype(fake), fake.shape)
            elif node.op == "output":
                return self.module.build(entry, [made[result] for result in node.args[0]])
            elif node.target is operator.getitem:
                made[node] = made[node.args[0]][node.args[1]]
            else:
                made[node] = self.instruction(entry, node, made)
                if not _is_functional(node):  # what it wrote to is now what it made
                    made[node.args[0]] = made[node]
        raise UserError("got a graph that returns nothing, expected a tensor or several")

    def instruction(self, b: Builder, node: fx.Node, made: Mapping[fx.Node, Any]) -> Any:
        """What an operator makes: a Value, or several in a list."""
        name = _name(node) if _is_functional(node) else _name(node).removesuffix("_")
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: made[n])
        try:
            out = _shapes(node)
            if name in shaping.VIEWS or name in MAKERS:
                write = shaping.VIEWS.get(name) or OPERATORS[name]
                if node.args and isinstance(node.args[0], fx.Node) and node.args[0].name in self.negative:
                    self.negative.add(node.name)
                return _checked(write(Call(b, out, _copies(node)), *args, **kwargs), out, node)
            return self.fused(b, node, name, args, kwargs, out)
        except Unmapped:
            return self.custom_call(b, node, args, kwargs)

    def fused(self, b: Builder, node: fx.Node, name: str, args: Any, kwargs: Any, out: tuple[Shape, ...]) -> Any:
        """One instruction, or a fusion that calls the operator's computation; equal uses share it."""
        operands = list({v.name: v for v in _values((args, kwargs))}.values())
        local = {v.name: i for i, v in enumerate(operands)}
        pattern = _mapped((args, kwargs), lambda v: ("operand", local[v.name]))
        wraps = any(source.name in self.negative for source in node.all_input_nodes[1:])
        key = (str(node.target), tuple(v.shape for v in operands), repr(pattern), out, wraps)
        if key not in self.fusions:
            inner = self.module.computation(name)
            parameters = [inner.parameter("p", v.dtype, v.dims) for v in operands]
            inside = _mapped((args, kwargs), lambda v: parameters[local[v.name]])
            results = self.results(inner, node, name, inside, Call(inner, out, wraps=wraps))
            self.fusions[key] = _Written.of(self.module, inner, name, results, isinstance(results, list))
        return self.fusions[key].use(b, operands, out)

    def results(self, b: Builder, node: fx.Node, name: str, inside: Any, call: Call) -> Any:
        """An operator's results, written into a computation of its own."""
        (args, kwargs), out = inside, call.out
        if name in OPERATORS:
            before = len(b.instructions)
            try:
                return _checked(OPERATORS[name](call, *args, **kwargs), out, node)
            except Unmapped:
                del b.instructions[before:]
        return _checked(self.decomposed(b, node, args, kwargs), out, node)

    def decomposed(self, b: Builder, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """By torch's own decompositions to core ATen operators."""
        values = _values((args, kwargs))
        torch_dtypes = {short: dtype for dtype, short in DTYPES.items()}
        places = {v.name: i for i, v in enumerate(values)}
        target: Any = node.target
        decompositions: Any = core_aten_decompositions()

        def run(*tensors: torch.Tensor) -> Any:
            given, named = _mapped((args, kwargs), lambda v: tensors[places[v.name]])
            return target(*given, **named)

        if isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags:
            raise Unmapped("random numbers")
        examples = [torch.empty(v.dims, dtype=torch_dtypes[v.dtype]) for v in values]
        try:
            with torch.no_grad():
                taken_apart = make_fx(run, decompositions, tracing_mode="fake")(*examples)
                pure = torch.func.functionalize(taken_apart)  # decompositions may write in place
                graph = make_fx(pure, tracing_mode="fake")(*examples).graph
        except Exception as error:  # whatever a decomposition raises, it gives none
            raise Unmapped(str(error)[:200]) from error
        inputs = iter(values)
        made: dict[fx.Node, Any] = {}
        for inner in graph.nodes:
            if inner.op == "placeholder":
                made[inner] = next(inputs)
            elif inner.op == "output":
                result = inner.args[0]
                return made[result] if isinstance(result, fx.Node) else [made[r] for r in result]
            elif inner.op != "call_function":
                raise Unmapped(inner.op)
            elif inner.target is operator.getitem:
                made[inner] = made[inner.args[0]][inner.args[1]]
            else:
                made[inner] = self.plain(b, inner, made)
        raise Unmapped("no result")

    def plain(self, b: Builder, node: fx.Node, made: Mapping[fx.Node, Any]) -> Any:
        """An operator of a decomposition, written where its neighbours stand."""
        write = shaping.VIEWS.get(_name(node)) or OPERATORS.get(_name(node))
        if write is None:
            raise Unmapped(_name(node))
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: made[n])
        out = _shapes(node)
        return _checked(write(Call(b, out), *args, **kwargs), out, node)

    def custom_call(self, b: Builder, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target = str(node.target)
        self.unmapped.append(target)
        out = _shapes(node)
        several = isinstance(node.meta["val"], list | tuple)
        shape = TupleShape(out) if several else out[0]
        operands = [v.name for v in _values((args, kwargs))]
        name = b.append("custom-call", shape, operands, {"custom_call_target": f'"{target}"'})
        return b.elements(name, out) if several else Value(name, out[0].dtype, out[0].dims)


@dataclass(frozen=True)
class _Written:
    """An operator's computation: its one instruction where it has no more, else its name."""

    computation: str
    operator: str
    kind: str
    alone: tuple[str, tuple[tuple[str, str], ...], tuple[int, ...]] | None
    several: bool

    @staticmethod
    def of(module: ModuleBuilder, inner: Builder, operator: str, results: Any, several: bool) -> _Written:
        listed = results if several else [results]
        module.finish(inner, listed, as_tuple=several)
        computation = module.finished[-1]
        body = [i for i in computation.instructions if i.opcode != "parameter"]
        numbers = {i.name: int(i.literal) for i in computation.parameters}
        opcodes = {i.opcode for i in body}
        alone = None
        if not several and len(body) == 1 and all(o in numbers for o in body[0].operands):
            module.finished.pop()
            alone = (body[0].opcode, body[0].attributes, tuple(numbers[o] for o in body[0].operands))
        products = bool(opcodes & {"dot", "convolution"})
        sums = "reduce" in opcodes or "reduce-window" in opcodes
        if "while" in opcodes:
            return _Written(computation.name, operator, "", None, several)
        kind = "kCustom" if products and sums else "kOutput" if products else "kInput" if sums else "kLoop"
        return _Written(computation.name, operator, kind, alone, several)

    def use(self, b: Builder, operands: Sequence[Value], out: tuple[Shape, ...]) -> Any:
        if self.alone is not None:
            opcode, attributes, places = self.alone
            return b.emit(opcode, out[0].dtype, out[0].dims, [operands[i] for i in places], **dict(attributes))
        shape = TupleShape(out) if self.several else out[0]
        names = [v.name for v in operands]
        if self.kind:
            called = {"kind": self.kind, "calls": self.computation}
            name = b.append("fusion", shape, names, called, stem=self.operator)
        else:  # a loop is no fusion
            name = b.append("call", shape, names, {"to_apply": self.computation}, stem=self.operator)
        return b.elements(name, out) if self.several else Value(name, out[0].dtype, out[0].dims)


def _checked(results: Any, out: tuple[Shape, ...], node: fx.Node) -> Any:
    """The results, whose shapes must be those that torch states."""
    listed = results if isinstance(results, list) else [results]
    if [v.shape for v in listed] != list(out):
        raise AssertionError(
            f"{node.target}: wrote {[str(v.shape) for v in listed]}, torch states {list(map(str, out))}"
        )
    return results


def _values(tree: Any) -> list[Value]:
    """The arrays among arguments, each once."""
    found: dict[str, Value] = {}
    _mapped(tree, lambda v: found.setdefault(v.name, v))
    return list(found.values())


def _mapped(tree: Any, change: Callable[[Value], Any]) -> Any:
    if isinstance(tree, Value):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, Iterable) and not isinstance(tree, str | torch.Tensor | torch.Size):
        return type(tree)(_mapped(value, change) for value in tree) if isinstance(tree, tuple) else [
            _mapped(value, change) for value in tree]  # fmt: skip
    return tree
