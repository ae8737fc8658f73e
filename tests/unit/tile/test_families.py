"""A config.json, option by option: honoured, without effect, or refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.model import (
    BiasKind,
    Dtype,
    Model,
    QueryKeyNorm,
    RopeKind,
    RopeScaling,
)
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_tile.create import PRESETS, model_of
from blyan_tile.layout import layout_of
from blyan_tile.model.families import (
    WITHOUT_EFFECT,
    config_of,
    is_surplus,
    read_config,
    tensor_names,
)
from blyan_tile.model.rope import rope_tables
from tests.documents import tables

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "model_type": "mixtral",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 256,
}
OTHER = {
    name: value
    for name, value in MIXTRAL.items()
    if name not in ("architectures", "num_local_experts")
}
OLMOE = {
    **OTHER,
    "model_type": "olmoe",
    "num_experts": 4,
    "rope_scaling": None,
    "attention_bias": False,
    "clip_qkv": None,
    "norm_topk_prob": False,
}
QWEN3 = {
    **OTHER,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "moe_intermediate_size": 32,
    "head_dim": 32,
    "max_window_layers": 4,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
QWEN2 = {
    **QWEN3,
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 48,
}
NAMED = {
    one["model_type"]: one for one in (MIXTRAL, OLMOE, QWEN2, QWEN3)
}  # as the published models say it


def shape(config: dict[str, Any], **changed: Any) -> Any:
    return read_config({**config, **changed}).architecture


def test_the_published_configurations():
    mixtral = read_config(MIXTRAL)
    assert (mixtral.name, mixtral.dtype) == ("mixtral", Dtype.BF16)
    assert mixtral.architecture.rms_epsilon_ppb == 10_000
    assert mixtral.architecture.rope_base == 1_000_000
    assert mixtral.architecture.head_width == 16
    assert mixtral.architecture.normalise_top_k
    olmoe = shape(OLMOE, clip_qkv=8.0)
    assert olmoe.query_key_norm is QueryKeyNorm.WIDTH
    assert olmoe.clip_qkv_micro == 8_000_000 and not olmoe.normalise_top_k
    qwen3 = shape(QWEN3)
    assert (qwen3.expert_width, qwen3.head_width) == (32, 32)
    assert qwen3.query_key_norm is QueryKeyNorm.HEAD
    assert qwen3.attention_window == 0, "it is switched off"
    qwen2 = shape(QWEN2)
    assert qwen2.shared_width == 48 and qwen2.shared_gate
    assert qwen2.attention_bias is BiasKind.QKV


@pytest.mark.parametrize(
    "family, theta, kv_heads, per_token, ppb",
    [
        ("mixtral", 10**6, 8, 2, 10_000),
        ("olmoe", 10**4, 16, 8, 10_000),
        ("qwen3_moe", 10**4, 4, 8, 1_000),
        ("qwen2_moe", 10**4, 16, 4, 1_000),
    ],
)
def test_what_is_left_out_is_the_default(family, theta, kv_heads, per_token, ppb):
    config = dict(
        model_type=family,
        vocab_size=256,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_local_experts=8,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    if family.startswith("qwen"):
        config |= dict(moe_intermediate_size=32)
    if family == "qwen2_moe":
        config |= dict(shared_expert_intermediate_size=32)
    made = read_config(config)
    assert made.dtype is None
    assert made.architecture.rope_base == theta
    assert made.architecture.kv_heads == kv_heads
    assert made.architecture.experts_per_token == per_token
    assert made.architecture.rms_epsilon_ppb == ppb
    assert made.architecture.head_width == 8
    assert made.architecture.normalise_top_k is (family == "mixtral")
    assert not made.architecture.tied_embeddings
    assert shape(config, num_key_value_heads=None).kv_heads == 16
    assert shape(config, num_experts=8) == made.architecture


@pytest.mark.parametrize(
    "scaling, wanted",
    [
        (None, None),
        ({}, None),
        ({"type": "default"}, None),
        (
            {"type": "linear", "factor": 2},
            RopeScaling(RopeKind.LINEAR, 2_000_000_000),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0},
            RopeScaling(RopeKind.YARN, 4 * 10**9, 512, 10**9, 32 * 10**9),
        ),
        (
            {
                "rope_type": "yarn",
                "type": "yarn",
                "factor": None,
                "original_max_position_embeddings": 128,
                "mscale": 1,
                "mscale_all_dim": 1,
                "truncate": False,
                "beta_fast": 16,
            },
            RopeScaling(RopeKind.YARN, 4 * 10**9, 128, 10**9, 16 * 10**9, 10**9, False),
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8.5,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            RopeScaling(RopeKind.LLAMA3, 8_500_000_000, 64, 10**9, 4 * 10**9),
        ),
    ],
)
def test_positions_in_both_spellings(scaling, wanted):
    old = shape(MIXTRAL, rope_theta=5e5, rope_scaling=scaling)
    assert (old.rope_base, old.rope) == (500_000, wanted)
    new = dict(MIXTRAL)
    del new["rope_theta"]
    new["rope_parameters"] = {**(scaling or {}), "rope_theta": 5e5}
    assert shape(new) == old
    if scaling and "original_max_position_embeddings" in scaling:
        outer = scaling["original_max_position_embeddings"]
        inner = {**scaling, "original_max_position_embeddings": 7}
        moved = dict(rope_scaling=inner, original_max_position_embeddings=outer)
        assert shape(MIXTRAL, rope_theta=5e5, **moved) == old


WRONG = [
    ("mixtral", dict(model_type="llama"), "model_type 'llama': supported are mixtral"),
    ("mixtral", dict(model_type=None), "model_type"),
    ("mixtral", dict(architectures=["MixtralModel"]), "architectures"),
    ("mixtral", dict(hidden_act="gelu"), "hidden_act 'gelu'"),
    ("mixtral", dict(hidden_size=None), "hidden_size"),
    ("mixtral", dict(hidden_size="64"), "hidden_size '64'"),
    ("mixtral", dict(hidden_size=True), "hidden_size True"),
    ("mixtral", dict(vocab_size=2**32), "vocab_size"),
    ("mixtral", dict(num_hidden_layers=-1), "num_hidden_layers"),
    ("mixtral", dict(num_key_value_heads=3), "num_key_value_heads 3: must divide"),
    ("mixtral", dict(num_experts_per_tok=5), "num_experts_per_tok 5: there are 4"),
    ("mixtral", dict(num_experts=5), "num_local_experts"),
    ("mixtral", dict(head_dim=15), "head_dim 15: positions turn pairs"),
    ("mixtral", dict(num_attention_heads=64), "head_dim is missing: positions"),
    ("mixtral", dict(is_encoder_decoder=True), "is_encoder_decoder True"),
    ("mixtral", dict(sliding_window=0), "sliding_window 0"),
    ("mixtral", dict(rms_norm_eps=1e-12), "rms_norm_eps 1e-12"),
    ("mixtral", dict(rms_norm_eps=float("nan")), "rms_norm_eps nan"),
    ("mixtral", dict(rope_theta=10000.5), "rope_theta 10000.5"),
    ("mixtral", dict(torch_dtype="float8_e4m3fn"), "torch_dtype"),
    ("mixtral", dict(dtype="float32"), "torch_dtype"),
    ("mixtral", dict(tie_word_embeddings=1), "tie_word_embeddings 1"),
    ("mixtral", dict(attention_bias=True), "attention_bias True"),
    ("mixtral", dict(quantization_config={"bits": 4}), "quantization_config"),
    ("mixtral", dict(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
    ("mixtral", dict(original_max_position_embeddings=9), "original_max_position"),
    ("mixtral", dict(num_local_experts=65_535), "groups"),
    ("olmoe", dict(sliding_window=8), "sliding_window 8"),
    ("olmoe", dict(head_dim=32), "head_dim 32"),
    ("olmoe", dict(clip_qkv=0), "clip_qkv 0"),
    ("olmoe", dict(clip_qkv=-8.0), "clip_qkv -8.0"),
    ("qwen3_moe", dict(decoder_sparse_step=0), "decoder_sparse_step 0"),
    ("qwen3_moe", dict(decoder_sparse_step=5), "no layer has experts"),
    ("qwen3_moe", dict(mlp_only_layers=[4]), "mlp_only_layers"),
    ("qwen3_moe", dict(mlp_only_layers="0"), "mlp_only_layers"),
    ("qwen3_moe", dict(num_experts=0), "num_experts 0"),
    ("qwen3_moe", dict(layer_types=["full_attention"] * 4), "layer_types"),
    ("qwen2_moe", dict(use_sliding_window=True), "only half of the layers"),
    (
        "qwen2_moe",
        dict(layer_types=["full_attention"] * 3 + ["sliding_attention"]),
        "layer_types",
    ),
    ("qwen2_moe", dict(shared_expert_intermediate_size=None), "shared_expert"),
    ("qwen2_moe", dict(attention_bias=True), "attention_bias"),
]


@pytest.mark.parametrize("family, changed, told", WRONG)
def test_what_is_not_supported_is_named(family, changed, told):
    with pytest.raises((DecodeError, LimitExceeded), match=re.escape(told)) as caught:
        read_config({**NAMED[family], **changed})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "inner, told",
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type 'dynamic'"),
        ({"type": "longrope", "short_factor": [1]}, "type 'longrope'"),
        ({"type": "linear", "rope_type": "yarn"}, "type 'linear'"),
        ({"type": "linear"}, "factor is missing"),
        ({"type": "linear", "factor": 0}, "factor 0"),
        ({"type": "linear", "factor": 2, "beta_fast": 3}, "rope_scaling.beta_fast 3"),
        ({"type": "linear", "factor": 2, "rope_theta": 5.0}, "rope_theta"),
        ({"type": "yarn", "factor": 2, "attention_factor": 0}, "attention_factor 0"),
        ({"type": "yarn", "factor": 2, "mscale": 0.7}, "mscale 0.7"),
        ({"type": "yarn", "factor": 2, "beta_fast": 1}, "ascending range"),
        ({"type": "llama3", "factor": 2}, "low_freq_factor is missing"),
        ({"full_attention": {"rope_type": "default"}}, "rope_scaling.full_attention"),
        ({"partial_rotary_factor": 0.5}, "rope_scaling.partial_rotary_factor"),
        ([], "rope_scaling []: must be an object"),
    ],
)
def test_stretching_that_is_not_supported_is_named(inner, told):
    with pytest.raises(DecodeError, match=re.escape(told)):
        read_config({**MIXTRAL, "rope_scaling": inner})


def test_two_ways_to_say_where_positions_are_must_agree():
    both = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(DecodeError, match="rope_scaling"):
        shape(MIXTRAL, rope_parameters=both, rope_scaling={"type": "default"})
    assert shape(MIXTRAL, rope_parameters=both, rope_scaling=both).rope is not None


def test_an_unknown_option_is_never_ignored():
    for family, config in NAMED.items():
        with pytest.raises(DecodeError, match=r"frobnicate \[1, 2\]: .* not supported"):
            read_config({**config, "frobnicate": [1, 2]})
        harmless = {name: "whatever" for name in WITHOUT_EFFECT}
        assert read_config({**config, **harmless}) == read_config(config), family
        assert read_config({**config, "frobnicate": None}) == read_config(config)
    with pytest.raises(DecodeError) as caught:
        read_config({**MIXTRAL, "x" * 10_000: "y" * 10_000})
    assert len(str(caught.value)) < 200


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 200),
        st.sampled_from([2**16, 2**32, 10**400, 1e-9, 0.5, 1e300, 10000.0]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["yarn", "linear", "llama3", "default", "float16"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=6), inner, max_size=3),
    ),
    max_leaves=6,
)
ROPE_NAMES = (
    "rope_type factor rope_theta original_max_position_embeddings attention_factor "
    "beta_fast beta_slow truncate mscale mscale_all_dim low_freq_factor "
    "high_freq_factor partial_rotary_factor"
).split()


@given(
    family=st.sampled_from(sorted(NAMED)),
    changed=st.dictionaries(
        st.sampled_from(sorted(set(MIXTRAL) | set(OLMOE) | set(QWEN2) | set(QWEN3))),
        JSON,
        max_size=3,
    ),
    rope=st.dictionaries(st.sampled_from(ROPE_NAMES), JSON, max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_any_other_value_is_read_or_named(family, changed, rope):
    try:
        made = read_config({**NAMED[family], "rope_scaling": rope, **changed})
    except ProtocolError as error:
        assert len(str(error)) < 300
        return
    cosine, sine = (table[:1] for table in rope_tables(made.architecture))
    assert cosine.isfinite().all() and not sine.any()
    model = Model(1, "m", made.architecture, "bytes", made.dtype or Dtype.F32, 1, "")
    assert read_config(config_of(model)).architecture == made.architecture


def test_a_value_that_is_nested_deeply_is_named():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for changed in (
        {"frobnicate": deep},
        {"rope_scaling": deep},
        {"rope_scaling": {"a": deep}, "rope_parameters": {"a": deep}},
    ):
        with pytest.raises(DecodeError):
            read_config({**MIXTRAL, **changed})


def test_dense_layers_and_windows():
    assert shape(QWEN3, decoder_sparse_step=2).dense_layers == (0, 2)
    dense = shape(QWEN2, decoder_sparse_step=2, mlp_only_layers=[3, 3])
    assert dense.dense_layers == (0, 2, 3) and dense.dense_width == 96
    assert shape(QWEN3, use_sliding_window=True).attention_window == 4096
    assert shape(QWEN2, use_sliding_window=True, max_window_layers=0) == shape(QWEN2)
    sliding = dict(use_sliding_window=True, layer_types=["sliding_attention"] * 4)
    assert shape(QWEN2, **sliding).attention_window == 4096
    one = dict(num_hidden_layers=1, use_sliding_window=True, max_window_layers=1)
    assert shape(QWEN2, **one).attention_window == 4096


@pytest.mark.parametrize("family", NAMED)
def test_every_parameter_has_one_tensor(family):
    made = read_config(
        {**NAMED[family], "mlp_only_layers": [1], "attention_bias": True}
        if family == "qwen3_moe"
        else NAMED[family]
    )
    names = tensor_names(made)
    assert len(set(names.values())) == len(names)
    assert (
        names["layer3.attention.k.weight"] == "model.layers.3.self_attn.k_proj.weight"
    )
    expert = names["layer2.expert3.down.weight"].removeprefix("model.layers.2.")
    if family == "mixtral":
        assert expert == "block_sparse_moe.experts.3.w2.weight"
    else:
        assert expert == "mlp.experts.3.down_proj.weight"
    if family == "qwen3_moe":
        assert names["layer1.dense.up.weight"] == "model.layers.1.mlp.up_proj.weight"
        assert (
            names["layer0.attention.o.bias"] == "model.layers.0.self_attn.o_proj.bias"
        )
    if family == "qwen2_moe":
        at = "model.layers.0.mlp.shared_expert"
        assert names["layer0.shared_gate.weight"] == f"{at}_gate.weight"
        assert names["layer0.shared.gate.weight"] == f"{at}.gate_proj.weight"
    old = "model.layers.3.self_attn.rotary_emb.inv_freq"
    assert is_surplus(made, old) and not is_surplus(made, "lm_head.weight")
    tied = replace(made, architecture=replace(made.architecture, tied_embeddings=True))
    assert is_surplus(tied, "lm_head.weight")
    assert "lm_head.weight" not in tensor_names(tied).values()


def test_a_model_of_our_own_is_told_as_a_configuration():
    for preset in PRESETS:
        model = model_of(preset, "m")
        told = read_config(config_of(model))
        assert (told.name, told.architecture, told.dtype) == (
            "mixtral",
            model.architecture,
            Dtype.F32,
        )
    for config in NAMED.values():
        for changed in (
            {},
            dict(use_sliding_window=True, layer_types=["sliding_attention"] * 4),
            dict(sliding_window=9),
            dict(rope_scaling={"type": "yarn", "factor": 3.0, "truncate": False}),
            dict(mlp_only_layers=[1]),
            dict(clip_qkv=2.5),
        ):
            try:
                family = read_config({**config, **changed})
            except DecodeError:
                continue
            model = Model(1, "m", family.architecture, "bytes", Dtype.BF16, 1, "")
            assert read_config(config_of(model)) == family


def test_a_decoder_of_no_family_has_no_configuration():
    tiny = model_of("tiny", "m")
    for changed in (
        dict(normalise_top_k=False),
        dict(shared_width=8),
        dict(dense_layers=(0,), dense_width=8),
        dict(clip_qkv_micro=5),
        dict(attention_bias=BiasKind.QKV),
        dict(query_key_norm=QueryKeyNorm.WIDTH, head_width=32),
        dict(query_key_norm=QueryKeyNorm.HEAD, shared_width=8),
    ):
        odd = replace(tiny, architecture=replace(tiny.architecture, **changed))
        layout_of(odd)
        with pytest.raises(DecodeError, match="no family"):
            config_of(odd)


def test_the_page_lists_every_option():
    page = {
        name
        for head, *rows in tables("models.md")
        if head[0] == "option"
        for row in rows
        for name in re.findall(r"\w+", row[0])
    }
    assert page >= set(WITHOUT_EFFECT)
    for config in NAMED.values():
        assert set(config) <= page
