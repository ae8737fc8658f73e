"""/blyan/expert/1, both ends: calls on one long stream per peer. docs/protocols/expert.md"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.expert import (
    ANSWER,
    DEADLINE_S,
    MAX_IN_FLIGHT_BYTES,
    MAX_MESSAGE_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Forward,
    Outputs,
)
from blyand.net.answers import serve_calls
from blyand.net.calls import CallProtocol, Calls
from blyand.net.stream import Serve

EXPERT = CallProtocol(
    PROTOCOL_ID,
    max_bytes=MAX_MESSAGE_BYTES,
    deadline_s=DEADLINE_S,
    in_flight_bytes=MAX_IN_FLIGHT_BYTES,
)

Answer = Callable[[str, Forward], Awaitable[Outputs]]


class Client:
    """Calls experts of peers."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def forward(
        self, peer: str, call: Forward, deadline_s: float = DEADLINE_S
    ) -> Outputs:
        """Return each expert's output rows, as many as `call` asks for.

        Unavailable and its kinds: what the peer answered, TooSlow after `deadline_s`,
        Busy when too much is under way already, NotHere when the stream broke,
        WrongAnswer for outputs of another number or size.
        """
        sizes = _output_sizes(call)

        def read(body: bytes) -> Outputs:
            made: Outputs = ANSWER.decode(body, MAX_MESSAGE_BYTES)
            if [len(output) for output in made.outputs] != sizes:
                raise UnexpectedMessage("outputs of other sizes than the call's")
            return made

        body = REQUEST.encode(call)
        return await self._calls.call(peer, EXPERT, body, read, deadline_s)


def serve(answer: Answer) -> Serve:
    """Return the handler of a long-lived stream; `answer(peer, call)` computes.

    What `answer` raises: Unavailable refuses the call, ProtocolError ends the stream
    and is blamed.
    """

    def read(body: bytes) -> Forward:
        call: Forward = REQUEST.decode(body, MAX_MESSAGE_BYTES)
        return call

    async def one(peer: str, call: Forward) -> bytes:
        return ANSWER.encode(await answer(peer, call))

    return serve_calls(EXPERT, read, one, lambda call: sum(_output_sizes(call)))


def _output_sizes(call: Forward) -> list[int]:
    """Return the bytes of each expert's output: a row for each row asked for."""
    row_bytes = call.numerics.element_bytes * call.width
    return [len(expert.rows) // 2 * row_bytes for expert in call.experts]
