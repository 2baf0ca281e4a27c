"""ATen's elementwise operators as HLO. Half precision is computed in f32 where an operator takes several steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from costmodel.aten.builder import Value
from costmodel.aten.call import Call, Unmapped, positive

UNARY = {
    "abs": "abs", "neg": "negate", "exp": "exponential", "log": "log", "sqrt": "sqrt", "rsqrt": "rsqrt", "sin": "sine",
    "cos": "cosine", "tan": "tan", "tanh": "tanh", "sigmoid": "logistic", "floor": "floor", "ceil": "ceil",
    "round": "round-nearest-even", "erf": "erf", "sign": "sign", "log1p": "log-plus-one",
    "expm1": "exponential-minus-one",
}  # fmt: skip
BINARY = {
    "mul": "multiply", "div": "divide", "maximum": "maximum", "minimum": "minimum", "pow": "power",
    "fmod": "remainder", "atan2": "atan2", "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor",
    "true_divide": "divide",
}  # fmt: skip
COMPARISONS = {"eq": "EQ", "ne": "NE", "lt": "LT", "le": "LE", "gt": "GT", "ge": "GE"}
_WIDER = ("pred", "u8", "s8", "s16", "s32", "s64", "f16", "bf16", "f32", "f64")


def unary(opcode: str) -> Callable[..., Value]:
    def write(c: Call, x: Value) -> Value:
        return c.b.unary(opcode, c.value(x, c.dtype))

    return write


def binary(opcode: str) -> Callable[..., Value]:
    def write(c: Call, x: Any, y: Any, *, rounding_mode: str | None = None) -> Value:
        result = c.b.binary(opcode, c.value(x, c.dtype), c.value(y, c.dtype))
        if rounding_mode is not None and c.dtype.startswith(("f", "bf")):
            if rounding_mode != "floor":
                raise Unmapped(rounding_mode)
            return c.b.unary("floor", result)
        if rounding_mode == "floor":  # of integers HLO's division goes towards zero
            raise Unmapped(rounding_mode)
        return result

    return write


def logical(opcode: str) -> Callable[..., Value]:
    def write(c: Call, x: Value, y: Value) -> Value:
        return c.b.binary(opcode, c.b.convert(x, "pred"), c.b.convert(y, "pred"))

    return write


def comparison(direction: str) -> Callable[..., Value]:
    def write(c: Call, x: Any, y: Any) -> Value:
        known = [v.dtype for v in (x, y) if isinstance(v, Value)]
        if not set(known) <= set(_WIDER):
            raise Unmapped("complex numbers")
        dtype = max(known, key=_WIDER.index)
        if isinstance(y, float) and not dtype.startswith(("f", "bf")):
            dtype = "f32"
        return c.b.compare(direction, c.value(x, dtype), c.value(y, dtype))

    return write


def scaled(opcode: str) -> Callable[..., Value]:
    """add and sub, whose second operand may be multiplied by `alpha`."""

    def write(c: Call, x: Any, y: Any, *, alpha: float = 1) -> Value:
        second = c.value(y, c.dtype)
        if alpha != 1:
            second = c.b.with_number("multiply", second, alpha)
        if c.dtype == "pred":
            return c.b.binary("or", c.value(x, "pred"), second)
        return c.b.binary(opcode, c.value(x, c.dtype), second)

    return write


def rsub(c: Call, x: Value, y: Any, *, alpha: float = 1) -> Value:
    return scaled("subtract")(c, y, x, alpha=alpha)


def power(c: Call, x: Any, y: Any) -> Value:
    if isinstance(x, Value) and y == 2:
        return square(c, x)
    if isinstance(x, Value) and y == 0.5:
        return c.b.unary("sqrt", c.value(x, c.dtype))
    if isinstance(x, Value) and y == 3:
        wide = c.value(x, c.dtype)
        return c.b.binary("multiply", c.b.binary("multiply", wide, wide), wide)
    return c.b.binary("power", c.value(x, c.dtype), c.value(y, c.dtype))


def square(c: Call, x: Value) -> Value:
    x = c.value(x, c.dtype)
    return c.b.binary("multiply", x, x)


def reciprocal(c: Call, x: Value) -> Value:
    return c.b.binary("divide", c.b.constant(1, c.dtype), c.value(x, c.dtype))


def logical_not(c: Call, x: Value) -> Value:
    return c.b.unary("not", c.b.convert(x, "pred"))


def bitwise_not(c: Call, x: Value) -> Value:
    return c.b.unary("not", x)


def where(c: Call, condition: Value, x: Any, y: Any) -> Value:
    return c.b.select(condition, c.value(x, c.dtype), c.value(y, c.dtype))


def masked_fill(c: Call, x: Value, mask: Value, value: Any) -> Value:
    return c.b.select(mask, c.value(value, c.dtype), x)


def clamp(c: Call, x: Value, low: Any = None, high: Any = None) -> Value:
    x = c.value(x, c.dtype)
    if low is not None:
        x = c.b.binary("maximum", x, c.value(low, c.dtype))
    return x if high is None else c.b.binary("minimum", x, c.value(high, c.dtype))


def relu(c: Call, x: Value) -> Value:
    return clamp(c, x, 0)


def relu6(c: Call, x: Value) -> Value:
    return clamp(c, x, 0, 6)


def hardtanh(c: Call, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return clamp(c, x, low, high)


def leaky_relu(c: Call, x: Value, slope: float = 0.01) -> Value:
    return c.b.select(c.b.compare("GT", x, c.b.constant(0, x.dtype)), x, c.b.with_number("multiply", x, slope))


def elu(c: Call, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    wide = c.b.wide(x)
    inner = wide if input_scale == 1 else c.b.with_number("multiply", wide, input_scale)
    negative = c.b.unary("exponential-minus-one", inner)
    if alpha != 1:
        negative = c.b.with_number("multiply", negative, alpha)
    result = c.b.select(c.b.compare("GT", wide, c.b.constant(0, wide.dtype)), wide, negative)
    return c.done(result if scale == 1 else c.b.with_number("multiply", result, scale))


def selu(c: Call, x: Value) -> Value:
    return elu(c, x, 1.6732632423543772, 1.0507009873554805)


def gelu(c: Call, x: Value, *, approximate: str = "none") -> Value:
    b, wide = c.b, c.b.wide(x)
    if approximate == "tanh":
        cube = b.binary("multiply", b.binary("multiply", wide, wide), wide)
        inner = b.binary("add", wide, b.with_number("multiply", cube, 0.044715))
        bent = b.unary("tanh", b.with_number("multiply", inner, math.sqrt(2 / math.pi)))
    else:
        bent = b.unary("erf", b.with_number("multiply", wide, math.sqrt(0.5)))
    half = b.with_number("multiply", wide, 0.5)
    return c.done(b.binary("multiply", half, b.with_number("add", bent, 1)))


def silu(c: Call, x: Value) -> Value:
    wide = c.b.wide(x)
    return c.done(c.b.binary("multiply", wide, c.b.unary("logistic", wide)))


def softplus(c: Call, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    b, wide = c.b, c.b.wide(x)
    scaled_x = wide if beta == 1 else b.with_number("multiply", wide, beta)
    soft = b.unary("log-plus-one", b.unary("exponential", scaled_x))
    soft = soft if beta == 1 else b.with_number("divide", soft, beta)
    return c.done(b.select(b.compare("GT", scaled_x, b.constant(threshold, wide.dtype)), wide, soft))


def log_sigmoid(c: Call, x: Value) -> Value:
    b, wide = c.b, c.b.wide(x)
    tail = b.unary("log-plus-one", b.unary("exponential", b.unary("negate", b.unary("abs", wide))))
    return c.done(b.binary("subtract", b.with_number("minimum", wide, 0), tail))


def mish(c: Call, x: Value) -> Value:
    b, wide = c.b, c.b.wide(x)
    soft = b.unary("log-plus-one", b.unary("exponential", wide))
    return c.done(b.binary("multiply", wide, b.unary("tanh", soft)))


def hardsigmoid(c: Call, x: Value) -> Value:
    b, wide = c.b, c.b.wide(x)
    shifted = b.with_number("minimum", b.with_number("maximum", b.with_number("add", wide, 3), 0), 6)
    return c.done(b.with_number("divide", shifted, 6))


def hardswish(c: Call, x: Value) -> Value:
    b, wide = c.b, c.b.wide(x)
    shifted = b.with_number("minimum", b.with_number("maximum", b.with_number("add", wide, 3), 0), 6)
    return c.done(b.with_number("divide", b.binary("multiply", wide, shifted), 6))


def glu(c: Call, x: Value, dim: int = -1) -> Value:
    at = positive(dim, x.rank)
    half = x.dims[at] // 2
    gate = c.b.slice(x, at, half, 2 * half)
    return c.b.binary("multiply", c.b.slice(x, at, 0, half), c.b.unary("logistic", gate))


def addcmul(c: Call, x: Value, y: Value, z: Value, *, value: float = 1) -> Value:
    product = c.b.binary("multiply", y, z)
    return c.b.binary("add", x, product if value == 1 else c.b.with_number("multiply", product, value))


def lerp(c: Call, x: Value, end: Value, weight: Any) -> Value:
    return c.b.binary("add", x, c.b.binary("multiply", c.value(weight, c.dtype), c.b.binary("subtract", end, x)))


OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: unary(opcode) for name, opcode in UNARY.items()},
    **{name: binary(opcode) for name, opcode in BINARY.items()},
    **{name: comparison(direction) for name, direction in COMPARISONS.items()},
    "logical_and": logical("and"), "logical_or": logical("or"), "logical_xor": logical("xor"),
    "__and__": binary("and"), "__or__": binary("or"),
    "add": scaled("add"), "sub": scaled("subtract"), "rsub": rsub, "pow": power, "square": square,
    "reciprocal": reciprocal, "logical_not": logical_not, "bitwise_not": bitwise_not, "where": where,
    "masked_fill": masked_fill, "clamp": clamp, "clamp_min": clamp, "relu": relu, "relu6": relu6,
    "hardtanh": hardtanh, "leaky_relu": leaky_relu, "elu": elu, "selu": selu, "gelu": gelu, "silu": silu,
    "softplus": softplus, "log_sigmoid": log_sigmoid, "mish": mish, "hardsigmoid": hardsigmoid,
    "hardswish": hardswish, "glu": glu, "addcmul": addcmul, "lerp": lerp,
}  # fmt: skip
