"""/blyan/expert/1, both ends: many calls on one long stream. docs/protocols/expert.md

Strategy of the client. One stream per peer, opened by the first call. A task sends, a
task receives; a call only waits, so that giving one up leaves the stream whole. When a
stream ends, every call on it fails at once, and the next call opens another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import trio

from blyan_proto.errors import ProtocolError, UnexpectedMessage
from blyan_proto.protocols.expert import (
    ANSWER,
    DEADLINE_S,
    IDLE_S,
    MAX_IN_FLIGHT,
    MAX_MESSAGE_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Forward,
    Outputs,
    Refused,
)
from blyan_proto.protocols.result import ResultCode
from blyand.errors import (
    Busy,
    NotHere,
    Pruned,
    StaleVersion,
    TooSlow,
    Unavailable,
)
from blyand.net.stream import Blame, MessageStream, Serve, expect_ok, requesting

MAX_IN_FLIGHT_BYTES = 4 * MAX_MESSAGE_BYTES  # of requests of one stream; above it BUSY
CLIENT_IDLE_S = IDLE_S / 2  # the client ends an idle stream well before the server
MAX_CALL = 2**32 - 1

Answer = Callable[[str, Forward], Awaitable[tuple[bytes, ...]]]

_ERRORS: dict[ResultCode, type[Unavailable]] = {
    ResultCode.BUSY: Busy,
    ResultCode.STALE_VERSION: StaleVersion,
    ResultCode.ABSENT: NotHere,
    ResultCode.PRUNED: Pruned,
}


class Streams(Protocol):
    """The part of a host that a client needs."""

    blame: Blame

    async def open_stream(self, peer_id: str, protocol: str) -> MessageStream: ...


@dataclass
class _Waiting:
    """A call under way."""

    sizes: list[int]  # bytes of each expert's output
    done: trio.Event = field(default_factory=trio.Event)
    outputs: tuple[bytes, ...] = ()
    error: Unavailable | None = None

    def fail(self, error: Unavailable) -> None:
        self.error = type(error)(str(error))  # one each: they are raised separately
        self.done.set()


class _Link:
    """The stream to one peer and the calls on it."""

    def __init__(self) -> None:
        self.calls: dict[int, _Waiting] = {}
        self.next = 0
        self.closed = False  # to new calls
        self.heard_s = 0.0  # when the peer last sent something
        self.scope = trio.CancelScope()
        self.outbox, self.unsent = trio.open_memory_channel[bytes](MAX_IN_FLIGHT)


class Client:
    """Calls experts of peers. Made by `open_client`."""

    def __init__(self, host: Streams, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._links: dict[str, _Link] = {}

    async def forward(
        self, peer: str, call: Forward, deadline_s: float = DEADLINE_S
    ) -> tuple[bytes, ...]:
        """Return each expert's output rows, in the order of `call`, whose number is ours.

        Unavailable and its kinds: what the peer answered, TooSlow after `deadline_s`,
        Busy when too much is under way already, NotHere when the stream broke.
        """
        link = self._links.get(peer)
        if link is None or link.closed or link.next > MAX_CALL:
            link = self._links[peer] = _Link()
            self._nursery.start_soon(self._keep, peer, link)
        if len(link.calls) >= MAX_IN_FLIGHT:
            raise Busy(f"{MAX_IN_FLIGHT} calls to {peer} are under way")
        number, link.next = link.next, link.next + 1
        row_bytes = 4 * call.width
        sizes = [len(expert.rows) // 2 * row_bytes for expert in call.experts]
        body = REQUEST.encode(replace(call, call=number))
        waiting = link.calls[number] = _Waiting(sizes)
        began_s = trio.current_time()
        try:
            with trio.move_on_after(deadline_s):
                await link.outbox.send(body)
                await waiting.done.wait()
        except trio.BrokenResourceError:
            raise NotHere(f"the stream to {peer} ended") from None
        finally:
            link.calls.pop(number, None)
        if waiting.error is not None:
            raise waiting.error
        if not waiting.done.is_set():
            if link.heard_s < began_s:
                link.closed = True  # not a sign of life since: the stream is dead
                link.scope.cancel()
            raise TooSlow(f"{peer} did not answer within {deadline_s:g} s")
        return waiting.outputs

    async def _keep(self, peer: str, link: _Link) -> None:
        failure: Unavailable = NotHere(f"the stream to {peer} ended")
        try:
            with link.scope:
                stream = await self._host.open_stream(peer, PROTOCOL_ID)
                async with requesting(stream, self._host.blame):
                    await _converse(stream, link)
        except ProtocolError as error:
            failure = Unavailable(f"{peer} broke the expert protocol: {error}")
        except Unavailable as error:
            failure = error
        finally:
            link.closed = True
            link.unsent.close()
            if self._links.get(peer) is link:
                del self._links[peer]
            for waiting in list(link.calls.values()):
                waiting.fail(failure)


@asynccontextmanager
async def open_client(host: Streams) -> AsyncIterator[Client]:
    """Give a client; its streams end with the block."""
    async with trio.open_nursery() as nursery:
        yield Client(host, nursery)
        nursery.cancel_scope.cancel()


async def _converse(stream: MessageStream, link: _Link) -> None:
    """Send and receive until the stream is idle; raises what ended it otherwise."""
    failure: Unavailable | ProtocolError | None = None
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal failure
            try:
                async for body in link.unsent:
                    await stream.send(body, DEADLINE_S)
            except Unavailable as error:
                failure = failure or error
                nursery.cancel_scope.cancel()

        nursery.start_soon(send)
        try:
            await _receive(stream, link)
        except (Unavailable, ProtocolError) as error:
            failure = failure or error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _receive(stream: MessageStream, link: _Link) -> None:
    await expect_ok(stream, IDLE_S)
    while True:
        try:
            answer = await stream.receive_message(
                ANSWER, MAX_MESSAGE_BYTES, CLIENT_IDLE_S
            )
        except TooSlow:
            if link.calls:
                continue
            link.closed = True
            return
        link.heard_s = trio.current_time()
        _settle(link, answer)


def _settle(link: _Link, answer: Outputs | Refused) -> None:
    if answer.call >= link.next:
        raise UnexpectedMessage(f"an answer to call {answer.call}, which was not made")
    waiting = link.calls.get(answer.call)
    if waiting is None:
        return  # given up before, by deadline or cancellation
    if isinstance(answer, Refused):
        if answer.code is ResultCode.OK:
            raise UnexpectedMessage("a refusal that says OK")
        kind = _ERRORS.get(answer.code, Unavailable)
        waiting.fail(kind(f"{answer.code.name}: {answer.reason}"))
        return
    if [len(output) for output in answer.outputs] != waiting.sizes:
        raise UnexpectedMessage("outputs of other sizes than the call's")
    waiting.outputs = answer.outputs
    waiting.done.set()


def serve(answer: Answer) -> Serve:
    """Return the handler of a long-lived stream; `answer(peer, call)` computes.

    Calls run side by side and are answered as they get done. What `answer` raises:
    Unavailable refuses the call, ProtocolError ends the stream and is blamed.
    """

    async def converse(stream: MessageStream) -> None:
        await stream.send_result(ResultCode.OK)  # travels with the first answer
        sizes: dict[int, int] = {}  # of the calls under way
        async with trio.open_nursery() as nursery:

            async def one(call: Forward) -> None:
                await stream.send_message(
                    await _answer(stream.peer, call, answer), ANSWER, DEADLINE_S
                )
                del sizes[call.call]

            while True:
                try:
                    body = await stream.receive_or_end(MAX_MESSAGE_BYTES, IDLE_S)
                except TooSlow:
                    if sizes:
                        continue
                    return
                if body is None:
                    return  # what is under way is still answered
                call = REQUEST.decode(body, MAX_MESSAGE_BYTES)
                if call.call in sizes:
                    raise UnexpectedMessage(f"call {call.call} is under way")
                room = MAX_IN_FLIGHT_BYTES - sum(sizes.values())
                if len(sizes) >= MAX_IN_FLIGHT or len(body) > room:
                    busy = Busy("too much is under way on this stream")
                    await stream.send_message(_refusal(call, busy), ANSWER, DEADLINE_S)
                    continue
                sizes[call.call] = len(body)
                nursery.start_soon(one, call)

    return converse


async def _answer(peer: str, call: Forward, answer: Answer) -> Outputs | Refused:
    try:
        with trio.move_on_after(DEADLINE_S):
            return Outputs(call.call, await answer(peer, call))
    except Unavailable as error:
        return _refusal(call, error)
    return _refusal(call, TooSlow("not computed in time"))


def _refusal(call: Forward, error: Unavailable) -> Refused:
    code = next(
        (code for code, kind in _ERRORS.items() if isinstance(error, kind)),
        ResultCode.UNAVAILABLE,
    )
    reason = str(error).encode()[:256].decode(errors="ignore")
    return Refused(call.call, code, reason)
