"""/blyan/blocks/1, both ends. docs/protocols/blocks.md"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blyan_proto.block.block import Block
from blyan_proto.codec import decode, encode
from blyan_proto.constants import KIB
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.blocks import (
    DEADLINE_S,
    MAX_ANSWER_BYTES,
    MAX_FRAME_BYTES,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    SILENCE_S,
    Blocks,
    Compared,
    GetBlocks,
)
from blyan_proto.protocols.result import ResultCode
from blyand.compute import Threads
from blyand.errors import Pruned, Unavailable
from blyand.net.host import Host
from blyand.net.stream import MessageStream, Serve, expect_ok
from blyand.rules.chain.reconcile import MAX_ROUNDS, Comparison, IdSet, answer

FRAME_BYTES = 96 * KIB  # of blocks in one frame, as far as several are in it
BLOCK_OVERHEAD_BYTES = 1024


@dataclass
class Fetched:
    """What a peer gave: of the first `answered` ids what is not here is absent there."""

    blocks: list[Block]
    pruned: list[bytes]
    answered: int = 0


class Client:
    """Asks peers for blocks."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def get(self, peer: str, ids: Sequence[bytes]) -> Fetched:
        """Return what the peer has of `ids` (at most 256), as far as it fits an answer.

        A peer that falls silent after a part has given that part. Unavailable when it
        gives nothing; UnexpectedMessage for blocks that were not asked for.
        """
        got = Fetched([], [])
        try:
            async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
                await stream.send_message(GetBlocks(tuple(ids)), REQUEST)
                await stream.close_write()
                await expect_ok(stream, SILENCE_S)
                while raw := await stream.receive_or_end(MAX_FRAME_BYTES, SILENCE_S):
                    _add(got, decode(Blocks, raw, MAX_FRAME_BYTES), ids)
                if not got.answered:
                    raise UnexpectedMessage("an answer that answers nothing")
        except Unavailable:
            if not got.answered:
                raise
        return got

    async def fetch(self, peer: str, ids: Sequence[bytes]) -> Sequence[Block]:
        """Like `get`, the blocks alone."""
        return (await self.get(peer, ids)).blocks

    async def compare(
        self, peer: str, own: IdSet, rounds: int = MAX_ROUNDS
    ) -> Comparison:
        """Compare `own` with the unordered blocks of the peer; return what came of it."""
        comparison = Comparison(own, rounds)
        while request := comparison.request():
            async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
                await stream.send_message(request, REQUEST)
                await stream.close_write()
                await expect_ok(stream, SILENCE_S)
                compared: Compared = await stream.receive_message(
                    Compared, MAX_FRAME_BYTES, SILENCE_S
                )
                comparison.answer(compared)
        return comparison


def serve(get: Callable[[bytes], Block | None], pending: IdSet, lane: Threads) -> Serve:
    """Return the handler: `get` looks a block up in `lane`; `pending` are unordered."""

    async def give(stream: MessageStream, ids: Sequence[bytes]) -> None:
        done = size = 0
        while done < len(ids) and size < MAX_ANSWER_BYTES:
            raw, answered, added = await lane.run(_frame, get, ids, done)
            await stream.send(raw)
            done, size = answered, size + added

    async def serve_one(stream: MessageStream) -> None:
        request = await stream.receive_message(REQUEST, MAX_REQUEST_BYTES, DEADLINE_S)
        await stream.send_result(ResultCode.OK)
        if isinstance(request, GetBlocks):
            await give(stream, request.ids)
        else:
            await stream.send_message(answer(pending, request))

    return serve_one


def _frame(
    get: Callable[[bytes], Block | None], ids: Sequence[bytes], done: int
) -> tuple[bytes, int, int]:
    """Return a Blocks message for the ids from `done` on, where it ends, its blocks' size."""
    blocks: list[Block] = []
    pruned: list[bytes] = []
    size = 0
    while done < len(ids) and size < FRAME_BYTES:
        try:
            block = get(ids[done])
        except Pruned:
            pruned.append(ids[done])
        else:
            if block is not None:
                blocks.append(block)
                size += block.header.payload_bytes + BLOCK_OVERHEAD_BYTES
        done += 1
    return encode(Blocks(tuple(blocks), tuple(pruned), done)), done, size


def _add(got: Fetched, frame: Blocks, ids: Sequence[bytes]) -> None:
    """Take in one frame. UnexpectedMessage unless it goes on where the last one ended."""
    if not got.answered < frame.answered <= len(ids):
        raise UnexpectedMessage("a frame that answers nothing")
    asked = ids[got.answered : frame.answered]
    given = [*(block.id for block in frame.blocks), *frame.pruned]
    if len(set(given)) != len(given) or not set(given) <= set(asked):
        raise UnexpectedMessage("blocks that were not asked for")
    got.blocks += frame.blocks
    got.pruned += frame.pruned
    got.answered = frame.answered
