"""ATen's operators that only move, repeat or make values, as HLO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from costmodel.aten.builder import Value
from costmodel.aten.call import Call, Unmapped, positive


def reshape(c: Call, x: Value, *sizes: Any) -> Value:
    """Whatever the arguments say, the result's shape is known. A copy is made where strides allow no view."""
    return c.b.reshape(c.b.unary("copy", x) if c.copies else x, c.dims)


def same(c: Call, x: Value, *rest: Any, **options: Any) -> Value:
    """to, contiguous, detach: another type, a copy, or nothing."""
    if x.dtype != c.dtype:
        return c.b.convert(x, c.dtype)
    return c.b.unary("copy", x) if c.copies else x


def dropout(c: Call, x: Value, share: float, train: bool) -> Value:
    if train and share:
        raise Unmapped("random numbers")
    return x


def clone(c: Call, x: Value, **options: Any) -> Value:
    return c.b.unary("copy", x)


def expand(c: Call, x: Value, *sizes: Any, **options: Any) -> Value:
    return c.b.expand(x, c.dims)


def permute(c: Call, x: Value, order: Sequence[int]) -> Value:
    return c.b.transpose(x, [positive(d, x.rank) for d in order])


def transpose(c: Call, x: Value, first: int = 0, second: int = 1) -> Value:
    if x.rank < 2:
        return x
    order = list(range(x.rank))
    first, second = positive(first, x.rank), positive(second, x.rank)
    order[first], order[second] = order[second], order[first]
    return c.b.transpose(x, order)


def movedim(c: Call, x: Value, source: Any, target: Any) -> Value:
    sources, targets = ([v] if isinstance(v, int) else list(v) for v in (source, target))
    places = {positive(t, x.rank): positive(s, x.rank) for s, t in zip(sources, targets, strict=True)}
    others = iter(d for d in range(x.rank) if d not in places.values())
    return c.b.transpose(x, [places[d] if d in places else next(others) for d in range(x.rank)])


