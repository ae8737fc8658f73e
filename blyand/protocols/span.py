"""/blyan/span/1, both ends: calls on one long stream per peer. docs/protocols/span.md"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.span import (
    ANSWER,
    DEADLINE_S,
    MAX_IN_FLIGHT_BYTES,
    MAX_MESSAGE_BYTES,
    PROTOCOL_ID,
    REQUEST,
    End,
    Ended,
    Open,
    Opened,
    Step,
    Stepped,
)
from blyand.net.answers import serve_calls
from blyand.net.calls import CallProtocol, Calls
from blyand.net.stream import Serve

SPAN = CallProtocol(
    PROTOCOL_ID,
    max_bytes=MAX_MESSAGE_BYTES,
    deadline_s=DEADLINE_S,
    in_flight_bytes=MAX_IN_FLIGHT_BYTES,
)

Request = Open | Step | End
Reply = Opened | Stepped | Ended
Answer = Callable[[str, Request], Awaitable[Reply]]
A = TypeVar("A", Opened, Stepped, Ended)


class Client:
    """Sessions at peers.

    All three raise Unavailable and its kinds: what the peer answered, TooSlow after
    `deadline_s`, Busy when too much is under way already, NotHere when the stream broke.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def open(self, peer: str, request: Open, deadline_s: float) -> int:
        """Return how many tokens the session has: 0, unless it was there."""
        return (await self._call(peer, request, Opened, deadline_s)).tokens

    async def step(
        self, peer: str, request: Step, row_bytes: int, deadline_s: float
    ) -> bytes:
        """Return the last `request.tail` rows after the span, of `row_bytes` each."""
        size = request.tail * row_bytes

        def check(made: Stepped) -> None:
            if len(made.hidden) != size:
                raise UnexpectedMessage(f"{len(made.hidden)} bytes, not {size}")

        return (await self._call(peer, request, Stepped, deadline_s, check)).hidden

    async def end(self, peer: str, session: bytes, deadline_s: float) -> None:
        """End a session, there or not."""
        await self._call(peer, End(session), Ended, deadline_s)

    async def _call(
        self,
        peer: str,
        request: Request,
        kind: type[A],
        deadline_s: float,
        check: Callable[[A], None] = lambda made: None,
    ) -> A:
        def read(body: bytes) -> A:
            made = ANSWER.decode(body, MAX_MESSAGE_BYTES)
            if not isinstance(made, kind):
                raise UnexpectedMessage(f"{type(made).__name__}, not {kind.__name__}")
            check(made)
            return made

        body = REQUEST.encode(request)
        return await self._calls.call(peer, SPAN, body, read, deadline_s)


def serve(answer: Answer) -> Serve:
    """Return the handler of a long-lived stream; `answer(peer, request)` computes.

    What `answer` raises: Unavailable refuses the call, ProtocolError ends the stream
    and is blamed.
    """

    def read(body: bytes) -> Request:
        return cast(Request, REQUEST.decode(body, MAX_MESSAGE_BYTES))

    async def one(peer: str, request: Request) -> bytes:
        return ANSWER.encode(await answer(peer, request))

    return serve_calls(SPAN, read, one, _cost)


def _cost(request: Request) -> int:
    """Return the most bytes of the answer: no more rows come back than were sent."""
    return len(request.activations) if isinstance(request, Step) else 0
