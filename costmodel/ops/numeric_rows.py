"""From logits over number tokens to what losses are made of: cross-entropy and expected value, row by row.

A grammar says which tokens are legal in a row's state and what number each stands for. The cross-entropy runs over the
legal tokens, towards one token or an HL-Gauss target (Imani and White, 2018; Farebrother et al., 2024); the expectation
runs over the legal tokens that have a value (RAFT; Lukasik et al., 2025). The kernel reads logits once and computes
what it needs in registers, in float32; the backward kernel reads the logits again and keeps nothing else.

    nll, ev = numeric_rows(readout(hidden), state, target, legal, value)
    (nll + 0.3 * (ev - y).square()).mean().backward()
"""
# mypy: allow-untyped-defs
# (a kernel's parameters carry Triton's annotations)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from costmodel.ops.dispatch import as_bytes, block_of, jit, start, takes_kernel, tl
from costmodel.records import Launch, UserError

IGNORED = -100  # as a target: the row counts for nothing
SOFT = -1  # as a target: a Gaussian around y, see Bins


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Soft targets: a Gaussian of deviation `sigma` around y, integrated over the bins between `edges` (B + 1,)
    ascending, which are the tokens 0 .. B - 1, and renormalised over those that are legal. y beyond the edges counts as
    the nearest edge."""

    edges: Tensor
    sigma: float


def numeric_rows(
    z: Tensor,
    state: Tensor,
    target: Tensor,
    legal: Tensor,
    value: Tensor,
    *,
    y: Tensor | None = None,
    bins: Bins | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Logits z (N, V) -> nll (N,) and ev (N,), float32 or, for float64, float64; differentiable in z.

    state (N,) int64 of the grammar, whose G states have the tables legal (G, V) uint8 or bool, and value (G, V)
    floating: NaN where a token stands for no number, so that the expectation leaves it out. target (N,) int64: a token,
    IGNORED (nll, ev and the gradient are 0) or, where bins are given, SOFT: around y (N,).

    The nll of an illegal target is +inf, and where no legal token has a value, ev is 0: neither has a gradient.
    """
    if bins is not None and y is None:
        raise UserError("got bins without y, expected the middles of the soft targets too")
    if takes_kernel(impl, z, z.shape[-1]):
        edges, sigma = (bins.edges, bins.sigma) if bins else (None, 0.0)
        return _Rows.apply(z.contiguous(), state, target, legal, value, y if bins else None, edges, sigma)
    return numeric_rows_ref(z, state, target, legal, value, y=y, bins=bins)


# ------------------------------------------------------------------------------------------------------ the definition


def numeric_rows_ref(
    z: Tensor,
    state: Tensor,
    target: Tensor,
    legal: Tensor,
    value: Tensor,
    *,
    y: Tensor | None = None,
    bins: Bins | None = None,
) -> tuple[Tensor, Tensor]:
    """`numeric_rows` in plain torch."""
    z = z if z.dtype == torch.float64 else z.float()
    if len(legal) > 1:  # else one row of a table serves all
        legal, value = legal[state], value[state]
    legal, value, ignored = legal.bool(), value.to(z.dtype), target == IGNORED

    log_p = (z + _barrier(legal)).log_softmax(-1)
    if bins is None or y is None:
        token = target.masked_fill(ignored, 0)[:, None]
        nll, reached = -log_p.gather(1, token)[:, 0], legal.expand_as(z).gather(1, token)[:, 0]
    else:
        wanted, reached = _wanted(target, y.to(z.dtype), bins, legal)
        nll = -(wanted * log_p).sum(-1)
    nll = torch.where(reached, nll, float("inf"))

    valued = legal & (value == value)
    ev = ((z + _barrier(valued)).softmax(-1) * torch.where(valued, value, 0.0)).sum(-1)
    return nll.masked_fill(ignored, 0.0), ev.masked_fill(ignored, 0.0)


def _barrier(passable: Tensor) -> Tensor:
    """Added to a logit of any sane size: 0, or what makes its probability exactly 0. Not -inf, so that 0 * log_p is 0;
    and a sum, since on a CPU masked_fill and its gradient cost more than a softmax."""
    return torch.where(passable, 0.0, torch.finfo(torch.float32).min)


