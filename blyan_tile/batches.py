"""Which bytes a learner reads in a round: a pure function of chain data (DEC-B12).

Only raw Philox words are used: numpy promises those to stay the same, its derived
distributions not.
"""

from __future__ import annotations

import numpy as np

from blyan_proto.block.model import Run
from blyan_proto.digest import Domain, digest, leaf_digest
from blyan_proto.errors import LimitExceeded

JUDGED_TOKENS = 16_384  # of the held-out side, the same on every node


def assign(
    beacon: bytes, round_: int, learner: bytes, run: Run, train_bytes: int
) -> np.ndarray:
    """Return the first byte of every sequence of a round: (H, batch) int64.

    A sequence is `run.sequence` + 1 bytes of the training side of the run's datasets,
    one after the other; starts are drawn with replacement. LimitExceeded when there is
    less text than one sequence.
    """
    places = train_bytes - run.sequence
    if places < 1:
        raise LimitExceeded(
            f"{train_bytes} bytes to learn from, less than one sequence"
        )
    key = digest(
        Domain.BATCHES,
        beacon,
        round_.to_bytes(4, "little"),
        learner,
        run.seed.to_bytes(8, "little"),
    )
    shape = (run.inner_steps, run.batch)
    philox = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    words = philox.random_raw(shape[0] * shape[1]).reshape(shape)  # (H, batch) uint64
    return (words % np.uint64(places)).astype(np.int64)  # (H, batch)


def gather(parts: list[np.ndarray], starts: np.ndarray, length: int) -> np.ndarray:
    """Return `length` bytes from each of `starts` (B,) as int64 tokens (B, length).

    `parts` are the views of the datasets' training sides (`Archive.train`), in order; a
    sequence may run from one into the next.
    """
    ends = np.cumsum([len(part) for part in parts])  # (parts,)
    offsets = starts[:, None] + np.arange(length)  # (B, length)
    tokens = np.empty(offsets.shape, np.int64)  # (B, length)
    which = np.searchsorted(ends, offsets, side="right")  # (B, length)
    for index in np.unique(which):
        inside = which == index  # (B, length)
        first = ends[index] - len(parts[index])
        tokens[inside] = parts[index][offsets[inside] - first]
    return tokens


def batch_digest(tokens: np.ndarray) -> bytes:
    """Return the digest of a batch (B, T + 1) by which a log names it."""
    return leaf_digest(np.ascontiguousarray(tokens, "<u4").tobytes())


def drawn_windows(
    parts: list[np.ndarray], sequence: int, count: int, seed: bytes
) -> np.ndarray:
    """Return at most `count` windows (N, sequence + 1) int64 that a seed draws.

    They are cut from the held-out side without overlap, and none is drawn twice.
    LimitExceeded for less text than two.
    """
    cut = (sum(len(part) for part in parts) - 1) // sequence
    if cut < 2:
        raise LimitExceeded(f"less held-out text than {2 * sequence + 1} bytes")
    philox = np.random.Philox(key=int.from_bytes(seed[:16], "little"))
    order = np.argsort(philox.random_raw(cut), kind="stable")  # (cut,)
    starts = np.sort(order[:count]) * sequence  # (N,)
    return gather(parts, starts, sequence + 1)


def held_out_windows(
    parts: list[np.ndarray], sequence: int, tokens: int = JUDGED_TOKENS
) -> np.ndarray:
    """Return the windows that judge a model, (N, sequence + 1) int64 (DEC-B17).

    They are spread evenly over the held-out side and together predict at most `tokens`
    tokens. LimitExceeded when there is less text than one window.
    """
    places = sum(len(part) for part in parts) - sequence
    if places < 1:
        raise LimitExceeded(f"less held-out text than {sequence + 1} bytes")
    count = max(1, min(tokens, places) // sequence)
    starts = np.arange(count) * places // count  # (N,)
    return gather(parts, starts, sequence + 1)
