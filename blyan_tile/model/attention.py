"""RMSNorm, projections, rotation and grouped-query attention, as in Mixtral.

Letters: B batch, T tokens, d width, H heads, G key-value heads, w head width,
S tokens in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.block.model import Architecture, BiasKind, QueryKeyNorm
from blyan_tile.model.cache import PAGE_TOKENS, first_seen
from blyan_tile.model.linear import linear


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / rms(x) * weight over the last dimension. x (..., d), weight (d,)."""
    return F.rms_norm(x, weight.shape, weight, epsilon)  # (..., d)


def head_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise queries or keys before RoPE; the weight's length says over how much.

    x (..., H * w); weight (w,) for each head on its own, (H * w,) across all heads.
    """
    parts = x.view(*x.shape[:-1], -1, weight.shape[0])  # (..., H or 1, w or H * w)
    return rms_norm(parts, weight, epsilon).flatten(-2)  # (..., H * w)


def projected(
    architecture: Architecture,
    parameters: Mapping[str, Tensor],
    layer: int,
    name: str,
    x: Tensor,
    multiply: Callable[[Tensor, Tensor], Tensor] = linear,
) -> Tensor:
    """Return one of attention's projections: "q", "k", "v" or "o".

    x (n, d) -> (n, H * w or G * w); for "o" (n, H * w) -> (n, d). Bias, norm and clip
    follow in this order, each where the architecture has it.
    """
    made = multiply(x, parameters[f"layer{layer}.attention.{name}.weight"])
    return adjusted(architecture, parameters, layer, name, made)


def adjusted(
    architecture: Architecture,
    parameters: Mapping[str, Tensor],
    layer: int,
    name: str,
    made: Tensor,
) -> Tensor:
    """Return what `projected` makes of a product. (n, any) -> the same shape."""
    prefix = f"layer{layer}.attention.{name}"
    bias = architecture.attention_bias
    if bias is BiasKind.ALL or (bias is BiasKind.QKV and name != "o"):
        made = made + parameters[f"{prefix}.bias"]  # not in the GEMM (DEC-S1)
    if name in "qk" and architecture.query_key_norm is not QueryKeyNorm.NONE:
        norm = parameters[f"{prefix}_norm.weight"]  # (w,) or (H * w,)
        made = head_norm(made, norm, architecture.rms_epsilon_ppb * 1e-9)
    if name != "o" and architecture.clip_qkv_micro:
        bound = architecture.clip_qkv_micro * 1e-6
        made = made.clamp(-bound, bound)
    return made


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each half-pair (i, i + w/2) by its position's angle (the GPT-NeoX order).

    x (..., T, w), cosine and sine (T, w/2) -> (..., T, w).
    """
    low, high = x.chunk(2, dim=-1)  # (..., T, w/2) each
    return torch.cat(
        (low * cosine - high * sine, high * cosine + low * sine), dim=-1
    )  # (..., T, w)


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return what `rotate` returns, bit for bit, in fewer operations.

    x (n, heads, w); cosine (n, 1, w), each twice, and sine (n, 1, w), the first half
    negated, as `doubled` gives them.
    """
    low, high = x.chunk(2, dim=-1)  # (n, heads, w/2) each
    return x * cosine + torch.cat((high, low), dim=-1) * sine  # (n, heads, w)


def doubled(cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tables that `turned` takes, (n, 1, w) each, of (n, w/2) each."""
    return (
        torch.cat((cosine, cosine), dim=-1)[:, None],
        torch.cat((-sine, sine), dim=-1)[:, None],
    )


@dataclass(frozen=True)
class Glance:
    """Queries of one sequence that look at the same keys.

    They lie within one page of positions, and the keys are whole pages; so a token's
    result does not depend on which others come with it, one by one or a prompt at once.
    """

    start: int  # of the sequence's new tokens
    end: int
    keys_start: int  # positions
    keys_end: int
    mask: Tensor  # (T * repeats rounded up, S) float32, 0 or -inf


GLANCE_ROWS = 4  # BLAS takes other kernels, with other last bits, for fewer


def glances(
    position: int, tokens: int, repeats: int, window: int, device: torch.device
) -> tuple[Glance, ...]:
    """Divide the `tokens` from `position` on; `repeats` query heads share a key's.

    `window` as in `attention`.
    """
    made: list[Glance] = []
    start = 0
    while start < tokens:
        first = position + start
        page = first - first % PAGE_TOKENS
        end = min(tokens, page + PAGE_TOKENS - position)
        seen = first_seen(first, window)
        at = torch.arange(first, position + end, device=device)  # (T,)
        at = at.repeat_interleave(repeats)  # (T * repeats,)
        at = F.pad(at, (0, -len(at) % GLANCE_ROWS), value=first)
        keys = torch.arange(seen, page + PAGE_TOKENS, device=device)  # (S,)
        hidden = keys > at[:, None]  # (rows, S)
        if window:
            hidden |= keys <= at[:, None] - window
        mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -inf)
        made.append(Glance(start, end, seen, page + PAGE_TOKENS, mask))
        start = end
    return tuple(made)


def look(query: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Attend as a glance says.

    query (T, H, w), seen (2, G, S, w) keys and values, mask (rows, S) -> (T, H * w).
    """
    length, heads, width = query.shape
    groups = seen.shape[1]
    rows = query.view(length, groups, -1, width)  # (T, G, repeats, w)
    if length > 1:
        rows = rows.transpose(0, 1).reshape(1, groups, -1, width)  # (1, G, rows, w)
    count, padded = rows.shape[2], len(mask)
    if padded > count:
        rows = F.pad(rows, (0, 0, 0, padded - count))
    keys, values = seen[:, None]  # (1, G, S, w) each
    out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
    if padded > count:
        out = out.narrow(2, 0, count)
    if length > 1:
        out = out.reshape(groups, length, -1).transpose(0, 1)  # (T, G, repeats * w)
    return out.reshape(length, heads * width)  # (T, H * w)


def attention(query: Tensor, keys: Tensor, values: Tensor, window: int = 0) -> Tensor:
    """Attend causally; the T queries are the last of the S positions.

    query (B, H, T, w), keys and values (B, G, S, w) -> (B, T, H * w). With a `window`
    a query sees that many positions, its own included; 0: all before it.
    """
    length = query.shape[2]
    if window and keys.shape[2] > window - 1 + length:
        keys = keys[:, :, -(window - 1 + length) :]  # the rest is seen by none
        values = values[:, :, -(window - 1 + length) :]
    seen = keys.shape[2]
    is_windowed = 0 < window < seen
    mask = None
    if length > 1 and (length < seen or is_windowed):
        mask = torch.ones(length, seen, dtype=torch.bool, device=query.device)
        mask = mask.tril(seen - length)  # (T, S): query i sees S - T + i + 1 keys
        if is_windowed:
            mask = mask.triu(seen - length - window + 1)  # the last `window` of them
    out = F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and length > 1,
        enable_gqa=query.shape[1] != keys.shape[1],
    )  # (B, H, T, w)
    return out.transpose(1, 2).flatten(2)  # (B, T, H * w)
