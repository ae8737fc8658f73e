"""Handing a round in: one bundle per primary, then the next ranks, until it moved.

A rank that is gone or silent is passed over; deltas are idempotent by digest (DEC-A6).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

import trio

from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import ProtocolError
from blyan_proto.framing import PREFIX_BYTES
from blyan_proto.protocols.delta import (
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

logger = logging.getLogger(__name__)

AGAIN_S = 0.3


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

        Ends early once `is_current` is false: the round was scheduled anew.

        Ranks are asked side by side: one that accepts and never answers costs its own
        groups the run's deadline, and the others nothing.
        """
        round = turn.schedule.round
        say(f"handing in round {round}")
        waiting = dict.fromkeys(turn.groups, 0)  # group -> rank it is sent to
        sent_at: dict[int, float] = {}
        deadline_s = turn.record.run.deadline_ms / 1000

        def heard(rank: int, group: int, verdict: Verdict | None) -> None:
            if waiting.get(group) != rank:
                return  # it moved, or this rank was passed over
            sent_at.pop(group, None)
            if verdict in (Verdict.NOT_PRIMARY, Verdict.REFUSED, None):
                waiting[group] = rank + 1
            elif verdict is not Verdict.STALE:
                sent_at[group] = trio.current_time()

        async with trio.open_nursery() as nursery:
            while waiting and is_current():
                now = trio.current_time()
                for group, rank in waiting.items():
                    if group not in sent_at:
                        continue
                    if now - sent_at[group] > deadline_s or self._lost(
                        turn, group, rank
                    ):
                        waiting[group] = rank + 1
                        del sent_at[group]
                due = {g: rank for g, rank in waiting.items() if g not in sent_at}
                for (account, rank), groups in self._by_seat(turn, due).items():
                    sent_at.update(dict.fromkeys(groups, now))
                    told = partial(heard, rank)
                    nursery.start_soon(self._send, turn, result, account, groups, told)
                await trio.sleep(AGAIN_S)
                for group in list(waiting):
                    if self.is_past(turn, group):
                        del waiting[group]
                if waiting:
                    say(f"waiting for {len(waiting)} updates of round {round}")
            nursery.cancel_scope.cancel()

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
        self, turn: Round, due: Mapping[int, int]
    ) -> dict[tuple[bytes, int], list[int]]:
        """Return the groups of `due` by the account that they go to, and its rank."""
        by_seat: dict[tuple[bytes, int], list[int]] = {}
        for group, rank in due.items():
            seat = self._seat(turn, group, rank)
            if seat is not None:
                by_seat.setdefault((seat.account, rank), []).append(group)
        return by_seat

    async def _send(
        self,
        turn: Round,
        result: LearnResult,
        account: bytes,
        groups: list[int],
        told: Callable[[int, Verdict | None], None],
    ) -> None:
        """Send one bundle; tell each group's verdict, None where there was no answer."""
        bundle = self._bundle(turn, result, sorted(groups))
        verdicts: dict[int, Verdict] = {}
        try:
            receipt = await self._deliver(account, bundle, turn.layout)
            verdicts = {one.group: one.verdict for one in receipt.verdicts}
        except (Unavailable, ProtocolError) as error:
            logger.info("no primary at %s: %s", account.hex(), error)
        for group in groups:
            told(group, verdicts.get(group))

    async def _deliver(self, account: bytes, bundle: Bundle, layout: Layout) -> Receipt:
        if account == self._key.account:
            return await self._reach.take(bundle)
        peer = self._reach.peer_of(account)
        if peer is None:
            raise Unavailable("the primary's address is not known")
        receipt = await self._reach.push(peer, bundle)
        elements = sum(layout.groups[delta.group].elements for delta in bundle.deltas)
        sent = len(encode(bundle)) + PREFIX_BYTES
        self._journal.handed_over(bundle.manifest.round, 4 * elements, sent)
        return receipt

    def _bundle(self, turn: Round, result: LearnResult, groups: list[int]) -> Bundle:
        by_group = {delta.group: delta for delta in result.deltas}
        deltas = []
        for group in groups:
            change = by_group.get(group)
            head = self._holder.head(turn.record.run.model, group)
            if change is None or head is None:
                continue
            base = tuple(tile.weights for tile in head.tiles)
            deltas.append(
                Delta(
                    version=FORMAT_VERSION,
                    run=turn.record.id,
                    group=group,
                    round=turn.schedule.round,
                    learner=self._key.account,
                    base=base,
                    tokens=change.tokens,
                    tiles=change.tiles,
                )
            )
        digests = {delta.group: delta.digest for delta in deltas}
        ours = [by_group[group] for group in groups if group in by_group]
        manifest = Manifest(
            run=turn.record.id,
            round=turn.schedule.round,
            learner=self._key.account,
            entries=tuple(Entry(group, digests.get(group)) for group in groups),
            residual=digest(Domain.RESIDUAL, *(change.residual for change in ours)),
            change=digest(Domain.CHANGE, *(change.change for change in ours)),
        )
        signature = self._key.sign(Purpose.DELTA_BUNDLE, self._network, manifest)
        return Bundle(manifest, self._key.public, signature, tuple(deltas))
