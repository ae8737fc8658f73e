"""/blyan/blobs/1, both ends: outlines, then leaves, each checked as it comes.
docs/protocols/blobs.md"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.errors import BadProof, UnexpectedMessage
from blyan_proto.protocols.blobs import (
    DEADLINE_S,
    LEAVES_PER_REQUEST,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    GetLeaves,
    GetOutline,
    Leaf,
    OutlineOf,
)
from blyan_proto.protocols.result import ResultCode
from blyan_tile.tblock import Outline, parse_outline
from blyand.net.host import Host
from blyand.net.stream import MessageStream, Serve, expect_ok

MAX_LEAF_MESSAGE_BYTES = LEAF_BYTES + 64
FIRST_WORD_S = 6.0  # until a peer says whether it has a blob

TakeLeaf = Callable[[int, bytes], Awaitable[None]]


class Client:
    """Asks peers for outlines and leaves."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def outline(self, peer: str, blob: bytes) -> Outline:
        """Return the blob's outline, checked against its id. BadProof when it lies.

        TooSlow after `FIRST_WORD_S` without a word: another peer is asked then.
        """
        async with self._host.request(
            peer, PROTOCOL_ID, DEADLINE_S, bulk=True
        ) as stream:
            await stream.send_message(GetOutline(blob), REQUEST)
            await stream.close_write()
            await expect_ok(stream, FIRST_WORD_S)
            sent = await stream.receive_message(OutlineOf, MAX_ANSWER_BYTES, DEADLINE_S)
            outline = parse_outline(sent.header, sent.quant, sent.leaves)
            if outline.root != blob:
                raise BadProof("an outline of another blob")
        return outline

    async def leaves(
        self, peer: str, blob: bytes, first: int, count: int, take: TakeLeaf
    ) -> None:
        """Hand consecutive leaves to `take` as they arrive; it raises BadProof."""
        async with self._host.request(
            peer, PROTOCOL_ID, DEADLINE_S, bulk=True
        ) as stream:
            await stream.send_message(GetLeaves(blob, first, count), REQUEST)
            await stream.close_write()
            await expect_ok(stream, FIRST_WORD_S)
            for index in range(first, first + count):
                leaf = await stream.receive_message(
                    Leaf, MAX_LEAF_MESSAGE_BYTES, DEADLINE_S
                )
                if leaf.index != index:
                    raise UnexpectedMessage("a leaf that was not asked for")
                await take(index, leaf.body)


def serve(
    outline_of: Callable[[bytes], Outline],
    read_leaf: Callable[[bytes, int], bytes],
) -> Serve:
    """Return the handler over this node's blobs; both callables raise NotHere."""

    async def answer(stream: MessageStream) -> None:
        request = await stream.receive_message(REQUEST, MAX_REQUEST_BYTES, DEADLINE_S)
        outline = outline_of(request.blob)
        if isinstance(request, GetOutline):
            await stream.send_result(ResultCode.OK)
            await stream.send_message(
                OutlineOf(outline.header, outline.quant, outline.leaves)
            )
            return
        last = request.first + request.count
        if request.count > LEAVES_PER_REQUEST or last > len(outline.leaves):
            raise UnexpectedMessage("leaves that the blob does not have, or too many")
        await stream.send_result(ResultCode.OK)
        for index in range(request.first, last):
            await stream.send_message(Leaf(index, read_leaf(request.blob, index)))

    return answer
