"""/blyan/blocks/1, both ends. docs/protocols/blocks.md"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from blyan_proto.block.block import Block
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.blocks import (
    DEADLINE_S,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Blocks,
    GetBlocks,
    GetPending,
)
from blyan_proto.protocols.result import ResultCode
from blyand.net.host import Host
from blyand.net.stream import MessageStream, Serve, expect_ok

PENDING_LIMIT = 500
PENDING_PAGES = 8
BLOCK_OVERHEAD_BYTES = 1024


class Client:
    """Asks peers for blocks."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def fetch(self, peer: str, ids: Sequence[bytes]) -> tuple[Block, ...]:
        """Return those of `ids` (at most 256) that the peer has."""
        blocks = await self._ask(peer, GetBlocks(tuple(ids)))
        if not {block.id for block in blocks} <= set(ids):
            raise UnexpectedMessage("a block that was not asked for")
        return blocks

    async def pending(self, peer: str) -> tuple[Block, ...]:
        """Return blocks of the peer that no checkpoint has ordered, parents first."""
        found: list[Block] = []
        after = None
        for _ in range(PENDING_PAGES):
            page = await self._ask(peer, GetPending(PENDING_LIMIT, after))
            found += page
            if not page:
                break
            after = max(block.id for block in page)
        return tuple(sorted(found, key=lambda block: block.header.height))

    async def _ask(
        self, peer: str, request: GetBlocks | GetPending
    ) -> tuple[Block, ...]:
        async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
            await stream.send_message(request, REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            answer: Blocks = await stream.receive_message(
                Blocks, MAX_ANSWER_BYTES, DEADLINE_S
            )
            return answer.blocks


def serve(
    get: Callable[[bytes], Block | None], pending: Callable[[], Iterable[Block]]
) -> Serve:
    """Return the handler: `get` looks a block up, `pending` lists unordered ones."""

    async def answer(stream: MessageStream) -> None:
        request = await stream.receive_message(REQUEST, MAX_REQUEST_BYTES, DEADLINE_S)
        if isinstance(request, GetBlocks):
            found = (get(id) for id in request.ids)
            blocks = _fitting((block for block in found if block), len(request.ids))
        else:
            after = request.after or b""
            later = (block for block in pending() if block.id > after)
            blocks = _fitting(sorted(later, key=lambda block: block.id), request.limit)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(Blocks(tuple(blocks)))

    return answer


def _fitting(blocks: Iterable[Block], limit: int) -> list[Block]:
    """Return the first of `blocks` that fit into one answer."""
    fitting: list[Block] = []
    size = 0
    for block in blocks:
        size += block.header.payload_bytes + BLOCK_OVERHEAD_BYTES
        if size > MAX_ANSWER_BYTES or len(fitting) >= limit:
            break
        fitting.append(block)
    return fitting
