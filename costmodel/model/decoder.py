"""The backbone: a causal language model of transformers that encodes one prefix once for many suffixes.

A small Llama by default; any causal LM of transformers, or its folder, can take its place. Llama- and Qwen-shaped
models run suffixes under two-part attention (`two_part.py`); every other model gets the prefix through
`past_key_values`, copied per row: the same numbers, without the speed.

    >>> backbone = build(small_config(512), seed=0)
    >>> prefix = encode_prefix(backbone, torch.arange(100))
    >>> hidden = encode_suffixes(backbone, prefix, *pad([[1, 2, 3], [4, 5]]))
    >>> hidden.shape
    torch.Size([2, 96])
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from costmodel.model import foreign
from costmodel.model.two_part import NAME as TWO_PART
from costmodel.model.two_part import only_wanted
from costmodel.records import UserError

# attention in these passes unknown keywords through and is plain causal, so two-part attention is exact in them
TWO_PART_FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


@dataclass(frozen=True, slots=True, eq=False)
class PrefixCache:
    """Keys and values of one prefix in every layer, each (1, key heads, length, head width), with their gradient."""

    cache: DynamicCache
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """Continuations of one prefix, all of one length. `cache` holds their own keys; in a model without two-part
    attention it holds the prefix's as well."""

    prefix: PrefixCache
    cache: DynamicCache
    length: int


def small_config(
    vocab_size: int,
    *,
    hidden_size: int = 96,
    layers: int = 3,
    heads: int = 4,
    max_positions: int = 8192,
    prefix_lm: bool = False,
) -> LlamaConfig:
    """A Llama with RoPE, RMS norm, gated MLP (8/3 of the width, in steps of 32) and tied embeddings.

    prefix_lm: the prefix is read both ways (source, and what follows it, each as a whole); suffixes stay causal.
    """
    if hidden_size % (2 * heads):
        raise UserError(f"got hidden_size={hidden_size} and heads={heads}, expected a multiple of {2 * heads}")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=-(-8 * hidden_size // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.update({"prefix_lm": prefix_lm})
    return config


def build(config: PreTrainedConfig, *, seed: int) -> PreTrainedModel:
    """A model with random weights; equal seeds give equal weights. Leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return prepare(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def load(folder: str | Path) -> PreTrainedModel:
    """The causal LM in a folder of the Hugging Face form, in float32."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"got {folder}, which holds no config.json, expected a folder that save_pretrained wrote")
    config, _ = foreign.config_of(Path(folder))
    foreign.check_shard_names(Path(folder))
    safe = {"trust_remote_code": False, "use_safetensors": True}
    return prepare(AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, **safe))


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Switches two-part attention on where it is exact. Any causal LM of transformers may be given."""
    config = model.config
    if getattr(config, "prefix_lm", False) and config.model_type not in TWO_PART_FAMILIES:
        raise UserError(
            f"got prefix_lm for a {config.model_type} model, expected one of {', '.join(TWO_PART_FAMILIES)}"
        )
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if config.model_type in TWO_PART_FAMILIES and not windowed:
        model.set_attn_implementation(TWO_PART)
        layers: Any = model.base_model.layers
        layers[-1].register_forward_pre_hook(only_wanted, with_kwargs=True)
    return model


def is_two_part(backbone: PreTrainedModel) -> bool:
    return backbone.config._attn_implementation == TWO_PART


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token rows of M different lengths -> ids (M, L), padded on the right with 0, and lengths (M,)."""
    if not rows or not all(len(row) for row in rows):
        raise UserError("got an empty row of tokens, expected at least one token in each")
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    ids[torch.arange(ids.shape[1]) < lengths[:, None]] = torch.tensor([token for row in rows for token in row])
    return ids, lengths


def encode_prefix(backbone: PreTrainedModel, prefix_ids: Tensor, *, after: PrefixCache | None = None) -> PrefixCache:
    """prefix_ids (P,) -> the prefix, ready for any number of suffixes.

    `after` is the encoding of what stands before these tokens: the source, say, when many problems share it.
    """
    return extend(backbone, after, backbone.get_input_embeddings()(prefix_ids), reads=1, prompt=True)[0]


