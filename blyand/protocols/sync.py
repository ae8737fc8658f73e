"""/blyan/sync/1, both ends. docs/protocols/sync.md"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blyan_proto.checkpoint import MAX_FINAL_CHECKPOINT_BYTES, FinalCheckpoint
from blyan_proto.codec import encode
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.result import ResultCode
from blyan_proto.protocols.sync import (
    DEADLINE_S,
    MAX_ANSWER_BYTES,
    MAX_CHECKPOINTS,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Checkpoints,
    GetCheckpoints,
)
from blyand.net.host import Host
from blyand.net.stream import MessageStream, Serve, expect_ok


class Client:
    """Asks peers for finalised checkpoints."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def fetch(self, peer: str, from_height: int) -> Checkpoints:
        """Return consecutive checkpoints from `from_height` on, as many as fit."""
        async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
            request = GetCheckpoints(from_height, MAX_CHECKPOINTS)
            await stream.send_message(request, REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            answer: Checkpoints = await stream.receive_message(
                Checkpoints, MAX_ANSWER_BYTES, DEADLINE_S
            )
            heights = [final.checkpoint.height for final in answer.checkpoints]
            if heights != list(range(from_height, from_height + len(heights))):
                raise UnexpectedMessage("checkpoints that were not asked for")
            return answer


def serve(
    newest: Callable[[], int],
    between: Callable[[int, int], Sequence[FinalCheckpoint]],
) -> Serve:
    """Return the handler; `between(from_height, count)` reads stored checkpoints."""

    async def answer(stream: MessageStream) -> None:
        request = await stream.receive_message(REQUEST, MAX_REQUEST_BYTES, DEADLINE_S)
        count = min(request.limit, MAX_CHECKPOINTS)
        fitting: list[FinalCheckpoint] = []
        size = 0
        for final in between(request.from_height, count):
            size += len(encode(final))
            if size > MAX_ANSWER_BYTES - MAX_FINAL_CHECKPOINT_BYTES:
                break
            fitting.append(final)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(Checkpoints(newest(), tuple(fitting)))

    return answer
