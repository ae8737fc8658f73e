"""Our decoder beside transformers': the same random checkpoints, the same logits.

Weights are drawn so that logits have a spread of about 1. Equal means within 1e-4 of
the spread, for a prefill and for 32 cached steps after it; a token may go to another
expert only where the reference's k-th probability is within 1e-5 of the next one.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.block.model import Dtype, Model
from blyan_tile.layout import layout_of
from blyan_tile.model.families import (
    Family,
    config_of,
    is_surplus,
    read_config,
    tensor_names,
)
from blyan_tile.model.router import Routing
from blyan_tile.model.training import held_out_loss
from blyan_tile.model.transformer import LocalModel

pytest.importorskip("transformers", reason="transformers is the reference")
load_file = pytest.importorskip("safetensors.torch").load_file

PROMPT, STEPS = 40, 32
TIE = 1e-5
WITHIN = 1e-4  # of the spread
CLASSES = {
    "mixtral": "Mixtral",
    "olmoe": "Olmoe",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
}
SIZES = dict(
    vocab_size=96,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts_per_tok=2,
    max_position_embeddings=128,
)
DTYPES = {
    torch.float32: Dtype.F32,
    torch.float16: Dtype.F16,
    torch.bfloat16: Dtype.BF16,
}
OWN = {
    "mixtral": dict(intermediate_size=40, num_local_experts=5),
    "olmoe": dict(intermediate_size=40, num_experts=5),
    "qwen2_moe": dict(
        intermediate_size=64,
        moe_intermediate_size=40,
        num_experts=5,
        shared_expert_intermediate_size=56,
    ),
    "qwen3_moe": dict(
        intermediate_size=64, moe_intermediate_size=40, num_experts=5, head_dim=16
    ),
}
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


CASES = {
    "mixtral": Case("mixtral"),
    "mixtral one kv head, odd head size, tied": Case(
        "mixtral",
        dict(num_key_value_heads=1, head_dim=20, tie_word_embeddings=True),
    ),
    "mixtral as many kv heads, one expert each": Case(
        "mixtral", dict(num_key_value_heads=4, num_experts_per_tok=1)
    ),
    "mixtral window": Case("mixtral", dict(sliding_window=7)),
    "mixtral window of two": Case("mixtral", dict(sliding_window=2)),
    "mixtral large epsilon": Case("mixtral", dict(rms_norm_eps=0.25)),
    "mixtral linear": Case(
        "mixtral",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.5)),
    ),
    "mixtral llama3": Case(
        "mixtral",
        dict(
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=1e4,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            )
        ),
    ),
    "mixtral bf16": Case("mixtral", dict(sliding_window=16), torch.bfloat16),
    "olmoe": Case("olmoe"),
    "olmoe clip, norm, bias": Case(
        "olmoe", dict(clip_qkv=0.7, norm_topk_prob=True, attention_bias=True)
    ),
    "olmoe one kv head, tied, yarn": Case(
        "olmoe",
        dict(
            num_key_value_heads=1,
            tie_word_embeddings=True,
            rope_parameters=dict(YARN, original_max_position_embeddings=32),
        ),
    ),
    "olmoe f16": Case("olmoe", dict(clip_qkv=1.5), torch.float16),
    "qwen3": Case("qwen3_moe"),
    "qwen3 norm, bias, tied": Case(
        "qwen3_moe",
        dict(norm_topk_prob=True, attention_bias=True, tie_word_embeddings=True),
    ),
    "qwen3 dense at the ends": Case("qwen3_moe", dict(mlp_only_layers=[0, 2])),
    "qwen3 dense every other, window": Case(
        "qwen3_moe",
        dict(decoder_sparse_step=2, use_sliding_window=True, sliding_window=9),
    ),
    "qwen3 yarn with its own numbers": Case(
        "qwen3_moe",
        dict(
            rope_parameters=dict(
                YARN,
                original_max_position_embeddings=64,
                attention_factor=1.25,
                beta_fast=2.0,
                beta_slow=0.25,
                truncate=False,
            )
        ),
    ),
    "qwen3 yarn with scales": Case(
        "qwen3_moe",
        dict(
            rope_parameters=dict(
                YARN,
                original_max_position_embeddings=64,
                mscale=1.0,
                mscale_all_dim=0.5,
            )
        ),
    ),
    "qwen3 bf16": Case("qwen3_moe", {}, torch.bfloat16),
    "qwen2": Case("qwen2_moe"),
    "qwen2 no bias, norm, dense": Case(
        "qwen2_moe", dict(qkv_bias=False, norm_topk_prob=True, mlp_only_layers=[1])
    ),
    "qwen2 window in all layers": Case(
        "qwen2_moe",
        dict(
            use_sliding_window=True,
            sliding_window=6,
            layer_types=["sliding_attention"] * 3,
        ),
    ),
}


def reference_of(case: Case, **changed: Any) -> Any:
    """Return transformers' model of a case with drawn weights, in float32."""
    named = f"transformers.models.{case.family}"
    part = importlib.import_module(f"{named}.configuration_{case.family}")
    config = getattr(part, f"{CLASSES[case.family]}Config")(
        **{**SIZES, **OWN[case.family], **case.options, **changed}
    )
    part = importlib.import_module(f"{named}.modeling_{case.family}")
    model = getattr(part, f"{CLASSES[case.family]}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                drawn = 1 + 0.2 * drawn
            elif parameter.dim() == 1:
                drawn = 0.2 * drawn  # a bias
            elif name != "model.embed_tokens.weight" or config.tie_word_embeddings:
                drawn = drawn * parameter.shape[-1] ** -0.5
            # what a stored checkpoint can hold, so that both read the same numbers
            parameter.copy_(drawn.to(case.dtype).float())
    return model


def saved(model: Any, case: Case, directory: Path) -> dict[str, Any]:
    """Write a checkpoint as transformers does; return its config.json."""
    # a copy, because rounding the model would round its rotation rates, too
    copy.deepcopy(model).to(case.dtype).save_pretrained(directory)
    told: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return told


def imported(directory: Path, config: dict[str, Any]) -> tuple[Family, dict]:
    """Return what config.json says, and our parameters out of the tensors it names."""
    family = read_config(config)
    tensors = load_file(directory / "model.safetensors")
    names = tensor_names(family)
    left = set(tensors) - set(names.values())
    assert all(is_surplus(family, name) for name in left), left
    stored = {name: tensors[names[name]] for name in names}
    model = Model(1, "m", family.architecture, "bytes", Dtype.F32, 1, "")
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    assert shapes == dict(layout_of(model).parameters)
    return family, {name: tensor.float() for name, tensor in stored.items()}


class Watched(LocalModel):
    """Keeps how tokens were routed."""

    def watch(self) -> None:
        self.routed: list[Routing] = []
        attend = self.trunk.attend

        def watched(*arguments: Any) -> Any:
            made = attend(*arguments)
            if made[2].experts.shape[1]:
                self.routed.append(made[2])
            return made

        self.trunk.attend = watched  # type: ignore[method-assign]


def same_choice(reference: tuple[Tensor, ...], routed: list[Routing]) -> None:
    """Compare the experts of every token; `reference` are router logits by layer."""
    assert len(reference) == len(routed)
    for logits, routing in zip(reference, routed):
        per_token = routing.experts.shape[1]
        ranked = logits.softmax(-1).sort(-1, descending=True)
        theirs = ranked.indices[:, :per_token].sort(-1).values  # (n, k)
        differs = (theirs != routing.experts.sort(-1).values).any(-1)  # (n,)
        gap = ranked.values[:, per_token - 1] - ranked.values[:, per_token]  # (n,)
        assert (gap[differs] < TIE).all()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_routing_are_those_of_transformers(name: str, tmp_path: Path):
    case = CASES[name]
    theirs = reference_of(case)
    family, parameters = imported(tmp_path, saved(theirs, case, tmp_path))
    assert (family.name, family.dtype) == (case.family, DTYPES[case.dtype])
    model = Watched(family.architecture, parameters)
    model.watch()
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(96, (PROMPT + STEPS,), generator=generator)
    kept, cache = None, model.trunk.new_cache(len(tokens))
    for chunk in (tokens[:PROMPT], *tokens[PROMPT:].split(1)):
        model.routed.clear()
        wanted = theirs(
            chunk[None], cache=kept, use_cache=True, output_router_logits=True
        )
        kept = wanted.cache
        logits = model.trunk.logits(model.forward(chunk, cache))
        same_choice(wanted.router_logits, model.routed)
        spread = float(wanted.logits.std())
        assert 0.5 < spread < 2
        if cache.tokens == PROMPT:
            loss = F.cross_entropy(wanted.logits[0, :-1], chunk[1:])
        assert float((logits - wanted.logits[0]).abs().max()) < WITHIN * spread
    # and what inner training computes is the same model
    trained = held_out_loss(family.architecture, parameters, tokens[None, :PROMPT])
    assert trained == pytest.approx(float(loss), abs=WITHIN)


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_of_our_own_says_the_same(name: str, tmp_path: Path):
    """What `config_of` writes, transformers reads as the model that it was."""
    case = CASES[name]
    part = f"transformers.models.{case.family}.configuration_{case.family}"
    read = getattr(importlib.import_module(part), f"{CLASSES[case.family]}Config")
    theirs = read(**{**SIZES, **OWN[case.family], **case.options})
    architecture = read_config(theirs.to_dict()).architecture
    told = config_of(Model(1, "m", architecture, "bytes", Dtype.F32, 1, ""))
    again = read(**told).to_dict()
    assert read_config(again).architecture == architecture
