"""torch's recurrent layers (nn.RNN, nn.GRU, nn.LSTM) as HLO: a product over all of time for the inputs, then a loop
over the steps, once for each layer and direction. Gates stand in torch's order: r z n of a GRU, i f g o of an LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from costmodel.aten.builder import Builder, Value
from costmodel.aten.call import Call, Unmapped
from costmodel.graph import TupleShape


def layer(kind: str) -> Callable[..., list[Value]]:
    """lstm.input, gru.input, rnn_tanh.input and rnn_relu.input; the packed forms are left to a custom call."""

    def write(
        c: Call, x: Value, begin: Any, weights: Sequence[Value], has_biases: bool, layers: int, dropout: float,
        train: bool, both: bool, batch_first: bool,
    ) -> list[Value]:  # fmt: skip
        b = c.b
        if not isinstance(has_biases, bool) or (train and dropout):
            raise Unmapped("packed sequences or dropout")
        states = list(begin) if kind == "lstm" else [begin]
        directions, per = 1 + both, 4 if has_biases else 2
        if len(weights) != per * layers * directions or x.rank != 3:
            raise Unmapped("projections")
        x = b.transpose(x, [1, 0, 2]) if batch_first else x
        ends: list[list[Value]] = []
        for level in range(layers):
            ways = []
            for way in range(directions):
                number = level * directions + way
                own = weights[per * number : per * (number + 1)]
                first = [b.reshape(b.slice(s, 0, number, number + 1), s.dims[1:]) for s in states]
                outputs, *last = _over_time(b, kind, x, first, own, backwards=way == 1)
                ways.append(outputs)
                ends.append(last)
            x = b.concatenate(ways, 2)
        finals = [_stacked(b, [end[i] for end in ends]) for i in range(len(states))]
        return [b.transpose(x, [1, 0, 2]) if batch_first else x, *finals]

    return write


def _stacked(b: Builder, values: Sequence[Value]) -> Value:
    return b.concatenate([b.reshape(v, (1, *v.dims)) for v in values], 0)


def _over_time(
    b: Builder, kind: str, x: Value, first: Sequence[Value], weights: Sequence[Value], *, backwards: bool
) -> list[Value]:
    """x: (time, batch, features). The outputs of every step, and the last states."""
    length, batch, _ = x.dims
    from_x, from_h, *biases = weights
    gates = b.dot(x, from_x, batch=0, contract=(2, 1))
    gates = b.binary("add", gates, biases[0]) if biases else gates
    width = first[0].dims[-1]
    outputs = b.full(0, x.dtype, (length, batch, width))
    fixed = [gates, from_h, *biases[1:]]
    carried = [b.constant(0, "s32"), outputs, *first, *fixed]
    shape = TupleShape(tuple(v.shape for v in carried))
    begin = b.append("tuple", shape, [v.name for v in carried])
    called = {
        "condition": _condition(b, shape, length),
        "body": _body(b, kind, shape, len(first), length, backwards=backwards),
        "backend_config": f'{{"known_trip_count":{{"n":"{length}"}}}}',
    }
    loop = b.append("while", shape, [begin], called)
    return b.elements(loop, [v.shape for v in carried])[1 : 2 + len(first)]


def _condition(b: Builder, shape: TupleShape, length: int) -> str:
    key = ("condition", shape, length)
    if key not in b.module.by_key:
        inner = b.module.computation("unfinished")
        state = inner.append("parameter", shape, literal="0", stem="state")
        step = inner.emit_of(state, 0, next(shape.leaves()))
        inner.num_parameters = 1
        done = inner.compare("LT", step, inner.constant(length, "s32"))
        b.module.by_key[key] = b.module.finish(inner, [done], as_tuple=False)
    return b.module.by_key[key]


def _body(b: Builder, kind: str, shape: TupleShape, states: int, length: int, *, backwards: bool) -> str:
    key = (kind, shape, states, length, backwards)
    if key not in b.module.by_key:
        inner = b.module.computation(f"{kind}_step")
        state = inner.append("parameter", shape, literal="0", stem="state")
        inner.num_parameters = 1
        step, outputs, *rest = inner.elements(state, list(shape.leaves()))
        before, (gates, from_h, *bias) = rest[:states], rest[states:]
        at = inner.binary("subtract", inner.constant(length - 1, "s32"), step) if backwards else step
        zero = inner.constant(0, "s32")
        _, batch, wide = gates.dims
        sizes = f"{{1,{batch},{wide}}}"
        now = inner.emit(
            "dynamic-slice", gates.dtype, (1, batch, wide), [gates, at, zero, zero], dynamic_slice_sizes=sizes
        )
        memory = inner.dot(before[0], from_h, batch=0, contract=(1, 1))
        memory = inner.binary("add", memory, bias[0]) if bias else memory
        after = _CELLS[kind](inner, inner.reshape(now, (batch, wide)), memory, before)
        row = inner.reshape(after[0], (1, *after[0].dims))
        outputs = inner.emit("dynamic-update-slice", outputs.dtype, outputs.dims, [outputs, row, at, zero, zero])
        one = inner.with_number("add", step, 1)
        b.module.by_key[key] = b.module.finish(inner, [one, outputs, *after, gates, from_h, *bias], as_tuple=True)
    return b.module.by_key[key]


def _parts(b: Builder, x: Value, count: int) -> list[Value]:
    width = x.dims[1] // count
    return [b.slice(x, 1, i * width, (i + 1) * width) for i in range(count)]


def _plain(opcode: str) -> Callable[..., list[Value]]:
    def step(b: Builder, x: Value, memory: Value, before: Sequence[Value]) -> list[Value]:
        total = b.binary("add", x, memory)
        return [b.with_number("maximum", total, 0) if opcode == "relu" else b.unary("tanh", total)]

    return step


def _gru(b: Builder, x: Value, memory: Value, before: Sequence[Value]) -> list[Value]:
    (xr, xz, xn), (hr, hz, hn) = _parts(b, x, 3), _parts(b, memory, 3)
    reset, update = b.unary("logistic", b.binary("add", xr, hr)), b.unary("logistic", b.binary("add", xz, hz))
    new = b.unary("tanh", b.binary("add", xn, b.binary("multiply", reset, hn)))
    return [b.binary("add", new, b.binary("multiply", update, b.binary("subtract", before[0], new)))]


def _lstm(b: Builder, x: Value, memory: Value, before: Sequence[Value]) -> list[Value]:
    i, f, g, o = _parts(b, b.binary("add", x, memory), 4)
    kept = b.binary("multiply", b.unary("logistic", f), before[1])
    cell = b.binary("add", kept, b.binary("multiply", b.unary("logistic", i), b.unary("tanh", g)))
    return [b.binary("multiply", b.unary("logistic", o), b.unary("tanh", cell)), cell]


_CELLS: dict[str, Callable[..., list[Value]]] = {
    "rnn_tanh": _plain("tanh"), "rnn_relu": _plain("relu"), "gru": _gru, "lstm": _lstm,
}  # fmt: skip
OPERATORS: dict[str, Callable[..., Any]] = {kind: layer(kind) for kind in _CELLS}
