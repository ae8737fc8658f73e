"""The primary of a group is computed, not voted: a weighted draw over live holders."""

from __future__ import annotations

from blyan_proto.constants import RANKS
from blyan_proto.digest import Domain, digest
from blyan_proto.types import members
from blyand.rules.records import Schedule, Seat


def ranks(schedule: Schedule, group: int) -> tuple[Seat, ...]:
    """Return primary and standbys of `group` in this round (DEC-A8, B6; TILE-03).

    Weighted rendezvous hashing with integers only: a seat of weight w draws w hashes and
    keeps its best, so its chance to come first is w over the sum of weights.
    """
    holders = [seat for seat in schedule.seats if group in members(seat.held)]
    holders.sort(key=lambda seat: _draw(schedule, group, seat), reverse=True)
    return tuple(holders[:RANKS])


def contributors(schedule: Schedule, group: int, role: int) -> tuple[Seat, ...]:
    """Return the seats that may send a delta for `group`: live holders that learn."""
    return tuple(
        seat
        for seat in schedule.seats
        if seat.roles & role and group in members(seat.held)
    )


def seat_of(schedule: Schedule, account: bytes) -> Seat | None:
    """Return an account's seat in this round, if it has one."""
    return next((seat for seat in schedule.seats if seat.account == account), None)


def _draw(schedule: Schedule, group: int, seat: Seat) -> bytes:
    return max(
        digest(
            Domain.ELECTION,
            schedule.beacon,
            schedule.run,
            schedule.round.to_bytes(4, "little"),
            group.to_bytes(2, "little"),
            seat.account,
            draw.to_bytes(1, "little"),
        )
        for draw in range(seat.weight)
    )
