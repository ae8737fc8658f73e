"""Getting the deltas of an update: from near nodes where some have them, else from afar.

What crosses between regions costs most, so it should cross once for each of them: the
region's edge fetches, the others wait for it a while and then help themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from blyan_proto.block.model import Contribution, TileUpdate
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.edge import MAX_PIECES_BYTES, Span
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.protocols.fetch import Fetcher
from blyand.rules.model.election import ranks
from blyand.rules.records import RUNS, SCHEDULES, Schedule
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.training.passed import Passed
from blyand.training.ways import Ways

logger = logging.getLogger(__name__)

LOOK_S = 0.15  # until a near node is asked again
WAIT_SHARE = 4  # of the run's deadline, for a near node to have them
WAIT_S = 5.0  # at most

AskPieces = Callable[[str, bytes, Sequence[Span]], Awaitable[Sequence[bytes]]]


class Donors:
    """Brings blobs of updates into the store."""

    def __init__(
        self,
        view: Callable[[], View],
        ways: Ways,
        fetcher: Fetcher,
        blobs: BlobStore,
        lane: Threads,
        pieces: AskPieces,
        peer_of: Callable[[bytes], str | None],
        passed: Passed,
    ) -> None:
        """`pieces(peer, blob, spans)` asks a peer for parts of a blob, unchecked."""
        self._view = view
        self._ways = ways
        self._fetcher = fetcher
        self._blobs = blobs
        self._lane = lane
        self._pieces = pieces
        self._peer_of = peer_of
        self._passed = passed

    async def bring(self, update: TileUpdate, author: bytes) -> None:
        """Return when an update's deltas are in the store. NotHere, Pruned or Busy.

        `author`: the account whose node is asked first where nobody near has them.
        """
        if update.blob is None or await self._lane.run(self._blobs.has, update.blob):
            return
        most = sum(part.bytes for part in update.contributions)
        schedule = SCHEDULES.get(self._view(), update.run, update.round)
        have = [author]
        if schedule is not None:
            signed = {one.signer for one in update.cosignatures}
            seats = ranks(schedule, update.group)
            have += [seat.account for seat in seats if seat.key in signed]
            if await self._from_near(update, schedule, have, update.blob, most):
                return
        if not await self._from_parts(update, have, update.blob):
            hint = self._peer_of(author)
            await self._fetcher.get(
                update.blob, [hint] if hint else [], most_bytes=most
            )

    async def _from_near(
        self,
        update: TileUpdate,
        schedule: Schedule,
        have: Sequence[bytes],
        blob: bytes,
        most: int,
    ) -> bool:
        """True when a node of our region gave the deltas."""
        run = RUNS.get(self._view(), update.run)
        share_s = run.run.deadline_ms / 1000 / WAIT_SHARE if run else 0.0
        near = self._ways.near(schedule, have)
        edge = self._ways.edge(schedule, update.group)
        is_draft = len(update.cosignatures) < 2  # nobody but its author may know it
        if near or is_draft:  # near ones signed for having them
            edge = None
        elif edge is not None:
            near = self._ways.near(schedule, [edge.account])  # not if it is this node
        with trio.move_on_after(min(share_s, WAIT_S)):
            while near:
                try:
                    await self._fetcher.get(blob, near, most_bytes=most, only=True)
                    return True
                except Unavailable as error:
                    logger.debug("nobody near gave %s: %s", blob.hex()[:16], error)
                if edge is None:
                    return False
                await trio.sleep(LOOK_S)
                near = self._ways.near(schedule, [edge.account])
        return False

    async def _from_parts(
        self, update: TileUpdate, have: Sequence[bytes], blob: bytes
    ) -> bool:
        """True when the deltas that did not pass here came, and all were put together."""
        known = {p.delta: self._passed.get(p.delta) for p in update.contributions}
        lacking = [p for p in update.contributions if known[p.delta] is None]
        if len(lacking) == len(known) or _bytes_of(lacking) > MAX_PIECES_BYTES:
            return False
        spans = [Span(part.offset, part.bytes) for part in lacking]
        for peer in filter(None, map(self._peer_of, dict.fromkeys(have))):
            try:
                came = await self._pieces(peer, blob, spans) if spans else ()
            except (Unavailable, ProtocolError) as error:
                logger.info("no deltas of %s from %s: %s", blob.hex()[:16], peer, error)
                continue
            found = known | {p.delta: raw for p, raw in zip(lacking, came)}
            whole = await self._lane.run(self._joined, update, found)
            if whole == blob:
                return True
            if whole is not None:  # the update lists other deltas than its blob has
                await self._lane.run(self._blobs.delete, whole)
                return False
        return False

    def _joined(
        self, update: TileUpdate, found: dict[bytes, bytes | None]
    ) -> bytes | None:
        """Store the deltas as one blob; return its root, None if one is not what it
        should be. Blocking."""
        parts = [found[part.delta] or b"" for part in update.contributions]
        for part, raw in zip(update.contributions, parts):
            if digest(Domain.DELTA, raw) != part.delta:
                return None
        return self._blobs.put_bytes(b"".join(parts))


def _bytes_of(parts: Sequence[Contribution]) -> int:
    return sum(part.bytes for part in parts)
