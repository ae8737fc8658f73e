"""One call to a peer: several experts of a layer, every hidden state once (DEC-S4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from blyan_proto.protocols.expert import (
    MAX_ACTIVATION_BYTES,
    MAX_EXPERTS_PER_CALL,
    MAX_ROWS,
    ExpertRows,
    Forward,
    Numerics,
)
from blyand.errors import Unavailable
from blyand.inference.pins import Heads

ELEMENT_BYTES = 4  # float32 (DEC-S1)


def most_rows(width: int) -> int:
    """Return how many rows of one expert fit one call and its answer."""
    return min(MAX_ROWS, MAX_ACTIVATION_BYTES // (ELEMENT_BYTES * width))


def parted(
    experts: Sequence[int], rows: Mapping[int, np.ndarray], width: int
) -> Iterator[list[int]]:
    """Yield the experts of one peer by calls: one, unless a bound of a call is met.

    No expert has more than `most_rows` rows.
    """
    limit = MAX_ACTIVATION_BYTES // (ELEMENT_BYTES * width)
    part: list[int] = []
    total = 0
    for expert in sorted(experts):
        size = len(rows[expert])
        if part and (total + size > limit or len(part) == MAX_EXPERTS_PER_CALL):
            yield part
            part, total = [], 0
        part.append(expert)
        total += size
    if part:
        yield part


def make_call(
    heads: Heads,
    layer: int,
    experts: Sequence[int],
    x: np.ndarray,
    rows: Mapping[int, np.ndarray],
) -> Forward:
    """Return the call for `experts`, ascending, of one layer.

    x (n, d) float32; `rows` are each expert's row numbers (m,) in x, ascending.
    """
    needed = np.unique(np.concatenate([rows[expert] for expert in experts]))  # (u,)
    wanted = []
    for expert in experts:
        group = heads.expert(layer, expert).index
        places = np.searchsorted(needed, rows[expert]).astype("<u2")  # (m,)
        wanted.append(ExpertRows(group, heads.roots[group], places.tobytes()))
    return Forward(
        model=heads.model,
        numerics=Numerics.REFERENCE,
        width=x.shape[1],
        experts=tuple(wanted),
        activations=x[needed].astype("<f4", copy=False).tobytes(),
    )


def read_outputs(outputs: Sequence[bytes], width: int) -> list[np.ndarray]:
    """Return each expert's rows (m, d) float32. Unavailable if a number is not finite."""
    arrays = [np.frombuffer(raw, "<f4").reshape(-1, width) for raw in outputs]
    if not all(np.isfinite(array).all() for array in arrays):
        raise Unavailable("an answer has numbers that are not finite")
    return arrays
