"""One client's connection: HTTP/1.1 by Hypercorn's trio worker, and what that leaves open.

Hypercorn parses requests and runs the application, one request at a time. Here a client
that does not read is cut off, one that hangs up, or sends the next request before it has
its answer, ends everything that it asked for, and neither HTTP/2 nor an upgrade to it is
spoken. Nothing that a client sends leaves here as an exception.
"""

from __future__ import annotations

import logging
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

from blyand.log import broken
from blyand.supervise import leaves

log = logging.getLogger(__name__)

HEAD_S = 10.0  # for a whole request head, and between two requests
WRITE_S = 30.0  # for a client to take what was written
TURN_S = 0.5  # for an answer that is complete to end
LINGER_S = 2.0  # in which a client may still send after an answer that ends it
RECEIVE_BYTES = 64 * 1024
MAX_HEAD_BYTES = 16 * 1024


def settings() -> Config:
    """Return what Hypercorn is to keep to."""
    config = Config()
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.keep_alive_timeout = HEAD_S
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = log
    return config


class Connection(TCPServer):
    """Serves one client until it hangs up, is cut off, or `cut` is called."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: trio.SocketStream,
    ) -> None:
        super().__init__(app, config, context, {}, stream)
        self._scope = trio.CancelScope()
        self._ends = False  # its last answer is on the way

    def cut(self) -> None:
        """End it at once, with all that is under way for it."""
        self._scope.cancel()

    async def run(self) -> None:
        """Serve the client. Raises nothing but what cancels it."""
        try:
            with self._scope:
                await self._converse()
        except Exception as error:
            if self._scope.cancel_called:
                # Hypercorn does not expect to be ended in the middle of an answer.
                log.debug("a connection was cut: %r", error)
            elif not all(isinstance(leaf, OSError) for leaf in leaves(error)):
                broken(log, "a connection failed", error)
        finally:
            with trio.CancelScope(shield=True):
                await self.stream.aclose()

    async def _converse(self) -> None:
        socket: Any = self.stream.socket
        client, server = socket.getpeername(), socket.getsockname()
        async with TaskGroup() as group:
            self._task_group = group
            self.protocol = _Http(  # type: ignore[assignment]
                self.app,
                self.config,
                self.context,
                group,
                ConnectionState({}),
                False,
                client[:2],
                server[:2],
                self.protocol_send,
            )
            await self.idle_task.restart(group, self._idle_timeout)
            await self._read_data()
            self._scope.cancel()

    async def _read_data(self) -> None:
        while received := await self._receive():
            if self._ends:
                continue
            try:
                await self.protocol.handle(RawData(received))
            except _Upgrade:
                continue  # as if it had not been asked for
            except _Pipelined:
                log.debug("a client sent a request before it had its answer")
                return

    async def _receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def protocol_send(self, event: Event) -> None:
        """Take what Hypercorn wants written or done."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            await self._end()
        elif isinstance(event, Updated):
            if event.idle:
                await self.idle_task.restart(self._task_group, self._idle_timeout)
            else:
                await self.idle_task.stop()

    async def _write(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                with trio.fail_after(WRITE_S):
                    await self.stream.send_all(data)
                return
            except trio.TooSlowError:
                log.info("a client did not read for %g s", WRITE_S)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.debug("a client hung up before its answer")
            self.cut()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _end(self) -> None:
        """Say that nothing follows, and let the client finish: else the answer is lost."""
        self._ends = True
        self._scope.deadline = trio.current_time() + LINGER_S
        async with self.send_lock:
            try:
                await self.stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.cut()

    async def _idle_timeout(self) -> None:
        await trio.sleep(self.config.keep_alive_timeout)
        self.cut()


class _Pipelined(Exception):
    """A request came before the answer to the one before it."""


class _Upgrade(Exception):
    """The client would like to speak something else after this request."""


class _Http(H11Protocol):
    """HTTP/1.1 and nothing else."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.can_read: Any = _Turn(self)

    async def _check_protocol(self, event: h11.Request) -> None:
        """HTTP/2 is not spoken here."""


class _Turn:
    """Where Hypercorn waits with a request until the one before it is answered.

    While it waits nothing is read, and nobody sees the client hang up: so it waits only
    for the moment between the last byte of an answer and its end.
    """

    def __init__(self, protocol: _Http) -> None:
        self._protocol = protocol
        self._event = trio.Event()

    async def clear(self) -> None:
        self._event = trio.Event()

    async def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        if self._protocol.connection.their_state is not h11.DONE:
            raise _Upgrade  # "might switch protocol"
        with trio.move_on_after(TURN_S):
            await self._event.wait()
            return
        raise _Pipelined
