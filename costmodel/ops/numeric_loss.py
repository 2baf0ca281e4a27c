"""The loss of a numeric head in one pass over its logits: cross-entropy and the squared error of the expectation.

The logits are made here, by one matrix product, so the kernel may write their gradient over them: it reads each logit
once, and no other array of that size is kept for backward. Losses that need more of the rows than a weighted sum, such
as one over pairs, are composed from `numeric_rows`.

    loss, nll, ev = numeric_loss(hidden, weight, bias, state, target, y, legal, value, w_ce, w_ev)
    loss.backward()
"""
# mypy: allow-untyped-defs
# (a kernel's parameters carry Triton's annotations)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from costmodel.ops.dispatch import jit, start, takes_kernel, tl
from costmodel.ops.numeric_rows import IGNORED, Bins, chained, numeric_rows_ref, read_rows, rows_launch


def numeric_loss(
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    state: Tensor,
    target: Tensor,
    y: Tensor,
    legal: Tensor,
    value: Tensor,
    w_ce: Tensor,
    w_ev: Tensor,
    *,
    bins: Bins | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """h (N, H), w (V, H), b (V,) -> sum over rows of w_ce * nll + w_ev * (ev - y)**2, and nll (N,) and ev (N,)
    detached; the sum is differentiable in h, w and b.

    The logits are h w^T + b in the type of h, or autocast's; for the rows' other arguments see `numeric_rows`. w_ce,
    w_ev (N,): a term of weight 0 is left out, even if it is infinite or NaN, as y may be then.
    """
    kind = h.device.type
    if torch.is_autocast_enabled(kind):
        to = torch.get_autocast_dtype(kind)
        h, w, b = h.to(to), w.to(to), b if b is None else b.to(to)
    if takes_kernel(impl, h, len(w)):
        edges, sigma = (bins.edges, bins.sigma) if bins else (None, 0.0)
        return _Loss.apply(h, w, b, state, target, y, legal, value, w_ce, w_ev, edges, sigma)
    return numeric_loss_ref(h, w, b, state, target, y, legal, value, w_ce, w_ev, bins=bins)


def numeric_loss_ref(
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    state: Tensor,
    target: Tensor,
    y: Tensor,
    legal: Tensor,
    value: Tensor,
    w_ce: Tensor,
    w_ev: Tensor,
    *,
    bins: Bins | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`numeric_loss` in plain torch."""
    nll, ev = numeric_rows_ref(F.linear(h, w, b), state, target, legal, value, y=y, bins=bins)
    # chosen before the product and the difference: 0 * NaN is NaN, backward too
    ce = w_ce.to(nll.dtype) * nll.masked_fill(w_ce == 0, 0.0)
    gap = torch.where((w_ev == 0) | (target == IGNORED), 0.0, ev - y.to(ev.dtype))
    return (ce + w_ev.to(ev.dtype) * gap.square()).sum(), nll.detach(), ev.detach()


@jit
def loss_kernel(
    z_ptr, state_ptr, target_ptr, legal_ptr, value_ptr, y_ptr, edges_ptr, ce_ptr, ev_weight_ptr, loss_ptr, nll_ptr,
    ev_ptr, N, V, B, SIGMA: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    columns = tl.arange(0, BV)
    inside = rows < N
    nll, ev, d_nll, d_ev = read_rows(
        z_ptr, state_ptr, target_ptr, legal_ptr, value_ptr, y_ptr, edges_ptr, rows, columns, N, V, B, SIGMA, WIDE
    )
    w_ce = tl.load(ce_ptr + rows, mask=inside, other=0.0).to(WIDE)
    w_ev = tl.load(ev_weight_ptr + rows, mask=inside, other=0.0).to(WIDE)
    target = tl.load(target_ptr + rows, mask=inside, other=-100)  # IGNORED
    y = tl.load(y_ptr + rows, mask=inside, other=0.0).to(WIDE)
    gap = tl.where((w_ev == 0.0) | (target == -100), 0.0, ev - y)
    tl.store(loss_ptr + rows, tl.where(w_ce == 0.0, 0.0, w_ce * nll) + w_ev * gap * gap, mask=inside)
    tl.store(nll_ptr + rows, nll, mask=inside)
    tl.store(ev_ptr + rows, ev, mask=inside)
    if GRAD:
        dz = chained(w_ce, d_nll) + chained(2.0 * w_ev * gap, d_ev)
        within = inside[:, None] & (columns < V)[None, :]
        tl.store(z_ptr + rows[:, None] * V + columns[None, :], dz.to(z_ptr.dtype.element_ty), mask=within)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, state: Tensor, target: Tensor, y: Tensor, legal: Tensor,
        value: Tensor, w_ce: Tensor, w_ev: Tensor, edges: Tensor | None, sigma: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        z = F.linear(h, w, b)
        wide = torch.float64 if z.dtype == torch.float64 else torch.float32
        losses, nll, ev = (torch.empty(len(z), dtype=wide, device=z.device) for _ in range(3))
        weights = w_ce.contiguous(), w_ev.contiguous()
        launch = rows_launch(
            loss_kernel, z, (state, target), (legal, value), y, edges, sigma, *weights, losses, nll, ev,
            GRAD=any(ctx.needs_input_grad),
        )  # fmt: skip
        start(launch)
        ctx.save_for_backward(h, w, z)  # z holds its gradient now
        ctx.mark_non_differentiable(nll, ev)
        return losses.sum(), nll, ev

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _nll: Tensor, _ev: Tensor) -> tuple[Tensor | None, ...]:
        h, w, dz = ctx.saved_tensors
        dz = (dz * upstream).to(h.dtype)  # a new array, so that backward may run twice; by a tensor, so no sync
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        dh = dz @ w if need_h else None
        dw = dz.t() @ h if need_w else None
        db = dz.sum(0) if need_b else None
        return dh, dw, db, *[None] * 9
