"""/blyan/votes/1, both ends: what is said to other validators, and what they say.
docs/protocols/votes.md

Strategy. A stream carries messages one way, from who opened it; a validator keeps one to
each other one and opens it anew, with a growing and random pause, when it ends. What
waits for a peer is bounded and the oldest goes: the peer will say what it lacks.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import Protocol

import trio

from blyan_proto.checkpoint import FinalCheckpoint, Proposal, Vote
from blyan_proto.errors import ProtocolError
from blyan_proto.holdings import Holdings
from blyan_proto.protocols.result import ResultCode
from blyan_proto.protocols.votes import (
    BYTES_AT_ONCE,
    BYTES_PER_S,
    DEADLINE_S,
    MAX_MESSAGE_BYTES,
    MESSAGE,
    MESSAGES_AT_ONCE,
    MESSAGES_PER_S,
    PROTOCOL_ID,
    SILENCE_S,
)
from blyand.errors import NotHere, Unavailable
from blyand.events import Broadcast, PeerJoined
from blyand.net.stream import MessageStream, Serve, expect_ok, requesting
from blyand.rules.net.bucket import Bucket
from blyand.rules.net.misbehaviour import Blame

logger = logging.getLogger(__name__)

Message = Proposal | Vote | Holdings | FinalCheckpoint
Hear = Callable[[str, Message], Awaitable[None]]

QUEUE = 512  # messages that wait for one peer
QUEUE_BYTES = 4 << 20
SEND_S = 10.0  # for one message to be taken by the peer
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
PAUSED_S = 0.05  # between two looks whether a peer that said too much may go on


class Opens(Protocol):
    """What the mesh needs of a host."""

    blame: Blame

    async def open_stream(self, peer_id: str, protocol: str) -> MessageStream: ...


class _Link:
    """What waits for one peer."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.waiting: deque[bytes] = deque()
        self.bytes = 0
        self.work = trio.Event()
        self.hurry = trio.Event()  # the peer may be reachable now
        self.is_open = False

    def put(self, raw: bytes) -> None:
        self.waiting.append(raw)
        self.bytes += len(raw)
        while len(self.waiting) > QUEUE or self.bytes > QUEUE_BYTES:
            self.take()
        self.work.set()

    def take(self) -> bytes:
        raw = self.waiting.popleft()
        self.bytes -= len(raw)
        return raw

    def clear(self) -> None:
        self.waiting.clear()
        self.bytes = 0


class Mesh:
    """Streams to the validators that this node wants to be heard by."""

    def __init__(
        self,
        host: Opens,
        reach: Callable[[str], Awaitable[bool]],
        events: Broadcast,
        random: Random,
    ) -> None:
        """`reach(peer)` connects to a peer, if it can, and waits for its hello."""
        self._host, self._reach, self._random = host, reach, random
        self._events = events
        self._links: dict[str, _Link] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def open(self) -> set[str]:
        """The peers that hear this node now."""
        return {peer for peer, link in self._links.items() if link.is_open}

    def want(self, peers: Iterable[str]) -> None:
        """Keep streams to exactly these peers from now on."""
        wanted = set(peers)
        for gone in self._links.keys() - wanted:
            self._links.pop(gone).scope.cancel()
        for new in wanted - self._links.keys():
            link = self._links[new] = _Link()
            if self._nursery is not None:
                self._nursery.start_soon(self._keep, new, link)

    def say(self, message: Message) -> None:
        """Send to everybody. Never blocks; `MAX_MESSAGE_BYTES` is not checked."""
        raw = MESSAGE.encode(message)
        for link in self._links.values():
            if link.is_open:
                link.put(raw)

    def tell(self, peer: str, message: Message) -> None:
        """Send to one peer; nothing happens where it cannot hear."""
        link = self._links.get(peer)
        if link is not None and link.is_open:
            link.put(MESSAGE.encode(message))

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the streams."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for peer, link in self._links.items():
                nursery.start_soon(self._keep, peer, link)
            with self._events.subscribe(PeerJoined) as facts:
                task_status.started()
                async for fact in facts:  # no need to wait for the next try
                    if fact.peer in self._links:
                        self._links[fact.peer].hurry.set()

    async def _keep(self, peer: str, link: _Link) -> None:
        pause_s = FIRST_PAUSE_S
        with link.scope:
            while True:
                link.hurry = trio.Event()
                try:
                    if await self._reach(peer):
                        stream = await self._host.open_stream(peer, PROTOCOL_ID)
                        async with requesting(stream, self._host.blame):
                            await expect_ok(stream, DEADLINE_S)
                            pause_s = FIRST_PAUSE_S
                            await _talk(stream, link)
                except (Unavailable, ProtocolError) as error:
                    logger.debug("no stream to %s: %s", peer, error)
                finally:
                    link.is_open = False
                    link.clear()
                with trio.move_on_after(pause_s * self._random.uniform(0.5, 1.5)):
                    await link.hurry.wait()
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _talk(stream: MessageStream, link: _Link) -> None:
    """Send what waits until the stream is gone; raises what ended it."""
    link.is_open = True
    ended: Unavailable | ProtocolError = NotHere(f"{stream.peer} ended the stream")
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal ended
            try:  # the other side never sends: whatever comes is the end
                await stream.receive_or_end(1, float("inf"))
            except (Unavailable, ProtocolError) as error:
                ended = error
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            while True:
                while link.waiting:
                    await stream.send(link.take(), SEND_S)
                link.work = trio.Event()
                await link.work.wait()
        except Unavailable as error:
            ended = error
            nursery.cancel_scope.cancel()
    raise ended


def serve(hear: Hear, admits: Callable[[str], bool]) -> Serve:
    """Return the handler; serve it without a deadline.

    `admits(peer)`: it is a validator of a set that we know. `hear` raises ProtocolError
    for what ends the stream and is blamed. Who says too much has to wait.
    """

    async def listen(stream: MessageStream) -> None:
        if not admits(stream.peer):
            raise NotHere("votes are heard of validators only")
        await stream.send_result(ResultCode.OK)
        await stream.flush()
        async with trio.open_nursery() as nursery:

            async def end_when_drained() -> None:
                await stream.draining.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_when_drained)
            await _hear_all(stream, hear, admits)
            nursery.cancel_scope.cancel()

    return listen


async def _hear_all(
    stream: MessageStream, hear: Hear, admits: Callable[[str], bool]
) -> None:
    now = trio.current_time()
    messages = Bucket(MESSAGES_PER_S, MESSAGES_AT_ONCE, now)
    size = Bucket(BYTES_PER_S, BYTES_AT_ONCE, now)
    while admits(stream.peer):
        raw = await stream.receive_or_end(MAX_MESSAGE_BYTES, SILENCE_S)
        if raw is None:
            return
        while not messages.take(1, trio.current_time()):
            await trio.sleep(PAUSED_S)
        while not size.take(len(raw), trio.current_time()):
            await trio.sleep(PAUSED_S)
        await hear(stream.peer, MESSAGE.decode(raw, MAX_MESSAGE_BYTES))