def _wanted(target: Tensor, y: Tensor, bins: Bins, legal: Tensor) -> tuple[Tensor, Tensor]:
    """What the cross-entropy is taken to (N, V): HL-Gauss where the target is SOFT, one token elsewhere; and whether
    any of it is legal (N,)."""
    soft, token = target == SOFT, target.clamp_min(0)[:, None]
    mass = gaussian_mass(torch.where(soft, y, 0.0), bins, legal.shape[1]).mul_(legal)
    total = mass.sum(-1)
    wanted = mass.mul_((soft / total.clamp_min(torch.finfo(y.dtype).tiny))[:, None])
    wanted.scatter_add_(1, token, (target >= 0).to(y.dtype)[:, None])
    return wanted, torch.where(soft, total > 0, legal.expand_as(wanted).gather(1, token)[:, 0])


def gaussian_mass(y: Tensor, bins: Bins, vocabulary: int) -> Tensor:
    """Twice what Gaussians around y (N,) put into the bin of each token (N, V), no bin being 0."""
    edges = bins.edges.to(y.dtype)
    ends = torch.cat([edges, edges[-1:].expand(vocabulary + 1 - len(edges))])  # bins of width 0 fill up the vocabulary
    cdf = (ends - y.clamp(edges[0], edges[-1])[:, None]).div_(bins.sigma * 2**0.5).erf_()
    return cdf.diff(dim=-1)


# ---------------------------------------------------------------------------------------------------------- the kernel


