"""Handing a round in: one bundle per primary, then the next ranks, until it moved.

A rank that is gone or silent is passed over; deltas are idempotent by digest (DEC-A6).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION, RANKS
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import ProtocolError
from blyan_proto.framing import PREFIX_BYTES
from blyan_proto.merkle import EMPTY
from blyan_proto.protocols.audit import root_of
from blyan_proto.protocols.delta import (
    MAX_BUNDLE_BYTES,
    MAX_GROUPS_PER_BUNDLE,
    REFUSALS,
    Bundle,
    Delta,
    Entry,
    Manifest,
    Receipt,
    Verdict,
)
from blyan_proto.signing import Purpose, SigningKey
from blyan_tile.layout import Layout
from blyan_tile.learner import LearnResult
from blyand.errors import Unavailable
from blyand.rules.model.election import ranks
from blyand.rules.records import RunRecord, Schedule, Seat
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.trails import Version

logger = logging.getLogger(__name__)

AGAIN_S = 0.3
BUNDLE_BYTES = MAX_BUNDLE_BYTES // 2  # of deltas; the rest of a bundle is small
ANNOUNCE_S = 0.3  # at most, until deltas are sent all the same
ROUND_S = 2.0  # after every rank refused or was gone, until the first is asked again


@dataclass(frozen=True)
class Reach:
    """How bundles and blobs get to and from others."""

    push: Callable[[str, Bundle], Awaitable[Receipt]]
    take: Callable[[Bundle], Awaitable[Receipt]]  # when we are the primary ourselves
    peer_of: Callable[[bytes], str | None]  # account -> peer, None when unknown
    is_connected: Callable[[str], bool]


@dataclass(frozen=True)
class Round:
    """One round as this learner sees it."""

    record: RunRecord
    schedule: Schedule
    layout: Layout
    groups: frozenset[int]  # those we hold, have a seat for, and that are at this round
    is_idle: bool = False  # nothing is trained; said so, the groups pass the round
    bases: Mapping[int, Version] = field(default_factory=dict)  # what groups begin at


@dataclass
class _Handed:
    """Where one group's delta is."""

    rank: int  # counted on over the ranks
    since: float  # trio time at which this rank's turn began, or begins
    is_out: bool = False  # sent, and not answered with STALE


