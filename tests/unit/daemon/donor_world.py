"""Donors of blobs in one process: streams in memory, a clock that jumps, honest and not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import trio
import trio.testing

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.protocols.blobs import (
    MAX_REQUEST_BYTES,
    REQUEST,
    GetLeaves,
    GetOutline,
    Leaf,
    OutlineOf,
)
from blyan_proto.protocols.result import ResultCode
from blyand.errors import NotHere
from blyand.metrics import Metrics
from blyand.net.serving import linger, serve_stream
from blyand.net.stream import MessageStream, Serve
from blyand.net.traffic import Traffic
from blyand.protocols import blobs as ends
from blyand.protocols.fetch import Fetcher
from blyand.protocols.uploads import Uploads
from blyand.store.blobs import BlobStore
from tests.sim.network import InlineLane
from tests.unit.daemon.stream_world import Transport

SendLeaf = Callable[[MessageStream, int, bytes], Awaitable[None]]
LEAVES = 24
CONTENT = np.random.default_rng(5).integers(0, 256, LEAVES * LEAF_BYTES - 99, np.uint8)


class World:
    """A fetcher whose peers are the functions `donors` (name -> handler of a stream)."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.nursery, self.lane = nursery, InlineLane()
        self.source, self.here = BlobStore(folder / "source"), BlobStore(
            folder / "here"
        )
        self.blob = self.source.put_array(CONTENT, durable=False)
        self.donors: dict[str, Serve] = {}
        self.found: list[str] = []  # by the directory
        self.sought = 0
        self.opened: Counter[str] = Counter()
        self.blamed: list[tuple[str, str]] = []
        self.given: Counter[str] = Counter()  # leaves of honest donors
        self.metrics = Metrics()
        self.me = "us"  # as whom donors see us
        self.fetcher = Fetcher(
            ends.Client(self),
            self.here,
            self.lane,
            lambda: [name for name in self.donors if name not in self.found],
            self.elsewhere,
            metrics=self.metrics,
        )

    async def elsewhere(self, blob: bytes) -> list[str]:
        self.sought += 1
        return self.found

    def blame(self, peer: str, error: Exception) -> None:
        self.blamed.append((peer, type(error).__name__))

    def honest(self, name: str, store: BlobStore | None = None, **more: object) -> None:
        """Add a donor that serves as a daemon does; `uploads` bounds it."""
        held = store or self.source
        world = self

        class Counting:
            outline = held.outline

            def read_leaves(self, root, rooms, *, wait=True):
                world.given[name] += len(rooms)
                return held.read_leaves(root, rooms)

        uploads = more.get("uploads") or Uploads()
        self.donors[name] = ends.serve(Counting(), self.lane, uploads)

    async def open_stream(
        self, peer: str, protocol: str, *, bulk: bool = False
    ) -> MessageStream:
        if peer not in self.donors:
            raise NotHere("not connected")
        self.opened[peer] += 1
        ours, theirs = trio.testing.memory_stream_pair()
        traffic, state = Traffic(), {"reset": False}
        served = MessageStream(Transport(theirs, state), self.me, protocol, traffic)

        async def run() -> None:
            await serve_stream(served, self.donors[peer], None, self.blame)
            await linger(served)

        self.nursery.start_soon(run)
        return MessageStream(Transport(ours, state), peer, protocol, traffic)

    def count(self, outcome: str) -> int:
        return self.metrics.counter("blyan_blob_leaves", outcome=outcome).value


def running(folder: Path, act: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery, folder)
            await act(world)
            nursery.cancel_scope.cancel()
            world.source.close()
            world.here.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.0))


def lying(
    world: World,
    leaf: SendLeaf,
    outline: Callable[[OutlineOf], OutlineOf] = lambda sent: sent,
) -> Serve:
    """Return a donor that sends each leaf by `leaf(stream, index, body)`."""

    async def serve(stream: MessageStream) -> None:
        while raw := await stream.receive_or_end(MAX_REQUEST_BYTES, 60):
            asked = REQUEST.decode(raw, MAX_REQUEST_BYTES)
            await answer(world, stream, asked, leaf, outline)

    return serve


async def answer(
    world: World,
    stream: MessageStream,
    asked: GetLeaves | GetOutline,
    leaf: SendLeaf,
    outline: Callable[[OutlineOf], OutlineOf] = lambda sent: sent,
) -> None:
    """Answer one request by `leaf` and `outline`."""
    await stream.send_result(ResultCode.OK)
    if isinstance(asked, GetOutline):
        true = world.source.outline(asked.blob)
        sent = OutlineOf(true.header, true.quant, true.leaves)
        await stream.send_message(outline(sent))
        return
    for index in range(asked.first, asked.first + asked.count):
        await leaf(stream, index, world.source.read_leaf(asked.blob, index))


async def truly(stream: MessageStream, index: int, body: bytes) -> None:
    await stream.send_message(Leaf(index, body))
