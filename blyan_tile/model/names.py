"""The names of our parameters in the checkpoints of Hugging Face families.

One tensor each, of the same shape: nothing is transposed, fused or split.
"""

from __future__ import annotations

import re
from typing import Protocol

from blyan_proto.block.model import Architecture
from blyan_tile.layout import laid_out

_ALONE = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "final_norm.weight": "model.norm.weight",
}
_OF_LAYER = {
    "attention_norm": "input_layernorm",
    "expert_norm": "post_attention_layernorm",
    **{f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"},
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "router": "mlp.gate",
    "shared_gate": "mlp.shared_expert_gate",
}
_PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}
_PARAMETER = re.compile(r"layer(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"expert(\d+)\.(\w+)")
_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class Named(Protocol):
    """What is known of a checkpoint: families.Family."""

    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> Architecture: ...


def tensor_names(family: Named) -> dict[str, str]:
    """Return parameter -> name in the safetensors files, for every one of the layout."""
    shape = family.architecture
    is_mixtral = family.name == "mixtral"
    return {
        parameter: _ALONE.get(parameter) or _in_layer(parameter, is_mixtral)
        for parameter in laid_out(shape).parameters
    }


def is_surplus(family: Named, tensor: str) -> bool:
    """Return whether a checkpoint may have this tensor although no parameter is it.

    The head where the embedding is the head, and buffers that older versions saved.
    """
    tied = family.architecture.tied_embeddings
    return (tied and tensor == "lm_head.weight") or bool(_BUFFER.fullmatch(tensor))


def _in_layer(parameter: str, is_mixtral: bool) -> str:
    matched = _PARAMETER.fullmatch(parameter)
    assert matched is not None, parameter
    layer, what, kind = matched.groups()
    return f"model.layers.{layer}.{_within(what, is_mixtral)}.{kind}"


def _within(what: str, is_mixtral: bool) -> str:
    expert = _EXPERT.fullmatch(what)
    if is_mixtral and what == "router":
        return "block_sparse_moe.gate"
    if expert is not None:
        number, part = expert.groups()
        if is_mixtral:
            return f"block_sparse_moe.experts.{number}.{_MIXTRAL_PARTS[part]}"
        return f"mlp.experts.{number}.{_PARTS[part]}"
    if what in _OF_LAYER:
        return _OF_LAYER[what]
    where, _, part = what.partition(".")
    return {"dense": "mlp", "shared": "mlp.shared_expert"}[where] + f".{_PARTS[part]}"
