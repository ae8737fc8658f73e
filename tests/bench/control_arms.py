"""Schemes that are measured but are no codec of the network, for tests.bench.bench_pareto.

Each stands for what a learner sends of one matrix and what the others make of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from blyan_proto.digest import Domain, digest
from tests.bench import white_paper
from tests.bench.channels import Control

_CHUNK = 4096


class Paper:
    """The white paper's pipeline (11.5), byte for byte; as it stands nothing is fed back."""

    def __init__(self, beta: float = 0.0) -> None:
        self.beta = beta

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        raw = white_paper.encode(x)
        return white_paper.decode(raw, x.shape).astype(np.float64), len(raw)

    def close(self, name: str, gradient: np.ndarray) -> None:
        pass


class SharedMask:
    """Random positions that all learners derive from the round: no index is sent.

    `kept` of each 4096 positions, 4-bit values, one scale of 16 bits per 4096.
    """

    def __init__(self, kept: int) -> None:
        self.beta = 1.0
        self._kept = kept

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        places = _generator(name, round_).permutation(x.size)
        places = places[: max(1, x.size * self._kept // _CHUNK)]
        found = np.zeros(x.size)
        found[places] = few_bits(x.reshape(-1)[places][:, None], 4)[:, 0]
        scales = 2 * -(-x.size // _CHUNK)
        return found.reshape(x.shape), (len(places) + 1) // 2 + scales

    def close(self, name: str, gradient: np.ndarray) -> None:
        pass


class SharedBasis:
    """Low rank with one factor known to all: alternating least squares over the rounds.

    Learners send only P_i of X_i = P_i Q^T; the mean of the P_i is the known factor of
    the next round, which sends the other side. Half of LR4's bytes at the same rank.
    """

    def __init__(self, rank: int) -> None:
        self.beta = 1.0
        self._rank = rank
        self._known: dict[str, np.ndarray] = {}  # (n, r), of the side not sent
        self._turned: dict[str, bool] = {}  # True: columns are sent
        self._sums: dict[str, np.ndarray] = {}  # of what was sent in this round

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        turned = self._turned.setdefault(name, False)
        matrix = (x.T if turned else x).astype(np.float64)  # (m, n)
        if name not in self._known:
            shape = (matrix.shape[1], min(self._rank, *matrix.shape))
            self._known[name] = _generator(name, 0).standard_normal(shape)
        q = self._known[name]
        p = few_bits(_partner(q, matrix.T), 4)
        self._sums[name] = self._sums.get(name, 0) + p
        found = p @ q.T
        length = 3 + p.shape[1] + (p.size + 1) // 2
        return found.T if turned else found, length

    def close(self, name: str, gradient: np.ndarray) -> None:
        total = self._sums.pop(name, None)
        if total is not None and np.abs(total).max(axis=0).all():
            # as integers of 8 bits, which every holder could form exactly
            self._known[name] = np.rint(total / np.abs(total).max(axis=0) * 127)
            self._turned[name] = not self._turned[name]


class FewBits:
    """LR4 with factors of other widths; the encoder goes back and forth between them.

    The factor that was quantised first is fitted again to the other one as it is sent.
    """

    def __init__(self, rank: int, bits: int, beta: float = 1.0) -> None:
        self.beta = beta
        self._rank = rank
        self._bits = bits
        self._warm: dict[tuple[int, str], np.ndarray] = {}  # (n, r)

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        rank = min(self._rank, *x.shape)
        q = self._warm.get((learner, name))
        if q is None:
            q = _generator(name, 0).standard_normal((x.shape[1], rank))
        for _ in range(2):
            q = np.linalg.qr(x.T @ np.linalg.qr(x @ q)[0])[0]
        p = few_bits(np.linalg.qr(x @ q)[0], self._bits)
        for _ in range(2):
            p = few_bits(
                _partner(few_bits(_partner(p, x), self._bits), x.T), self._bits
            )
        right = _partner(p, x)
        self._warm[learner, name] = right
        length = 4 + rank + -(-self._bits * rank * sum(x.shape) // 8)
        return p @ few_bits(right, self._bits).T, length

    def close(self, name: str, gradient: np.ndarray) -> None:
        pass


def _partner(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the (n, r) q that makes p @ q.T closest to x."""
    gram = p.T @ p
    gram[np.diag_indices_from(gram)] += 1e-6 * gram.trace() / len(gram) + 1e-30
    found: np.ndarray = np.linalg.solve(gram, p.T @ x).T
    return found


def few_bits(columns: np.ndarray, bits: int) -> np.ndarray:
    """Return (m, r) float64 values on the levels of each column, the best of six steps.

    2 bits: -3, -1, 1, 3 times the step; more: 2^bits - 1 levels around zero.
    """
    spread = np.sqrt(np.square(columns).mean(axis=0)) + 1e-30
    top = 2 ** (bits - 1) - 1
    widest = np.abs(columns).max(axis=0) / max(top, 1) + 1e-30
    best, least = columns, np.full(columns.shape[1], np.inf)
    for share in (0.4, 0.5, 0.6, 0.75, 0.87, 1.0):
        if bits == 2:
            step = spread * share
            values = (2 * np.clip(np.floor(columns / (2 * step)), -2, 1) + 1) * step
        else:
            step = widest * share
            values = np.clip(np.rint(columns / step), -top, top) * step
        losses = np.square(columns - values).sum(axis=0)
        best = np.where(losses < least, values, best)
        least = np.minimum(losses, least)
    return best.astype(np.float64)


def _generator(name: str, round_: int) -> np.random.Generator:
    key = digest(Domain.SEED, b"control", name.encode(), round_.to_bytes(4, "little"))
    return np.random.default_rng(int.from_bytes(key[:8], "little"))


def control_of(name: str) -> Control:
    """Return a fresh arm by its name, as "basis 8"; KeyError for another."""
    kind, _, number = name.partition(" ")
    makers: dict[str, Callable[[], Control]] = {
        "paper": lambda: Paper(float(number or 0)),
        "mask": lambda: SharedMask(int(number)),
        "basis": lambda: SharedBasis(int(number)),
        "LR2": lambda: FewBits(int(number), 2),
        "LR3": lambda: FewBits(int(number), 3),
    }
    return makers[kind]()
