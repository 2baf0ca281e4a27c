"""Two-part attention: many suffixes attend to one shared prefix and to themselves, under one softmax.

Registered with transformers as "two_part". A model that is set to it behaves exactly as under "sdpa" until a call
carries `prefix=<DynamicCache of batch 1>`; then every row of the batch is a suffix of that one prefix. The prefix is
never copied per row: its part of the logits is a single (heads, rows * length, prefix) product. The idea is that of
Hydragen (Juravsky et al., 2024), with gradients: autograd through the shared keys and values is exact.

`only_wanted` spares work in the last layer: few of its states are read, of the other tokens only keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import rotate_half

NAME = "two_part"

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def one_softmax(
    query: Tensor, key: Tensor, value: Tensor, shared_key: Tensor, shared_value: Tensor, own_mask: Tensor, scale: float
) -> Tensor:
    """The definition, for any device and type, with grouped heads and with own keys that precede the queries.

    query (M, H, L, d); key, value (M, G, N, d) with N >= L; shared_key, shared_value (G, P, d); own_mask (L, N) or
    (M, 1, L, N) bool, True where attended. G divides H. Returns (M, H, L, d).
    """
    rows, heads, _, width = query.shape
    groups, prefix = shared_key.shape[:2]
    grouped = (query * scale).reshape(rows, groups, -1, width)  # (M, G, H/G * L, d)
    flat = grouped.transpose(0, 1).reshape(groups, -1, width)
    shared = (flat @ shared_key.transpose(1, 2)).view(groups, rows, -1, prefix)
    mask = own_mask.repeat(*[1] * (own_mask.dim() - 2), heads // groups, 1)
    own = (grouped @ key.transpose(2, 3)).masked_fill(~mask, float("-inf"))
    weights = torch.cat([shared, own.transpose(0, 1)], -1).softmax(-1).to(query.dtype)
    from_shared = weights.view(groups, flat.shape[1], -1)[:, :, :prefix] @ shared_value
    from_own = weights[..., prefix:].transpose(0, 1) @ value
    return (from_shared.view(groups, rows, -1, width).transpose(0, 1) + from_own).reshape(query.shape)


class _TwoFlashes(torch.autograd.Function):
    """The same numbers on a CPU without the (M, H, L, P) logits: two flash calls, merged by their log-sum-exp.

    Backward calls each flash kernel with the merged output and log-sum-exp, which yields the gradients of the whole
    (as in ring attention; Liu et al., 2023). 1.4 - 2x quicker than `one_softmax` on one core. `bias` (M, 1, L, N) is
    added to the logits of the own keys; without one they are causal.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, shared_key: Tensor, shared_value: Tensor, scale: float,
        bias: Tensor | None = None,
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


def two_part_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix: DynamicCache | None = None,
    all_tokens: tuple[Tensor, Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. query (M, H, L, d), key and value (M, G, N, d) -> (M, L, H, d), and no weights.

    With a prefix own keys are causal. `all_tokens` comes from `only_wanted` and takes the place of keys and values.
    """
    if all_tokens is not None:
        key, value, attention_mask = all_tokens
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: Any = prefix.layers[module.layer_idx]  # type: ignore[index]
    # under autocast RoPE leaves queries and keys in float32 beside bfloat16 values
    query, key, shared_key, shared_value = (x.to(value.dtype) for x in (query, key, layer.keys[0], layer.values[0]))
    length, own = query.shape[2], key.shape[2]
    seen = all_tokens[2] if all_tokens is not None else None
    if query.device.type == "cpu" and key.shape[1] == query.shape[1] and (own == length or seen is not None):
        bias = None if seen is None else torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
        out = _TwoFlashes.apply(query, key, value, shared_key, shared_value, scale, bias)
    else:
        if seen is None:
            seen = torch.ones(length, own, dtype=torch.bool, device=query.device).tril(own - length)
        out = one_softmax(query, key, value, shared_key, shared_value, seen, scale)
    return out.transpose(1, 2).contiguous(), None


def only_wanted(layer: Any, args: tuple[Tensor], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """A forward pre-hook for the last layer: where the call carries `wanted` (M, W), it runs for those tokens alone.

    wanted holds places among the L new tokens (M, L, D), of which the states (M, W, D) come out. Of the others only
    keys and values are made, which is all that anything later sees of them.
    """
    wanted = kwargs.pop("wanted", None)
    if wanted is None:
        return None
    (hidden,), attention = args, layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    key, value = attention.k_proj(normed).view(shape), attention.v_proj(normed).view(shape)
    if hasattr(attention, "k_norm"):
        key = attention.k_norm(key)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    cos, sin = kwargs["position_embeddings"]  # (1, L, d)
    key = key * cos[:, None] + rotate_half(key) * sin[:, None]
    if kwargs["past_key_values"] is not None:
        key, value = kwargs["past_key_values"].update(key, value, attention.layer_idx)
    places = wanted + key.shape[2] - hidden.shape[1]  # among all keys of this cache
    seen = torch.arange(key.shape[2], device=hidden.device) <= places[:, None, :, None]
    few = {"position_embeddings": (cos[0, wanted], sin[0, wanted]), "past_key_values": None}
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    return (hidden[rows, wanted],), {**kwargs, **few, "all_tokens": (key, value, seen)}


AttentionInterface.register(NAME, two_part_attention)
# without a prefix the masks are those of sdpa
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
