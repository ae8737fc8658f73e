"""Who carries deltas between regions: one learner of each region, group and round.

A pure draw over finalised state, so that everybody repeats it. Only ways depend on it and
nothing that is checked: a delta is worth the same whichever way it came.
"""

from __future__ import annotations

from collections.abc import Mapping

from blyan_proto.block.economy import LatencyClass
from blyan_proto.digest import Domain, digest
from blyan_proto.types import Role
from blyand.rules.economy.latency import LATENCIES
from blyand.rules.model.election import contributors, ranks
from blyand.rules.records import NODES, Schedule, Seat
from blyand.rules.view import View

LEAST_LEARNERS = 2  # of a group in a region: alone, nobody is spared anything

Regions = Mapping[
    bytes, str
]  # by account; who stands in none that is known is not there


def regions_of(view: View, schedule: Schedule) -> Regions:
    """Return where the seats of a round stand: as they registered, else as was measured.

    Of those without a name all stand together who reported each other below 10 ms, or
    are linked by such pairs. One side's word is not enough: nobody pulls others near.
    """
    found: dict[bytes, str] = {}
    unnamed: list[bytes] = []
    for seat in schedule.seats:
        node = NODES.get(view, seat.account)
        if node is not None and node.region:
            found[seat.account] = node.region
        else:
            unnamed.append(seat.account)
    near = {account: _near(view, account) for account in unnamed}
    for first in unnamed:  # ascending, as seats are
        if first in found:
            continue
        linked = [first]
        for one in linked:
            linked += (
                other
                for other in sorted(near[one])
                if one in near.get(other, ()) and other not in linked
            )
        if len(linked) > 1:
            found.update(dict.fromkeys(linked, f"near {first.hex()}"))
    return found


def edge_of(
    schedule: Schedule, group: int, regions: Regions, region: str | None
) -> Seat | None:
    """Return the edge of a region for one group; None where it has or needs none.

    A region with the group's primary needs none. A standby is chosen before others: it
    fetches the deltas of the others anyway, to sign.
    """
    leading = ranks(schedule, group)
    if region is None or not leading or regions.get(leading[0].account) == region:
        return None
    seats = {
        seat.account: seat
        for seat in contributors(schedule, group, Role.LEARN)
        if regions.get(seat.account) == region
    }
    if len(seats) < LEAST_LEARNERS:
        return None
    for seat in leading[1:]:
        if seat.account in seats:
            return seat
    place = schedule.round.to_bytes(4, "little"), group.to_bytes(2, "little")

    def draw(account: bytes) -> bytes:
        return digest(Domain.EDGE, schedule.beacon, schedule.run, *place, account)

    return seats[max(seats, key=draw)]


def _near(view: View, account: bytes) -> frozenset[bytes]:
    """Return who reported a node as near."""
    known = LATENCIES.get(view, account)
    said = known.said if known else ()
    return frozenset(one.reporter for one in said if one.latency is LatencyClass.LOCAL)