def extend(
    backbone: PreTrainedModel, prefix: PrefixCache | None, embeddings: Tensor, *, reads: int, prompt: bool = False
) -> tuple[PrefixCache, Tensor]:
    """A prefix (None: the empty one) continued by embeddings (L, D): the longer prefix, and the hidden states of its
    last tokens (reads, D). prompt: part of the prompt, which a prefix language model reads both ways."""
    length = len(embeddings)
    attention = {"both_ways": True} if prompt and getattr(backbone.config, "prefix_lm", False) else {}
    cache = _copy(prefix.cache) if prefix else DynamicCache(config=backbone.config)
    last = torch.arange(length - reads, length, device=embeddings.device)[None]
    states = _run(backbone, last, inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True, **attention)
    return PrefixCache(cache, (prefix.length if prefix else 0) + length), states[0]


def embedded(backbone: PreTrainedModel, suffixes: Tensor) -> Tensor:
    """Token ids (M, L) -> their embeddings (M, L, D). Floats (M, L, D) are embeddings already: features, say."""
    return suffixes if suffixes.is_floating_point() else backbone.get_input_embeddings()(suffixes)


def encode_suffixes(backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor, lengths: Tensor) -> Tensor:
    """Ids (M, L) or embeddings (M, L, D), padded on the right, lengths (M,) -> the state at the last real token of each
    (M, D).

    No mask is needed for the padding: attention is causal, and what follows the last real token is not read.
    """
    embeddings = embedded(backbone, suffixes)
    return suffix_states(backbone, prefix, embeddings, lengths[:, None].to(embeddings.device) - 1)[:, 0]


def suffix_states(backbone: PreTrainedModel, prefix: PrefixCache, embeddings: Tensor, wanted: Tensor) -> Tensor:
    """embeddings (M, L, D) of M suffixes of one prefix -> last hidden states (M, W, D) at the places wanted (M, W)."""
    if is_two_part(backbone):
        return _run_on_prefix(backbone, prefix, embeddings, None, 0, wanted)
    cache = _copy(prefix.cache)
    cache.batch_repeat_interleave(len(embeddings))
    return _run(backbone, wanted, inputs_embeds=embeddings, past_key_values=cache, use_cache=True)


def all_states(backbone: PreTrainedModel, prefix: PrefixCache, suffixes: Tensor) -> Tensor:
    """Ids (M, L) or embeddings (M, L, D), padded on the right -> the states at all their tokens (M, L, D)."""
    embeddings = embedded(backbone, suffixes)
    places = torch.arange(embeddings.shape[1], device=embeddings.device).expand(len(embeddings), -1)
    return suffix_states(backbone, prefix, embeddings, places)


