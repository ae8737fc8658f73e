"""The edge of a region: takes deltas from near learners and hands them to far primaries.

It gathers for a moment what goes to the same primary and sends it as one parcel. It
never sums, so every delta keeps its learner's signature and every receipt is the
primary's: who hands something to an edge need not trust it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from blyan_proto.constants import MIB
from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.delta import Bundle, Receipt
from blyan_proto.protocols.edge import (
    MAX_BUNDLES,
    MAX_PARCEL_BYTES,
    Addressed,
    Parcel,
)
from blyan_proto.types import Role
from blyand.errors import Busy, Unavailable
from blyand.rules.model.election import contributors, ranks, seat_of
from blyand.rules.records import RUNS, SCHEDULES, Schedule, Seat
from blyand.rules.view import View
from blyand.training.passed import Passed
from blyand.training.ways import Ways

logger = logging.getLogger(__name__)

GATHER_S = 0.5  # at most, and `GATHER` of the run's grace
GATHER, ANSWER = 1 / 8, 1 / 4  # of the grace: learners wait for half of it
MAX_IN_HAND_BYTES = 128 * MIB
ROOM_BYTES = MAX_PARCEL_BYTES // 2  # of deltas in one parcel; the rest is small

Push = Callable[[Seat, Parcel], Awaitable[Sequence[Receipt | None]]]
Place = tuple[bytes, int, bytes]  # run, round, the primary's account


@dataclass
class _Gathered:
    """What goes to one primary together."""

    to: Seat
    bundles: list[Addressed] = field(default_factory=list)
    size: int = 0  # of the deltas, in bytes
    awaited: set[bytes] = field(default_factory=set)  # learners that may still send
    full: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)
    receipts: Sequence[Receipt | None] = ()


class Edge:
    """Carries deltas for the region of this node, where it is drawn for that."""

    def __init__(
        self,
        account: bytes,
        view: Callable[[], View],
        ways: Ways,
        push: Push,
        passed: Passed,
    ) -> None:
        """`push(to, parcel)` hands a parcel to a primary and checks its receipts."""
        self._account = account
        self._view = view
        self._ways = ways
        self._push = push
        self._passed = passed
        self._gathered: dict[Place, _Gathered] = {}
        self._in_hand = 0  # bytes
        self._nursery: trio.Nursery | None = None

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Send what was gathered."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def forward(self, far: Sequence[Addressed]) -> list[Receipt | None]:
        """Pass bundles on to their primaries; return what came back in time.

        Their form and signatures were checked. Unavailable where this node is not the
        edge of all their groups, Busy when too much is under way.
        """
        for one in far:
            self._check(one)
        size = sum(map(_bytes_of, far))
        if self._in_hand + size > MAX_IN_HAND_BYTES:
            raise Busy("too many deltas are under way")
        patience_s = ANSWER * self._grace_s(far[0].bundle.manifest.run)
        placed = [self._gather(one) for one in far]
        with trio.move_on_after(patience_s):
            for gathered, _ in placed:
                await gathered.over.wait()
        return [
            gathered.receipts[index] if gathered.receipts else None
            for gathered, index in placed
        ]

    def _check(self, one: Addressed) -> None:
        manifest = one.bundle.manifest
        schedule = SCHEDULES.get(self._view(), manifest.run, manifest.round)
        seat = seat_of(schedule, manifest.learner) if schedule else None
        if schedule is None or seat is None or seat.key != one.bundle.signer:
            raise Unavailable("the sender has no seat in that round here")
        for entry in manifest.entries:
            if not self._ways.is_edge(schedule, entry.group):
                raise Unavailable("this node is not the edge of that group here")
            if ranks(schedule, entry.group)[0].account != one.to:
                raise Unavailable("another node is the primary of that group here")

    def _gather(self, one: Addressed) -> tuple[_Gathered, int]:
        """Put a bundle to the others for its primary; return where it stands."""
        manifest = one.bundle.manifest
        schedule = SCHEDULES.get(self._view(), manifest.run, manifest.round)
        assert schedule is not None  # see _check
        place = manifest.run, manifest.round, one.to
        size, gathered = _bytes_of(one), self._gathered.get(place)
        if gathered is not None and (
            len(gathered.bundles) == MAX_BUNDLES or gathered.size + size > ROOM_BYTES
        ):
            gathered.full.set()
            gathered = None
        if gathered is None:
            to = seat_of(schedule, one.to)
            assert to is not None and self._nursery is not None
            gathered = self._gathered[place] = _Gathered(to)
            self._nursery.start_soon(self._send, place, gathered)
        gathered.bundles.append(one)
        gathered.size += size
        self._in_hand += size
        gathered.awaited |= self._neighbours(schedule, one.bundle)
        come = {each.bundle.manifest.learner for each in gathered.bundles}
        if come >= gathered.awaited:
            gathered.full.set()
        self._passed.note(one.bundle)
        return gathered, len(gathered.bundles) - 1

    def _neighbours(self, schedule: Schedule, bundle: Bundle) -> set[bytes]:
        """Return the learners of our region that contribute to a bundle's groups."""
        regions = self._ways.regions(schedule)
        ours = regions.get(self._account)
        return {
            seat.account
            for entry in bundle.manifest.entries
            for seat in contributors(schedule, entry.group, Role.LEARN)
            if regions.get(seat.account) == ours
        }

    async def _send(self, place: Place, gathered: _Gathered) -> None:
        with trio.move_on_after(min(GATHER_S, GATHER * self._grace_s(place[0]))):
            await gathered.full.wait()
        if self._gathered.get(place) is gathered:
            del self._gathered[place]
        parcel = Parcel(tuple(gathered.bundles))
        try:
            gathered.receipts = await self._push(gathered.to, parcel)
        except (Unavailable, ProtocolError) as error:
            logger.info("nothing handed on to %s: %s", gathered.to.account.hex(), error)
        finally:
            self._in_hand -= gathered.size
            gathered.over.set()

    def _grace_s(self, run: bytes) -> float:
        record = RUNS.get(self._view(), run)
        return record.run.grace_ms / 1000 if record else 0.0


def _bytes_of(one: Addressed) -> int:
    return sum(len(tile) for delta in one.bundle.deltas for tile in delta.tiles)
