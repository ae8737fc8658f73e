"""From logits to a token id. Draws are Philox(seed, position), so neither batching nor
a change of server shifts the stream (DEC-S1).

Strategy. The order of steps is vLLM's: log probabilities of the raw logits; then bias,
penalties and constraint; then temperature, min_p, top_k, top_p over what those leave.
Large vocabularies are cut by value before anything is sorted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SORTED_WHOLE = 4096  # smaller vocabularies need no first cut
COLDEST = 1e-6  # temperatures below it are this one
_STRIDE = 16  # every so manieth logit is looked at to find the first cut
_BLOCK = 512  # weights summed at once when drawing


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy. All numbers are finite."""

    temperature: float = 0.0
    seed: int = 0  # 0 <= seed < 2^64
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0  # least probability, as a part of the likeliest one's
    presence_penalty: float = 0.0  # off a token that was made before
    frequency_penalty: float = 0.0  # off a token, for each time that it was made
    repetition_penalty: float = 1.0  # divides a logit of prompt or answer; 1: none
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id -> added to its logit

    @property
    def penalises(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty) != (0.0, 0.0) or (
            self.repetition_penalty != 1.0
        )


@dataclass(frozen=True)
class Choice:
    """A chosen token; probabilities are the model's own, before any step of ours."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, best first


class Constraint(Protocol):
    """What a token may be next, such as a grammar. One sequence's own."""

    def allowed(self) -> np.ndarray:
        """Return (V,) bool; at least one is true."""