@jit
def read_rows(
    z_ptr, state_ptr, target_ptr, legal_ptr, value_ptr, y_ptr, edges_ptr, rows, columns, N, V, B,
    SIGMA: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """nll and ev (rows,), and their derivatives by the logits (rows, columns), all of type WIDE.

    Logits are widened as they are loaded. What lies outside N or V is never legal, and column 0 stands in as the one
    finite logit of rows that count for nothing.
    """
    inside = rows < N
    within = inside[:, None] & (columns < V)[None, :]
    state = tl.load(state_ptr + rows, mask=inside, other=0)
    target = tl.load(target_ptr + rows, mask=inside, other=-100)  # IGNORED
    entry = state[:, None] * V + columns[None, :]
    counts = (target != -100)[:, None]
    legal = counts & (tl.load(legal_ptr + entry, mask=within, other=0) != 0)
    value = tl.load(value_ptr + entry, mask=within, other=float("nan")).to(WIDE)
    z = tl.load(z_ptr + rows[:, None] * V + columns[None, :], mask=within & counts, other=0.0).to(WIDE)

    largest = tl.max(tl.where(legal | (~counts & (columns == 0)[None, :]), z, float("-inf")), 1)
    e = tl.where(legal, tl.exp(z - largest[:, None]), 0.0)
    total = tl.where(target != -100, tl.sum(e, 1), 1.0)
    lse = largest + tl.log(total)

    wanted = tl.where(legal & (columns[None, :] == target[:, None]), 1.0, 0.0).to(WIDE)
    if edges_ptr is not None:
        binned = (columns < B)[None, :] & legal & (target == -1)[:, None]  # SOFT
        low = tl.load(edges_ptr + columns, mask=columns < B, other=0.0).to(WIDE)
        high = tl.load(edges_ptr + columns + 1, mask=columns < B, other=0.0).to(WIDE)
        y = tl.load(y_ptr + rows, mask=inside & (target == -1), other=0.0).to(WIDE)
        y = tl.minimum(tl.maximum(y, tl.load(edges_ptr).to(WIDE)), tl.load(edges_ptr + B).to(WIDE))
        below = tl.erf((low[None, :] - y[:, None]) / (SIGMA * 1.4142135623730951))
        mass = tl.where(binned, tl.erf((high[None, :] - y[:, None]) / (SIGMA * 1.4142135623730951)) - below, 0.0)
        of_all = tl.sum(mass, 1)
        wanted += mass / tl.where(of_all > 0.0, of_all, 1.0)[:, None]
    reached = tl.sum(wanted, 1) > 0.0
    nll = tl.where(reached, tl.sum(tl.where(wanted > 0.0, wanted * (lse[:, None] - z), 0.0), 1), float("inf"))
    nll = tl.where(target != -100, nll, 0.0)
    d_nll = tl.where(legal & reached[:, None], e / total[:, None] - wanted, 0.0)

    valued = legal & (value == value)
    largest = tl.max(tl.where(valued, z, float("-inf")), 1)
    e = tl.where(valued, tl.exp(z - largest[:, None]), 0.0)
    p = e / tl.where(largest > float("-inf"), tl.sum(e, 1), 1.0)[:, None]
    ev = tl.sum(tl.where(valued, p * value, 0.0), 1)
    d_ev = tl.where(valued, p * (value - ev[:, None]), 0.0)
    return nll, ev, d_nll, d_ev


@jit
def chained(upstream, derivative):
    """Where a row has no derivative, no upstream gradient passes: 0 * inf is 0."""
    return tl.where(derivative == 0.0, 0.0, upstream[:, None] * derivative)


@jit
def forward_kernel(
    z_ptr, state_ptr, target_ptr, legal_ptr, value_ptr, y_ptr, edges_ptr, nll_ptr, ev_ptr, N, V, B,
    SIGMA: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    nll, ev, _, _ = read_rows(
        z_ptr, state_ptr, target_ptr, legal_ptr, value_ptr, y_ptr, edges_ptr, rows, tl.arange(0, BV), N, V, B,
        SIGMA, WIDE,
    )  # fmt: skip
    tl.store(nll_ptr + rows, nll, mask=rows < N)
    tl.store(ev_ptr + rows, ev, mask=rows < N)


@jit
def backward_kernel(
    z_ptr, state_ptr, target_ptr, legal_ptr, value_ptr, y_ptr, edges_ptr, d_nll_ptr, d_ev_ptr, dz_ptr, N, V, B,
    SIGMA: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    columns = tl.arange(0, BV)
    _, _, d_nll, d_ev = read_rows(
        z_ptr, state_ptr, target_ptr, legal_ptr, value_ptr, y_ptr, edges_ptr, rows, columns, N, V, B, SIGMA, WIDE
    )
    dz = chained(tl.load(d_nll_ptr + rows, mask=rows < N, other=0.0), d_nll)
    dz += chained(tl.load(d_ev_ptr + rows, mask=rows < N, other=0.0), d_ev)
    within = (rows < N)[:, None] & (columns < V)[None, :]
    tl.store(dz_ptr + rows[:, None] * V + columns[None, :], dz.to(dz_ptr.dtype.element_ty), mask=within)


def rows_launch(
    kernel: Any, z: Tensor, rows: tuple[Tensor, Tensor], tables: tuple[Tensor, Tensor], y: Tensor | None,
    edges: Tensor | None, sigma: float, *more: Tensor, **constants: bool,
) -> Launch:  # fmt: skip
    """A launch of a kernel over all rows of z (N, V): state and target, legal and value, y and bins, then `more`."""
    tensors = [x if x is None else x.contiguous() for x in (*rows, as_bytes(tables[0]), tables[1], y, edges)]
    count, vocabulary = z.shape
    block = block_of(vocabulary, z.dtype)
    bins = 0 if edges is None else len(edges) - 1
    grid = (-(-count // block["BN"]),)
    keywords = {"SIGMA": sigma, **block, **constants}
    return Launch(kernel, grid, (z, *tensors, *more, count, vocabulary, bins), keywords)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, state: Tensor, target: Tensor, legal: Tensor, value: Tensor, y: Tensor | None,
        edges: Tensor | None, sigma: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wide = torch.float64 if z.dtype == torch.float64 else torch.float32
        nll, ev = (torch.empty(len(z), dtype=wide, device=z.device) for _ in range(2))
        start(rows_launch(forward_kernel, z, (state, target), (legal, value), y, edges, sigma, nll, ev))
        ctx.save_for_backward(z, state, target, legal, value, y, edges)
        ctx.sigma = sigma
        return nll, ev

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_nll: Tensor, d_ev: Tensor) -> tuple[Tensor | None, ...]:
        z, state, target, legal, value, y, edges = ctx.saved_tensors
        dz = torch.empty_like(z)
        upstream = d_nll.contiguous(), d_ev.contiguous()
        rows, tables = (state, target), (legal, value)
        start(rows_launch(backward_kernel, z, rows, tables, y, edges, ctx.sigma, *upstream, dz))
        return dz, None, None, None, None, None, None, None
