"""What of a run's deltas crosses between regions, and who carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blyan_proto.protocols import blobs, delta, edge
from blyand.compute import Threads
from blyand.net.link import OTHER, SAME
from blyand.rules.model.edges import Regions, edge_of
from blyand.rules.records import Schedule
from blyand.training.ways import Ways

COUNTED = (delta.PROTOCOL_ID, edge.PROTOCOL_ID, blobs.PROTOCOL_ID)

Turn = tuple[str, int, Schedule]  # a group's name and index, the round it trains next


@dataclass(frozen=True)
class Carried:
    """Where bytes of training are counted."""

    ways: Ways
    traffic: Callable[[], dict[tuple[str, str], tuple[int, int]]]

    def moved(self) -> tuple[int, int]:
        """Return the bytes of deltas and blobs within this region, and to others."""
        counts = self.traffic()
        within, between = (
            sum(sum(counts.get((name, region), (0, 0))) for name in COUNTED)
            for region in (SAME, OTHER)
        )
        return within, between


async def where(
    carried: Carried, lane: Threads, turns: Sequence[Turn], account: bytes
) -> tuple[str | None, list[str]]:
    """Return a node's region, and the groups that it is to carry for it."""
    places = [carried.ways.regions(schedule) for _, _, schedule in turns]
    region = next((regions.get(account) for regions in places), None)
    if not carried.ways.by_edges:
        return region, []
    return region, await lane.run(carried_by, turns, places, account)


def carried_by(
    turns: Sequence[Turn], places: Sequence[Regions], account: bytes
) -> list[str]:
    """Return the names of the groups whose edge an account is, in its region."""
    return [
        name
        for (name, group, schedule), regions in zip(turns, places)
        if (seat := edge_of(schedule, group, regions, regions.get(account)))
        if seat.account == account
    ]
