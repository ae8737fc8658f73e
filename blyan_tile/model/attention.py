"""RMSNorm, rotary positions and grouped-query attention, as in Mixtral.

Letters: B batch, T tokens, d width, H heads, G key-value heads, w head width,
S tokens in the cache. Every GEMM pads to a multiple of 8 rows (DEC-S1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# BLAS takes other kernels, with other last bits, for fewer rows than these and for the
# remainder that a thread gets; measured equal for 1 to 64 rows and 1 to 8 threads.
ROWS = 8


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T; a row's bits do not depend on how many rows there are.

    x (n, in), weight (out, in) -> (n, out). DEC-S1.
    """
    rows = x.shape[0]
    if rows % ROWS == 0:
        return F.linear(x, weight)  # (n, out)
    padded = F.pad(x, (0, 0, 0, -rows % ROWS))  # (n rounded up, in)
    return F.linear(padded, weight)[:rows]  # (n, out)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / rms(x) * weight over the last dimension. x (..., d), weight (d,)."""
    return F.rms_norm(x, weight.shape, weight, epsilon)  # (..., d)


def head_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise queries or keys before RoPE; the weight's length says over how much.

    x (..., H * w); weight (w,) for each head on its own, (H * w,) across all heads.
    """
    parts = x.view(*x.shape[:-1], -1, weight.shape[0])  # (..., H or 1, w or H * w)
    return rms_norm(parts, weight, epsilon).flatten(-2)  # (..., H * w)


def rope_table(
    head_width: int, base: int, tokens: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of positions 0..tokens-1, each (tokens, w/2) f32."""
    pairs = torch.arange(0, head_width, 2, dtype=torch.float64)  # (w/2,)
    rates = base ** (-pairs / head_width)  # (w/2,)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64), rates)  # (T, w/2)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each half-pair (i, i + w/2) by its position's angle (the GPT-NeoX order).

    x (..., T, w), cosine and sine (T, w/2) -> (..., T, w).
    """
    low, high = x.chunk(2, dim=-1)  # (..., T, w/2) each
    return torch.cat(
        (low * cosine - high * sine, high * cosine + low * sine), dim=-1
    )  # (..., T, w)


def attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend causally; the T queries are the last of the S positions.

    query (B, H, T, w), keys and values (B, G, S, w) -> (B, T, H * w).
    """
    length, seen = query.shape[2], keys.shape[2]
    mask = None
    if 1 < length < seen:
        mask = torch.ones(length, seen, dtype=torch.bool, device=query.device)
        mask = mask.tril(seen - length)  # (T, S): query i sees S - T + i + 1 keys
    out = F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=length == seen and length > 1,
        enable_gqa=query.shape[1] != keys.shape[1],
    )  # (B, H, T, w)
    return out.transpose(1, 2).flatten(2)  # (B, T, H * w)
