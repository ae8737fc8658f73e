"""Getting a blob: from whoever has it, leaf by leaf, once however often it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.blobs import LEAVES_PER_REQUEST
from blyand.compute import Threads
from blyand.errors import NotHere, Unavailable
from blyand.protocols.blobs import Client
from blyand.store.blobs import BlobStore

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 8  # blobs under way
ATTEMPTS_PER_PEER = 2
WANTED_AGAIN_S = 2.0  # a wanted blob that nobody had is tried again after this


class Fetcher:
    """Fetches blobs into the store. Verified leaf by leaf; resumes what was begun."""

    def __init__(
        self,
        client: Client,
        blobs: BlobStore,
        lane: Threads,
        peers: Callable[[], Sequence[str]],
    ) -> None:
        self._client = client
        self._blobs = blobs
        self._lane = lane
        self._peers = peers
        self._under_way: dict[bytes, trio.Event] = {}
        self._limit = trio.CapacityLimiter(MAX_AT_ONCE)
        self._wanted: dict[bytes, tuple[str, ...]] = {}
        self._wake = trio.Event()

    async def get(
        self, blob: bytes, hints: Sequence[str] = (), *, durable: bool = True
    ) -> None:
        """Return when the blob is in the store; `hints` are asked first.

        NotHere when neither they nor any connected peer gave all of it.
        """
        while not self._blobs.has(blob):
            event = self._under_way.get(blob)
            if event is not None:
                await event.wait()
                if not self._blobs.has(blob):
                    raise NotHere(f"no peer gave blob {blob.hex()[:16]}")
                return
            self._under_way[blob] = trio.Event()
            try:
                async with self._limit:
                    await self._from_anyone(blob, hints, durable)
            finally:
                self._under_way.pop(blob).set()

    def want(self, blob: bytes, hints: Sequence[str] = ()) -> None:
        """Ask for a blob without waiting; the service keeps trying."""
        if blob not in self._wanted and not self._blobs.has(blob):
            self._wanted[blob] = tuple(hints)
            self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Fetch what was wanted."""
        task_status.started()
        while True:
            if not self._wanted:
                self._wake = trio.Event()
                await self._wake.wait()
            async with trio.open_nursery() as nursery:
                for blob, hints in list(self._wanted.items())[:MAX_AT_ONCE]:
                    nursery.start_soon(self._try, blob, hints)
            if self._wanted:
                with trio.move_on_after(WANTED_AGAIN_S):
                    self._wake = trio.Event()
                    await self._wake.wait()

    async def _try(self, blob: bytes, hints: tuple[str, ...]) -> None:
        try:
            await self.get(blob, hints)
        except Unavailable as error:
            logger.debug("still without blob %s: %s", blob.hex()[:16], error)
            self._wanted[blob] = self._wanted.pop(
                blob, hints
            )  # to the end of the queue
            return
        self._wanted.pop(blob, None)

    async def _from_anyone(
        self, blob: bytes, hints: Sequence[str], durable: bool
    ) -> None:
        for peer in dict.fromkeys([*hints, *self._peers()]):
            for _ in range(ATTEMPTS_PER_PEER):
                try:
                    await self._from(peer, blob, durable)
                    return
                except Unavailable as error:
                    logger.debug("%s: blob %s: %s", peer, blob.hex()[:16], error)
                    break
                except ProtocolError as error:  # the host has blamed the peer for it
                    logger.info("%s: blob %s: %s", peer, blob.hex()[:16], error)
        raise NotHere(f"no peer gave blob {blob.hex()[:16]}")

    async def _from(self, peer: str, blob: bytes, durable: bool) -> None:
        outline = await self._client.outline(peer, blob)
        partial = await self._lane.run(self._blobs.begin_fetch, outline)

        async def take(index: int, body: bytes) -> None:
            await self._lane.run(partial.write_leaf, index, body)

        try:
            while missing := partial.missing():
                first = missing[0]
                count = 1
                while count < LEAVES_PER_REQUEST and first + count in missing:
                    count += 1
                await self._client.leaves(peer, blob, first, count, take)
            await self._lane.run(lambda: partial.finish(durable=durable))
        finally:
            partial.close()
