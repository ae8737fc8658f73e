"""Moving experts between nodes whose load differs: a suggestion, a pure function. GROUP-09

It begins when a node's load is more than 20 % above or below the average and goes on
until all are within half of that, so that small changes afterwards move nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from blyan_proto.constants import PPM

BEGIN_PPM = 200_000
END_PPM = 100_000
MOST_MOVES = 64


@dataclass(frozen=True)
class Move:
    """One expert, from a node that has too much to do to one with too little."""

    expert: int
    source: str
    target: str


def loads(
    held: Mapping[str, Collection[int]], visits: Mapping[int, int]
) -> dict[str, int]:
    """Return each node's load: an expert's visits fall on its holders in equal parts."""
    shares = _shares(held, visits)
    return {
        node: sum(shares[expert] for expert in experts)
        for node, experts in held.items()
    }


def _shares(
    held: Mapping[str, Collection[int]], visits: Mapping[int, int]
) -> dict[int, int]:
    """Return what of an expert's visits falls on each of its holders."""
    copies: dict[int, int] = {}
    for experts in held.values():
        for expert in experts:
            copies[expert] = copies.get(expert, 0) + 1
    return {e: PPM * visits.get(e, 0) // count for e, count in copies.items()}


def imbalance_ppm(load: Mapping[str, int]) -> int:
    """Return how far the node that differs most is from the average."""
    total, count = sum(load.values()), len(load)
    if not total:
        return 0
    return max(PPM * abs(one * count - total) // total for one in load.values())


def plan(
    held: Mapping[str, Collection[int]],
    visits: Mapping[int, int],
    capacities: Mapping[str, int],
) -> tuple[Move, ...]:
    """Return the moves that even out the load; none while it is even enough.

    `capacities` are the most experts that a node may hold. A move keeps the number of
    copies, and lowers the sum of squared loads: no expert can come back.
    """
    now = {node: set(experts) for node, experts in sorted(held.items())}
    load = loads(now, visits)
    if imbalance_ppm(load) <= BEGIN_PPM:
        return ()
    shares = _shares(now, visits)  # a move changes none
    moves: list[Move] = []
    while imbalance_ppm(load) > END_PPM and len(moves) < MOST_MOVES:
        best = _best(now, load, shares, capacities)
        if best is None:
            break
        share, move = best
        now[move.source].remove(move.expert)
        now[move.target].add(move.expert)
        load[move.source] -= share
        load[move.target] += share
        moves.append(move)
    return tuple(moves)


def _best(
    held: Mapping[str, set[int]],
    load: Mapping[str, int],
    shares: Mapping[int, int],
    capacities: Mapping[str, int],
) -> tuple[int, Move] | None:
    """Return the load of the move that helps most, and the move; None if none helps."""
    found: list[tuple[int, int, str, str, int]] = []
    busiest = max(held, key=lambda node: (load[node], node))
    idlest = min(held, key=lambda node: (load[node], node))
    for source, target in {(busiest, n) for n in held} | {(n, idlest) for n in held}:
        gap = load[source] - load[target]
        if gap <= 0 or len(held[target]) >= capacities.get(target, 0):
            continue
        for expert in held[source] - held[target]:
            share = shares[expert]
            gain = share * (gap - share)  # half of what the squares lose
            if gain > 0:
                found.append((-gain, expert, source, target, share))
    if not found:
        return None
    _, expert, source, target, share = min(found)
    return share, Move(expert, source, target)
