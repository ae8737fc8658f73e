"""The control socket: lines in, dispatch, stream notifications and results out.

One task reads a connection; every request runs in a task of its own, so a slow one
holds up nobody. When a client hangs up, or does not read, everything it asked for is
cancelled. Local programs are trusted to be honest, never to be free of bugs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from blyan_proto.errors import LimitExceeded
from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.errors import (
    INTERNAL,
    INVALID_REQUEST,
    LINE_TOO_LONG,
    OVERLOADED,
    REPLY_TOO_LONG,
    TIMED_OUT,
    UNKNOWN_METHOD,
    RpcError,
    shared_code,
)
from blyan_proto.rpc.jsonrpc import Batch, Malformed, Request
from blyan_proto.rpc.records import nearest
from blyan_proto.rpc.spec import Method
from blyan_proto.rpc.values import JsonObject
from blyand.errors import (
    Busy,
    Damaged,
    DiskFull,
    LocalFault,
    NoRoute,
    NotHere,
    OverBudget,
    Pruned,
    StaleVersion,
    TooSlow,
    Unavailable,
)
from blyand.rpc.bind import Answers
from blyand.rpc.endpoint import bound_socket

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128  # one more is answered by an error and closed
MAX_REQUESTS = 64  # under way on one connection; one more is answered by an error
WRITE_DEADLINE_S = 30.0  # for a client to take one line
FAREWELL_S = 2.0  # to read on after a line that was too long, so that the error arrives
RECEIVE_BYTES = 64 * 1024

SHARED_NAMES: dict[type[Unavailable], str] = {
    Busy: "busy",
    NotHere: "not here",
    Pruned: "pruned",
    TooSlow: "too slow",
    NoRoute: "no route",
    StaleVersion: "stale version",
    DiskFull: "disk full",
    OverBudget: "disk full",
}


async def serve(
    path: Path,
    answers: Answers,
    *,
    write_deadline_s: float = WRITE_DEADLINE_S,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at the Unix socket `path` until cancelled; started once it listens.

    BindError before the socket exists if a method has no answer. A LocalFault of an
    answer is told to its caller and then leaves here: it ends the daemon.
    """
    answers.check()
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def converse(stream: trio.SocketStream) -> None:
        connection = _Connection(stream, answers, write_deadline_s)
        try:
            limiter.acquire_on_behalf_of_nowait(connection)
        except trio.WouldBlock:
            await connection.refuse()
            return
        try:
            await connection.run()
        finally:
            limiter.release_on_behalf_of(connection)

    with bound_socket(path) as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, converse, [listener])
            task_status.started()


