"""/blyan/audit/1, both ends: drawn steps of a learner's log. docs/protocols/audit.md"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from blyan_proto.protocols.audit import (
    ANSWER,
    DEADLINE_S,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Absent,
    Ask,
    Shown,
)
from blyan_proto.protocols.result import ResultCode
from blyand.net.host import Host
from blyand.net.stream import MessageStream, Serve, expect_ok

Answer = Shown | Absent


class Client:
    """Asks learners for steps of their logs."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def ask(self, peer: str, ask: Ask) -> Answer:
        """Return what a learner shows; `protocols.audit.check_shown` judges it."""
        async with self._host.request(
            peer, PROTOCOL_ID, DEADLINE_S, bulk=True
        ) as stream:
            await stream.send_message(ask, REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            answer: Answer = await stream.receive_message(
                ANSWER, MAX_ANSWER_BYTES, DEADLINE_S
            )
        return answer


def serve(show: Callable[[Ask], Awaitable[Answer]]) -> Serve:
    """Return the handler: whoever asks is shown what is kept."""

    async def answer(stream: MessageStream) -> None:
        ask: Ask = await stream.receive_message(REQUEST, MAX_REQUEST_BYTES, DEADLINE_S)
        shown = await show(ask)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(shown, ANSWER, deadline_s=DEADLINE_S)

    return answer
