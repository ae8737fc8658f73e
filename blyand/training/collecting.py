"""What a primary has of one group and round, and where an update of it would stand."""

from __future__ import annotations

from dataclasses import dataclass, field

from blyan_proto.block.model import Run
from blyan_proto.protocols.delta import Delta
from blyan_proto.types import Role
from blyan_tile.layout import Group
from blyand.rules.model.election import contributors
from blyand.rules.records import RunRecord, Schedule
from blyand.training.announced import Stand
from blyand.training.membership import Taken
from blyand.training.trails import Version


@dataclass(frozen=True)
class Place:
    """Where an update would stand: what the view and the holder say about a group."""

    record: RunRecord
    schedule: Schedule
    group: Group
    head: Version
    rank: int

    @property
    def run(self) -> Run:
        return self.record.run

    @property
    def median(self) -> int:
        """The group's running median norm before this round."""
        return self.head.median_in(self.record.id)

    @property
    def learners(self) -> list[bytes]:
        """Who may contribute to the group in this round."""
        seats = contributors(self.schedule, self.group.index, Role.LEARN)
        return [seat.account for seat in seats]

    @property
    def voices(self) -> list[bytes]:
        """Whose changes say what the learners have in common: newcomers cost nothing."""
        seats = contributors(self.schedule, self.group.index, Role.LEARN)
        known = [seat.account for seat in seats if not seat.is_new]
        return known or [seat.account for seat in seats]

    @property
    def stand(self) -> Stand:
        """What announcements are about: another base or lease is another matter."""
        round, epoch = self.schedule.round, self.schedule.epoch
        return self.record.id, round, self.group.index, self.head.block, epoch

    def is_base_of(self, delta: Delta) -> bool:
        """True when a delta was made for the version that the update would follow."""
        return delta.base == tuple(tile.weights for tile in self.head.tiles)


@dataclass
class Collecting:
    """What came in for one group and round, until the group's head moves."""

    base: bytes  # block of the version that the deltas are for
    epoch: int  # the lease under which they came
    opened: float  # trio time of the first entry
    heard: dict[bytes, Taken | None] = field(default_factory=dict)  # by learner
    came_ms: dict[bytes, int] = field(default_factory=dict)  # since it was opened
    again: float = 0.0  # not to be formed before
    publishing: bool = False
    promised: bool = False  # another head: this rank cannot publish any more

    def stands_at(self, place: Place) -> bool:
        """False once the group has another base, or the round another lease."""
        now = (place.head.block, place.schedule.epoch)
        return (self.base, self.epoch) == now

    def waited_ms(self, now: float) -> int:
        """Return the time since it was opened; `now` in trio's seconds."""
        return int((now - self.opened) * 1000)
