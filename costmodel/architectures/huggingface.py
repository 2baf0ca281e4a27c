"""Families of Hugging Face: models made from small configs of many kinds, nothing downloaded, weights never filled.

Each is called through a wrapper that returns the tensors of interest alone, so that poolers and caches that nobody asks
for are dead code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from costmodel.architectures.draws import TORCH, Built, Draw

ENCODERS = (
    "BertModel", "RobertaModel", "DistilBertModel", "ElectraModel", "MPNetModel", "AlbertModel", "DebertaV2Model",
)  # fmt: skip
DECODERS = (
    "GPT2LMHeadModel", "LlamaForCausalLM", "OPTForCausalLM", "GPTNeoXForCausalLM", "Qwen2ForCausalLM",
    "PhiForCausalLM", "GemmaForCausalLM", "MistralForCausalLM", "FalconForCausalLM", "BloomForCausalLM",
)  # fmt: skip
VISION = ("ViTModel", "DeiTModel", "ResNetModel", "ConvNextModel", "SwinModel", "BeitModel", "RegNetModel")
SPEECH = ("WhisperModel", "Wav2Vec2Model", "HubertModel", "ASTModel")
MIXTURES = ("MixtralForCausalLM", "Qwen2MoeForCausalLM")
STATE_SPACES = ("MambaForCausalLM", "RwkvModel")
# Those without torch's own attention.
_EAGER = (
    "DebertaV2Model", "MPNetModel", "BloomForCausalLM", "RwkvModel", "MambaForCausalLM", "SwinModel", "ResNetModel",
    "ConvNextModel", "RegNetModel",
)  # fmt: skip


class Wrapped(nn.Module):
    """The main answer of a model: logits where it has them, else its last hidden state."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.options = model, names, options

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        out = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options)
        return out.logits if "logits" in out else out.last_hidden_state


def _built(draw: Draw, kind: str, fields: dict[str, Any], inputs: dict[str, torch.Tensor], **options: Any) -> Built:
    import transformers
    from transformers.initialization import no_init_weights

    model_class = getattr(transformers, kind)
    config = model_class.config_class(**fields)
    config._attn_implementation = "eager" if kind in _EAGER or draw.chance(0.3) else "sdpa"
    with no_init_weights():
        model = model_class(config).to(TORCH[draw.dtype])
    return Built(Wrapped(model, tuple(inputs), options).eval(), tuple(inputs.values()))


def real(draw: Draw, *shape: int) -> torch.Tensor:
    """These models lie in the memory of the CPU, and so must their inputs."""
    return torch.zeros(shape, dtype=TORCH[draw.dtype])


def _sizes(draw: Draw) -> tuple[int, int, int, dict[str, Any]]:
    """Batch, length, vocabulary and what most text models call their sizes."""
    heads, size, layers = draw.one(2, 4, 8), draw.one(16, 32, 64), draw.whole(1, 4)
    width, vocabulary = heads * size, draw.size(128, 16_000, 8)
    batch, length = draw.batch_of(1, 8), draw.size(4, 160, 4)
    fields = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary,
        "intermediate_size": draw.one(2, 4) * width, "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return batch, length, vocabulary, fields


def encoder(draw: Draw) -> Built:
    kind = draw.one(*ENCODERS)
    batch, length, vocabulary, fields = _sizes(draw)
    if kind == "DistilBertModel":
        fields |= {"dim": fields["hidden_size"], "n_layers": fields["num_hidden_layers"],
                   "n_heads": fields["num_attention_heads"], "hidden_dim": fields["intermediate_size"]}  # fmt: skip
    if kind in ("AlbertModel", "ElectraModel"):
        fields["embedding_size"] = draw.one(32, 64)
    if kind == "DebertaV2Model":
        fields |= {"relative_attention": draw.chance(0.5), "position_buckets": 32, "pos_att_type": ["p2c", "c2p"],
                   "max_relative_positions": 64}  # fmt: skip
    return _built(draw, kind, fields, {"input_ids": draw.tokens(vocabulary, batch, length)})


