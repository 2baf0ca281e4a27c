"""Attention of many suffixes to one shared prefix and to themselves, under one softmax: three forms of one function.

The prefix is never copied per suffix. "torch" is the definition: one (heads, rows * length, prefix) product for the
shared part (the idea of Hydragen; Juravsky et al., 2024). "flash" gives the same numbers on a CPU without those logits.
"flex" packs all suffixes into one row for a GPU: FlexAttention (Dong et al., 2024) under a block mask that is written
down rather than found by trying every block.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from costmodel.records import UserError

BLOCK = 128  # tokens of a block of FlexAttention's mask
IMPLEMENTATIONS = ("auto", "torch", "flash", "flex")

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared_key: Tensor,
    shared_value: Tensor,
    *,
    scale: float,
    places: Tensor | None = None,
    seen: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """query (M, H, L, d); key, value (M, G, N, d), G divides H; shared_key, shared_value (G, P, d) -> (M, H, L, d).

    places (M, L): where among its N own keys each query stands, which sees those up to it; without, the queries are the
    last L of the N. seen (M, L, N) bool, in place of places: which of its own keys each query sees; not for "flex".

    "auto" is "flash" on a CPU where heads are not grouped, "flex" on a GPU in training (where its compilation, tens of
    seconds once, pays) and else "torch".
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"got impl={impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    rows, heads, length, _ = query.shape
    own = key.shape[2]
    flashes = (
        query.device.type == "cpu"
        and key.shape[1] == heads
        and (places is not None or seen is not None or own == length)
    )
    if impl == "auto":
        flexes = query.is_cuda and query.requires_grad and seen is None
        impl = "flash" if flashes else "flex" if flexes else "torch"
    if impl == "flex" and seen is not None:
        raise UserError("got impl='flex' with seen, expected places; use auto")
    if impl == "flash":
        if not flashes:
            raise UserError(
                "got impl='flash', expected tensors on a CPU and as many key heads as query heads; use auto"
            )
        seen = seen if places is None else _seen(places, own)
        bias = None
        if seen is not None:
            bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, float("-inf"))[:, None]
        return _TwoFlashes.apply(query, key, value, shared_key, shared_value, scale, bias)
    if places is None:
        places = torch.arange(own - length, own, device=query.device).expand(rows, length)
    if impl == "flex":
        return _packed(query, key, value, shared_key, shared_value, scale, places)
    seen = _seen(places, own) if seen is None else seen
    return _one_softmax(query, key, value, shared_key, shared_value, scale, seen[:, None])


def _seen(places: Tensor, own: int) -> Tensor:
    """(M, L) -> (M, L, N) bool."""
    return torch.arange(own, device=places.device) <= places[:, :, None]


# ------------------------------------------------------------------------------------------------------ the definition


