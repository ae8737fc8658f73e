"""A config.json for a model that did not come from one."""

from __future__ import annotations

from typing import Any

from blyan_proto.block.model import Architecture, BiasKind, Model, QueryKeyNorm
from blyan_proto.errors import DecodeError
from blyan_tile.model.kinds import DTYPES, KINDS, MICRO
from blyan_tile.model.stretching import PPB, rope_options


def config_of(model: Model) -> dict[str, Any]:
    """Return a config.json for a model that did not come from one.

    DecodeError where no family has such a decoder.
    """
    shape = model.architecture
    name = _family_of(shape)
    kind = KINDS[name]
    told: dict[str, Any] = {
        "architectures": [kind.architecture],
        "model_type": name,
        "hidden_act": "silu",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_epsilon_ppb / PPB,
        "num_experts_per_tok": shape.experts_per_token,
        "num_local_experts" if name == "mixtral" else "num_experts": shape.experts,
        kind.expert_width: shape.expert_width,
        "tie_word_embeddings": shape.tied_embeddings,
        "torch_dtype": {dtype: text for text, dtype in DTYPES.items()}[model.dtype],
        **rope_options(shape),
    }
    window = shape.attention_window
    if name == "mixtral":
        return {**told, "sliding_window": window or None}
    told["norm_topk_prob"] = shape.normalise_top_k
    if name == "olmoe":
        clip = shape.clip_qkv_micro
        told["attention_bias"] = shape.attention_bias is BiasKind.ALL
        return {**told, "clip_qkv": clip / MICRO if clip else None}
    told["use_sliding_window"] = bool(window)
    told["sliding_window"] = window or None
    told["decoder_sparse_step"] = 1
    told["mlp_only_layers"] = list(shape.dense_layers)
    told["intermediate_size"] = shape.dense_width or shape.expert_width
    if name == "qwen3_moe":
        told["attention_bias"] = shape.attention_bias is BiasKind.ALL
        return told
    told["qkv_bias"] = shape.attention_bias is BiasKind.QKV
    told["shared_expert_intermediate_size"] = shape.shared_width
    kinds = "sliding_attention" if window else "full_attention"
    return {**told, "layer_types": [kinds] * shape.layers}


def _family_of(shape: Architecture) -> str:
    """Return the family whose options can say everything of an architecture."""
    qwen = bool(shape.dense_layers or shape.shared_width)
    odd = bool(shape.clip_qkv_micro or shape.attention_bias is not BiasKind.NONE)
    if shape.query_key_norm is QueryKeyNorm.WIDTH:  # the only one that clips
        fits = shape.heads * shape.head_width == shape.width
        if fits and not qwen and not shape.attention_window:
            if shape.attention_bias is not BiasKind.QKV:
                return "olmoe"
    elif shape.query_key_norm is QueryKeyNorm.HEAD:
        if (
            not (shape.shared_width or shape.clip_qkv_micro)
            and shape.attention_bias is not BiasKind.QKV
        ):
            return "qwen3_moe"
    elif shape.shared_width:
        if (
            shape.shared_gate
            and not shape.clip_qkv_micro
            and shape.attention_bias is not BiasKind.ALL
        ):
            return "qwen2_moe"
    elif shape.normalise_top_k and not odd and not qwen:
        return "mixtral"
    raise DecodeError("no family of Hugging Face models has such a decoder")
