"""The serving side of a host's streams: who is served, how many at once, until when.

Strategy. Every stream that a peer opens runs in the host's nursery and dies with its
connection. `serve_stream` is the one place where an error of a handler becomes a result
code, a score or the end of the daemon. docs/protocols/streams.md
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import INetStream

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.result import ResultCode
from blyand.diary import Note
from blyand.errors import LocalFault, NotHere, Unavailable
from blyand.log import broken, context
from blyand.metrics import Metrics
from blyand.net.link import UNKNOWN, link_of_connection
from blyand.net.stream import CODES, MessageStream, Serve
from blyand.net.traffic import Traffic
from blyand.rules.net.misbehaviour import Blame
from blyand.supervise import leaves

log = logging.getLogger(__name__)

LINGER_S = 2.0  # how long a finished server waits for the client's end of stream
LINGER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Served:
    """How one protocol is served."""

    serve: Serve
    concurrency: int  # streams of one peer at once
    total: int  # streams of all peers at once
    deadline_s: float | None  # of an exchange; None: a long-lived stream
    before_hello: bool
    bulk: bool


class Serving:
    """Serves the streams that peers open."""

    def __init__(
        self,
        nursery: trio.Nursery,
        traffic: Traffic,
        metrics: Metrics,
        blame: Blame,
        is_admitted: Callable[[str], Awaitable[bool]],
        note: Note,
        may_serve: Callable[[str], bool] = lambda peer: True,
        region_of: Callable[[str], str] = lambda peer: UNKNOWN,
    ) -> None:
        """`may_serve` says whether a peer's behaviour allows it more than BUSY;
        `region_of` where it stands: SAME, OTHER or UNKNOWN."""
        self._region_of = region_of
        self._nursery = nursery
        self._traffic, self._metrics = traffic, metrics
        self._blame, self._note = blame, note
        self._is_admitted, self._may_serve = is_admitted, may_serve
        self._protocols: dict[str, Served] = {}
        self._running: Counter[tuple[str, str]] = Counter()  # (protocol, peer or "")
        self._scopes: dict[Any, set[trio.CancelScope]] = {}  # by connection
        self._numbers = itertools.count(1)
        self._draining = trio.Event()
        self._quiet = trio.Event()

    def add(self, protocol: str, served: Served) -> None:
        """Serve a protocol from now on."""
        self._protocols[protocol] = served

    def running(self) -> dict[str, int]:
        """Return how many streams of each protocol are served now."""
        return {name: n for (name, peer), n in self._running.items() if not peer}

    async def enter(self, raw: INetStream, protocol: str) -> None:
        """Serve a stream; returns when libp2p may take it back."""
        done = trio.Event()
        self._nursery.start_soon(self._enter, raw, protocol, done)
        await done.wait()

    async def drain(self, bound_s: float) -> None:
        """Refuse new streams; return when none is served any more, or after `bound_s`.

        Streams of calls end by themselves once their calls are answered.
        """
        self._draining.set()
        with trio.move_on_after(bound_s):
            if self._running:
                await self._quiet.wait()

    async def _enter(self, raw: INetStream, protocol: str, done: trio.Event) -> None:
        served = self._protocols[protocol]
        peer = str(raw.muxed_conn.peer_id)
        stream = MessageStream(
            raw,
            peer,
            protocol,
            self._traffic,
            link_of_connection(raw.swarm_conn),
            served.bulk,
            self._region_of(peer),
        )
        stream.draining = self._draining
        outcome, began_s = "lost", trio.current_time()
        try:
            with (
                self._dying_with(raw.swarm_conn),
                context(peer=peer, protocol=protocol, stream=next(self._numbers)),
            ):
                outcome = await self._serve(stream, served)
                await linger(stream)
        finally:
            done.set()
            seconds = trio.current_time() - began_s
            self._count(stream, outcome, seconds)

    async def _serve(self, stream: MessageStream, served: Served) -> str:
        """Serve or refuse; return what became of it in one word."""
        mine, everybodys = (stream.protocol, stream.peer), (stream.protocol, "")
        if self._draining.is_set():
            await refuse(stream, ResultCode.UNAVAILABLE)
            return "draining"
        if (
            not self._may_serve(stream.peer)
            or self._running[mine] >= served.concurrency
            or self._running[everybodys] >= served.total
        ):
            await refuse(stream, ResultCode.BUSY)
            return "busy"
        self._running.update((mine, everybodys))
        self._show(stream.protocol)
        try:
            if served.before_hello or await self._is_admitted(stream.peer):
                return await serve_stream(
                    stream, served.serve, served.deadline_s, self._blame
                )
            await refuse(stream, ResultCode.UNAVAILABLE)
            return "stranger"
        finally:
            self._running.subtract((mine, everybodys))
            self._running = +self._running
            self._show(stream.protocol)
            if not self._running:
                self._quiet.set()
                self._quiet = trio.Event()

    @contextmanager
    def _dying_with(self, connection: Any) -> Iterator[None]:
        """End the block as soon as the connection is gone."""
        scopes = self._scopes.get(connection)
        if scopes is None:
            scopes = self._scopes[connection] = set()
            self._nursery.start_soon(self._watch, connection, scopes)
        with trio.CancelScope() as scope:
            scopes.add(scope)
            try:
                yield
            finally:
                scopes.discard(scope)

    async def _watch(self, connection: Any, scopes: set[trio.CancelScope]) -> None:
        await connection.event_closed.wait()
        del self._scopes[connection]
        for scope in list(scopes):
            scope.cancel()

    def _show(self, protocol: str) -> None:
        gauge = self._metrics.gauge("blyan_net_streams_serving", protocol=protocol)
        gauge.set(self._running[protocol, ""])

    def _count(self, stream: MessageStream, outcome: str, seconds: float) -> None:
        protocol = stream.protocol
        if outcome in REFUSALS:
            self._metrics.counter(
                "blyan_net_streams_refused", protocol=protocol, reason=outcome
            ).add()
        else:
            self._metrics.counter(
                "blyan_net_streams_served", protocol=protocol, outcome=outcome
            ).add()
            if self._protocols[protocol].deadline_s is not None:
                self._metrics.histogram(
                    "blyan_net_exchange_seconds", protocol=protocol, side="server"
                ).observe(seconds)
        self._note(
            "stream",
            peer=stream.peer,
            protocol=protocol,
            way="in",
            outcome=outcome,
            seconds=round(seconds, 6),
        )


REFUSALS = frozenset({"busy", "draining", "stranger"})


async def serve_stream(
    stream: MessageStream, serve: Serve, deadline_s: float | None, blame: Blame
) -> str:
    """Run `serve` on a stream and turn its end into what the peer sees.

    Returns that in one word: ok, deadline, or the name of a result code.
    `deadline_s` bounds the whole exchange; None leaves the deadlines of a long-lived
    stream to `serve`. Raises only LocalFault; the stream is ended in every case. One
    of the four boundaries: a bug of ours costs the peer this stream and nothing else.
    """
    try:
        with trio.move_on_after(deadline_s or float("inf")) as scope:
            await serve(stream)
            await stream.close_write()
        if scope.cancelled_caught:
            log.debug("%s: deadline passed", stream.protocol)
            await stream.reset()
            return "deadline"
        return "ok"
    except Exception as error:
        return await _refuse(stream, _weightiest(error), blame)
    except BaseExceptionGroup as group:
        # Cancelled, and failing because of it: only the cancellation goes on.
        await stream.reset()
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is None or rest is None or not isinstance(rest, Exception):
            raise
        worst = _weightiest(rest)
        if isinstance(worst, LocalFault):
            raise
        if not isinstance(worst, (*_EXPECTED, ProtocolError)):
            broken(log, f"serving {stream.protocol}", worst, peer=stream.peer)
        raise cancelled from None
    except BaseException:
        await stream.reset()
        raise


async def _refuse(stream: MessageStream, error: BaseException, blame: Blame) -> str:
    code = ResultCode.SERVER_ERROR
    if isinstance(error, ProtocolError):
        code = ResultCode.INVALID_REQUEST
        blame(stream.peer, error)
    elif isinstance(error, Unavailable):
        code = next(code for kind, code in CODES if isinstance(error, kind))
    elif isinstance(error, trio.TooSlowError):
        code = ResultCode.UNAVAILABLE
    elif not isinstance(error, LocalFault):
        broken(log, f"serving {stream.protocol}", error, peer=stream.peer)
    await refuse(stream, code)
    if isinstance(error, LocalFault):
        raise error
    return code.name.lower()


async def refuse(stream: MessageStream, code: ResultCode) -> None:
    """End a stream with a result, or with a reset if an answer has begun."""
    if stream.answered:
        await stream.reset()
        return
    with trio.move_on_after(LINGER_S):
        try:
            await stream.send_result(code)
            await stream.close_write()
            return
        except NotHere:
            pass
    await stream.reset()


async def linger(stream: MessageStream) -> None:
    """Give the client the time to finish its side, then let the stream go."""
    with trio.move_on_after(LINGER_S):
        try:
            await stream.drain(LINGER_BYTES)
        except Unavailable:
            pass
    await stream.aclose()


_EXPECTED = (Unavailable, trio.TooSlowError)


def _weightiest(error: Exception) -> BaseException:
    """Of the errors that left a handler together, return the one that decides."""

    def weight(leaf: BaseException) -> int:
        order = (*_EXPECTED, ProtocolError, LocalFault)
        for place, kind in enumerate(order):
            if isinstance(leaf, kind):
                return 9 if kind is LocalFault else place
        return 5  # a bug of ours

    return max(leaves(error), key=weight)
