"""Robust sums from the literature, in floats: what they would bring beside the clip.

None of them is a rule of this network; bench_attackers compares them. Trimmed mean: Yin
et al. 2018; CenteredClip: Karimireddy et al. 2021; mixing with the nearest (NNM):
Allouah et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Values = list[np.ndarray]  # a group's change, by tile
Aggregator = Callable[
    [Sequence[Values], Values | None], Values
]  # and the last aggregate

TRIMMED = 0.4  # of the deltas, at each end
ROUNDS = 3  # of CenteredClip


def mean(deltas: Sequence[Values], before: Values | None) -> Values:
    """Return the plain mean: what a primary that sums would send."""
    return [np.mean(tiles, axis=0) for tiles in zip(*deltas)]


def trimmed(deltas: Sequence[Values], before: Values | None) -> Values:
    """Return the mean of each coordinate without its extremes."""
    cut = min(int(TRIMMED * len(deltas)), (len(deltas) - 1) // 2)
    stacked = (np.sort(np.stack(tiles), axis=0) for tiles in zip(*deltas))
    return [tile[cut : len(deltas) - cut].mean(axis=0) for tile in stacked]


def centered(deltas: Sequence[Values], before: Values | None) -> Values:
    """Return the centre of the deltas, each pulled to the last aggregate's side."""
    radius = float(np.median([_norm(values) for values in deltas]))
    centre = before or [np.zeros_like(tile) for tile in deltas[0]]
    for _ in range(ROUNDS):
        pulls = []
        for values in deltas:
            away = [x - v for x, v in zip(values, centre)]
            factor = min(1.0, radius / max(_norm(away), 1e-30))
            pulls.append([factor * x for x in away])
        centre = [v + np.mean(parts, axis=0) for v, parts in zip(centre, zip(*pulls))]
    return centre


def mixed(deltas: Sequence[Values], before: Values | None) -> Values:
    """Return the trimmed mean of deltas that were each averaged with their nearest."""
    flat = np.stack([np.concatenate([x.ravel() for x in values]) for values in deltas])
    near = len(deltas) - int(TRIMMED * len(deltas))
    squares = np.square(flat).sum(axis=1)
    apart = squares[:, None] + squares - 2 * flat @ flat.T  # (n, n)
    chosen = [np.argsort(row)[:near] for row in apart]
    tiles = range(len(deltas[0]))
    means = [
        [np.mean([deltas[one][tile] for one in others], axis=0) for tile in tiles]
        for others in chosen
    ]
    return trimmed(means, before)


def _norm(values: Values) -> float:
    return float(np.sqrt(sum(np.square(tile).sum() for tile in values)))


AGGREGATORS: dict[str, Aggregator] = {
    "mean": mean,
    "trimmed": trimmed,
    "centered": centered,
    "mixed": mixed,
}
