"""/blyan/blobs/1, both ends: outlines, then leaves, each checked as it comes.

A client keeps one stream to a donor for as long as it takes leaves of a blob, and asks
for the next ones before the last have come. docs/protocols/blobs.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Protocol

from blyan_proto.codec import encode
from blyan_proto.constants import LEAF_BYTES
from blyan_proto.errors import BadProof, UnexpectedMessage
from blyan_proto.framing import PREFIX_BYTES, frame
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
from blyan_tile.tblock import Outline, parse_outline
from blyand.compute import Threads
from blyand.errors import NotHere, Unavailable
from blyand.net.host import Host
from blyand.net.stream import CODES, MessageStream, Serve, expect_ok, requesting
from blyand.protocols.uploads import Uploads

FIRST_WORD_S = 6.0  # until a peer says whether it has a blob
ROOM_LEAVES = 4  # read and sent together
ROOM_BYTES = ROOM_LEAVES * (LEAF_BYTES + 16)


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
    """The blobs of a node; both raise NotHere or Pruned. Blocking."""

    def outline(self, root: bytes) -> Outline: ...

    def read_leaves(
        self,
        root: bytes,
        rooms: Iterable[tuple[int, memoryview]],
        *,
        wait: bool = True,
    ) -> bool: ...


def serve(blobs: Blobs, lane: Threads, uploads: Uploads) -> Serve:
    """Return the handler over this node's blobs; serve it without a deadline."""
    rooms: list[memoryview] = []  # used again; there are as many as places

    @contextmanager
    def room_of(peer: str) -> Iterator[memoryview]:
        with uploads.place(peer):
            room = rooms.pop() if rooms else memoryview(bytearray(ROOM_BYTES))
            try:
                yield room
            finally:
                rooms.append(room)

    async def read(
        outline: Outline, first: int, last: int, room: memoryview
    ) -> list[int]:
        """Put the frames of some leaves into `room`; return their sizes."""
        sizes, bodies = _frames(outline, first, last, room)
        if not blobs.read_leaves(outline.root, bodies, wait=False):
            await lane.run(blobs.read_leaves, outline.root, bodies)
        return sizes

    async def answer(stream: MessageStream) -> None:
        known: Outline | None = None  # what this stream is about
        while not stream.draining.is_set():
            raw = await stream.receive_or_end(MAX_REQUEST_BYTES, IDLE_S)
            if raw is None:
                return
            request = REQUEST.decode(raw, MAX_REQUEST_BYTES)
            with ExitStack() as held:
                try:
                    room = held.enter_context(room_of(stream.peer))
                    if known is None or known.root != request.blob:
                        known = await lane.run(blobs.outline, request.blob)
                    if isinstance(request, GetLeaves):
                        index, last = _span(request, known)
                        sizes = await read(known, index, last, room)
                except Unavailable as error:
                    await stream.send_result(code_of(error))
                    return
                await stream.send_result(ResultCode.OK)
                if isinstance(request, GetOutline):
                    await _send_outline(stream, known, uploads)
                    continue
                while True:
                    await uploads.send(stream, room, sizes, DEADLINE_S)
                    index += len(sizes)
                    if index == last:
                        break
                    sizes = await read(known, index, last, room)

    return answer


def _span(request: GetLeaves, outline: Outline) -> tuple[int, int]:
    first, last = request.first, request.first + request.count
    if last > len(outline.leaves):
        raise UnexpectedMessage("leaves that the blob does not have")
    return first, last


def _frames(
    outline: Outline, first: int, last: int, room: memoryview
) -> tuple[list[int], list[tuple[int, memoryview]]]:
    """Lay out the frames of leaves from `first` on; return their sizes and bodies."""
    sizes, bodies = [], []
    for index in range(first, min(last, first + ROOM_LEAVES)):
        size = outline.leaf_span(index)[1]
        head = leaf_head(index, size)
        head = (len(head) + size).to_bytes(PREFIX_BYTES, "big") + head
        room[: len(head)] = head
        bodies.append((index, room[len(head) : len(head) + size]))
        sizes.append(len(head) + size)
        room = room[sizes[-1] :]
    return sizes, bodies


async def _send_outline(
    stream: MessageStream, outline: Outline, uploads: Uploads
) -> None:
    sent = OutlineOf(outline.header, outline.quant, outline.leaves)
    framed = memoryview(frame(encode(sent)))
    await uploads.send(stream, framed, [len(framed)], DEADLINE_S)


def code_of(error: Unavailable) -> ResultCode:
    """Return how a server says that it cannot."""
    return next(code for kind, code in CODES if isinstance(error, kind))
