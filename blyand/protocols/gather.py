"""One blob from several donors at once, each leaf checked and written as it arrives.

Strategy. Candidates are tried one after the other, the next when one refuses or lets us
wait; once the outline is known, as many as the blob is worth are asked at the same time.
Who is asked for what is `rules/net/swarm`. A donor has one task and one stream; it
checks each leaf as it comes and hands them to the disk lane in small batches, so that
a thread is worth its hop, while the stream goes on filling its window.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import trio

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.errors import BadProof, ProtocolError
from blyan_tile.tblock import Outline, check_leaf
from blyand.compute import Threads
from blyand.errors import (
    Busy,
    DiskFull,
    LocalFault,
    NotHere,
    Pruned,
    TooSlow,
    Unavailable,
)
from blyand.metrics import Metrics
from blyand.protocols.blobs import Client, Conversation
from blyand.rules.net.candidates import Candidates
from blyand.rules.net.swarm import LATE_S, Out, Swarm

log = logging.getLogger(__name__)

MAX_DONORS = 4  # of one blob at once
LEAVES_PER_DONOR = 8  # missing ones that are worth another donor
PATIENCE_S = 1.0  # until another candidate is tried beside a silent one
BATCH = 8  # leaves of one call of the disk lane
BATCH_S = 0.05


Body = tuple[int, memoryview]  # a leaf


class Arriving(Protocol):
    """Where leaves are kept that were checked: a PartialBlob. Blocking."""

    def missing(self) -> tuple[int, ...]: ...

    def write_leaves(self, leaves: Iterable[Body]) -> None: ...

    def finish(self, *, durable: bool = True) -> bytes: ...

    def close(self) -> None: ...


class Store(Protocol):
    """Where blobs are begun: a BlobStore."""

    def begin_fetch(self, outline: Outline) -> Arriving: ...


class Gathering:
    """A blob under way. `run` may be called once."""

    def __init__(
        self,
        blob: bytes,
        client: Client,
        store: Store,
        lane: Threads,
        metrics: Metrics,
        let_us_wait: Callable[[str], None],
        most_bytes: int | None = None,
    ) -> None:
        """`let_us_wait(peer)` is told who is slow."""
        self.swarm = Swarm()
        self._blob, self._client, self._store, self._lane = blob, client, store, lane
        self._let_us_wait, self._most_bytes = let_us_wait, most_bytes
        self._outline: Outline | None = None
        self._arriving: Arriving | None = None
        self._beginning = trio.Lock()
        self._running: dict[str, trio.CancelScope] = {}
        self._silent: dict[str, float] = {}  # of them, who said nothing, since when
        self._ending: Unavailable | LocalFault | None = None  # it cannot go on
        self._scope = trio.CancelScope()
        self._changed = trio.Event()
        self._leaves = metrics.counter("blyan_blob_leaves", outcome="kept")
        self._copies = metrics.counter("blyan_blob_leaves", outcome="twice")
        self._false = metrics.counter("blyan_blob_leaves", outcome="false")

    async def run(
        self,
        candidates: Candidates,
        elsewhere: Callable[[bytes], Awaitable[Sequence[str]]],
        durable: bool,
    ) -> None:
        """Fetch the blob from the candidates, and from who `elsewhere` finds.

        NotHere, Pruned or Busy when nobody gave all of it; what came is kept.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await self._recruit(nursery, candidates, elsewhere)
                    nursery.cancel_scope.cancel()
            if self._ending is not None:
                raise self._ending
            if self._arriving is None or not self.swarm.is_done:
                raise self._failure()
            arriving = self._arriving
            await self._lane.run(lambda: arriving.finish(durable=durable))
        finally:
            if self._arriving is not None:
                self._arriving.close()

    # Candidates

    async def _recruit(
        self,
        nursery: trio.Nursery,
        candidates: Candidates,
        elsewhere: Callable[[bytes], Awaitable[Sequence[str]]],
    ) -> None:
        """Start donors until the blob is here or nobody is left."""
        sought = False
        while not (self._arriving is not None and self.swarm.is_done):
            while (peer := self._next(candidates, trio.current_time())) is not None:
                self._running[peer] = trio.CancelScope()
                self._silent[peer] = trio.current_time()
                self.swarm.join(peer, trio.current_time())
                nursery.start_soon(self._donate, peer)
            if not self._running and not candidates.put_back():
                if sought:
                    return
                sought = True
                candidates.add(await elsewhere(self._blob))
                continue
            with trio.move_on_after(PATIENCE_S):
                await self._changed.wait()

    def _next(self, candidates: Candidates, now: float) -> str | None:
        """Return another donor, if one is worth it; a slow one may have to give way."""
        active = {
            peer: self._is_slack(peer, now)
            for peer, scope in self._running.items()
            if not scope.cancel_called
        }
        giving = list(active.values()).count(False)
        worth = 1
        if self._outline is not None:
            worth = min(MAX_DONORS, -(-self.swarm.missing // LEAVES_PER_DONOR))
        if giving >= max(1, worth) or not candidates.would_try(bool(giving)):
            return None
        if len(active) >= MAX_DONORS:
            slack = next(peer for peer, is_slack in active.items() if is_slack)
            self._running[slack].cancel()
            if candidates.put_off(slack):
                self.swarm.leave(slack)
            else:
                self.swarm.drop(slack, Out.SLOW)
        return candidates.next(bool(giving))

    def _is_slack(self, peer: str, now: float) -> bool:
        since_s = self._silent.get(peer)
        if since_s is None:
            return self.swarm.is_slack(peer, now)
        if now - since_s < PATIENCE_S:
            return False
        self._let_us_wait(peer)
        return True

    def _failure(self) -> Unavailable:
        name = self._blob.hex()[:16]
        reasons = self.swarm.out.values()
        if Out.BUSY in reasons:
            return Busy(f"the peers that may have blob {name} are busy")
        if Out.PRUNED in reasons:
            return Pruned(f"no peer keeps blob {name} any more; an archive may")
        return NotHere(f"no peer gave blob {name}")

    # Donors

    async def _donate(self, peer: str) -> None:
        """Take leaves from one peer until there is no need, or no use."""
        try:
            with self._running[peer]:
                again_s: float | None = 0.0
                while again_s is not None:
                    await trio.sleep_until(again_s)
                    again_s = await self._converse(peer)
        except LocalFault as error:
            self._end(error)
        finally:
            del self._running[peer]
            self._silent.pop(peer, None)
            self.swarm.leave(peer)
            self._notify()

    async def _converse(self, peer: str) -> float | None:
        """Take what a donor gives; return when to try again, None: no more."""
        gave = False
        try:
            async with self._client.open(peer, self._blob) as asking:
                await self._begin(asking)
                self._silent.pop(peer, None)
                self._notify()
                leaves = max(1, min(BATCH, self.swarm.missing))
                room = memoryview(bytearray(leaves * LEAF_BYTES))  # used again
                while not self.swarm.is_done:
                    while found := self.swarm.ask(peer, trio.current_time()):
                        await asking.ask(found.first, found.count)
                    if self.swarm.owed(peer):
                        await self._take(peer, asking, room)
                        gave = True
                    else:
                        with trio.move_on_after(LATE_S):
                            await self._changed.wait()
            return None
        except ProtocolError as error:  # blamed where it left the conversation
            log.info("%s: blob %s: %s", peer, self._blob.hex()[:16], error)
            self.swarm.drop(peer, Out.FALSE)
        except DiskFull as error:  # no donor can help with that
            self._end(error)
        except Unavailable as error:
            log.debug("%s: blob %s: %s", peer, self._blob.hex()[:16], error)
            return self._after(peer, error, gave)
        finally:
            self._silent.pop(peer, None)
            self._notify()
        return None

    def _after(self, peer: str, error: Unavailable, gave: bool) -> float | None:
        now = trio.current_time()
        if isinstance(error, Busy):
            return self.swarm.busy(peer, now)
        if isinstance(error, TooSlow):
            self._let_us_wait(peer)
            self.swarm.drop(peer, Out.SLOW)
        elif isinstance(error, Pruned):
            self.swarm.drop(peer, Out.PRUNED)
        elif gave:
            return self.swarm.lost(peer, gave, now)
        else:
            self.swarm.drop(peer, Out.ABSENT)
        return None

    async def _begin(self, asking: Conversation) -> None:
        """Learn the outline, once, and find out what is missing."""
        if self._outline is not None:
            return
        outline = await asking.outline()
        async with self._beginning:
            if self._arriving is not None:
                return
            if self._most_bytes is not None and outline.data_bytes > self._most_bytes:
                self._end(
                    NotHere(
                        f"it has {outline.data_bytes} bytes, not {self._most_bytes}"
                    )
                )
                return
            try:
                self._arriving = await self._lane.run(self._store.begin_fetch, outline)
            except Unavailable as error:
                self._end(error)
                return
            self.swarm.deal(self._arriving.missing())
            self._outline = outline

    async def _take(self, peer: str, asking: Conversation, room: memoryview) -> None:
        """Receive a few leaves of a donor, check and keep them."""
        assert self._outline is not None
        batch: list[Body] = []  # checked
        try:
            with trio.CancelScope() as patience:
                for index in self.swarm.owed(peer)[: len(room) // LEAF_BYTES]:
                    size = self._outline.leaf_span(index)[1]
                    body, room = room[:size], room[size:]
                    await asking.leaf(index, body)
                    now = trio.current_time()
                    if not self.swarm.arrived(peer, size, now):
                        self._copies.add()
                        continue
                    try:
                        check_leaf(self._outline, index, body)
                    except BadProof:
                        self._false.add()
                        self.swarm.spoiled([index])
                        raise
                    batch.append((index, body))
                    # What came is not held up by what does not come.
                    patience.deadline = now + BATCH_S
        finally:
            if batch:
                await self._keep(batch)

    async def _keep(self, batch: list[Body]) -> None:
        """Write leaves."""
        assert self._arriving is not None
        leaves = [index for index, _ in batch]
        kept = False
        try:
            await self._lane.run(self._arriving.write_leaves, batch)
            kept = True
        finally:
            (self.swarm.kept if kept else self.swarm.spoiled)(leaves)
        self._leaves.add(len(leaves))
        if self.swarm.is_done:
            self._notify()

    def _end(self, error: Unavailable | LocalFault) -> None:
        self._ending = self._ending or error
        self._scope.cancel()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