def slice_(c: Call, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
    dim = positive(dim, x.rank)
    begin, stop, _ = slice(start, end).indices(x.dims[dim])
    return c.b.slice(x, dim, begin, max(begin, stop), step)


def narrow(c: Call, x: Value, dim: int, start: int, length: int) -> Value:
    return slice_(c, x, dim, start, start + length)


def select(c: Call, x: Value, dim: int, index: int) -> Value:
    dim = positive(dim, x.rank)
    index = positive(index, x.dims[dim])
    return c.b.reshape(c.b.slice(x, dim, index, index + 1), c.dims)


def pieces(c: Call, x: Value, given: Any, dim: int = 0) -> list[Value]:
    """split, split_with_sizes, chunk: the results' shapes say where to cut."""
    dim, start, found = positive(dim, x.rank), 0, []
    for shape in c.out:
        found.append(c.b.slice(x, dim, start, start + shape.dims[dim]))
        start += shape.dims[dim]
    return found


def unbind(c: Call, x: Value, dim: int = 0) -> list[Value]:
    dim = positive(dim, x.rank)
    return [c.b.reshape(c.b.slice(x, dim, i, i + 1), c.dims) for i in range(x.dims[dim])]


# ------------------------------------------------------------------------------------------------------------ copies


def cat(c: Call, values: Sequence[Value], dim: int = 0) -> Value:
    filled = [c.b.convert(v, c.dtype) for v in values if v.dims != (0,)]
    return c.b.concatenate(filled, positive(dim, filled[0].rank))


def stack(c: Call, values: Sequence[Value], dim: int = 0) -> Value:
    dim = positive(dim, values[0].rank + 1)
    parts = [c.b.reshape(c.b.convert(v, c.dtype), (*v.dims[:dim], 1, *v.dims[dim:])) for v in values]
    return c.b.concatenate(parts, dim)


def repeat(c: Call, x: Value, times: Sequence[int]) -> Value:
    x = c.b.reshape(x, (1,) * (len(times) - x.rank) + x.dims)
    dims = [size for pair in zip(times, x.dims, strict=True) for size in pair]
    return c.b.reshape(c.b.broadcast(x, dims, range(1, 2 * x.rank, 2)), c.dims)


def repeat_interleave(c: Call, x: Value, times: int, dim: int | None = None, **options: Any) -> Value:
    if not isinstance(times, int):
        raise Unmapped("by a tensor")
    x = c.b.reshape(x, [math.prod(x.dims)]) if dim is None else x
    at = positive(dim or 0, x.rank)
    dims = [*x.dims[: at + 1], times, *x.dims[at + 1 :]]
    return c.b.reshape(c.b.broadcast(x, dims, [i for i in range(len(dims)) if i != at + 1]), c.dims)


def flip(c: Call, x: Value, over: Sequence[int]) -> Value:
    numbers = ",".join(str(positive(d, x.rank)) for d in over)
    return c.b.emit("reverse", x.dtype, x.dims, [x], dimensions="{" + numbers + "}")


def roll(c: Call, x: Value, shifts: Sequence[int], over: Sequence[int] = ()) -> Value:
    if not over:
        raise Unmapped("flat roll")
    shifts = [shifts] if isinstance(shifts, int) else shifts
    for shift, dim in zip(shifts, [over] if isinstance(over, int) else over, strict=True):
        at = positive(dim, x.rank)
        cut = -shift % x.dims[at]
        if cut:
            x = c.b.concatenate([c.b.slice(x, at, cut, x.dims[at]), c.b.slice(x, at, 0, cut)], at)
    return x


def pad(c: Call, x: Value, sizes: Sequence[int], mode: Any = "constant", value: float | None = None) -> Value:
    """sizes: low and high of the last dimension, then of the one before it, ..."""
    if isinstance(mode, int | float):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    if mode != "constant":
        raise Unmapped(mode)
    low, high = [0] * x.rank, [0] * x.rank
    for i in range(len(sizes) // 2):
        low[x.rank - 1 - i], high[x.rank - 1 - i] = sizes[2 * i], sizes[2 * i + 1]
    return c.b.pad(x, low, high, value or 0)


def pixel_shuffle(c: Call, x: Value, factor: int) -> Value:
    *batch, channels, height, width = x.dims
    n = len(batch)
    x = c.b.reshape(x, (*batch, channels // factor**2, factor, factor, height, width))
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return c.b.reshape(c.b.transpose(x, order), c.dims)


# ------------------------------------------------------------------------------------------------------------ makers


def filled(value: float) -> Callable[..., Value]:
    def write(c: Call, *rest: Any, **options: Any) -> Value:
        return c.b.full(value, c.dtype, c.dims)

    return write


def full(c: Call, like: Any, *rest: Any, **options: Any) -> Value:
    """full, full_like, new_full, scalar_tensor: the last positional argument is the value."""
    return c.b.full([like, *rest][-1], c.dtype, c.dims)


def arange(c: Call, *bounds: Any, **options: Any) -> Value:
    start, _, step = [*(bounds if len(bounds) > 1 else (0, *bounds)), 1][:3]
    x = c.b.iota(c.dtype, c.dims, 0)
    x = x if step == 1 else c.b.with_number("multiply", x, step)
    return x if start == 0 else c.b.with_number("add", x, start)


def triangle(direction: str) -> Callable[..., Value]:
    """tril (column <= row + k) and triu (column >= row + k)."""

    def write(c: Call, x: Value, diagonal: int = 0) -> Value:
        rows, columns = (c.b.iota("s32", x.dims[-2:], i) for i in (0, 1))
        rows = rows if diagonal == 0 else c.b.with_number("add", rows, diagonal)
        return c.b.select(c.b.compare(direction, columns, rows), x, c.b.constant(0, x.dtype))

    return write


# What makes no new array in eager torch (where `copies` is false): written as it is, not as a fusion.
VIEWS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as"),
        reshape,
    ),
    **dict.fromkeys(("to", "_to_copy", "contiguous", "detach", "alias", "type_as", "lift_fresh_copy", "float",
                     "lift_fresh", "detach_"), same),
    **dict.fromkeys(("dropout", "feature_dropout"), dropout),
    "clone": clone, "expand": expand, "expand_as": expand, "broadcast_to": expand, "permute": permute,
    "transpose": transpose, "t": transpose, "numpy_T": transpose, "movedim": movedim, "slice": slice_,
    "narrow": narrow, "select": select, "split": pieces, "split_with_sizes": pieces, "chunk": pieces,
    "unbind": unbind, "swapaxes": transpose,
}  # fmt: skip

OPERATORS: dict[str, Callable[..., Any]] = {
    "cat": cat, "concat": cat, "stack": stack, "repeat": repeat, "repeat_interleave": repeat_interleave, "flip": flip,
    "roll": roll, "pad": pad, "constant_pad_nd": pad, "pixel_shuffle": pixel_shuffle,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), filled(0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), filled(1)),
    **dict.fromkeys(("full", "full_like", "new_full", "scalar_tensor"), full),
    "arange": arange, "tril": triangle("LE"), "triu": triangle("GE"),
}  # fmt: skip
