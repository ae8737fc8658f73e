"""Rotary positions in a foreign configuration, in the spellings of both generations.

Older files have `rope_theta` beside `rope_scaling` (or null); newer ones have both in
`rope_parameters`. The kind is `rope_type`, once `type`.
"""

from __future__ import annotations

import math
from typing import Any

from blyan_proto.block.model import Architecture, RopeKind, RopeScaling
from blyan_tile.model.options import MAX_U64, Options

PPB = 1_000_000_000
KINDS = {"linear": RopeKind.LINEAR, "llama3": RopeKind.LLAMA3, "yarn": RopeKind.YARN}
FAST_TURNS, SLOW_TURNS = 32.0, 1.0  # YaRN's beta_fast and beta_slow, where none is said


def read_rope(
    options: Options, theta: int, context: int
) -> tuple[int, RopeScaling | None]:
    """Return (base, scaling); `theta` is the family's base where none is said.

    DecodeError names what is not supported.
    """
    partial = options.number("partial_rotary_factor")
    if partial not in (None, 1.0):
        raise options.refused("partial_rotary_factor", "whole heads turn")
    name = options.either("rope_parameters", "rope_scaling")
    inner = options.within(name) if name else None
    if inner is None:
        return _base(options, theta), None
    base = _base(options, theta)
    if inner.get("rope_theta") is not None:
        own = _base(inner, theta)
        if options.get("rope_theta") is not None and own != base:
            raise options.refused("rope_theta", f"{name} says {own}")
        base = own
    if inner.number("partial_rotary_factor") not in (None, 1.0):
        raise inner.refused("partial_rotary_factor", "whole heads turn")
    scaling = _scaling(options, inner, context)
    inner.finish()
    return base, scaling


def _base(options: Options, default: int) -> int:
    value = options.number("rope_theta")
    if value is None:
        return default
    if not value.is_integer():
        raise options.refused("rope_theta", "must be an integer")
    return options.whole("rope_theta", low=1)


def _scaling(outer: Options, inner: Options, context: int) -> RopeScaling | None:
    spelled = inner.either("rope_type", "type")
    kind = inner.text(spelled) if spelled else "default"
    if kind == "default":
        return None
    if kind not in KINDS:
        known = ", ".join(("default", *KINDS))
        raise inner.refused(spelled or "rope_type", f"supported are {known}")
    if KINDS[kind] is RopeKind.LINEAR:
        return RopeScaling(RopeKind.LINEAR, _ppb(inner, "factor"))
    # where it stands outside, it outranks the one inside
    place = outer if outer.get("original_max_position_embeddings") else inner
    original = place.whole("original_max_position_embeddings", context, low=1)
    inner.without_effect(("original_max_position_embeddings",) * (place is outer))
    if KINDS[kind] is RopeKind.LLAMA3:
        return RopeScaling(
            RopeKind.LLAMA3,
            _ppb(inner, "factor"),
            original,
            low_ppb=_ppb(inner, "low_freq_factor"),
            high_ppb=_ppb(inner, "high_freq_factor"),
        )
    return _yarn(inner, original, context)


def _yarn(options: Options, original: int, context: int) -> RopeScaling:
    factor = options.number("factor")
    if factor is None:
        factor = context / original
    amplitude = options.number("attention_factor")
    of_part, of_all = options.number("mscale"), options.number("mscale_all_dim")
    if amplitude is None and of_part and of_all:
        amplitude = _amplitude(factor, of_part) / _amplitude(factor, of_all)
    elif of_part or of_all:
        name = "mscale" if of_part else "mscale_all_dim"
        raise options.refused(name, "goes with the other one and no attention_factor")
    fast = options.number("beta_fast") or FAST_TURNS
    slow = options.number("beta_slow") or SLOW_TURNS
    return RopeScaling(
        RopeKind.YARN,
        options.parts("factor", PPB, factor, MAX_U64),
        original,
        low_ppb=options.parts("beta_slow", PPB, slow, MAX_U64),
        high_ppb=options.parts("beta_fast", PPB, fast, MAX_U64),
        attention_ppb=(
            0
            if amplitude is None
            else options.parts("attention_factor", PPB, amplitude, MAX_U64)
        ),
        whole_pairs=options.truth("truncate", True),
    )


def _amplitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _ppb(options: Options, name: str) -> int:
    return options.parts(name, PPB, options.number(name), MAX_U64)


def rope_options(architecture: Architecture) -> dict[str, Any]:
    """Return a configuration's options, in the spelling that both generations read."""
    rope = architecture.rope
    told: dict[str, Any] = {"rope_theta": float(architecture.rope_base)}
    if rope is None:
        return {**told, "rope_scaling": None}
    inner: dict[str, Any] = {
        "rope_type": rope.kind.name.lower(),
        "factor": rope.factor_ppb / PPB,
    }
    if rope.kind is not RopeKind.LINEAR:
        inner["original_max_position_embeddings"] = rope.original_context
    if rope.kind is RopeKind.LLAMA3:
        inner["low_freq_factor"] = rope.low_ppb / PPB
        inner["high_freq_factor"] = rope.high_ppb / PPB
    if rope.kind is RopeKind.YARN:
        inner["beta_slow"] = rope.low_ppb / PPB
        inner["beta_fast"] = rope.high_ppb / PPB
        inner["truncate"] = rope.whole_pairs
        if rope.attention_ppb:
            inner["attention_factor"] = rope.attention_ppb / PPB
    return {**told, "rope_scaling": inner}
