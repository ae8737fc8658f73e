"""Calls to a peer: several experts of a layer, every hidden state once (DEC-S4).

A call of many tokens is cut into parts, so that a peer computes one while the next is
under way. All functions are pure; those that copy much are called in a lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import (
    MAX_ACTIVATION_BYTES,
    MAX_EXPERTS_PER_CALL,
    MAX_ROWS,
    ExpertRows,
    Forward,
    Numerics,
    Outputs,
)
from blyan_tile.activations import is_finite, read_rows, write_rows
from blyan_tile.slice import WHOLE, Slice
from blyand.errors import NotFinite, Unavailable, WrongAnswer
from blyand.inference.pins import Heads

ELEMENT_BYTES = 4  # float32, the most that an element takes (DEC-S1)
PART_ROWS = 256  # tokens of a part: a chunk of a prompt is one (DEC-S4)

Rows = Mapping[int, np.ndarray]  # expert: its row numbers (m,), ascending


class Overflow(Unavailable):
    """Hidden states became too large for float32 or the wire: no peer can help."""


def most_rows(width: int) -> int:
    """Return how many rows of one expert fit one call and its answer."""
    return min(MAX_ROWS, MAX_ACTIVATION_BYTES // (ELEMENT_BYTES * width))


def parted(rows: Rows, width: int, numerics: Numerics) -> Iterator[Rows]:
    """Yield the rows of one peer by calls: one, unless a bound or PART_ROWS is met.

    Parts are ranges of tokens, so that each token's state still travels once; only
    more than 64 experts of one peer take several calls for the same token.
    """
    most = MAX_ACTIVATION_BYTES // (numerics.element_bytes * width)  # rows of an answer
    at_once = min(MAX_EXPERTS_PER_CALL, most)
    experts = sorted(rows)
    for place in range(0, len(experts), at_once):
        some = {expert: rows[expert] for expert in experts[place : place + at_once]}
        yield from _by_tokens(some, most)


def _by_tokens(rows: Rows, most: int) -> Iterator[Rows]:
    total = sum(map(len, rows.values()))
    if total <= min(PART_ROWS, most):  # the usual case, without a search
        yield rows
        return
    tokens, uses = np.unique(np.concatenate(list(rows.values())), return_counts=True)
    if len(tokens) <= PART_ROWS and total <= most:
        yield rows
        return
    step = -(-len(tokens) // -(-len(tokens) // PART_ROWS))  # parts of equal size
    place = 0
    while place < len(tokens):
        sums = np.cumsum(uses[place : place + step])
        end = place + max(1, int(np.searchsorted(sums, most, side="right")))
        low, high = tokens[place], tokens[end - 1]
        part = {e: one[(one >= low) & (one <= high)] for e, one in rows.items()}
        yield {expert: one for expert, one in part.items() if len(one)}
        place = end


def make_call(
    heads: Heads,
    layer: int,
    rows: Rows,
    x: np.ndarray,
    numerics: Numerics,
    piece: Slice = WHOLE,
) -> Forward:
    """Return the call for `rows` of x (n, d) float32, all of one layer.

    Overflow unless every number is finite, also as it travels.
    """
    if max(map(len, rows.values())) == len(x):
        needed, states = None, x  # the usual case: all of them, as they are numbered
    else:
        needed = np.unique(np.concatenate(list(rows.values())))  # (u,)
        states = x[needed]  # (u, d)
    if not is_finite(states, numerics):
        raise Overflow(f"the hidden states of layer {layer} are not finite any more")
    wanted = []
    for expert in sorted(rows):
        group = heads.expert(layer, expert).index
        places = rows[expert]  # (m,)
        if needed is not None:
            places = np.searchsorted(needed, places)
        raw = places.astype("<u2").tobytes()
        wanted.append(ExpertRows(group, heads.roots[group], raw))
    return Forward(
        model=heads.model,
        numerics=numerics,
        width=x.shape[1],
        experts=tuple(wanted),
        activations=write_rows(states, numerics),
        slice=piece.index,
        slices=piece.count,
    )


def read_outputs(answer: Outputs, call: Forward) -> list[np.ndarray]:
    """Return each expert's rows (m, d) float32, in the order of `call`.

    WrongAnswer unless they are as many as were asked for, and finite: nothing else may
    reach torch.
    """
    if len(answer.outputs) != len(call.experts):
        raise WrongAnswer(f"{len(answer.outputs)} outputs of {len(call.experts)}")
    row_bytes = call.numerics.element_bytes * call.width
    made = []
    for wanted, raw in zip(call.experts, answer.outputs):
        if len(raw) != len(wanted.rows) // 2 * row_bytes:
            raise WrongAnswer(f"{len(raw)} bytes for {len(wanted.rows) // 2} rows")
        try:
            made.append(read_rows(raw, call.width, call.numerics))
        except DecodeError as error:
            raise NotFinite(f"an answer cannot be right: {error}") from error
    return made
