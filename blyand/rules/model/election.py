"""The primary of a group is computed, not voted: a weighted draw over live holders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from blyan_proto.constants import RANKS
from blyan_proto.digest import Domain, digest
from blyand.rules.records import Schedule, Seat

DRAWS_PER_HASH = 4  # of 8 bytes each


def ranks(schedule: Schedule, group: int) -> tuple[Seat, ...]:
    """Return primary and standbys of `group` in this round (DEC-A8, B6; TILE-03).

    Weighted rendezvous hashing with integers only: a seat of weight w draws w numbers
    and keeps its best, so its chance to come first is w over the sum of weights. Seats
    of weight 0 lead only where no holder has another one, then all alike.
    """
    seats = [seat for seat in schedule.seats if holds(seat, group)]
    leading = [seat for seat in seats if seat.weight] or seats
    holders = {seat.account: seat for seat in leading}
    order = _ranked(
        schedule.beacon,
        schedule.run,
        schedule.round,
        group,
        tuple((account, seat.weight or 1) for account, seat in holders.items()),
    )
    return tuple(holders[account] for account in order)


def contributors(schedule: Schedule, group: int, role: int) -> tuple[Seat, ...]:
    """Return the seats that may send a delta for `group`: live holders that learn."""
    return tuple(
        seat for seat in schedule.seats if seat.roles & role and holds(seat, group)
    )


def seat_of(schedule: Schedule, account: bytes) -> Seat | None:
    """Return an account's seat in this round, if it has one."""
    return next((seat for seat in schedule.seats if seat.account == account), None)


def holds(seat: Seat, group: int) -> bool:
    """True when the seat's node holds the group."""
    byte, bit = divmod(group, 8)
    return byte < len(seat.held) and bool(seat.held[byte] >> bit & 1)


@lru_cache(maxsize=1024)  # asked again and again while a round is open
def _ranked(
    beacon: bytes,
    run: bytes,
    round: int,
    group: int,
    holders: tuple[tuple[bytes, int], ...],
) -> tuple[bytes, ...]:
    place = round.to_bytes(4, "little"), group.to_bytes(2, "little")

    def best(account: bytes, weight: int) -> int:
        return max(_draws(weight, beacon, run, *place, account))

    drawn = [(best(account, weight), account) for account, weight in holders]
    return tuple(account for _, account in sorted(drawn, reverse=True)[:RANKS])


def _draws(weight: int, *place: bytes) -> Iterator[int]:
    for start in range(0, weight, DRAWS_PER_HASH):
        row = digest(Domain.ELECTION, *place, start.to_bytes(1, "little"))
        for draw in range(min(DRAWS_PER_HASH, weight - start)):
            yield int.from_bytes(row[8 * draw : 8 * draw + 8], "big")