def tree_states(
    backbone: PreTrainedModel, prefix: PrefixCache, embeddings: Tensor, lengths: Tensor, nodes: Tensor,
    parents: Sequence[int],
) -> Tensor:  # fmt: skip
    """A tree behind each of M suffixes, in one pass: the states (M, 1 + K, D) at its suffix's end and at its K nodes.

    embeddings (M, L, D) and lengths (M,) of the suffixes; nodes (M, K, D); parents (K,): the node before each, an
    earlier one, or -1 for the suffix's end. A node sees the prefix, its suffix and the nodes on the way to it.
    """
    on_the_way = np.eye(len(parents), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            on_the_way[node] |= on_the_way[parent]
    own = torch.as_tensor(on_the_way, device=embeddings.device)
    if not is_two_part(backbone):
        return _tree_by_paths(backbone, prefix, embeddings, lengths, nodes, parents, own)
    rows, length = embeddings.shape[:2]
    steps = torch.arange(length + len(parents), device=embeddings.device)
    suffix = steps[:length]
    seen = torch.zeros(rows, len(steps), len(steps), dtype=torch.bool, device=embeddings.device)
    seen[:, :length, :length] = suffix <= suffix[:, None]
    seen[:, length:, :length] = suffix < lengths[:, None, None]
    seen[:, length:, length:] = own
    positions = torch.cat([suffix.expand(rows, -1), lengths[:, None] - 1 + own.sum(-1)], -1)
    return _run(
        backbone, torch.cat([lengths[:, None] - 1, steps[length:].expand(rows, -1)], -1),
        inputs_embeds=torch.cat([embeddings, nodes], 1), position_ids=prefix.length + positions,
        attention_mask=_no_mask(embeddings.device), use_cache=False, prefix=prefix.cache, seen=seen,
    )  # fmt: skip


def _tree_by_paths(
    backbone: PreTrainedModel, prefix: PrefixCache, embeddings: Tensor, lengths: Tensor, nodes: Tensor,
    parents: Sequence[int], own: Tensor,
) -> Tensor:  # fmt: skip
    """Every way from a suffix to a leaf as a row of its own: the same numbers in any model."""
    row = torch.arange(len(embeddings), device=embeddings.device)[:, None]
    states = [encode_suffixes(backbone, prefix, embeddings, lengths)] * (1 + len(parents))
    for leaf in set(range(len(parents))) - set(parents):
        path = own[leaf].nonzero()[:, 0]
        steps = torch.arange(len(path), device=embeddings.device)
        whole = F.pad(embeddings, (0, 0, 0, len(path))).index_put((row, lengths[:, None] + steps), nodes[:, path])
        for node, state in zip(
            path.tolist(), suffix_states(backbone, prefix, whole, lengths[:, None] + steps).unbind(1), strict=True
        ):
            states[1 + node] = state
    return torch.stack(states, 1)


def branch(
    backbone: PreTrainedModel, origin: PrefixCache | Branches, parents: Tensor, embeddings: Tensor
) -> tuple[Branches, Tensor]:
    """Grows N branches by one token each: branch i continues parents[i] of `origin` with embeddings[i].

    parents (N,) indexes the branches of `origin` (zeros where it is a prefix); embeddings (N, D).
    Returns the new branches and their last hidden states (N, D).
    """
    start = Branches(origin, DynamicCache(), 0) if isinstance(origin, PrefixCache) else origin
    prefix, length = start.prefix, start.length
    cache = _copy(prefix.cache if length == 0 and not is_two_part(backbone) else start.cache)
    cache.batch_select_indices(parents)
    if is_two_part(backbone):
        states = _run_on_prefix(backbone, prefix, embeddings[:, None], cache, length, None)
    else:
        states = _run(backbone, None, inputs_embeds=embeddings[:, None], past_key_values=cache, use_cache=True)
    return Branches(prefix, cache, length + 1), states[:, 0]


def _run_on_prefix(
    backbone: PreTrainedModel, prefix: PrefixCache, embeddings: Tensor, own: DynamicCache | None, own_length: int,
    wanted: Tensor | None,
) -> Tensor:  # fmt: skip
    length = embeddings.shape[1]
    start = prefix.length + own_length
    positions = torch.arange(start, start + length, device=embeddings.device)[None]
    return _run(
        backbone, wanted, inputs_embeds=embeddings, position_ids=positions, past_key_values=own,
        attention_mask=_no_mask(embeddings.device), use_cache=own is not None, prefix=prefix.cache,
    )  # fmt: skip


def _no_mask(device: torch.device) -> Tensor:
    """4-D masks are passed through as they stand; two_part_attention needs none, transformers would make one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _run(backbone: PreTrainedModel, wanted: Tensor | None, **inputs: Any) -> Tensor:
    """The last hidden states of new tokens: of all (M, L, D), or those at the places wanted (M, W) -> (M, W, D)."""
    if wanted is None:
        return backbone.base_model(**inputs).last_hidden_state
    if is_two_part(backbone):
        return backbone.base_model(**inputs, wanted=wanted).last_hidden_state  # see only_wanted
    states = backbone.base_model(**inputs).last_hidden_state
    return states[torch.arange(len(states), device=states.device)[:, None], wanted]


def _copy(cache: DynamicCache) -> DynamicCache:
    """Its own layers over the same tensors: appending to the copy leaves the original as it was."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