class History:
    """The tokens so far, counted for penalties."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._prompt = frozenset(prompt)
        self._made: Counter[int] = Counter()

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        self._made[token] += 1

    def penalise(self, logits: np.ndarray, sampling: Sampling) -> None:
        """Change `logits` (V,) in place, as vLLM does.

        Repetition counts prompt and answer, presence and frequency the answer alone.
        """
        if sampling.repetition_penalty != 1.0:
            seen = np.fromiter(self._prompt | self._made.keys(), np.int64)
            seen = seen[seen < len(logits)]  # (S,)
            values, factor = logits[seen], np.float32(sampling.repetition_penalty)
            logits[seen] = np.where(values > 0, values / factor, values * factor)
        if self._made:
            made = np.fromiter(self._made.keys(), np.int64)  # (M,)
            times = np.fromiter(self._made.values(), np.float32)  # (M,)
            logits[made] -= times * np.float32(sampling.frequency_penalty)
            logits[made] -= np.float32(sampling.presence_penalty)


def choose(
    logits: np.ndarray,
    sampling: Sampling,
    position: int,
    history: History | None = None,
    constraint: Constraint | None = None,
    top: int = 0,
) -> Choice:
    """Return the token at `position` of the sequence. logits (V,) float32, finite.

    `top`: how many of the likeliest tokens are told. Ties go to the lowest id, in
    greedy choice and at every edge. Neither history nor constraint is changed.
    """
    token = _token(_adjusted(logits, sampling, history, constraint), sampling, position)
    return _told(logits, token, top)


def choose_token(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """Return just the id of the token at `position`. logits (V,)."""
    return _token(_adjusted(logits, sampling, None, None), sampling, position)


def score(logits: np.ndarray, token: int, top: int = 0) -> Choice:
    """Return how likely a given token is, as `choose` tells it. logits (V,)."""
    return _told(logits, token, top)


def uniform(seed: int, position: int) -> float:
    """Return the draw of one position: 53 bits, 0 <= u < 1."""
    raw = int(np.random.Philox(key=seed, counter=position).random_raw())
    return float((raw >> 11) * 2.0**-53)


def _told(logits: np.ndarray, token: int, top: int) -> Choice:
    """Return a token with log probabilities, taken from the raw logits (V,)."""
    if token >= len(logits):  # of a prompt: the tokenizer does not make it
        return Choice(token, -np.inf)
    most = logits.max()
    weights = np.exp(logits - most)  # (V,)
    log_total = float(most) + float(np.log(weights.sum(dtype=np.float64)))
    best = _largest(logits, top) if top else ()
    return Choice(
        token,
        float(logits[token]) - log_total,
        tuple((int(one), float(logits[one]) - log_total) for one in best),
    )


def _adjusted(
    logits: np.ndarray,
    sampling: Sampling,
    history: History | None,
    constraint: Constraint | None,
) -> np.ndarray:
    """Return the logits (V,) after bias, penalties and constraint; maybe the same."""
    penalises = history is not None and sampling.penalises
    if not (sampling.logit_bias or penalises or constraint):
        return logits
    changed = logits.astype(np.float32)  # a copy
    for token, bias in sampling.logit_bias:
        if 0 <= token < len(changed):
            changed[token] += np.float32(bias)
    if penalises and history is not None:
        history.penalise(changed, sampling)
    if constraint is not None:
        changed[~constraint.allowed()] = -np.inf
    return changed


def _token(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    if sampling.temperature <= 0:
        return int(np.argmax(logits))  # numpy: the first of the largest
    ids: np.ndarray | None = None  # ascending (K,); None: all
    if 0 < sampling.top_k < len(logits):
        ids = np.sort(_largest(logits, sampling.top_k))
        logits = logits[ids]
    weights = logits - logits.max()  # (K,)
    with np.errstate(over="ignore"):
        weights /= np.float32(max(sampling.temperature, COLDEST))
    np.exp(weights, out=weights)  # the largest is 1
    if sampling.min_p > 0:
        ids, weights = _only(weights >= min(sampling.min_p, 1.0), ids, weights)
    if sampling.top_p < 1:
        ids, weights = _nucleus(ids, weights, sampling.top_p)
    place = _drawn(weights, uniform(sampling.seed, position))
    return place if ids is None else int(ids[place])


def _only(
    keep: np.ndarray, ids: np.ndarray | None, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    places = np.flatnonzero(keep)
    return (places if ids is None else ids[places]), weights[places]


def _drawn(weights: np.ndarray, share: float) -> int:
    """Return the place at which `share` of the whole weight (K,) is reached."""
    starts = np.arange(0, len(weights), _BLOCK)
    ends = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)  # (B,)
    threshold = share * ends[-1]
    block = min(int(np.searchsorted(ends, threshold, side="right")), len(ends) - 1)
    inside = weights[starts[block] : starts[block] + _BLOCK]
    before = ends[block - 1] if block else 0.0
    within = before + np.cumsum(inside, dtype=np.float64)
    place = int(np.searchsorted(within, threshold, side="right"))
    place = int(starts[block]) + min(place, len(inside) - 1)
    if weights[place] > 0:
        return place
    return int(np.flatnonzero(weights[: place + 1])[-1])  # the sums may round up


def _nucleus(
    ids: np.ndarray | None, weights: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the fewest largest weights that make up `share` of all, and their ids.

    What weighs less than an equal part of the rest of the mass cannot be among them.
    """
    total = float(weights.sum(dtype=np.float64))
    least = max(0.0, 0.5 * (1 - share) * total / len(weights))
    ids, weights = _only(weights >= least, ids, weights)
    ordered = np.sort(weights)[::-1]  # (C,)
    before = np.cumsum(ordered, dtype=np.float64) - ordered  # mass of better ones
    count = max(1, int(np.count_nonzero(before < share * total)))
    return _only(_at_least(weights, float(ordered[count - 1]), count), ids, weights)


def _at_least(values: np.ndarray, edge: float, count: int) -> np.ndarray:
    """Return (K,) bool: the `count` largest, `edge` the smallest of them."""
    keep = values > edge
    ties = np.flatnonzero(values == edge)[: count - int(np.count_nonzero(keep))]
    keep[ties] = True
    return keep


def _largest(values: np.ndarray, count: int) -> Sequence[int] | np.ndarray:
    """Return the places of the `count` largest values, best first, ties by place."""
    places = np.arange(len(values))
    if len(values) > SORTED_WHOLE and count < len(values) // 4:
        sample = values[::_STRIDE]
        rank = min(len(sample) - 1, 2 * count // _STRIDE + _STRIDE)
        edge = np.partition(sample, len(sample) - 1 - rank)[len(sample) - 1 - rank]
        likely = np.flatnonzero(values >= edge)
        if len(likely) >= count:
            places = likely
    order = np.argsort(-values[places], kind="stable")[:count]
    return places[order]
