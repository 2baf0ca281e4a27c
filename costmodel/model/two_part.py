"""Two-part attention in transformers: many suffixes attend to one shared prefix and to themselves.

Registered as "two_part". A model that is set to it behaves exactly as under "sdpa" until a call carries
`prefix=<DynamicCache of batch 1>`; then every row of the batch is a suffix of that one prefix, see ops/tree_attention.
Autograd through the shared keys and values is exact.

`only_wanted` spares work in the last layer: few of its states are read, of the other tokens only keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import rotate_half

from costmodel.ops.tree_attention import tree_attention

NAME = "two_part"


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
    both_ways: bool = False,
    seen: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. query (M, H, L, d), key and value (M, G, N, d) -> (M, L, H, d), and no weights.

    With a prefix own keys are causal, or `seen` (M, N, N) says which of them each token sees. `all_tokens` comes from
    `only_wanted` and takes the place of keys and values.
    `both_ways`, without a prefix: every token sees every other, as a prefix language model reads its prompt.
    """
    places = None
    if all_tokens is not None:
        key, value, places = all_tokens
    if prefix is None:
        if both_ways:
            out = F.scaled_dot_product_attention(query, *_for_heads(module, key, value), scale=scaling)
            return out.transpose(1, 2).contiguous(), None
        if places is not None:
            attention_mask = torch.arange(key.shape[2], device=key.device) <= places[:, None, :, None]
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: Any = prefix.layers[module.layer_idx]  # type: ignore[index]
    # under autocast RoPE leaves queries and keys in float32 beside bfloat16 values
    query, key, shared_key, shared_value = (x.to(value.dtype) for x in (query, key, layer.keys[0], layer.values[0]))
    if seen is not None and places is not None:
        seen, places = seen[torch.arange(len(seen), device=seen.device)[:, None], places], None
    out = tree_attention(query, key, value, shared_key, shared_value, scale=scale, places=places, seen=seen)
    return out.transpose(1, 2).contiguous(), None


def _for_heads(module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (M, G, N, d) once for each query head."""
    groups = int(getattr(module, "num_key_value_groups", 1))
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


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
    cos, sin = (x.expand(len(hidden), -1, -1) for x in kwargs["position_embeddings"])  # (M, L, d)
    key = key * cos[:, None] + rotate_half(key) * sin[:, None]
    if kwargs["past_key_values"] is not None:
        key, value = kwargs["past_key_values"].update(key, value, attention.layer_idx)
    places = wanted + key.shape[2] - hidden.shape[1]  # among all keys of this cache
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    few = {"position_embeddings": (cos[rows, wanted], sin[rows, wanted]), "past_key_values": None}
    return (hidden[rows, wanted],), {**kwargs, **few, "all_tokens": (key, value, places)}


AttentionInterface.register(NAME, two_part_attention)
# without a prefix the masks are those of sdpa
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