class Delivery:
    """Gets a learner's deltas to the groups' primaries."""

    def __init__(
        self,
        key: SigningKey,
        network: bytes,
        holder: Holder,
        reach: Reach,
        journal: Journal,
    ) -> None:
        self._key = key
        self._network = network
        self._holder = holder
        self._reach = reach
        self._journal = journal

    def rounds(self, record: RunRecord, group: int) -> int:
        """Return how many rounds of the run are behind a group's head here."""
        head = self._holder.head(record.run.model, group)
        return head.rounds if head is not None and head.run == record.id else 0

    def is_past(self, turn: Round, group: int) -> bool:
        """True when the group moved past this round, or is no longer held here."""
        head = self._holder.head(turn.record.run.model, group)
        return head is None or self.rounds(turn.record, group) > turn.schedule.round

    async def hand_in(
        self,
        turn: Round,
        result: LearnResult,
        say: Callable[[str], None],
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        """Send every group to its primary, then to the next ranks, until it moved.

        Ends early once `is_current` is false: the round was scheduled anew, or begins
        at another version.

        Ranks are asked side by side. One that is gone or refuses is passed over at
        once; one that lags, stays silent or does not publish costs its own groups the
        run's deadline, and the others nothing.
        """
        round = turn.schedule.round
        say(f"handing in round {round}")
        await self._announce(turn, result)
        now = trio.current_time()
        waiting = {group: _Handed(0, now) for group in turn.groups}
        deadline_s = turn.record.run.deadline_ms / 1000
        patient_until = now + (RANKS + 1) * deadline_s

        def heard(sent: _Handed, group: int, verdict: Verdict | None) -> None:
            if waiting.get(group) is not sent:
                return  # it moved, or this rank was passed over
            if verdict is Verdict.STALE:
                sent.is_out = False  # the rank lags: once more
            elif verdict in (None, Verdict.NOT_PRIMARY) or verdict in REFUSALS:
                waiting[group] = self._next(turn, group, sent)

        async with trio.open_nursery() as nursery:
            while waiting and is_current():
                now = trio.current_time()
                for group, sent in list(waiting.items()):
                    is_late = now - sent.since > deadline_s
                    if is_late or sent.is_out and self._lost(turn, group, sent.rank):
                        waiting[group] = self._next(turn, group, sent)
                due = {
                    group: sent
                    for group, sent in waiting.items()
                    if not sent.is_out and sent.since <= now
                }
                for account, groups in self._by_seat(turn, due).items():
                    for group in groups:
                        due[group].is_out = True
                    for part in _bundles(groups, result):
                        tell = {one: partial(heard, due[one], one) for one in part}
                        nursery.start_soon(self._send, turn, result, account, tell)
                await trio.sleep(AGAIN_S)
                for group in list(waiting):
                    if self.is_past(turn, group):
                        del waiting[group]
                if waiting and trio.current_time() < patient_until:
                    say(f"waiting for {len(waiting)} updates of round {round}")
                elif waiting:  # every rank had its time
                    say(
                        f"paused: {len(waiting)} updates of round {round} come from no "
                        "rank; `blyanctl consensus status` says whether enough nodes "
                        "are up"
                    )
            nursery.cancel_scope.cancel()

    async def _announce(self, turn: Round, result: LearnResult) -> None:
        """Name our deltas to all ranks before any of them sees one: no copy is earlier."""
        by_rank: dict[bytes, list[int]] = {}
        for group in sorted({delta.group for delta in result.deltas} & turn.groups):
            for seat in ranks(turn.schedule, group):
                by_rank.setdefault(seat.account, []).append(group)

        async def tell(account: bytes, groups: list[int]) -> None:
            bundle = replace(self._bundle(turn, result, groups), deltas=())
            try:
                await self._deliver(account, bundle, turn.layout)
            except (Unavailable, ProtocolError) as error:
                logger.info("nothing announced to %s: %s", account.hex(), error)

        with trio.move_on_after(ANNOUNCE_S):
            async with trio.open_nursery() as nursery:
                for account, groups in by_rank.items():
                    for first in range(0, len(groups), MAX_GROUPS_PER_BUNDLE):
                        part = groups[first : first + MAX_GROUPS_PER_BUNDLE]
                        nursery.start_soon(tell, account, part)

    def _next(self, turn: Round, group: int, sent: _Handed) -> _Handed:
        """Return the next rank's turn; a new round of them begins after a pause."""
        rank, seats = sent.rank + 1, len(ranks(turn.schedule, group))
        pause_s = 0.0 if seats and rank % seats else ROUND_S
        return _Handed(rank, trio.current_time() + pause_s)

    def _lost(self, turn: Round, group: int, rank: int) -> bool:
        """True when the rank that has our delta is no longer connected."""
        seat = self._seat(turn, group, rank)
        if seat is None or seat.account == self._key.account:
            return False
        peer = self._reach.peer_of(seat.account)
        return peer is None or not self._reach.is_connected(peer)

    def _seat(self, turn: Round, group: int, rank: int) -> Seat | None:
        seats = ranks(turn.schedule, group)
        return seats[rank % len(seats)] if seats else None

    def _by_seat(
        self, turn: Round, due: Mapping[int, _Handed]
    ) -> dict[bytes, list[int]]:
        """Return the groups of `due` by the account that they go to."""
        by_seat: dict[bytes, list[int]] = {}
        for group, sent in due.items():
            seat = self._seat(turn, group, sent.rank)
            if seat is not None:
                by_seat.setdefault(seat.account, []).append(group)
        return by_seat

    async def _send(
        self,
        turn: Round,
        result: LearnResult,
        account: bytes,
        tell: Mapping[int, Callable[[Verdict | None], None]],
    ) -> None:
        """Send one bundle; tell each group's verdict, None where there was no answer."""
        bundle = self._bundle(turn, result, sorted(tell))
        verdicts: dict[int, Verdict] = {}
        try:
            receipt = await self._deliver(account, bundle, turn.layout)
            verdicts = {one.group: one.verdict for one in receipt.verdicts}
        except (Unavailable, ProtocolError) as error:
            logger.info("no primary at %s: %s", account.hex(), error)
        for group, told in tell.items():
            told(verdicts.get(group))

    async def _deliver(self, account: bytes, bundle: Bundle, layout: Layout) -> Receipt:
        if account == self._key.account:
            return await self._reach.take(bundle)
        peer = self._reach.peer_of(account)
        if peer is None:
            raise Unavailable("the primary's address is not known")
        receipt = await self._reach.push(peer, bundle)
        elements = sum(layout.groups[delta.group].elements for delta in bundle.deltas)
        sent = len(encode(bundle)) + PREFIX_BYTES
        manifest = bundle.manifest
        self._journal.handed_over(manifest.run, manifest.round, 4 * elements, sent)
        return receipt

    def _bundle(self, turn: Round, result: LearnResult, groups: list[int]) -> Bundle:
        made = deltas_of(turn, self._key.account, result)
        deltas = [made[group] for group in groups if group in made]
        digests = {delta.group: delta.digest for delta in deltas}
        by_group = {delta.group: delta for delta in result.deltas}
        ours = [by_group[group] for group in groups if group in by_group]
        manifest = Manifest(
            run=turn.record.id,
            round=turn.schedule.round,
            learner=self._key.account,
            entries=tuple(Entry(group, digests.get(group)) for group in groups),
            residual=digest(Domain.RESIDUAL, *(change.residual for change in ours)),
            change=digest(Domain.CHANGE, *(change.change for change in ours)),
            log=root_of(result.log) if ours else EMPTY,
        )
        signature = self._key.sign(Purpose.DELTA_BUNDLE, self._network, manifest)
        return Bundle(manifest, self._key.public, signature, tuple(deltas))


def deltas_of(turn: Round, learner: bytes, result: LearnResult) -> dict[int, Delta]:
    """Return what a learner sends of a round, by group."""
    return {
        change.group: Delta(
            version=FORMAT_VERSION,
            run=turn.record.id,
            group=change.group,
            round=turn.schedule.round,
            learner=learner,
            base=tuple(tile.weights for tile in turn.bases[change.group].tiles),
            tokens=change.tokens,
            tiles=change.tiles,
        )
        for change in result.deltas
    }


def _bundles(groups: Sequence[int], result: LearnResult) -> list[list[int]]:
    """Return the groups in parts whose deltas fit into one bundle each."""
    sizes = {d.group: sum(len(tile) for tile in d.tiles) for d in result.deltas}
    parts: list[list[int]] = [[]]
    room = BUNDLE_BYTES
    for group in sorted(groups):
        size = sizes.get(group, 0)
        if parts[-1] and (size > room or len(parts[-1]) == MAX_GROUPS_PER_BUNDLE):
            parts.append([])
            room = BUNDLE_BYTES
        parts[-1].append(group)
        room -= size
    return parts
