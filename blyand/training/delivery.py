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
from blyan_proto.protocols.edge import MAX_BUNDLES, Addressed, Parcel
from blyan_proto.signing import Purpose, SigningKey
from blyan_tile.layout import Layout
from blyan_tile.learner import LearnResult
from blyand.errors import Unavailable
from blyand.rules.model.election import ranks
from blyand.rules.records import RunRecord, Schedule, Seat
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.passed import Passed
from blyand.training.trails import Version
from blyand.training.ways import Ways

logger = logging.getLogger(__name__)

AGAIN_S = 0.3
BUNDLE_BYTES = MAX_BUNDLE_BYTES // 2  # of deltas; the rest of a bundle is small
ANNOUNCE_S = 0.3  # at most, until deltas are sent all the same
ROUND_S = 2.0  # after every rank refused or was gone, until the first is asked again
EDGE_GRACE_MS = 1000  # a run with less leaves an edge no time
EDGE_SHARE = 2  # of the run's grace, until a silent edge is passed over: still in time

Tell = Mapping[int, Callable[[Verdict | None], None]]  # by group
Carry = Callable[
    [bytes, Parcel, Sequence[bytes]], Awaitable[Sequence[Receipt | None]]
]  # an edge's account, bundles, the keys of their primaries


@dataclass(frozen=True)
class Reach:
    """How bundles and blobs get to and from others."""

    push: Callable[[str, Bundle], Awaitable[Receipt]]
    carry: Carry  # by an edge, maybe this node
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
        ways: Ways,
        passed: Passed,
    ) -> None:
        self._ways = ways
        self._passed = passed
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
                for edge, by_seat in self._sorted(turn, due, result).items():
                    sent_on: list[tuple[Seat, Tell]] = []
                    for seat, groups in by_seat.items():
                        for group in groups:
                            due[group].is_out = True
                        for part in _bundles(groups, result):
                            tell = {one: partial(heard, due[one], one) for one in part}
                            if edge is None:
                                nursery.start_soon(self._send, turn, result, seat, tell)
                            else:
                                sent_on.append((seat, tell))
                    for parcel in _parcels(sent_on, result):
                        nursery.start_soon(self._send_by, turn, result, edge, parcel)
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

    def _sorted(
        self, turn: Round, due: Mapping[int, _Handed], result: LearnResult
    ) -> dict[bytes | None, dict[Seat, list[int]]]:
        """Return the groups of `due` by edge, None for straight on, and primary.

        Edges are for what goes to the first rank of a far group.
        """
        ways: dict[bytes | None, dict[Seat, list[int]]] = {}
        is_patient = turn.record.run.grace_ms >= EDGE_GRACE_MS
        made = {delta.group for delta in result.deltas}
        for group, sent in due.items():
            seat = self._seat(turn, group, sent.rank)
            if seat is None:
                continue
            edge = None
            is_first = sent.rank == 0 and seat.account != self._key.account
            if is_patient and is_first and group in made:
                edge = self._ways.edge(turn.schedule, group)
            way = ways.setdefault(edge.account if edge else None, {})
            way.setdefault(seat, []).append(group)
        return ways

    async def _send(
        self, turn: Round, result: LearnResult, seat: Seat, tell: Tell
    ) -> None:
        """Send one bundle; tell each group's verdict, None where there was no answer."""
        bundle = self._bundle(turn, result, sorted(tell))
        receipt = None
        try:
            receipt = await self._deliver(seat.account, bundle, turn.layout)
        except (Unavailable, ProtocolError) as error:
            logger.info("no primary at %s: %s", seat.account.hex(), error)
        _tell(tell, receipt)

    async def _send_by(
        self,
        turn: Round,
        result: LearnResult,
        edge: bytes,
        sent_on: Sequence[tuple[Seat, Tell]],
    ) -> None:
        """Send bundles by an edge; straight on where no receipt of the primary comes."""
        parcel = Parcel(
            tuple(
                Addressed(seat.account, self._bundle(turn, result, sorted(tell)))
                for seat, tell in sent_on
            )
        )
        receipts: Sequence[Receipt | None] = (None,) * len(sent_on)
        patience_s = turn.record.run.grace_ms / 1000 / EDGE_SHARE
        with trio.move_on_after(patience_s) as patience:
            try:
                signers = [seat.key for seat, _ in sent_on]
                receipts = await self._reach.carry(edge, parcel, signers)
            except Unavailable as error:
                logger.info("no way by the edge %s: %s", edge.hex(), error)
            except ProtocolError as error:
                logger.warning("the edge %s lies: %s", edge.hex(), error)
                self._ways.avoid(edge)
        if patience.cancelled_caught:
            logger.info("the edge %s is silent", edge.hex())
            self._ways.avoid(edge)
        async with trio.open_nursery() as nursery:
            for (seat, tell), one, receipt in zip(sent_on, parcel.bundles, receipts):
                if receipt is None:
                    nursery.start_soon(self._send, turn, result, seat, tell)
                else:
                    self._count(one.bundle, turn.layout)
                    _tell(tell, receipt)

    async def _deliver(self, account: bytes, bundle: Bundle, layout: Layout) -> Receipt:
        if account == self._key.account:
            return await self._reach.take(bundle)
        peer = self._reach.peer_of(account)
        if peer is None:
            raise Unavailable("the primary's address is not known")
        receipt = await self._reach.push(peer, bundle)
        self._count(bundle, layout)
        return receipt

    def _count(self, bundle: Bundle, layout: Layout) -> None:
        elements = sum(layout.groups[delta.group].elements for delta in bundle.deltas)
        sent = len(encode(bundle)) + PREFIX_BYTES
        manifest = bundle.manifest
        self._journal.handed_over(manifest.run, manifest.round, 4 * elements, sent)

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
        bundle = Bundle(manifest, self._key.public, signature, tuple(deltas))
        self._passed.note(bundle)
        return bundle


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


def _tell(tell: Tell, receipt: Receipt | None) -> None:
    verdicts = {one.group: one.verdict for one in receipt.verdicts} if receipt else {}
    for group, told in tell.items():
        told(verdicts.get(group))


def _parcels(
    sent_on: Sequence[tuple[Seat, Tell]], result: LearnResult
) -> list[list[tuple[Seat, Tell]]]:
    """Return bundles in parts that fit into one parcel each."""
    sizes = {d.group: sum(len(tile) for tile in d.tiles) for d in result.deltas}
    parcels: list[list[tuple[Seat, Tell]]] = []
    room = 0
    for seat, tell in sent_on:
        size = sum(sizes.get(group, 0) for group in tell)
        if not parcels or size > room or len(parcels[-1]) == MAX_BUNDLES:
            parcels.append([])
            room = BUNDLE_BYTES
        parcels[-1].append((seat, tell))
        room -= size
    return parcels


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
