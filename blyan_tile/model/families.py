"""The Hugging Face model families that this decoder computes, by their config.json.

Every option is honoured, listed as without effect, or refused by name; docs/models.md
has the table. What the options mean is what transformers 5 does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blyan_proto.block.model import Architecture, BiasKind, Dtype
from blyan_proto.codec import encode
from blyan_proto.errors import DecodeError
from blyan_tile.layout import laid_out
from blyan_tile.model.described import config_of
from blyan_tile.model.kinds import DTYPES, KINDS, MICRO, Kind
from blyan_tile.model.names import is_surplus, tensor_names
from blyan_tile.model.options import MAX_U8, MAX_U16, MAX_U32, Options
from blyan_tile.model.stretching import PPB, read_rope

__all__ = [
    "Family",
    "WITHOUT_EFFECT",
    "config_of",
    "is_surplus",
    "read_config",
    "tensor_names",
]

# What does not change a logit: training, description, how a library runs, and the
# special tokens, which belong to the tokenizer.
WITHOUT_EFFECT = (
    "attention_dropout initializer_range output_router_logits router_aux_loss_coef "
    "router_jitter_noise gradient_checkpointing pretraining_tp "
    "_name_or_path transformers_version id2label label2id problem_type "
    "finetuning_task task_specific_params unsloth_version unsloth_fixed "
    "use_cache return_dict output_attentions output_hidden_states tokenizer_class "
    "_attn_implementation attn_implementation _attn_implementation_autoset "
    "chunk_size_feed_forward "
    "pad_token_id bos_token_id eos_token_id sep_token_id decoder_start_token_id"
).split()
_OFF = ("is_encoder_decoder", "add_cross_attention", "pruned_heads")


@dataclass(frozen=True)
class Family:
    """What a config.json says of a model."""

    name: str  # its model_type
    architecture: Architecture
    dtype: Dtype | None  # in which the weights say they are stored


def read_config(config: Mapping[str, object]) -> Family:
    """Return what a parsed config.json says.

    DecodeError names the first option that is wrong, missing or not supported;
    LimitExceeded for a model that has more groups or tiles than blocks can name.
    """
    try:
        family = _read(Options(config, "config.json: "))
    except RecursionError:
        raise DecodeError("config.json is nested too deeply") from None
    try:
        encode(family.architecture)
        laid_out(family.architecture)
    except DecodeError as error:
        raise DecodeError(f"config.json: {error}") from None
    return family


def _read(options: Options) -> Family:
    name = options.text("model_type")
    if name not in KINDS:
        raise options.refused("model_type", f"supported are {', '.join(KINDS)}")
    kind = KINDS[name]
    if options.get("architectures") not in (None, [kind.architecture]):
        raise options.refused("architectures", f"must be {kind.architecture}")
    if options.text("hidden_act") not in (None, "silu", "swish"):
        raise options.refused("hidden_act", "experts are SwiGLU: silu")
    architecture = Architecture(**_sizes(options, kind), **_particulars(name, options))
    dtype = _dtype(options)
    for off in _OFF:
        if options.get(off):
            raise options.refused(off, "the model must be a decoder, and whole")
    options.without_effect(WITHOUT_EFFECT)
    options.finish()
    return Family(name, architecture, dtype)


def _sizes(options: Options, kind: Kind) -> dict[str, Any]:
    """Return what every family says alike."""
    width = options.whole("hidden_size", low=1)
    heads = options.whole("num_attention_heads", low=1, high=MAX_U16)
    context = options.whole("max_position_embeddings", low=1)
    is_null = options.has("num_key_value_heads")  # or a number, read below
    kv_heads = heads if is_null else kind.kv_heads or heads
    kv_heads = options.whole("num_key_value_heads", kv_heads, 1, MAX_U16)
    if heads % kv_heads:
        raise options.refused("num_key_value_heads", f"must divide {heads} heads")
    head_width = options.whole("head_dim", width // heads, 1, MAX_U16)
    if head_width % 2:
        raise options.refused("head_dim", f"positions turn pairs of {head_width}")
    epsilon = options.number("rms_norm_eps")
    base, rope = read_rope(options, kind.theta, context)
    spelled = options.either("num_experts", "num_local_experts") or "num_experts"
    experts = options.whole(spelled, low=1, high=MAX_U16)
    per_token = options.whole("num_experts_per_tok", kind.per_token, 1, MAX_U8)
    if per_token > experts:
        raise options.refused("num_experts_per_tok", f"there are {experts} experts")
    return dict(
        vocabulary=options.whole("vocab_size", low=1),
        layers=options.whole("num_hidden_layers", low=1, high=MAX_U16),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        experts=experts,
        experts_per_token=per_token,
        expert_width=options.whole(kind.expert_width, low=1),
        rope_base=base,
        rms_epsilon_ppb=options.parts(
            "rms_norm_eps", PPB, kind.epsilon if epsilon is None else epsilon, MAX_U32
        ),
        tied_embeddings=options.truth("tie_word_embeddings"),
        context=context,
        query_key_norm=kind.query_key_norm,
        rope=rope,
    )


def _particulars(name: str, options: Options) -> dict[str, Any]:
    if name == "mixtral":
        return dict(
            normalise_top_k=True,
            attention_window=options.optional_whole("sliding_window", low=1) or 0,
        )
    normalise = options.truth("norm_topk_prob")
    if name == "olmoe":
        _check_olmoe_heads(options)
        clip = options.number("clip_qkv")
        return dict(
            normalise_top_k=normalise,
            attention_bias=_all_or_none(options.truth("attention_bias")),
            clip_qkv_micro=(
                0 if clip is None else options.parts("clip_qkv", MICRO, clip, MAX_U32)
            ),
        )
    if name == "qwen3_moe":
        options.without_effect(["max_window_layers"])  # the window is every layer's
        return dict(
            normalise_top_k=normalise,
            attention_bias=_all_or_none(options.truth("attention_bias")),
            attention_window=_switched_window(options),
            **_dense(options),
        )
    bias = options.truth("qkv_bias", True)
    return dict(
        normalise_top_k=normalise,
        attention_bias=BiasKind.QKV if bias else BiasKind.NONE,
        attention_window=_window_of_all(options),
        shared_width=options.whole("shared_expert_intermediate_size", low=1),
        shared_gate=True,
        **_dense(options),
    )


def _all_or_none(has_bias: bool) -> BiasKind:
    return BiasKind.ALL if has_bias else BiasKind.NONE


def _check_olmoe_heads(options: Options) -> None:
    """OLMoE normalises queries over the whole model width."""
    width, heads = options.whole("hidden_size"), options.whole("num_attention_heads")
    if heads * options.whole("head_dim", width // heads) != width:
        raise options.refused("head_dim", "of olmoe, must be hidden_size / heads")


def _switched_window(options: Options) -> int:
    """Return the window of a family that has a switch for it."""
    if not options.truth("use_sliding_window"):
        options.get("sliding_window")
        return 0
    return options.optional_whole("sliding_window", low=1) or 0


def _window_of_all(options: Options) -> int:
    """Return Qwen2-MoE's window, which may be a layer's own affair there; not here."""
    window = _switched_window(options)
    layers = options.whole("num_hidden_layers")
    reach = options.whole("max_window_layers", 28)
    kinds = options.get("layer_types")
    if kinds is None:
        sliding = [bool(window) and i % 2 == 0 and i < reach for i in range(layers)]
    elif kinds == ["full_attention"] * layers:
        sliding = [False]
    elif kinds == ["sliding_attention"] * layers and window:
        sliding = [True]
    else:
        raise options.refused("layer_types", "must be the same for all layers")
    if not any(sliding):
        return 0
    if not all(sliding):
        raise options.refused("use_sliding_window", "only half of the layers would")
    return window


def _dense(options: Options) -> dict[str, Any]:
    """Return which layers have no experts, and how wide they are."""
    layers = options.whole("num_hidden_layers")
    every = options.whole("decoder_sparse_step", 1, low=1)
    named = options.get("mlp_only_layers")
    named = [] if named is None else named
    if not isinstance(named, list) or not all(
        type(layer) is int and 0 <= layer < layers for layer in named
    ):
        raise options.refused("mlp_only_layers", "must be a list of layers")
    listed = frozenset(named)
    dense = tuple(i for i in range(layers) if i in listed or (i + 1) % every)
    if len(dense) == layers:
        raise options.refused("decoder_sparse_step", "no layer has experts")
    if not dense:
        options.get("intermediate_size")
        return {}
    return dict(
        dense_layers=dense, dense_width=options.whole("intermediate_size", low=1)
    )


def _dtype(options: Options) -> Dtype | None:
    spelled = options.either("dtype", "torch_dtype")
    if spelled is None:
        return None
    said = options.text(spelled)
    if said is None or said.removeprefix("torch.") not in DTYPES:
        raise options.refused(spelled, f"supported are {', '.join(DTYPES)}")
    return DTYPES[said.removeprefix("torch.")]
