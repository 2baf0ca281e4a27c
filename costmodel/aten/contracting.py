"""ATen's products and convolutions, and attention, as HLO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from costmodel.aten.builder import Value
from costmodel.aten.call import Call, Unmapped, several
from costmodel.aten.reducing import softmax_of

_SPACE = "0123"


def linear(c: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    y = c.b.dot(x, weight, batch=0, contract=(x.rank - 1, 1))
    return y if bias is None else c.b.binary("add", y, bias)


def mm(c: Call, x: Value, y: Value) -> Value:
    return c.b.dot(x, y, batch=0, contract=(x.rank - 1, 0))


def bmm(c: Call, x: Value, y: Value) -> Value:
    return c.b.dot(x, y, batch=1, contract=(2, 1))


def addmm(c: Call, bias: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    product = mm(c, x, y) if x.rank == 2 else bmm(c, x, y)
    product = product if alpha == 1 else c.b.with_number("multiply", product, alpha)
    return c.b.binary("add", product, bias if beta == 1 else c.b.with_number("multiply", bias, beta))


def matmul(c: Call, x: Value, y: Value) -> Value:
    """By the rules of NumPy: batch dimensions are broadcast."""
    b = c.b
    if y.rank <= 2:
        return b.dot(x, y, batch=0, contract=(x.rank - 1, 0))
    if x.rank == 1:
        raise Unmapped("a vector by a batch of matrices")
    batch = c.dims[:-2]
    x, y = b.expand(x, (*batch, *x.dims[-2:])), b.expand(y, (*batch, *y.dims[-2:]))
    return b.dot(x, y, batch=len(batch), contract=(len(batch) + 1, len(batch)))


# ------------------------------------------------------------------------------------------------------- convolution


def convolution(rank: int | None) -> Callable[..., Value]:
    """conv1d, conv2d, conv3d; `convolution`, which also says whether it is transposed, where rank is None."""

    def write(
        c: Call, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, *rest: Any,
    ) -> Value:  # fmt: skip
        groups = rest[-1] if rest else 1
        if rank is None and rest[0]:
            return transposed(c, x, weight, bias, stride, padding, rest[1], groups, dilation)
        space = weight.rank - 2
        batched = x.rank == weight.rank
        x = x if batched else c.b.reshape(x, (1, *x.dims))
        strides, dilations = several(stride, space), several(dilation, space)
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilations, weight.dims[2:], strict=True)]
            pads = [(total // 2, total - total // 2) for total in totals]
        else:
            pads = [(p, p) for p in several(0 if padding == "valid" else padding, space)]
        y = _convolve(c, x, weight, pads, groups, stride=strides, rhs_dilate=dilations)
        return c.b.reshape(_with_bias(c, y, bias), c.dims)

    return write


def transposed(
    c: Call, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    """A convolution of the input spread out by its stride with the kernel turned round."""
    space = weight.rank - 2
    if groups != 1 or x.rank != weight.rank:
        raise Unmapped("grouped transposed convolution")
    strides, dilations = several(stride, space), several(dilation, space)
    numbers = zip(dilations, weight.dims[2:], several(padding, space), several(output_padding, space), strict=True)
    pads = [(d * (k - 1) - p, d * (k - 1) - p + extra) for d, k, p, extra in numbers]
    axes = ",".join(str(i + 2) for i in range(space))
    turned = c.b.emit("reverse", weight.dtype, weight.dims, [weight], dimensions="{" + axes + "}")
    turned = c.b.transpose(turned, [1, 0, *range(2, weight.rank)])
    y = _convolve(c, x, turned, pads, 1, lhs_dilate=strides, rhs_dilate=dilations)
    return _with_bias(c, y, bias)


def _convolve(
    c: Call, x: Value, weight: Value, pads: Sequence[tuple[int, int]], groups: int, **steps: Sequence[int]
) -> Value:
    """x: (batch, feature, space...), weight: (feature out, feature in, space...)."""
    space = weight.rank - 2
    window = ["size=" + "x".join(map(str, weight.dims[2:]))]
    if any(n != 1 for n in steps.get("stride", [])):
        window.append("stride=" + "x".join(map(str, steps["stride"])))
    if any(low or high for low, high in pads):
        window.append("pad=" + "x".join(f"{low}_{high}" for low, high in pads))
    window += [
        f"{name}={'x'.join(map(str, steps[name]))}"
        for name in ("lhs_dilate", "rhs_dilate")
        if any(n != 1 for n in steps.get(name, []))
    ]
    spaces = _SPACE[:space]
    sizes = []
    for i in range(space):
        wide = (x.dims[2 + i] - 1) * (steps["lhs_dilate"][i] if "lhs_dilate" in steps else 1) + 1 + sum(pads[i])
        reach = (weight.dims[2 + i] - 1) * steps["rhs_dilate"][i] + 1
        sizes.append((wide - reach) // (steps["stride"][i] if "stride" in steps else 1) + 1)
    attributes = {"window": "{" + " ".join(window) + "}", "dim_labels": f"bf{spaces}_oi{spaces}->bf{spaces}"}
    if groups != 1:
        attributes["feature_group_count"] = str(groups)
    return c.b.emit("convolution", x.dtype, (x.dims[0], weight.dims[0], *sizes), [x, weight], **attributes)


def _with_bias(c: Call, y: Value, bias: Value | None) -> Value:
    return y if bias is None else c.b.binary("add", y, c.b.broadcast(bias, y.dims, [1]))


# --------------------------------------------------------------------------------------------------------- attention


def attention(
    c: Call, q: Value, k: Value, v: Value, mask: Value | None = None, dropout: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """softmax(q k' scale + mask) v over (batch, heads, positions, size); sums in f32."""
    b = c.b
    if dropout:
        raise Unmapped("dropout")
    if enable_gqa and k.dims[-3] != q.dims[-3]:
        k, v = (_repeated(c, x, q.dims[-3] // x.dims[-3]) for x in (k, v))
    batch = q.rank - 2
    lead = q.dims[:batch]
    k, v = b.expand(k, (*lead, *k.dims[-2:])), b.expand(v, (*lead, *v.dims[-2:]))
    scores = b.wide(b.dot(q, k, batch=batch, contract=(batch + 1, batch + 1)))
    scores = b.with_number("multiply", scores, 1 / math.sqrt(q.dims[-1]) if scale is None else scale)
    least = b.constant(-math.inf, scores.dtype)
    if is_causal:
        rows, columns = (b.iota("s32", scores.dims[-2:], i) for i in (0, 1))
        scores = b.select(b.expand(b.compare("LE", columns, rows), scores.dims), scores, least)
    if mask is not None and mask.dtype == "pred":
        scores = b.select(b.expand(mask, scores.dims), scores, least)
    elif mask is not None:
        scores = b.binary("add", scores, b.convert(mask, scores.dtype))
    weights = b.convert(softmax_of(b, scores, scores.rank - 1), v.dtype)
    return b.dot(weights, v, batch=batch, contract=(batch + 1, batch))


def _repeated(c: Call, x: Value, times: int) -> Value:
    """Each head `times` times."""
    *batch, heads, positions, size = x.dims
    n = len(batch)
    dims = [*batch, heads, times, positions, size]
    wide = c.b.broadcast(x, dims, [*range(n + 1), n + 2, n + 3])
    return c.b.reshape(wide, (*batch, heads * times, positions, size))


OPERATORS: dict[str, Callable[..., Any]] = {
    "linear": linear, "mm": mm, "mv": mm, "dot": mm, "bmm": bmm, "addmm": addmm, "baddbmm": addmm, "matmul": matmul,
    "conv1d": convolution(1), "conv2d": convolution(2), "conv3d": convolution(3), "convolution": convolution(None),
    "conv_transpose1d": transposed, "conv_transpose2d": transposed, "scaled_dot_product_attention": attention,
}  # fmt: skip
