"""One step of writing a number: the next token of each string, by inverse CDF with given uniforms.

What is left of a uniform is again uniform, so one number decodes a whole string (arithmetic decoding; Vilnis et al.,
2023), and evenly spaced ones give stratified samples. No random numbers are drawn here: equal uniforms give equal
tokens everywhere, but where a uniform falls within rounding of a step of the CDF.
"""
# mypy: allow-untyped-defs
# (a kernel's parameters carry Triton's annotations)

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from costmodel.ops.dispatch import as_bytes, block_of, jit, start, takes_kernel, tl
from costmodel.records import Launch, UserError


class Step(NamedTuple):
    """Of R strings: the token (R,) int64, its log-probability (R,), what is left of the uniform (R,) float64, the state
    (R,) int64 behind the token, and the token's value (R,)."""

    token: Tensor
    log_p: Tensor
    uniform: Tensor
    state: Tensor
    value: Tensor


@torch.no_grad()
def numeric_step(
    z: Tensor,
    state: Tensor,
    uniform: Tensor,
    legal: Tensor,
    value: Tensor,
    next_state: Tensor,
    *,
    temperature: float = 1.0,
    impl: str = "auto",
) -> Step:
    """Logits z (R, V), state (R,) int64 of a grammar and uniform (R,) float64 in [0, 1) -> a Step.

    Tables of the grammar's G states: legal (G, V) uint8 or bool, value (G, V), next_state (G, V) int64. Tokens are
    taken from the softmax of z / temperature over the legal ones, summed up in float64. No gradient.
    """
    if not temperature > 0:
        raise UserError(f"got temperature={temperature}, expected a positive number")
    if takes_kernel(impl, z, z.shape[-1]):
        return _launched(z, state, uniform, legal, value, next_state, temperature)
    return numeric_step_ref(z, state, uniform, legal, value, next_state, temperature=temperature)


def numeric_step_ref(
    z: Tensor,
    state: Tensor,
    uniform: Tensor,
    legal: Tensor,
    value: Tensor,
    next_state: Tensor,
    *,
    temperature: float = 1.0,
) -> Step:
    """`numeric_step` in plain torch."""
    z = (z if z.dtype == torch.float64 else z.float()) / temperature
    z = z.masked_fill(~legal[state].bool(), float("-inf"))
    p = z.softmax(-1)
    cdf = p.double().cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    last = torch.where(p > 0, torch.arange(p.shape[1], device=p.device), 0).amax(-1, keepdim=True)
    token = torch.searchsorted(cdf, uniform[:, None], right=True).minimum(last)
    low = torch.where(token > 0, cdf.gather(1, (token - 1).clamp_min(0)), 0.0)
    width = cdf.gather(1, token) - low
    left = ((uniform[:, None] - low) / width.clamp_min(1e-300)).clamp(0, 1 - 1e-12)
    log_p = z.log_softmax(-1).gather(1, token)
    token = token[:, 0]
    return Step(token, log_p[:, 0], left[:, 0], next_state[state, token], value[state, token])


@jit
def step_kernel(
    z_ptr, state_ptr, uniform_ptr, legal_ptr, value_ptr, next_state_ptr, token_ptr, log_p_ptr, left_ptr, after_ptr,
    gained_ptr, N, V, TEMPERATURE: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    columns = tl.arange(0, BV)
    inside = rows < N
    within = inside[:, None] & (columns < V)[None, :]
    state = tl.load(state_ptr + rows, mask=inside, other=0)
    uniform = tl.load(uniform_ptr + rows, mask=inside, other=0.0)
    z = tl.load(z_ptr + rows[:, None] * V + columns[None, :], mask=within, other=0.0).to(WIDE) / TEMPERATURE
    legal = tl.load(legal_ptr + state[:, None] * V + columns[None, :], mask=within, other=0) != 0
    legal = legal | (~inside[:, None] & (columns == 0)[None, :])  # rows past the end need a finite logit
    largest = tl.max(tl.where(legal, z, float("-inf")), 1)
    e = tl.where(legal, tl.exp(z - largest[:, None]), 0.0)
    upto = tl.cumsum(e.to(tl.float64), 1)
    aim = uniform * tl.max(upto, 1)
    last = tl.max(tl.where(e > 0.0, columns[None, :], 0), 1)
    token = tl.minimum(tl.sum((upto <= aim[:, None]).to(tl.int32), 1), last)
    chosen = columns[None, :] == token[:, None]
    low = tl.sum(tl.where(columns[None, :] == token[:, None] - 1, upto, 0.0), 1)
    width = tl.sum(tl.where(chosen, upto, 0.0), 1) - low
    tiny = tl.full((BN,), 1e-300, tl.float64)  # as a bare number it would be a float32
    below_one = tl.full((BN,), 1.0 - 1e-12, tl.float64)
    left = tl.minimum(tl.maximum((aim - low) / tl.maximum(width, tiny), 0.0), below_one)
    log_p = tl.sum(tl.where(chosen, z, 0.0), 1) - largest - tl.log(tl.sum(e, 1))
    entry = state * V + token
    tl.store(token_ptr + rows, token.to(tl.int64), mask=inside)
    tl.store(log_p_ptr + rows, log_p, mask=inside)
    tl.store(left_ptr + rows, left, mask=inside)
    tl.store(after_ptr + rows, tl.load(next_state_ptr + entry, mask=inside), mask=inside)
    tl.store(gained_ptr + rows, tl.load(value_ptr + entry, mask=inside), mask=inside)


def _launched(
    z: Tensor, state: Tensor, uniform: Tensor, legal: Tensor, value: Tensor, next_state: Tensor, temperature: float
) -> Step:
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    kinds = torch.int64, wide, torch.float64, torch.int64, value.dtype
    out = Step(*(torch.empty(len(z), dtype=kind, device=z.device) for kind in kinds))
    start(step_launch(z, state, uniform, legal, value, next_state, temperature, out))
    return out


def step_launch(
    z: Tensor, state: Tensor, uniform: Tensor, legal: Tensor, value: Tensor, next_state: Tensor, temperature: float,
    out: Step,
) -> Launch:  # fmt: skip
    tensors = [x.contiguous() for x in (z, state, uniform, as_bytes(legal), value, next_state)]
    block = block_of(z.shape[1], z.dtype)
    keywords = {"TEMPERATURE": temperature, **block}
    return Launch(step_kernel, (-(-len(z) // block["BN"]),), (*tensors, *out, *z.shape), keywords)
