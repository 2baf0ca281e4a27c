"""ATen's reductions, softmaxes, normalisations, pools and scans as HLO. Sums of half precision are kept in f32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from costmodel.aten.builder import Builder, Value
from costmodel.aten.call import Call, Unmapped, dims_of, positive, several


def reduction(opcode: str) -> Callable[..., Value]:
    """sum, prod, amax, amin, all, any: over the dimensions given, or over all."""

    def write(c: Call, x: Value, over: Any = None, keepdim: bool = False, **options: Any) -> Value:
        x = c.b.convert(x, c.dtype)
        x = c.b.wide(x) if opcode in ("add", "multiply") else x
        return c.done(c.b.reduce(opcode, x, dims_of(over, x.rank), keep=keepdim))

    return write


def mean(c: Call, x: Value, over: Any = None, keepdim: bool = False, **options: Any) -> Value:
    x = c.b.wide(c.b.convert(x, c.dtype))
    return c.done(c.b.mean(x, dims_of(over, x.rank), keep=keepdim))


def variance(c: Call, x: Value, over: Any = None, unbiased: Any = None, keepdim: bool = False, **options: Any) -> Value:
    """var and std differ by a root, see `deviation`."""
    correction = options.get("correction", 1 if unbiased is None else int(unbiased))
    keepdim = options.get("keepdim", keepdim)
    b, over = c.b, dims_of(over if not isinstance(over, bool) else None, x.rank)
    centred = b.binary("subtract", b.wide(x), b.mean(b.wide(x), over, keep=True))
    total = b.reduce("add", b.binary("multiply", centred, centred), over, keep=keepdim)
    count = math.prod(x.dims[i] for i in over) - (1 if correction is None else correction)
    return c.done(b.with_number("divide", total, float(count)))


def deviation(c: Call, x: Value, *rest: Any, **options: Any) -> Value:
    return c.b.unary("sqrt", variance(c, x, *rest, **options))


def norm(c: Call, x: Value, order: float = 2, over: Any = None, keepdim: bool = False, **options: Any) -> Value:
    b, wide = c.b, c.b.wide(x)
    if order == 1:
        return c.done(b.reduce("add", b.unary("abs", wide), dims_of(over, x.rank), keep=keepdim))
    if order != 2:
        raise Unmapped(f"norm {order}")
    return c.done(
        b.unary("sqrt", b.reduce("add", b.binary("multiply", wide, wide), dims_of(over, x.rank), keep=keepdim))
    )


def logsumexp(c: Call, x: Value, over: Any, keepdim: bool = False) -> Value:
    b, wide, dims = c.b, c.b.wide(x), dims_of(over, x.rank)
    top = b.reduce("maximum", wide, dims, keep=True)
    total = b.reduce("add", b.unary("exponential", b.binary("subtract", wide, top)), dims, keep=True)
    return c.done(b.reshape(b.binary("add", b.unary("log", total), top), c.dims))


def softmax_of(b: Builder, x: Value, dim: int) -> Value:
    shifted = b.binary("subtract", x, b.reduce("maximum", x, [dim], keep=True))
    powers = b.unary("exponential", shifted)
    return b.binary("divide", powers, b.reduce("add", powers, [dim], keep=True))


def softmax(c: Call, x: Value, dim: int, *rest: Any, **options: Any) -> Value:
    return c.done(softmax_of(c.b, c.b.wide(x), positive(dim, x.rank)))


def log_softmax(c: Call, x: Value, dim: int, *rest: Any, **options: Any) -> Value:
    b, wide, at = c.b, c.b.wide(x), positive(dim, x.rank)
    shifted = b.binary("subtract", wide, b.reduce("maximum", wide, [at], keep=True))
    total = b.reduce("add", b.unary("exponential", shifted), [at], keep=True)
    return c.done(b.binary("subtract", shifted, b.unary("log", total)))


def best(opcode: str, index_only: bool) -> Callable[..., Any]:
    """max and min (all, or of two arrays, or with their places along a dimension), argmax and argmin."""

    def write(c: Call, x: Value, other: Any = None, keepdim: bool = False) -> Any:
        b = c.b
        if isinstance(other, Value):
            return b.binary(opcode, b.convert(x, c.dtype), b.convert(other, c.dtype))
        if other is None:
            flat = b.reshape(x, [math.prod(x.dims)])
            return best_at(c, flat, 0) if index_only else b.reduce(opcode, x, list(range(x.rank)))
        dim = positive(other, x.rank)
        if index_only:
            return best_at(c, x, dim)
        return [b.reduce(opcode, x, [dim], keep=keepdim), best_at(c, x, dim)]

    def best_at(c: Call, x: Value, dim: int) -> Value:
        """The first place of the best value: the least index at which it stands."""
        b = c.b
        top = b.reduce(opcode, x, [dim], keep=True)
        places = b.iota("s32", x.dims, dim)
        here = b.select(b.compare("EQ", x, top), places, b.constant(x.dims[dim], "s32"))
        index = c.out[-1]
        return b.convert(b.reshape(b.reduce("minimum", here, [dim]), index.dims), index.dtype)

    return write


def cumulative(opcode: str) -> Callable[..., Value]:
    """cumsum and cumprod in log2(length) steps, each adding what is twice as far before (Hillis and Steele, 1986)."""

    def write(c: Call, x: Value, dim: int, **options: Any) -> Value:
        b, x, at = c.b, c.b.wide(c.b.convert(x, c.dtype)), positive(dim, x.rank)
        length, step = x.dims[at], 1
        while step < length:
            low = [step if i == at else 0 for i in range(x.rank)]
            moved = b.pad(b.slice(x, at, 0, length - step), low, [0] * x.rank, 0 if opcode == "add" else 1)
            x, step = b.binary(opcode, x, moved), 2 * step
        return c.done(x)

    return write


# ----------------------------------------------------------------------------------------------------- normalisation


def layer_norm(
    c: Call, x: Value, sizes: Sequence[int], weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5,
    *rest: Any,
) -> Value:  # fmt: skip
    over = list(range(x.rank - len(sizes), x.rank))
    return c.done(_affine(c.b, _normalised(c.b, c.b.wide(x), over, eps), weight, bias))


def rms_norm(c: Call, x: Value, sizes: Sequence[int], weight: Value | None = None, eps: float | None = None) -> Value:
    b, wide = c.b, c.b.wide(x)
    over = list(range(x.rank - len(sizes), x.rank))
    power = b.mean(b.binary("multiply", wide, wide), over, keep=True)
    root = b.unary("rsqrt", b.with_number("add", power, 1.1920928955078125e-07 if eps is None else eps))
    return c.done(_affine(b, b.binary("multiply", wide, root), weight, None))


def group_norm(
    c: Call,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Value:
    b = c.b
    parts = b.reshape(b.wide(x), (x.dims[0], groups, x.dims[1] // groups, *x.dims[2:]))
    y = b.reshape(_normalised(b, parts, list(range(2, parts.rank)), eps), x.dims)
    return c.done(_affine(b, y, *_per_channel(b, x.rank, weight, bias)))


def batch_norm(
    c: Call, x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None, training: bool,
    momentum: float, eps: float, *rest: Any,
) -> Value:  # fmt: skip
    b = c.b
    if training or mean is None or var is None:
        raise Unmapped("statistics of the batch")
    centre, spread = (b.reshape(b.wide(v), (v.dims[0], *(1,) * (x.rank - 2))) for v in (mean, var))
    y = b.binary("subtract", b.wide(x), centre)
    y = b.binary("multiply", y, b.unary("rsqrt", b.with_number("add", spread, eps)))
    return c.done(_affine(b, y, *_per_channel(b, x.rank, weight, bias)))


def native_batch_norm(
    c: Call, x: Value, weight: Value | None, bias: Value | None, mean: Value, var: Value, momentum: float, eps: float
) -> list[Value]:
    """With the statistics given; the two empty results are those of training."""
    y = batch_norm(c, x, weight, bias, mean, var, False, momentum, eps)
    return [y, *(c.b.full(0, shape.dtype, shape.dims) for shape in c.out[1:])]


def _normalised(b: Builder, x: Value, over: Sequence[int], eps: float) -> Value:
    centred = b.binary("subtract", x, b.mean(x, over, keep=True))
    power = b.mean(b.binary("multiply", centred, centred), over, keep=True)
    return b.binary("multiply", centred, b.unary("rsqrt", b.with_number("add", power, eps)))


def _affine(b: Builder, x: Value, weight: Value | None, bias: Value | None) -> Value:
    x = x if weight is None else b.binary("multiply", x, b.convert(weight, x.dtype))
    return x if bias is None else b.binary("add", x, b.convert(bias, x.dtype))


def _per_channel(b: Builder, rank: int, *values: Value | None) -> list[Value | None]:
    """Of dimension 1, so that they spread over the rest."""
    return [v if v is None else b.reshape(v, (v.dims[0], *(1,) * (rank - 2))) for v in values]


# ------------------------------------------------------------------------------------------------------------- pools


def max_pool(
    c: Call, x: Value, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Value:
    return _pool(c, "maximum", x, size, stride, padding, several(dilation, len(several(size, c_rank(c)))))


def average_pool(
    c: Call, x: Value, size: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor: int | None = None,
) -> Value:  # fmt: skip
    space = c_rank(c)
    if not count_include_pad and any(several(padding, space)):
        raise Unmapped("padding that does not count")
    total = _pool(c, "add", c.b.wide(x), size, stride, padding, [1] * space)
    return c.done(c.b.with_number("divide", total, divisor or math.prod(several(size, space))))


def adaptive_average_pool(c: Call, x: Value, size: Any) -> Value:
    space = c_rank(c)
    taken, wanted = x.dims[-space:], c.dims[-space:]
    if any(a % b for a, b in zip(taken, wanted, strict=True)):
        raise Unmapped("windows of several sizes")
    windows = [a // b for a, b in zip(taken, wanted, strict=True)]
    if all(n == 1 for n in wanted):
        return c.done(c.b.mean(c.b.wide(x), list(range(x.rank - space, x.rank)), keep=True))
    return average_pool(c, x, windows, windows)


def c_rank(c: Call) -> int:
    """Dimensions of space: of (batch, channels, space...)."""
    return len(c.dims) - 2


def _pool(c: Call, opcode: str, x: Value, size: Any, stride: Any, padding: Any, dilations: Sequence[int]) -> Value:
    space = c_rank(c)
    sizes, pads = several(size, space), several(padding, space)
    strides = several(stride, space) if stride not in ((), []) else sizes
    window = {"size": "1x1x" + "x".join(map(str, sizes)), "stride": "1x1x" + "x".join(map(str, strides))}
    highs = []
    for i, wanted in enumerate(c.dims[2:]):  # what ceil_mode adds at the end
        reach = (wanted - 1) * strides[i] + dilations[i] * (sizes[i] - 1) + 1
        highs.append(max(pads[i], reach - x.dims[2 + i] - pads[i]))
    if any(pads) or any(highs):
        window["pad"] = "0_0x0_0x" + "x".join(f"{p}_{h}" for p, h in zip(pads, highs, strict=True))
    if any(d != 1 for d in dilations):
        window["rhs_dilate"] = "1x1x" + "x".join(map(str, dilations))
    return c.b.reduce_window(opcode, x, window, c.dims)


OPERATORS: dict[str, Callable[..., Any]] = {
    "sum": reduction("add"), "prod": reduction("multiply"), "amax": reduction("maximum"),
    "amin": reduction("minimum"), "all": reduction("and"), "any": reduction("or"), "mean": mean, "var": variance,
    "std": deviation, "linalg_vector_norm": norm, "norm": norm, "logsumexp": logsumexp, "softmax": softmax,
    "_softmax": softmax, "log_softmax": log_softmax, "_log_softmax": log_softmax, "max": best("maximum", False),
    "min": best("minimum", False), "argmax": best("maximum", True), "argmin": best("minimum", True),
    "cumsum": cumulative("add"), "cumprod": cumulative("multiply"), "layer_norm": layer_norm, "rms_norm": rms_norm,
    "group_norm": group_norm, "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": native_batch_norm, "max_pool1d": max_pool, "max_pool2d": max_pool,
    "avg_pool1d": average_pool, "avg_pool2d": average_pool, "adaptive_avg_pool1d": adaptive_average_pool,
    "adaptive_avg_pool2d": adaptive_average_pool,
}  # fmt: skip
