"""/blyan/blobs/1, both ends: outlines, then leaves, each checked as it comes.

A client keeps one stream to a donor for as long as it takes leaves of a blob, and asks
for the next ones before the last have come. docs/protocols/blobs.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Protocol

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.errors import BadProof, UnexpectedMessage
from blyan_proto.protocols.blobs import (
    DEADLINE_S,
    IDLE_S,
    LEAF_S,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    GetLeaves,
    GetOutline,
    OutlineOf,
    leaf_head,
)
from blyan_proto.protocols.result import ResultCode
from blyan_tile.tblock import HASH_BYTES, Outline, parse_outline
from blyand.compute import Threads
from blyand.errors import NotHere, Unavailable
from blyand.net.host import Host
from blyand.net.stream import CODES, MessageStream, Serve, expect_ok, requesting
from blyand.protocols.uploads import Uploads

FIRST_WORD_S = 6.0  # until a peer says whether it has a blob
ROOM_BYTES = 8 * LEAF_BYTES  # read by one call of the disk lane


class Client:
    """Asks peers for outlines and leaves."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @asynccontextmanager
    async def open(self, peer: str, blob: bytes) -> AsyncIterator[Conversation]:
        """Give a conversation with a connected peer about one blob.

        A ProtocolError that leaves the block is blamed on the peer. NotHere, TooSlow.
        """
        stream = await self._host.open_stream(peer, PROTOCOL_ID, bulk=True)
        async with requesting(stream, self._host.blame):
            yield Conversation(stream, blob)


class Conversation:
    """A stream on which one blob is asked for. One task uses it.

    What a peer answers instead of OK is raised where its answer is awaited: Busy,
    NotHere, Pruned, Unavailable. The conversation is over then.
    """

    def __init__(self, stream: MessageStream, blob: bytes) -> None:
        self._stream, self._blob = stream, blob
        self._asked: deque[int] = deque()  # leaves of each range without an answer
        self._left = 0  # of the range that is coming

    async def outline(self) -> Outline:
        """Return the blob's outline, checked against its id. BadProof when it lies.

        TooSlow after `FIRST_WORD_S` without a word: another peer is asked then.
        """
        await self._stream.send_message(GetOutline(self._blob), REQUEST)
        await expect_ok(self._stream, FIRST_WORD_S)
        sent = await self._stream.receive_message(
            OutlineOf, MAX_ANSWER_BYTES, DEADLINE_S
        )
        outline = parse_outline(sent.header, sent.quant, sent.leaves)
        if outline.root != self._blob:
            raise BadProof("an outline of another blob")
        return outline

    async def ask(self, first: int, count: int) -> None:
        """Ask for consecutive leaves; they come after those asked for before."""
        await self._stream.send_message(GetLeaves(self._blob, first, count), REQUEST)
        self._asked.append(count)

    async def leaf(self, index: int, room: memoryview) -> None:
        """Put the next leaf that was asked for, `index`, into `room`, unchecked.

        `room` has the leaf's size. TooSlow after `LEAF_S`: who is slower is replaced.
        """
        if not self._left:
            await expect_ok(self._stream, FIRST_WORD_S)
            self._left = self._asked.popleft()
        head = leaf_head(index, len(room))
        parts = await self._stream.receive_into(len(head), room, LEAF_S)
        if parts is None:
            raise NotHere(f"{PROTOCOL_ID}: the peer ended the stream")
        if parts != (head, len(room)):
            raise UnexpectedMessage("not the leaf that was asked for")
        self._left -= 1


class Blobs(Protocol):
    """The blobs of a node; both raise NotHere or Pruned."""

    def outline(self, root: bytes) -> Outline: ...

    def read_leaves(
        self, root: bytes, first: int, room: memoryview
    ) -> list[memoryview]: ...


def serve(blobs: Blobs, lane: Threads, uploads: Uploads) -> Serve:
    """Return the handler over this node's blobs; serve it without a deadline."""
    rooms: list[memoryview] = []  # for leaves, used again; as many as there are places

    @contextmanager
    def room_of(peer: str) -> Iterator[memoryview]:
        with uploads.place(peer):
            room = rooms.pop() if rooms else memoryview(bytearray(ROOM_BYTES))
            try:
                yield room
            finally:
                rooms.append(room)

    async def answer(stream: MessageStream) -> None:
        while not stream.draining.is_set():
            raw = await stream.receive_or_end(MAX_REQUEST_BYTES, IDLE_S)
            if raw is None:
                return
            request = REQUEST.decode(raw, MAX_REQUEST_BYTES)
            with ExitStack() as held:
                try:
                    room = held.enter_context(room_of(stream.peer))
                    outline, found = await lane.run(_look, blobs, request, room)
                except Unavailable as error:
                    await stream.send_result(code_of(error))
                    return
                await stream.send_result(ResultCode.OK)
                if isinstance(request, GetLeaves):
                    await send_leaves(stream, request, found, room)
                else:
                    await _send_outline(stream, outline, uploads)

    async def send_leaves(
        stream: MessageStream,
        request: GetLeaves,
        found: list[memoryview],
        room: memoryview,
    ) -> None:
        index, last = request.first, request.first + request.count
        while True:
            for body in found:
                await uploads.turn(stream, len(body))
                await stream.send(body, DEADLINE_S, head=leaf_head(index, len(body)))
                index += 1
            if index >= last:
                return
            room = room[: (last - index) * LEAF_BYTES]
            found = await lane.run(blobs.read_leaves, request.blob, index, room)

    return answer


def _look(
    blobs: Blobs, request: GetOutline | GetLeaves, room: memoryview
) -> tuple[Outline, list[memoryview]]:
    """Return what a request is about, and its first leaves: one call of the lane."""
    outline = blobs.outline(request.blob)
    if isinstance(request, GetOutline):
        return outline, []
    if request.first + request.count > len(outline.leaves):
        raise UnexpectedMessage("leaves that the blob does not have")
    room = room[: request.count * LEAF_BYTES]
    return outline, blobs.read_leaves(request.blob, request.first, room)


async def _send_outline(
    stream: MessageStream, outline: Outline, uploads: Uploads
) -> None:
    await uploads.turn(stream, len(outline.leaves) * HASH_BYTES)
    sent = OutlineOf(outline.header, outline.quant, outline.leaves)
    await stream.send_message(sent, deadline_s=DEADLINE_S)


def code_of(error: Unavailable) -> ResultCode:
    """Return how a server says that it cannot."""
    return next(code for kind, code in CODES if isinstance(error, kind))