class _Connection:
    """One client."""

    def __init__(
        self, stream: trio.SocketStream, answers: Answers, write_deadline_s: float
    ) -> None:
        self._stream = stream
        self._answers = answers
        self._write_deadline_s = write_deadline_s
        self._writing = trio.Lock()
        self._scope = trio.CancelScope()  # everything this client asked for
        self._ids: set[jsonrpc.RequestId] = set()
        self._under_way = 0

    async def refuse(self) -> None:
        error = RpcError(OVERLOADED, f"{MAX_CONNECTIONS} connections are open already")
        async with self._stream:
            with self._scope:
                await self._send(jsonrpc.line(jsonrpc.failure(None, error)))

    async def run(self) -> None:
        """Serve until the client hangs up, breaks the line limit, or stops reading."""
        async with self._stream:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await self._read(nursery)
                    # EOF: nobody is there to read an answer
                    self._scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        lines = jsonrpc.LineReader()
        while received := await self._receive():
            lines.feed(received)
            try:
                while (line := lines.take()) is not None:
                    if line.strip():
                        await self._begin(line, nursery)
            except LimitExceeded as error:
                failed = RpcError(LINE_TOO_LONG, f"{error}; the connection closes")
                await self._send(jsonrpc.line(jsonrpc.failure(None, failed)))
                with trio.move_on_after(FAREWELL_S):
                    while await self._receive():
                        pass
                return

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError:
            return b""

    async def _begin(self, line: bytes, nursery: trio.Nursery) -> None:
        """Start what one line asks for, or answer at once why not."""
        asked = jsonrpc.parse_requests(line)
        if isinstance(asked, Malformed):
            await self._send(jsonrpc.line(jsonrpc.failure(asked.id, asked.error)))
            return
        requests = asked.items if isinstance(asked, Batch) else (asked,)
        ids = [
            request.id
            for request in requests
            if isinstance(request, Request) and not request.notification
        ]
        refusal = None
        if self._under_way >= MAX_REQUESTS:
            text = f"{MAX_REQUESTS} requests are under way on this connection"
            refusal = RpcError(OVERLOADED, text)
        elif len(set(ids)) < len(ids) or self._ids.intersection(ids):
            refusal = RpcError(INVALID_REQUEST, "the id is of a request under way")
        if refusal is not None:
            id = asked.id if isinstance(asked, Request) else None
            if ids or isinstance(asked, Batch):
                await self._send(jsonrpc.line(jsonrpc.failure(id, refusal)))
            return
        self._under_way += 1
        self._ids.update(ids)
        nursery.start_soon(self._carry_out, asked, ids)

    async def _carry_out(
        self, asked: Request | Batch, ids: list[jsonrpc.RequestId]
    ) -> None:
        try:
            batch = asked.items if isinstance(asked, Batch) else None
            if batch is not None:
                reply = await self._answer_all(batch)
            else:
                assert isinstance(asked, Request)
                reply = await self._answer(asked, jsonrpc.MAX_REPLY_BYTES)
            self._ids.difference_update(ids)  # who reads the reply may use them again
            if reply:
                await self._send(reply)
        finally:  # only now: a reply that waits for its reader is under way too
            self._under_way -= 1
            self._ids.difference_update(ids)

    async def _answer_all(self, items: tuple[Request | Malformed, ...]) -> bytes:
        """Carry out a batch in order; its replies together stay below the limit."""
        replies: list[bytes] = []
        room = jsonrpc.MAX_REPLY_BYTES
        for entry in items:
            if isinstance(entry, Malformed):
                reply = jsonrpc.line(jsonrpc.failure(entry.id, entry.error))
            else:
                reply = await self._answer(entry, room)
            room = max(0, room - len(reply))
            if reply:
                replies.append(reply.rstrip(b"\n"))
        return b"[" + b",".join(replies) + b"]\n" if replies else b""

    async def _answer(self, request: Request, room: int) -> bytes:
        """Return the reply line to one request, empty for a notification."""

        async def emit(item: JsonObject) -> None:
            if not request.notification:
                await self._send(jsonrpc.line(jsonrpc.item(request.id, item)))

        try:
            result = await dispatch(self._answers, request, emit)
            reply = jsonrpc.line(jsonrpc.result(request.id, result))
            if len(reply) > room:
                text = f"the result has {len(reply)} bytes; ask for less at once"
                raise RpcError(REPLY_TOO_LONG, text)
        except RpcError as error:
            reply = jsonrpc.line(jsonrpc.failure(request.id, error))
        except LocalFault as fault:
            ends = "starts again" if isinstance(fault, Damaged) else "stops"
            failed = RpcError(INTERNAL, f"{fault}; the daemon {ends}")
            if not request.notification:
                await self._send(jsonrpc.line(jsonrpc.failure(request.id, failed)))
            raise
        return b"" if request.notification else reply

    async def _send(self, line: bytes) -> None:
        """Write one line; a client that does not take it in time is cut off."""
        async with self._writing:
            try:
                with trio.fail_after(self._write_deadline_s):
                    await self._stream.send_all(line)
                return
            except trio.TooSlowError:
                log.info("rpc: a client did not read for %g s", self._write_deadline_s)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.debug("rpc: a client hung up before its answer")
            self._scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()


async def dispatch(
    answers: Answers,
    request: Request,
    emit: Callable[[JsonObject], Awaitable[None]],
) -> JsonObject:
    """Return the result of one request, within its method's deadline.

    Raises RpcError for everything that the caller is told; a LocalFault passes.
    """
    method = answers.methods.get(request.method)
    if method is None:
        hint = nearest(request.method, answers.methods)
        text = f"no method is called {request.method[:100]!r}{hint}"
        raise RpcError(UNKNOWN_METHOD, text)
    params = method.read_params(request.params)
    declared = method

    async def emit_record(item: Any) -> None:
        await emit(declared.write_item(item))

    arguments = (params,) if method.streams is None else (params, emit_record)
    deadline_s = math.inf if method.deadline_s is None else method.deadline_s
    try:
        with trio.move_on_after(deadline_s):
            return method.write_result(await answers[method.name](*arguments))
    except (Exception, BaseExceptionGroup) as error:
        raise _told(method, error) from None
    raise RpcError(TIMED_OUT, f"{method.name} was not done within {deadline_s:g} s")


def _told(method: Method, error: BaseException) -> RpcError:
    """Return what the caller is told of a failure; logs it as BROKEN if it is our bug.

    Raises the LocalFault in it, and what is no failure: cancellation, interrupts.
    """
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, LocalFault):
            raise leaf
    stops = [leaf for leaf in leaves if not isinstance(leaf, Exception)]
    expected = [leaf for leaf in leaves if isinstance(leaf, (RpcError, Unavailable))]
    if len(stops) + len(expected) < len(leaves):
        log.error("BROKEN rpc %s: %r", method.name, error, exc_info=error)
    if stops:
        raise BaseExceptionGroup(f"{method.name} was stopped", stops)
    if len(expected) < len(leaves):
        return RpcError(INTERNAL, "internal error; the daemon's log says more")
    first = expected[0]
    if isinstance(first, RpcError):
        return first
    name = SHARED_NAMES.get(type(first), "unavailable")
    text = str(first) or f"{method.name}: {name}"
    return RpcError(shared_code(method.noun, name), text)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
