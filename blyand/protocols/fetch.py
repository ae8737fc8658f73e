"""Getting a blob: from whoever has it, leaf by leaf, once however often it is asked for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.blobs import LEAVES_PER_REQUEST
from blyand.compute import Threads
from blyand.errors import NotHere, TooSlow, Unavailable
from blyand.protocols.blobs import Client
from blyand.store.blobs import BlobStore

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 8  # blobs under way for those who wait for them
MAX_WANTED_AT_ONCE = 16  # blobs under way in the background
MAX_WANTED_PER_HINT = 4  # of them named by one author: nobody's take all the places
ATTEMPTS_PER_PEER = 2
WANTED_AGAIN_S = 2.0  # a wanted blob that nobody had is tried again after this
WANTED_S = 60.0  # a want that nobody renews is given up
COOL_OFF_S = 60.0  # a peer that let us wait goes last for this long
MAX_SLOW = 1024


@dataclass
class _Fetch:
    """A blob under way."""

    over: trio.Event
    asked: set[str] = field(default_factory=set)  # peers that did not give it


@dataclass
class _Want:
    """A blob that is fetched in the background."""

    hints: tuple[str, ...]
    renewed_s: float
    again_s: float = 0.0  # not before
    is_under_way: bool = False


async def _nobody(blob: bytes) -> Sequence[str]:
    return ()


class Fetcher:
    """Fetches blobs into the store. Verified leaf by leaf; resumes what was begun."""

    def __init__(
        self,
        client: Client,
        blobs: BlobStore,
        lane: Threads,
        peers: Callable[[], Sequence[str]],
        elsewhere: Callable[[bytes], Awaitable[Sequence[str]]] = _nobody,
    ) -> None:
        """`elsewhere(blob)` finds and connects others where no connected peer has it."""
        self._client = client
        self._blobs = blobs
        self._lane = lane
        self._peers = peers
        self._elsewhere = elsewhere
        self._under_way: dict[bytes, _Fetch] = {}
        self._limit = trio.CapacityLimiter(MAX_AT_ONCE)
        self._wanted: dict[bytes, _Want] = {}
        self._slow: dict[str, float] = {}  # peer -> when it let us wait
        self._wake = trio.Event()

    async def get(
        self,
        blob: bytes,
        hints: Sequence[str] = (),
        *,
        durable: bool = True,
        most_bytes: int | None = None,
    ) -> None:
        """Return when the blob is in the store; `hints` are asked first.

        NotHere when neither they nor any connected peer, nor one that the directory
        knows, gave all of it, or when it has more than `most_bytes` of data.
        """
        if not self._blobs.has(blob) and blob not in self._under_way:
            async with self._limit:
                await self._get(blob, hints, durable, most_bytes)
        else:
            await self._get(blob, hints, durable, most_bytes)

    async def _get(
        self,
        blob: bytes,
        hints: Sequence[str],
        durable: bool,
        most_bytes: int | None = None,
    ) -> None:
        """Fetch a blob, or wait for a fetch of it that is under way."""
        while not self._blobs.has(blob):
            other = self._under_way.get(blob)
            if other is None:
                fetch = self._under_way[blob] = _Fetch(trio.Event())
                try:
                    await self._from_anyone(blob, hints, durable, most_bytes, fetch)
                finally:
                    del self._under_way[blob]
                    fetch.over.set()
                return
            await other.over.wait()
            # It may have been cancelled, and may not have asked those that we would.
            if other.asked >= {*hints, *self._peers()} and not self._blobs.has(blob):
                raise NotHere(f"no peer gave blob {blob.hex()[:16]}")

    def want(self, blob: bytes, hints: Sequence[str] = ()) -> None:
        """Ask for a blob without waiting; the service keeps trying while it is asked."""
        now = trio.current_time()
        known = self._wanted.get(blob)
        if known is not None:
            known.renewed_s = now
        elif not self._blobs.has(blob):
            self._wanted[blob] = _Want(tuple(hints), now)
            self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Fetch what was wanted; no fetch waits for another's peer."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                for blob in self._next_wanted():
                    self._wanted[blob].is_under_way = True
                    nursery.start_soon(self._try, blob)
                with trio.move_on_after(WANTED_AGAIN_S):
                    await self._wake.wait()

    def _next_wanted(self) -> list[bytes]:
        """Return the blobs to begin with now: some of every author."""
        now = trio.current_time()
        for blob, want in list(self._wanted.items()):
            if now - want.renewed_s > WANTED_S and not want.is_under_way:
                del self._wanted[blob]
        under_way = Counter(w.hints for w in self._wanted.values() if w.is_under_way)
        begun = []
        for blob, want in self._wanted.items():
            if under_way.total() >= MAX_WANTED_AT_ONCE:
                break
            if want.is_under_way or want.again_s > now:
                continue
            if under_way[want.hints] < MAX_WANTED_PER_HINT:
                under_way[want.hints] += 1
                begun.append(blob)
        return begun

    async def _try(self, blob: bytes) -> None:
        want = self._wanted.pop(blob)
        self._wanted[blob] = want  # to the end of the queue
        try:
            await self._get(blob, want.hints, durable=True)
            del self._wanted[blob]
        except Unavailable as error:
            logger.debug("still without blob %s: %s", blob.hex()[:16], error)
            want.again_s = trio.current_time() + WANTED_AGAIN_S
        finally:
            want.is_under_way = False
            self._wake.set()

    async def _from_anyone(
        self,
        blob: bytes,
        hints: Sequence[str],
        durable: bool,
        most_bytes: int | None,
        fetch: _Fetch,
    ) -> None:
        now = trio.current_time()
        peers = list(dict.fromkeys([*hints, *self._peers()]))
        # Stable: among the quick ones, those who should have it stay first.
        peers.sort(key=lambda peer: now - self._slow.get(peer, -1e9) < COOL_OFF_S)

        async def gave(asked: Sequence[str]) -> bool:
            for peer in asked:
                if await self._gave(peer, blob, durable, most_bytes):
                    return True
                fetch.asked.add(peer)
            return False

        if await gave(peers):
            return
        others = [one for one in await self._elsewhere(blob) if one not in peers]
        if not await gave(others):
            raise NotHere(f"no peer gave blob {blob.hex()[:16]}")

    async def _gave(
        self, peer: str, blob: bytes, durable: bool, most_bytes: int | None
    ) -> bool:
        """Fetch a blob from one peer; False when it does not give all of it."""
        for _ in range(ATTEMPTS_PER_PEER):
            try:
                await self._from(peer, blob, durable, most_bytes)
                return True
            except Unavailable as error:
                logger.debug("%s: blob %s: %s", peer, blob.hex()[:16], error)
                if isinstance(error, TooSlow):
                    self._let_us_wait(peer)
                break
            except ProtocolError as error:  # the host has blamed the peer for it
                logger.info("%s: blob %s: %s", peer, blob.hex()[:16], error)
        return False

    def _let_us_wait(self, peer: str) -> None:
        self._slow.pop(peer, None)
        self._slow[peer] = trio.current_time()
        if len(self._slow) > MAX_SLOW:
            del self._slow[next(iter(self._slow))]

    async def _from(
        self, peer: str, blob: bytes, durable: bool, most_bytes: int | None
    ) -> None:
        outline = await self._client.outline(peer, blob)
        if most_bytes is not None and outline.data_bytes > most_bytes:
            raise NotHere(f"it has {outline.data_bytes} bytes, not {most_bytes}")
        partial = await self._lane.run(self._blobs.begin_fetch, outline)

        async def take(index: int, body: bytes) -> None:
            await self._lane.run(partial.write_leaf, index, body)

        try:
            while missing := partial.missing():
                first = missing[0]
                count = 1
                for index in missing[1:LEAVES_PER_REQUEST]:
                    count += index == first + count
                await self._client.leaves(peer, blob, first, count, take)
            await self._lane.run(lambda: partial.finish(durable=durable))
        finally:
            partial.close()