def _one_softmax(
    query: Tensor, key: Tensor, value: Tensor, shared_key: Tensor, shared_value: Tensor, scale: float, seen: Tensor
) -> Tensor:
    """For any device and type."""
    rows, heads, _, width = query.shape
    groups, prefix = shared_key.shape[:2]
    grouped = (query * scale).reshape(rows, groups, -1, width)  # (M, G, H/G * L, d)
    flat = grouped.transpose(0, 1).reshape(groups, -1, width)
    shared = (flat @ shared_key.transpose(1, 2)).view(groups, rows, -1, prefix)
    own = (grouped @ key.transpose(2, 3)).masked_fill(~seen.repeat(1, 1, heads // groups, 1), float("-inf"))
    weights = torch.cat([shared, own.transpose(0, 1)], -1).softmax(-1).to(query.dtype)
    from_shared = weights.view(groups, flat.shape[1], -1)[:, :, :prefix] @ shared_value
    from_own = weights[..., prefix:].transpose(0, 1) @ value
    return (from_shared.view(groups, rows, -1, width).transpose(0, 1) + from_own).reshape(query.shape)


# ------------------------------------------------------------------------------------------------------------- on a CPU


class _TwoFlashes(torch.autograd.Function):
    """Two flash calls, merged by their log-sum-exp.

    Backward calls each flash kernel with the merged output and log-sum-exp, which yields the gradients of the whole
    (as in ring attention; Liu et al., 2023). 1.4 - 2x quicker than the definition on one core. `bias` (M, 1, L, N) is
    added to the logits of the own keys; without one they are causal.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, shared_key: Tensor, shared_value: Tensor, scale: float,
        bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        rows, heads, length, width = query.shape
        out_shared, lse_shared = _flash(_flat(query), shared_key[None], shared_value[None], scale=scale)
        out_own, lse_own = _flash(query, key, value, 0.0, bias is None, attn_mask=bias, scale=scale)
        lse_shared = lse_shared.reshape(heads, rows, length).transpose(0, 1)
        lse_own = lse_own.reshape(rows, heads, length)
        lse = torch.logaddexp(lse_shared, lse_own)
        out_shared = out_shared.view(heads, rows, length, width).transpose(0, 1)
        out = out_shared * (lse_shared - lse).exp()[..., None] + out_own * (lse_own - lse).exp()[..., None]
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, shared_key, shared_value, out, lse)
        ctx.scale, ctx.bias = scale, bias
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, shared_key, shared_value, out, lse = ctx.saved_tensors
        rows, heads, length, width = query.shape
        lse_flat = lse.transpose(0, 1).reshape(1, heads, rows * length).contiguous()
        d_query, d_shared_key, d_shared_value = _flash_backward(
            _flat(grad), _flat(query), shared_key[None], shared_value[None], _flat(out), lse_flat, 0.0, False,
            scale=ctx.scale,
        )  # fmt: skip
        d_own, d_key, d_value = _flash_backward(
            grad.contiguous(), query, key, value, out, lse.contiguous(), 0.0, ctx.bias is None, attn_mask=ctx.bias,
            scale=ctx.scale,
        )  # fmt: skip
        d_query = d_query.view(heads, rows, length, width).transpose(0, 1) + d_own
        return d_query, d_key, d_value, d_shared_key[0], d_shared_value[0], None, None


def _flat(x: Tensor) -> Tensor:
    """(M, H, L, d) -> (1, H, M * L, d)."""
    rows, heads, length, width = x.shape
    return x.transpose(0, 1).reshape(1, heads, rows * length, width)


# ------------------------------------------------------------------------------------------------------------- on a GPU


def _packed(
    query: Tensor, key: Tensor, value: Tensor, shared_key: Tensor, shared_value: Tensor, scale: float, places: Tensor
) -> Tensor:
    """One row of M * L queries against the prefix, filled up to whole blocks, and the M * N own keys behind it."""
    rows, heads, length, width = query.shape
    groups, prefix = shared_key.shape[:2]
    room = -prefix % BLOCK
    keys, values = (
        torch.cat([torch.nn.functional.pad(shared, (0, 0, 0, room))[None], _flat(own)], 2)
        for shared, own in ((shared_key, key), (shared_value, value))
    )
    mask = packed_mask(prefix, key.shape[2], places)
    attend = _compiled() if query.is_cuda else flex_attention
    out = attend(_flat(query), keys, values, block_mask=mask, scale=scale, enable_gqa=groups != heads)
    return out.view(heads, rows, length, width).transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def packed_mask(prefix: int, own: int, places: Tensor) -> BlockMask:
    """Who sees whom in a packed row, for places (M, L); O(blocks that are seen) work, not O(all pairs of blocks).

    What the mask reads are tensors alone, so that FlexAttention is not compiled anew for every size.
    """
    rows, length = places.shape
    device = places.device
    begin = -(-prefix // BLOCK) * BLOCK  # of the own keys
    row = torch.arange(rows, device=device)
    owner_q, place_q = row.repeat_interleave(length), places.reshape(-1)
    room = torch.full((begin - prefix,), rows, device=device)  # belongs to a suffix that is not there
    owner_kv = torch.cat([torch.full((prefix,), -1, device=device), room, row.repeat_interleave(own)])
    place_kv = torch.cat([torch.zeros_like(owner_kv[:begin]), torch.arange(own, device=device).repeat(rows)])

    def sees(batch: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        mine = (owner_kv[kv] == owner_q[q]) & (place_kv[kv] <= place_q[q])
        return (owner_kv[kv] == -1) | mine

    queries, keys = rows * length, begin + rows * own
    first = torch.arange(0, queries, BLOCK, device=device)
    last = (first + BLOCK - 1).clamp_max(queries - 1)
    low = (begin + first // length * own) // BLOCK  # own blocks of the first suffix that a block of queries meets ...
    high = (begin + (last // length + 1) * own - 1) // BLOCK  # ... up to those of the last
    full = prefix // BLOCK
    edge = int(prefix % BLOCK > 0)  # the prefix's last block is not full
    count = edge + high - low + 1
    indices = low[:, None] - edge + torch.arange(-(-keys // BLOCK), device=device)
    if edge:
        indices[:, 0] = full
    indices = torch.where(torch.arange(indices.shape[1], device=device) < count[:, None], indices, 0)
    whole = torch.arange(indices.shape[1], device=device).expand(len(first), -1)
    return BlockMask.from_kv_blocks(
        count[None, None].int(),
        indices[None, None].int().contiguous(),
        torch.full_like(count, full)[None, None].int(),
        whole[None, None].int().contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(queries, keys),
    )
