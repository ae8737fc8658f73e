"""Streams in memory, as libp2p would give them, and a host whose peers are functions."""

from __future__ import annotations

import trio
import trio.testing
from libp2p.network.stream.exceptions import StreamEOF, StreamReset

from blyand.errors import NotHere
from blyand.metrics import Metrics
from blyand.net.serving import linger, serve_stream
from blyand.net.stream import MessageStream
from blyand.net.traffic import Traffic


class Transport:
    """One end of a stream, as libp2p would give it."""

    def __init__(self, stream, state):
        self.stream, self.state = stream, state  # the state is of both ends

    async def read(self, size):
        try:
            received = await self.stream.receive_some(size)
        except trio.BrokenResourceError:
            received = b""
        if not received and self.state["reset"]:
            raise StreamReset("reset")
        if not received:
            raise StreamEOF("end")
        return received

    async def write(self, raw):
        await self.stream.send_all(bytes(raw))

    async def close_write(self):
        await self.stream.send_eof()

    async def close(self):
        await self.stream.aclose()

    async def reset(self):
        self.state["reset"] = True
        await self.close()


class Peers:
    """A host whose peers are functions that serve a stream.

    `lockstep`: a stream takes no byte that its reader does not take.
    """

    def __init__(self, serve, nursery, lockstep=False):
        self.serve, self.nursery, self.lockstep = serve, nursery, lockstep
        self.metrics = Metrics()
        self.blamed, self.blamed_by_peer = [], []
        self.opened = []  # a cancel scope for each stream; cancelling it is a crash
        self.served = []  # the peer's end of each

    def blame(self, peer, error):
        self.blamed.append(error)

    async def open_stream(self, peer, protocol):
        if peer == "nobody":
            raise NotHere("not connected")
        pair = trio.testing.memory_stream_pair
        if self.lockstep:
            pair = trio.testing.lockstep_stream_pair
        ours, theirs = pair()
        traffic, state = Traffic(), {"reset": False}
        served = MessageStream(Transport(theirs, state), "us", protocol, traffic)
        self.served.append(served)

        async def run():
            with trio.CancelScope() as scope:
                self.opened.append(scope)
                await serve_stream(
                    served,
                    self.serve,
                    None,
                    lambda who, error: self.blamed_by_peer.append(error),
                )
                await linger(served)
                return
            await served.reset()

        self.nursery.start_soon(run)
        return MessageStream(Transport(ours, state), peer, protocol, traffic)


def jumping():
    return trio.testing.MockClock(autojump_threshold=0.0)
