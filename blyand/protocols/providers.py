"""/blyan/providers/1, both ends: telling what we have, and asking who has something.
docs/protocols/providers.md"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.providers import (
    DEADLINE_S,
    MAX_ANSWER_BYTES,
    MAX_KEYS,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Find,
    Found,
    Kept,
    Provide,
)
from blyan_proto.protocols.result import ResultCode
from blyand.net.host import Host
from blyand.net.stream import MessageStream, Serve, expect_ok


class Client:
    """Tells peers and asks them."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def provide(self, peer: str, keys: Sequence[bytes]) -> int:
        """Tell a peer that this node has `keys`, at most 512; return how many it took."""
        async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
            await stream.send_message(Provide(tuple(keys)[:MAX_KEYS]), REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            kept = await stream.receive_message(Kept, MAX_ANSWER_BYTES, DEADLINE_S)
            return int(kept.count)

    async def find(self, peer: str, key: bytes) -> Found:
        """Ask a peer who has `key`; UnexpectedMessage if it names somebody twice."""
        async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
            await stream.send_message(Find(key), REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            found: Found = await stream.receive_message(
                Found, MAX_ANSWER_BYTES, DEADLINE_S
            )
            for named in (found.providers, found.nearer):
                if len({one.peer for one in named}) != len(named):
                    raise UnexpectedMessage("a peer is listed twice")
            return found


def serve(
    take: Callable[[str, Sequence[bytes]], int], find: Callable[[str, bytes], Found]
) -> Serve:
    """Return the handler; `take(peer, keys)` and `find(peer, key)` may raise Busy."""

    async def answer(stream: MessageStream) -> None:
        request = await stream.receive_message(REQUEST, MAX_REQUEST_BYTES, DEADLINE_S)
        reply: Kept | Found
        if isinstance(request, Provide):
            reply = Kept(take(stream.peer, request.keys))
        else:
            reply = find(stream.peer, request.key)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(reply)

    return answer
