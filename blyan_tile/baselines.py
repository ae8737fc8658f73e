"""What simple predictors reach on a dataset's held-out side: the bar for a model."""

from __future__ import annotations

import lzma
import math
from dataclasses import dataclass

import numpy as np

from blyan_tile.corpus import Archive, joined

_HELD_OUT_BYTES = 1 << 20  # enough for three digits
_PRIOR = 8.0  # observations that the lower order stands for


@dataclass(frozen=True)
class Baselines:
    """Nats per byte of the held-out side; nan where there is none."""

    unigram: float
    bigram: float
    trigram: float
    lzma: float  # of the held-out side alone, without the training side


def baselines(archive: Archive) -> Baselines:
    """Fit byte n-grams on the training side and judge them on the held-out side.

    Each order is smoothed by the next lower one, counted as 8 observations; the unigram
    by add-one.
    """
    train = joined(archive.train).astype(np.int64)  # (n,)
    judged = joined(archive.held_out)[:_HELD_OUT_BYTES].astype(np.int64)  # (m,)
    if len(judged) < 3 or len(train) < 3:
        return Baselines(*[math.nan] * 4)
    counts = np.bincount(train, minlength=256) + 1.0  # (256,)
    one = (counts / counts.sum())[judged]  # (m,)
    two = _smoothed(train, judged, 1, one)
    three = _smoothed(train, judged, 2, two)
    packed = lzma.compress(judged.astype(np.uint8).tobytes(), preset=6)
    return Baselines(
        _nats(one), _nats(two), _nats(three), len(packed) * math.log(256) / len(judged)
    )


def _smoothed(
    train: np.ndarray, judged: np.ndarray, order: int, lower: np.ndarray
) -> np.ndarray:
    """Return the probability of each judged byte after its `order` predecessors."""
    size = 256**order
    contexts = np.bincount(_codes(train, order)[:-1], minlength=size)  # (size,)
    pairs = np.bincount(_codes(train, order + 1), minlength=256 * size)
    seen = _codes(judged, order)[:-1]  # (m - order,)
    both = _codes(judged, order + 1)  # (m - order,)
    result = lower.copy()  # (m,); the first bytes have no full context
    result[order:] = (pairs[both] + _PRIOR * lower[order:]) / (contexts[seen] + _PRIOR)
    return result


def _codes(text: np.ndarray, length: int) -> np.ndarray:
    """Return every `length` successive bytes as one number, (n - length + 1,)."""
    last = len(text) - length + 1
    code = np.zeros(last, np.int64)  # (last,)
    for place in range(length):
        code = code * 256 + text[place : place + last]
    return code


def _nats(probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities).mean())
