"""Who did what in a closed round: counted out of its updates and its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.constants import PPM
from blyan_proto.types import Role, members
from blyan_tile.layout import Layout
from blyand.rules.records import Schedule
from blyand.store.rounds import PARTS, Led, Moved, Moves, Part, Takeover


@dataclass(frozen=True)
class Tally:
    """The figures of one round, as a report holds them."""

    tokens: int
    contributions: int
    primaries: tuple[Led, ...]
    parts: tuple[Part, ...]
    learners: int
    takeovers: tuple[Takeover, ...]
    moves: Moves


@dataclass
class _Sum:
    tokens: int = 0
    listed: int = 0
    missed: int = 0
    clipped: int = 0


def tally(
    made: Sequence[Block], schedule: Schedule | None, layout: Layout | None
) -> Tally:
    """Count the updates that closed a round; `schedule` says who was expected.

    Missed are counted over groups that every learner trains: an expert that too few
    tokens reached sends nothing, and nobody is late with it (DEC-B13).
    """
    led: dict[bytes, int] = {}
    sums: dict[bytes, _Sum] = {}
    shared = {g.index for g in layout.shared_groups} if layout else set()
    learners = {
        seat.account: members(seat.held) & shared
        for seat in (schedule.seats if schedule else ())
        if seat.roles & Role.LEARN
    }
    for account in learners:
        sums[account] = _Sum()
    takeovers, moved = [], []
    contributions = 0
    for block in made:
        update: TileUpdate = block.content
        author = block.header.account
        led[author] = led.get(author, 0) + 1
        if update.rank:
            takeovers.append(Takeover(update.group, update.rank, author))
        moved.append(Moved(update.group, block.id))
        contributions += len(update.contributions)
        listed = set()
        for part in update.contributions:
            listed.add(part.learner)
            one = sums.setdefault(part.learner, _Sum())
            one.tokens = max(one.tokens, part.tokens)
            one.listed += 1
            one.clipped += part.clip_ppm < PPM
        for account, groups in learners.items():
            if update.group in groups and account not in listed:
                sums[account].missed += 1
    return Tally(
        tokens=sum(one.tokens for one in sums.values()),
        contributions=contributions,
        primaries=tuple(Led(*one) for one in sorted(led.items())),
        parts=tuple(_parts(sums.items()))[:PARTS],
        learners=len(sums),
        takeovers=tuple(sorted(takeovers, key=lambda one: one.group)),
        moves=Moves(tuple(sorted(moved, key=lambda one: one.group))),
    )


def _parts(sums: Iterable[tuple[bytes, _Sum]]) -> Iterable[Part]:
    order = sorted(sums, key=lambda item: (-item[1].missed, -item[1].tokens, item[0]))
    for account, one in order:
        yield Part(account, one.tokens, one.listed, one.missed, one.clipped)
