"""Which experts of a layer are used together more often than chance would have it.

Chance is what independent experts with the same visits would give. Groups grow from
single experts: the two with the highest average affinity become one, until none reaches
the threshold (average linkage). A pure function of counts; ties go to the lower experts.
GROUP-01
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THRESHOLD = 2.0  # times as often together as by chance
LEAST_VISITS = 16  # of an expert: fewer say nothing
LUCK = 2.0  # standard deviations of a count that may be luck
MOST = 16  # experts of one group


@dataclass(frozen=True)
class Together:
    """A group of experts of one layer."""

    experts: tuple[int, ...]  # ascending, at least two
    affinity: float  # average of its pairs; 1: chance


def affinities(pairs: np.ndarray, visits: np.ndarray, tokens: float) -> np.ndarray:
    """Return how much more often than by chance two experts had a token in common.

    pairs (E, E): tokens that went to both; visits (E,); of `tokens` tokens. Returns
    (E, E) float64: 1 is chance; less than was seen by what may be luck, so that few
    visits prove nothing.
    """
    known = visits >= LEAST_VISITS
    total = float(visits.sum())
    if tokens <= 0 or total <= tokens:  # one expert a token: no pairs
        return np.zeros(pairs.shape)
    per_token = total / tokens
    # Of a token's k places one is taken: k - 1 are left for the other expert.
    expected = np.outer(visits, visits) * ((per_token - 1) / (per_token * tokens))
    sure = np.maximum(pairs - LUCK * np.sqrt(pairs), 0.0)
    found = np.zeros(pairs.shape)
    np.divide(sure, expected, out=found, where=np.outer(known, known))
    np.fill_diagonal(found, 0.0)
    return found


def groups_of(
    pairs: np.ndarray,
    visits: np.ndarray,
    tokens: float,
    threshold: float = THRESHOLD,
    most: int = MOST,
) -> tuple[Together, ...]:
    """Return the groups of a layer, the closest first."""
    affinity = affinities(pairs, visits, tokens)
    clusters: dict[int, list[int]] = {e: [e] for e in range(len(visits))}
    inside = np.zeros(len(visits))  # sum of the affinities of pairs in a cluster
    sums = affinity.copy()  # of all pairs between two clusters
    sizes = np.ones(len(visits))
    while True:
        average = sums / np.outer(sizes, sizes)
        average[np.add.outer(sizes, sizes) > most] = 0.0
        np.fill_diagonal(average, 0.0)
        a, b = divmod(int(average.argmax()), len(visits))
        if average[a, b] < threshold:
            break
        clusters[a] += clusters.pop(b)
        inside[a] += inside[b] + sums[a, b]
        sizes[a] += sizes[b]
        sums[a] += sums[b]
        sums[:, a] += sums[:, b]
        sums[b] = sums[:, b] = 0.0
    made = [
        Together(
            tuple(sorted(some)), float(2 * inside[a] / len(some) / (len(some) - 1))
        )
        for a, some in clusters.items()
        if len(some) > 1
    ]
    return tuple(sorted(made, key=lambda one: (-one.affinity, one.experts)))
