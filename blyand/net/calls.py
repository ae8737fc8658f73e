"""Calls to peers: one long stream per (peer, protocol), many calls on it at once.

Strategy. A task per stream sends, another receives; a call only waits, so that giving
one up leaves the stream whole and tells the server. What waits to be sent is bounded in
calls and bytes. When a stream ends, every call on it fails at once, and the next call
opens another. The serving side is in answers.py. docs/protocols/streams.md
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import trio

from blyan_proto.errors import ProtocolError, UnexpectedMessage
from blyan_proto.protocols.calls import (
    HEAD_BYTES,
    IDLE_S,
    MAX_IN_FLIGHT,
    MAX_NUMBER,
    Kind,
    head,
    read_head,
    read_refusal,
)
from blyan_proto.protocols.result import ResultCode
from blyand.errors import (
    Busy,
    NotHere,
    Pruned,
    StaleVersion,
    TooSlow,
    Unavailable,
    WrongAnswer,
)
from blyand.log import context
from blyand.metrics import Metrics
from blyand.net.stream import MessageStream, expect_ok, requesting
from blyand.rules.net.misbehaviour import Blame

T = TypeVar("T")

ERRORS: dict[ResultCode, type[Unavailable]] = {
    ResultCode.BUSY: Busy,
    ResultCode.STALE_VERSION: StaleVersion,
    ResultCode.PRUNED: Pruned,  # before what it is a kind of
    ResultCode.ABSENT: NotHere,
}


@dataclass(frozen=True)
class CallProtocol:
    """A protocol whose streams carry calls."""

    id: str
    max_bytes: int  # of a request's or an answer's body
    deadline_s: float  # of a call, for whoever names none
    in_flight: int = MAX_IN_FLIGHT  # calls of one stream; above it Busy
    in_flight_bytes: int = 1 << 26  # of requests and expected answers; above it Busy

    @property
    def limit(self) -> int:
        """The longest frame."""
        return HEAD_BYTES + self.max_bytes


class Streams(Protocol):
    """The part of a host that calls need."""

    blame: Blame
    metrics: Metrics

    async def open_stream(self, peer_id: str, protocol: str) -> MessageStream: ...


@dataclass
class _Waiting:
    """A call under way."""

    read: Callable[[bytes], Any]
    size: int  # bytes of the request
    done: trio.Event = field(default_factory=trio.Event)
    value: Any = None
    error: Unavailable | None = None

    def fail(self, error: Unavailable) -> None:
        if self.error is None:
            self.error = type(error)(str(error))  # one each: they are raised apart
        self.done.set()


class _Link:
    """The stream to one peer and the calls on it."""

    def __init__(self, protocol: CallProtocol) -> None:
        self.protocol = protocol
        self.calls: dict[int, _Waiting] = {}
        self.bytes = 0  # of the requests of these calls
        self.next = 0
        self.closed = False  # to new calls
        self.heard_s = -math.inf  # when the peer last sent something
        self.scope = trio.CancelScope()
        self.unsent: dict[int, bytes] = {}  # requests, in order
        self.cancels: deque[int] = deque()  # at most as many as calls were in flight
        self.work = trio.Event()

    def put(self, body: bytes, read: Callable[[bytes], Any]) -> tuple[int, _Waiting]:
        """Take a call in. Busy if too much is under way already."""
        if len(self.calls) >= self.protocol.in_flight:
            raise Busy(f"{len(self.calls)} calls to this peer are under way")
        if self.calls and self.bytes + len(body) > self.protocol.in_flight_bytes:
            raise Busy(f"{self.bytes} bytes of calls to this peer are under way")
        number, self.next = self.next, self.next + 1
        waiting = self.calls[number] = _Waiting(read, len(body))
        self.bytes += len(body)
        self.unsent[number] = body
        self.work.set()
        return number, waiting

    def drop(self, number: int) -> None:
        """Let a call go; the server is told if it knows of one that has no answer."""
        waiting = self.calls.pop(number)
        self.bytes -= waiting.size
        if self.unsent.pop(number, None) is None and not waiting.done.is_set():
            self.cancels.append(number)
            self.work.set()


class Calls:
    """Calls peers. Made by `open_calls`."""

    def __init__(self, host: Streams, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._links: dict[tuple[str, str], _Link] = {}
        self._under_way: Counter[str] = Counter()  # by protocol

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._links)

    def in_flight(self) -> dict[str, int]:
        """Return how many calls of each protocol are under way."""
        return {name: count for name, count in self._under_way.items() if count}

    async def call(
        self,
        peer: str,
        protocol: CallProtocol,
        body: bytes,
        read: Callable[[bytes], T],
        deadline_s: float | None = None,
    ) -> T:
        """Return what `read` makes of the answer to `body`.

        A ProtocolError of `read` is blamed on the peer, ends the stream and is raised as
        WrongAnswer. Unavailable and its kinds: what the peer answered, TooSlow after the
        deadline, Busy when too much is under way already, NotHere when the stream broke.
        A call that is cancelled, or late, is cancelled at the peer too.
        """
        limit_s = protocol.deadline_s if deadline_s is None else deadline_s
        began_s = trio.current_time()
        outcome = "cancelled"
        try:
            made = await self._call(peer, protocol, body, read, limit_s)
            outcome = "ok"
            return cast(T, made)
        except Unavailable as error:
            outcome = type(error).__name__.lower()
            raise
        finally:
            metrics = self._host.metrics
            metrics.counter(
                "blyan_net_calls", protocol=protocol.id, outcome=outcome
            ).add()
            metrics.histogram("blyan_net_call_seconds", protocol=protocol.id).observe(
                trio.current_time() - began_s
            )

    async def _call(
        self,
        peer: str,
        protocol: CallProtocol,
        body: bytes,
        read: Callable[[bytes], Any],
        limit_s: float,
    ) -> Any:
        began_s = trio.current_time()
        link = self._link(peer, protocol)
        number, waiting = link.put(body, read)
        self._under_way[protocol.id] += 1
        try:
            with context(peer=peer, protocol=protocol.id, call=number):
                with trio.move_on_after(limit_s):
                    await waiting.done.wait()
        finally:
            link.drop(number)
            self._under_way[protocol.id] -= 1
        if waiting.error is not None:
            raise waiting.error
        if not waiting.done.is_set():
            if link.heard_s < began_s:
                link.closed = True  # not a sign of life since: the stream is dead
                link.scope.cancel()
            raise TooSlow(f"{peer} did not answer within {limit_s:g} s")
        return waiting.value

    def _link(self, peer: str, protocol: CallProtocol) -> _Link:
        link = self._links.get((peer, protocol.id))
        if link is None or link.closed or link.next > MAX_NUMBER:
            link = self._links[peer, protocol.id] = _Link(protocol)
            self._nursery.start_soon(self._keep, peer, link)
            used = "opened"
        else:
            used = "reused"
        self._host.metrics.counter(
            "blyan_net_call_streams", protocol=protocol.id, used=used
        ).add()
        return link

    async def _keep(self, peer: str, link: _Link) -> None:
        protocol = link.protocol.id
        failure: Unavailable = NotHere(f"the stream to {peer} ended")
        try:
            with link.scope, context(peer=peer, protocol=protocol):
                stream = await self._host.open_stream(peer, protocol)
                async with requesting(stream, self._host.blame):
                    await _converse(stream, link)
        except ProtocolError as error:
            failure = Unavailable(f"{peer} broke {protocol}: {error}")
        except Unavailable as error:
            failure = error
        finally:
            link.closed = True
            if self._links.get((peer, protocol)) is link:
                del self._links[peer, protocol]
            for waiting in list(link.calls.values()):
                waiting.fail(failure)


@asynccontextmanager
async def open_calls(host: Streams) -> AsyncIterator[Calls]:
    """Give calls; their streams end with the block."""
    async with trio.open_nursery() as nursery:
        yield Calls(host, nursery)
        nursery.cancel_scope.cancel()


async def _converse(stream: MessageStream, link: _Link) -> None:
    """Send and receive until the stream is idle; raises what ended it otherwise."""
    failure: Unavailable | ProtocolError | None = None
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal failure
            try:
                await _send(stream, link)
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


async def _send(stream: MessageStream, link: _Link) -> None:
    deadline_s = link.protocol.deadline_s
    while True:
        while link.cancels or link.unsent:
            if link.cancels:
                kind, number, body = Kind.CANCEL, link.cancels.popleft(), b""
            else:
                number = next(iter(link.unsent))
                kind, body = Kind.CALL, link.unsent.pop(number)
            await stream.send(body, deadline_s, head=head(kind, number))
        await link.work.wait()
        link.work = trio.Event()


async def _receive(stream: MessageStream, link: _Link) -> None:
    await expect_ok(stream, IDLE_S)
    while True:
        try:
            parts = await stream.receive_parts(HEAD_BYTES, link.protocol.limit, IDLE_S)
        except TooSlow:
            if link.calls:
                continue
            link.closed = True
            return
        if parts is None:
            raise NotHere(f"{stream.peer} ended the stream")
        link.heard_s = trio.current_time()
        _settle(link, *parts)


def _settle(link: _Link, raw: bytes, body: bytes) -> None:
    kind, number = read_head(raw, from_client=False)
    if number >= link.next or number in link.unsent:
        raise UnexpectedMessage(f"an answer to call {number}, which was not made")
    waiting = link.calls.get(number)
    if waiting is None or waiting.done.is_set():
        return  # given up before, by deadline or cancellation
    if kind is Kind.REFUSAL:
        code, reason = read_refusal(body)
        waiting.fail(ERRORS.get(code, Unavailable)(f"{code.name}: {reason}"))
        return
    try:
        waiting.value = waiting.read(body)
    except ProtocolError as error:
        waiting.error = WrongAnswer(f"{type(error).__name__}: {error}")
        raise  # ends the stream, and with it every call
    waiting.done.set()
