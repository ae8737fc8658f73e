"""What is particular to each Hugging Face family: class names and defaults.

The defaults are those of transformers 5 for an option that a config.json leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.block.model import Dtype, QueryKeyNorm

DTYPES = {"float32": Dtype.F32, "float16": Dtype.F16, "bfloat16": Dtype.BF16}
MICRO = 1_000_000  # per unit, of clips


@dataclass(frozen=True)
class Kind:
    """What is particular to one family."""

    architecture: str  # the class whose tensors a checkpoint has
    kv_heads: int | None  # where none is said; None: as many as heads
    per_token: int
    epsilon: float
    theta: int
    query_key_norm: QueryKeyNorm
    expert_width: str  # the option that says it


KINDS = {
    "mixtral": Kind(
        architecture="MixtralForCausalLM",
        kv_heads=8,
        per_token=2,
        epsilon=1e-5,
        theta=1_000_000,
        query_key_norm=QueryKeyNorm.NONE,
        expert_width="intermediate_size",
    ),
    "olmoe": Kind(
        architecture="OlmoeForCausalLM",
        kv_heads=None,
        per_token=8,
        epsilon=1e-5,
        theta=10_000,
        query_key_norm=QueryKeyNorm.WIDTH,
        expert_width="intermediate_size",
    ),
    "qwen2_moe": Kind(
        architecture="Qwen2MoeForCausalLM",
        kv_heads=16,
        per_token=4,
        epsilon=1e-6,
        theta=10_000,
        query_key_norm=QueryKeyNorm.NONE,
        expert_width="moe_intermediate_size",
    ),
    "qwen3_moe": Kind(
        architecture="Qwen3MoeForCausalLM",
        kv_heads=4,
        per_token=8,
        epsilon=1e-6,
        theta=10_000,
        query_key_norm=QueryKeyNorm.HEAD,
        expert_width="moe_intermediate_size",
    ),
}
