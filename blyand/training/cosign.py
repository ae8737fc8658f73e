"""Two ranks behind every update: asking for the second signature, and giving it (DEC-A5).

A rank recomputes before it signs, and signs at most one claim for each (run, group,
round, lease epoch, rank of the claim); its intent log knows which.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from blyan_proto.block.model import Cosignature, TileUpdate
from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.cosign import MAX_AT_ONCE, Cosigned, Declined, Reason
from blyan_proto.signing import Purpose, SigningKey, signing_digest
from blyan_tile.layout import Group
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.rules.model import signatures
from blyand.rules.model.election import ranks
from blyand.rules.records import SCHEDULES, Schedule, Seat
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View
from blyand.store.intents import AlreadySigned, IntentLog
from blyand.training.holder import Holder

logger = logging.getLogger(__name__)

AGAIN_S = 0.5  # until ranks that gave no signature are asked again
STAGGER_S = 2.0  # what one rank may take before the next is asked, too
BEHIND_S = 5.0  # how long a draft waits for its base to be our head
LOOK_S = 0.05
MAX_LOOKED_AT = 4096  # drafts whose claims are remembered

Answer = Cosigned | Declined
Place = tuple[bytes, int, int, int, int]  # run, group, round, lease epoch, rank


@dataclass(frozen=True)
class Ranks:
    """How the other ranks are reached."""

    ask: Callable[[str, TileUpdate], Awaitable[Answer]]
    peer_of: Callable[[bytes], str | None]  # account -> peer, None when unknown


class Cosigner:
    """Both sides of a second signature on this node."""

    def __init__(
        self,
        key: SigningKey,
        network: bytes,
        view: Callable[[], View],
        liveness_ms: int,
        holder: Holder,
        lane: Threads,
        intents: IntentLog,
        others: Ranks,
        may_sign: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_sign`: false while it is not known what was signed before (DEC-A9)."""
        self._key = key
        self._network = network
        self._view = view
        self._liveness_ms = liveness_ms
        self._holder = holder
        self._lane = lane
        self._intents = intents
        self._others = others
        self._may_sign = may_sign
        self._asking = trio.CapacityLimiter(MAX_AT_ONCE)
        self._looked_at: OrderedDict[Place, bytes] = OrderedDict()  # -> digest

    # The primary's side

    async def completed(
        self, update: TileUpdate, schedule: Schedule, goes_on: Callable[[], bool]
    ) -> TileUpdate | None:
        """Return our update once it has the signatures that the chain asks for now.

        None when `goes_on` turned false before. Others are asked as often as needed:
        state says when a rank is gone.
        """
        while goes_on():
            if self._is_enough(update):
                return update
            async with self._asking:
                second = await self._second(update, schedule)
            if second is not None:
                return replace(update, cosignatures=(*update.cosignatures, second))
            await trio.sleep(AGAIN_S)
        return None

    def _is_enough(self, update: TileUpdate) -> bool:
        """True when a checkpoint could order it as it is.

        Published earlier, it would keep all later blocks of this node waiting.
        """
        return signatures.is_enough(
            self._view(), update, self._key.public, self._liveness_ms
        )

    async def _second(
        self, update: TileUpdate, schedule: Schedule
    ) -> Cosignature | None:
        """Ask the other ranks, each when the one before it declined or takes long."""
        others = [
            seat
            for seat in ranks(schedule, update.group)
            if seat.key != self._key.public
        ]
        found: list[Cosignature] = []
        async with trio.open_nursery() as nursery:

            async def ask(seat: Seat, before: trio.Event, over: trio.Event) -> None:
                with trio.move_on_after(STAGGER_S):
                    await before.wait()
                cosignature = await self._from(seat, update)
                over.set()
                if cosignature is not None:
                    found.append(cosignature)
                    nursery.cancel_scope.cancel()

            before = trio.Event()
            before.set()
            for seat in others:
                over = trio.Event()
                nursery.start_soon(ask, seat, before, over)
                before = over
        return found[0] if found else None

    async def _from(self, seat: Seat, update: TileUpdate) -> Cosignature | None:
        peer = self._others.peer_of(seat.account)
        if peer is None:
            return None
        try:
            answer = await self._others.ask(peer, update)
        except (Unavailable, ProtocolError) as error:
            logger.info("no signature of %s: %s", peer, error)
            return None
        if isinstance(answer, Declined):
            logger.info("no signature of %s: %s", peer, answer.reason.name)
            return None
        return Cosignature(seat.key, answer.signature)

    # The other rank's side

    async def sign(self, update: TileUpdate) -> Answer:
        """Recompute a draft whose author's signature was checked; sign it if it is right.

        The same draft again is signed again, without work if it was signed before.
        """
        claim = signing_digest(Purpose.TILE_UPDATE, self._network, update.claim)
        try:
            group = await self._checked(update, claim)
            await self._lane.run(
                self._intents.record_head,
                group.name,
                update.run,
                update.round,
                update.lease_epoch,
                claim,
                update.rank,
            )
        except AlreadySigned:
            return Declined(Reason.PROMISED)
        except _No as error:
            return Declined(error.reason)
        signature = self._key.sign(Purpose.TILE_UPDATE, self._network, update.claim)
        return Cosigned(signature)

    async def _checked(self, update: TileUpdate, claim: bytes) -> Group:
        """Return the draft's group once its result was found to be right, or raise _No."""
        view = self._view()
        schedule = SCHEDULES.get(view, update.run, update.round)
        seats = ranks(schedule, update.group) if schedule else ()
        ours = [rank for rank, s in enumerate(seats) if s.key == self._key.public]
        if not ours or ours[0] == update.rank or not self._may_sign():
            raise _No(Reason.NO_RANK)
        self._look_at(update, claim)
        try:
            with trio.move_on_after(BEHIND_S):
                while not self._is_here(update):
                    await trio.sleep(LOOK_S)
            return await self._holder.recompute(update, self._network)
        except Ignore as error:
            raise _No(Reason.OTHER_HEAD) from error
        except Reject as error:
            logger.info("a draft for group %d: %s", update.group, error)
            raise _No(Reason.NO_RANK) from error
        except Unavailable as error:
            logger.info("a draft for group %d: %s", update.group, error)
            raise _No(Reason.NO_DELTAS) from error
        except ProtocolError as error:
            logger.warning("a draft for group %d lies: %s", update.group, error)
            raise _No(Reason.OTHER_RESULT) from error

    def _look_at(self, update: TileUpdate, claim: bytes) -> None:
        """Let one claim of each place cost us work; another one is an attempt."""
        place = (
            update.run,
            update.group,
            update.round,
            update.lease_epoch,
            update.rank,
        )
        if self._looked_at.setdefault(place, claim) != claim:
            raise _No(Reason.PROMISED)
        while len(self._looked_at) > MAX_LOOKED_AT:
            self._looked_at.popitem(last=False)

    def _is_here(self, update: TileUpdate) -> bool:
        head = self._holder.head(update.model, update.group)
        return head is not None and head.block == update.parent


class _No(Exception):
    """No signature, for a reason that the asker is told."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason
