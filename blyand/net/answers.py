"""Calls of peers: the serving side of streams that carry many calls at once.

Strategy. One task receives, each call has a task of its own and is answered as it gets
done. What is under way is bounded per stream and per peer, in calls and in bytes of
requests and answers; above it a call is refused at once. A client that reads slowly
stalls its own answers, and with them what it may ask. docs/protocols/streams.md
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.calls import (
    HEAD_BYTES,
    SERVER_IDLE_S,
    Kind,
    head,
    read_head,
    refusal,
)
from blyan_proto.protocols.result import ResultCode
from blyand.errors import Busy, TooSlow, Unavailable
from blyand.log import context
from blyand.net.calls import ERRORS, CallProtocol
from blyand.net.stream import MessageStream, Serve, Taken

T = TypeVar("T")


class _Budget:
    """What one peer has under way, over all its streams of a protocol."""

    def __init__(self) -> None:
        self.streams = 0
        self.calls = 0
        self.bytes = 0


def serve_calls(
    protocol: CallProtocol,
    read: Callable[[bytes], T],
    answer: Callable[[str, T], Awaitable[bytes]],
    cost: Callable[[T], int] = lambda request: 0,
) -> Serve:
    """Return the handler of a protocol's streams; serve it without a deadline.

    `read(body)` makes a request of a call's bytes, `cost(request)` tells the bytes of
    its answer beforehand, `answer(peer, request)` computes it. What `answer` raises:
    Unavailable refuses the call, ProtocolError ends the stream and is blamed. It is
    cancelled when the client gives the call up, or is gone.
    """
    budgets: dict[str, _Budget] = {}

    async def converse(stream: MessageStream) -> None:
        await stream.send_result(ResultCode.OK)  # travels with the first answer
        budget = budgets.setdefault(stream.peer, _Budget())
        budget.streams += 1
        try:
            await _Conversation(stream, protocol, read, answer, cost, budget).run()
        finally:
            budget.streams -= 1
            if not budget.streams:
                budgets.pop(stream.peer, None)

    return converse


class _Conversation:
    """One stream and the calls on it."""

    def __init__(
        self,
        stream: MessageStream,
        protocol: CallProtocol,
        read: Callable[[bytes], Any],
        answer: Callable[[str, Any], Awaitable[bytes]],
        cost: Callable[[Any], int],
        budget: _Budget,
    ) -> None:
        self._stream, self._protocol = stream, protocol
        self._read, self._answer, self._cost = read, answer, cost
        self._budget = budget
        self._running: dict[int, trio.CancelScope] = {}
        self._last = -1  # the last call's number
        self._quiet = trio.Event()
        self._writing = trio.Lock()
        self._leaving: int | None = None  # the call whose answer is being written

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_drained, nursery.cancel_scope)
            await self._receive(nursery)
            while self._running:  # what is under way is still answered
                await self._quiet.wait()
            nursery.cancel_scope.cancel()

    async def _end_when_drained(self, scope: trio.CancelScope) -> None:
        await self._stream.draining.wait()
        while self._running:
            await self._quiet.wait()
        scope.cancel()

    async def _receive(self, nursery: trio.Nursery) -> None:
        protocol = self._protocol
        while True:
            try:
                parts = await self._stream.receive_parts(
                    HEAD_BYTES, protocol.limit, SERVER_IDLE_S
                )
            except TooSlow:
                if self._running:
                    continue
                return
            if parts is None:
                return
            kind, number = read_head(parts[0], from_client=True)
            if kind is Kind.CANCEL:
                self._cancel(number, parts[1])
            else:
                await self._take(nursery, number, parts[1])

    def _cancel(self, number: int, body: bytes) -> None:
        if number > self._last or body:
            raise UnexpectedMessage(f"call {number} is cancelled, but was not made")
        scope = self._running.get(number)
        if scope is not None and number != self._leaving:
            scope.cancel()

    async def _take(self, nursery: trio.Nursery, number: int, body: bytes) -> None:
        if number <= self._last:
            raise UnexpectedMessage(f"call {number} after call {self._last}")
        self._last = number
        request = self._read(body)
        size = len(body) + self._cost(request)
        budget, protocol = self._budget, self._protocol
        full = budget.calls and budget.bytes + size > protocol.in_flight_bytes
        if self._stream.draining.is_set():
            await self._refuse(number, Unavailable("this node is stopping"))
        elif budget.calls >= protocol.in_flight or full:
            await self._refuse(number, Busy("too much is under way"))
        else:
            budget.calls += 1
            budget.bytes += size
            self._running[number] = trio.CancelScope()
            nursery.start_soon(self._serve, number, request, size)

    async def _serve(self, number: int, request: Any, size: int) -> None:
        try:
            with self._running[number], context(call=number):
                await self._one(number, request)
        finally:
            del self._running[number]
            self._budget.calls -= 1
            self._budget.bytes -= size
            if not self._running:
                self._quiet.set()
                self._quiet = trio.Event()

    async def _one(self, number: int, request: Any) -> None:
        deadline_s = self._protocol.deadline_s
        try:
            with trio.fail_after(deadline_s):
                body = await self._answer(self._stream.peer, request)
        except trio.TooSlowError:
            await self._refuse(number, TooSlow("not computed in time"))
        except Unavailable as error:
            await self._refuse(number, error)
        else:
            await self._send(Kind.ANSWER, number, body)

    async def _refuse(self, number: int, error: Unavailable) -> None:
        code = next(
            (code for code, kind in ERRORS.items() if isinstance(error, kind)),
            ResultCode.UNAVAILABLE,
        )
        await self._send(Kind.REFUSAL, number, refusal(code, str(error)))

    async def _send(self, kind: Kind, number: int, body: bytes) -> None:
        async with Taken(self._writing):
            self._leaving = number  # a frame that was begun must leave whole
            try:
                await self._stream.send(
                    body, self._protocol.deadline_s, head=head(kind, number)
                )
            finally:
                self._leaving = None
