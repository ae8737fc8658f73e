"""Which experts want more replicas, which nobody wants, and what to copy here.

Consensus places experts; these are one node's own additions to it. GROUP-03, 07, 08
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from blyan_proto.constants import PPM
from blyan_proto.digest import Domain, digest

HOT_PPM = 50_000  # of all experts: the hottest 5 %
JITTER = 2**32


def hottest(visits: Mapping[int, int], share_ppm: int = HOT_PPM) -> list[int]:
    """Return the share of experts with most visits, the hottest first; of 100, 5.

    Rounded up; never one without a visit. Ties go to the lower one.
    """
    count = -(-len(visits) * share_ppm // PPM)
    ranked = sorted(visits, key=lambda expert: (-visits[expert], expert))
    return [expert for expert in ranked[:count] if visits[expert]]


def unused(used: Mapping[int, int], here: Collection[int]) -> frozenset[int]:
    """Return those of `here` without one visit or served row in the last hour."""
    return frozenset(expert for expert in here if not used.get(expert, 0))


@dataclass(frozen=True)
class Room:
    """What a node can still take on."""

    bytes: int
    experts: int


def additions(
    hot: Sequence[int],
    mates: Mapping[int, Sequence[int]],
    held: Collection[int],
    heat: Mapping[int, int],
    holders: Mapping[int, int],
    sizes: Mapping[int, int],
    room: Room,
    draw: bytes,
) -> frozenset[int]:
    """Return the experts to copy here: hot ones, with those they are used together with.

    `mates` are the others of an expert's group, `heat` visits, `holders` how many hold
    it, `sizes` bytes. Whole groups first, so that one node can serve a token; where a
    group does not fit, its hot expert alone. What few hold and many use comes first;
    `draw`, the node's own, mixes the order, so that not all nodes copy the same.
    """
    taken: set[int] = set()
    bytes_left, left = room.bytes, room.experts
    for expert in sorted(hot, key=lambda e: (-_worth(e, heat, holders, draw), e)):
        whole = [expert, *mates.get(expert, ())]
        for bundle in (whole, [expert]):
            missing = {e for e in bundle if e not in held and e not in taken}
            size = sum(sizes[e] for e in missing)
            if missing and size <= bytes_left and len(missing) <= left:
                taken |= missing
                bytes_left -= size
                left -= len(missing)
                break
    return frozenset(taken)


def _worth(
    expert: int, heat: Mapping[int, int], holders: Mapping[int, int], draw: bytes
) -> int:
    """Return visits per holder, times a number between 1 and 2 that is the node's own."""
    drawn = digest(Domain.PLACEMENT, draw, b"copy", expert.to_bytes(2, "little"))
    factor = JITTER + int.from_bytes(drawn[:4], "little")
    return heat.get(expert, 0) * factor // (1 + holders.get(expert, 0))
