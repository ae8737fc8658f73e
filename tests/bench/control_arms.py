"""Schemes that are measured but are no codec of the network, for tests.bench.bench_pareto.

Each stands for what a learner sends of one matrix and what the others make of it; only
bytes are counted, nothing is packed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from blyan_proto.digest import Domain, digest
from tests.bench.convergence import Control

_CHUNK = 4096


class Paper:
    """The white paper's pipeline (11.5): int8, of it the top 20 %, of that an SVD.

    Rank 8 as the paper has it, factors of float16, nothing fed back unless `beta`.
    """

    def __init__(self, rank: int = 8, beta: float = 0.0) -> None:
        self.beta = beta
        self._rank = rank

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        scale = np.abs(x).max() / 127 or 1.0
        whole = np.rint(x / scale).clip(-127, 127) * scale
        least = np.quantile(np.abs(whole), 0.8)
        sparse = np.where(np.abs(whole) >= least, whole, 0)
        u, s, v = np.linalg.svd(sparse.astype(np.float32), full_matrices=False)
        root = np.sqrt(s[: self._rank])
        left = (u[:, : self._rank] * root).astype(np.float16).astype(np.float64)
        right = (v[: self._rank].T * root).astype(np.float16).astype(np.float64)
        return left @ right.T, 2 * (left.size + right.size)

    def close(self, name: str, gradient: np.ndarray) -> None:
        pass


class SharedMask:
    """Random positions that all learners derive from the round: no index is sent.

    `kept` of each 4096 positions, 4-bit values with one scale of 16 bits per 4096.
    """

    def __init__(self, kept: int, beta: float = 1.0) -> None:
        self.beta = beta
        self._kept = kept

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        flat = x.reshape(-1)
        chunks = -(-flat.size // _CHUNK)
        places = _generator(name, round_).permutation(flat.size)
        places = places[: max(1, flat.size * self._kept // _CHUNK)]
        values = four_bits(flat[places][:, None])[:, 0]
        found = np.zeros(flat.size)
        found[places] = values
        return found.reshape(x.shape), (len(places) + 1) // 2 + 2 * chunks

    def close(self, name: str, gradient: np.ndarray) -> None:
        pass


class SharedBasis:
    """Low rank with one factor known to all: alternating least squares over the rounds.

    Learners send only P_i of X_i = P_i Q^T; the mean of the P_i is the known factor of
    the next round, which sends the other side. Half of LR4's bytes at the same rank.
    """

    def __init__(self, rank: int, beta: float = 1.0) -> None:
        self.beta = beta
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
        gram = q.T @ q
        gram[np.diag_indices_from(gram)] += 1e-6 * gram.trace() / len(gram)
        p = four_bits(np.linalg.solve(gram, q.T @ matrix.T).T)
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


def four_bits(columns: np.ndarray) -> np.ndarray:
    """Return (m, r) float64 values on 15 levels per column, the best of four steps."""
    full = np.maximum(np.abs(columns).max(axis=0) / 7, 1e-30)
    best, least = None, None
    for share in (1.0, 0.87, 0.75, 0.65):
        values = np.clip(np.rint(columns / (full * share)), -7, 7) * (full * share)
        losses = np.square(columns - values).sum(axis=0)
        if best is None or least is None:
            best, least = values, losses
        else:
            best = np.where(losses < least, values, best)
            least = np.minimum(losses, least)
    assert best is not None
    return best.astype(np.float64)


def _generator(name: str, round_: int) -> np.random.Generator:
    key = digest(Domain.SEED, b"control", name.encode(), round_.to_bytes(4, "little"))
    return np.random.default_rng(int.from_bytes(key[:8], "little"))


CONTROLS: dict[str, Callable[[], Control]] = {
    "paper": Paper,
    "paper EF": lambda: Paper(beta=1.0),
    "mask 128": lambda: SharedMask(128),
    "mask 256": lambda: SharedMask(256),
    "basis 4": lambda: SharedBasis(4),
    "basis 8": lambda: SharedBasis(8),
    "basis 16": lambda: SharedBasis(16),
    "basis 32": lambda: SharedBasis(32),
}
