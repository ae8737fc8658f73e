"""From logits to a token id. Draws are Philox(seed, position), so neither batching nor
a change of server shifts the stream (DEC-S1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy."""

    temperature: float = 0.0
    seed: int = 0  # 0 <= seed < 2^64
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0


def choose_token(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """Return the id of the token at `position` of the sequence. logits (V,).

    Ties go to the lowest id, in greedy choice and at the edge of top-k.
    """
    if sampling.temperature <= 0:
        return int(np.argmax(logits))  # numpy: the first of the largest
    scaled = logits.astype(np.float64) / sampling.temperature  # (V,)
    weights = np.exp(scaled - scaled.max())  # (V,)
    weights *= _allowed(weights, sampling)
    cumulative = np.cumsum(weights)  # (V,)
    threshold = uniform(sampling.seed, position) * cumulative[-1]
    token = int(np.searchsorted(cumulative, threshold, side="right"))
    return min(token, int(np.flatnonzero(weights)[-1]))  # the product may round up


def uniform(seed: int, position: int) -> float:
    """Return the draw of one position: 53 bits, 0 <= u < 1."""
    raw = int(np.random.Philox(key=seed, counter=position).random_raw())
    return float((raw >> 11) * 2.0**-53)


def _allowed(weights: np.ndarray, sampling: Sampling) -> np.ndarray:
    keep = np.ones(len(weights), dtype=bool)  # (V,)
    if sampling.top_k <= 0 and sampling.top_p >= 1:
        return keep
    order = np.argsort(-weights, kind="stable")  # (V,)
    if 0 < sampling.top_k < len(weights):
        keep[order[sampling.top_k :]] = False
    if sampling.top_p < 1:
        before = np.cumsum(weights[order]) - weights[order]  # (V,) mass of better ones
        keep[order[before >= sampling.top_p * weights.sum()]] = False
        keep[order[0]] = True
    return keep