def decoder(draw: Draw) -> Built:
    kind = draw.one(*DECODERS)
    batch, length, vocabulary, fields = _sizes(draw)
    heads = fields["num_attention_heads"]
    if kind in ("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM", "GemmaForCausalLM"):
        fields["num_key_value_heads"] = draw.one(1, 2, heads) if heads > 1 else 1
    if kind == "GemmaForCausalLM":
        fields["head_dim"] = fields["hidden_size"] // heads
    if kind == "OPTForCausalLM":
        fields |= {"ffn_dim": fields["intermediate_size"], "word_embed_proj_dim": fields["hidden_size"]}
    if kind == "GPT2LMHeadModel":
        fields |= {"n_embd": fields["hidden_size"], "n_layer": fields["num_hidden_layers"], "n_head": heads}
    if kind == "BloomForCausalLM":
        fields |= {"n_layer": fields["num_hidden_layers"], "n_head": heads}
    return _built(draw, kind, fields, {"input_ids": draw.tokens(vocabulary, batch, length)}, use_cache=False)


def mixture(draw: Draw) -> Built:
    kind = draw.one(*MIXTURES)
    batch, length, vocabulary, fields = _sizes(draw)
    fields |= {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "num_experts": 4,
               "moe_intermediate_size": fields["hidden_size"], "shared_expert_intermediate_size": fields["hidden_size"],
               "num_hidden_layers": draw.whole(1, 2), "experts_implementation": "batched_mm"}  # fmt: skip
    ids = draw.tokens(vocabulary, batch, min(length, 32))
    return _built(draw, kind, fields, {"input_ids": ids}, use_cache=False)


def state_space(draw: Draw) -> Built:
    kind = draw.one(*STATE_SPACES)
    batch, length, vocabulary, fields = _sizes(draw)
    length = min(length, 24)
    fields |= {"num_hidden_layers": draw.whole(1, 2), "state_size": draw.one(4, 8, 16)}
    if kind == "RwkvModel":
        fields |= {"attention_hidden_size": fields["hidden_size"], "context_length": 512}
    return _built(draw, kind, fields, {"input_ids": draw.tokens(vocabulary, batch, length)}, use_cache=False)


def vision(draw: Draw) -> Built:
    kind = draw.one(*VISION)
    batch, image = draw.batch_of(1, 8), draw.one(32, 48, 64, 96)
    heads, size, layers = draw.one(2, 4), draw.one(16, 32, 48), draw.whole(1, 4)
    width, depth = heads * size, draw.one(16, 24, 32)
    fields: dict[str, Any] = {"image_size": image, "num_channels": 3}
    if kind in ("ViTModel", "DeiTModel", "BeitModel"):
        fields |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": 8,
                   "intermediate_size": 4 * width}  # fmt: skip
    elif kind == "SwinModel":
        image = fields["image_size"] = draw.one(32, 64)
        fields |= {"patch_size": 2, "embed_dim": depth, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    elif kind == "ConvNextModel":
        fields |= {"hidden_sizes": [depth, 2 * depth], "depths": [layers, layers], "num_stages": 2}
    else:
        fields |= {"hidden_sizes": [2 * depth, 4 * depth], "depths": [layers, layers], "embedding_size": depth}
        fields |= {"groups_width": 8} if kind == "RegNetModel" else {"layer_type": draw.one("basic", "bottleneck")}
    return _built(draw, kind, fields, {"pixel_values": real(draw, batch, 3, image, image)})


def speech(draw: Draw) -> Built:
    kind = draw.one(*SPEECH)
    heads, size, layers = draw.one(2, 4), draw.one(16, 32, 48), draw.whole(1, 3)
    batch, width, length = draw.batch_of(1, 4), heads * size, draw.size(16, 128, 8)
    fields: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                              "intermediate_size": 4 * width}  # fmt: skip
    if kind == "WhisperModel":
        fields = {
            "d_model": width, "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads,
            "decoder_attention_heads": heads, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width,
            "vocab_size": 512, "num_mel_bins": 40, "max_source_positions": length, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_target_positions": 64,
        }  # fmt: skip
        sound = real(draw, batch, 40, 2 * length)
        inputs = {"input_features": sound, "decoder_input_ids": draw.tokens(512, batch, draw.size(2, 24))}
        return _built(draw, kind, fields, inputs, use_cache=False)
    if kind == "ASTModel":
        fields |= {"max_length": length, "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
        return _built(draw, kind, fields, {"input_values": real(draw, batch, length, 32)})
    fields |= {"conv_dim": [32, 32, 32], "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "vocab_size": 64,
               "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
               "mask_time_prob": 0.0}  # fmt: skip
    return _built(draw, kind, fields, {"input_values": real(draw, batch, 40 * length)})


FAMILIES: dict[str, Callable[[Draw], Built]] = {
    "hf-encoder": encoder, "hf-decoder": decoder, "hf-vision": vision, "hf-speech": speech, "hf-moe": mixture,
    "hf-ssm": state_space,
}  # fmt: skip
