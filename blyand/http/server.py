"""The listening end of the gateway: accepts, counts, refuses, and never piles up.

Every connection is a task of its own; above `max_connections` a client is told so in
one fixed answer and let go. A LocalFault of an answer leaves `serve` and ends the daemon.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
from functools import partial
from typing import Any

import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper

from blyand.errors import ConfigFault
from blyand.http.app import App
from blyand.http.connection import Connection, settings
from blyand.http.refusal import BUSY_RETRY_S, Refusal

log = logging.getLogger(__name__)

BACKLOG = 1024
MAX_REFUSALS = 256  # clients being told that there is no room; one more is just cut off
REFUSE_S = 2.0  # to tell one


def bound(address: str) -> socket.socket:
    """Return a socket that listens at HOST:PORT. ConfigFault says what to change."""
    host, port = parted(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigFault(
                f"{address} is in use; choose another with --http HOST:PORT"
            ) from error
        raise ConfigFault(
            f"cannot listen for HTTP on {address}: {error.strerror}; name an address of "
            "this machine, such as 127.0.0.1:8080"
        ) from error
    return sock


def parted(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, the host without brackets. ConfigFault."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.inet_pton(kind, host)
        number = int(port)
    except (OSError, ValueError):
        number = -1
    if not 0 <= number <= 65_535 or not port.isdecimal():
        raise ConfigFault(
            f"http.listen is {address!r}, but must be an IP address and a port, such as "
            "127.0.0.1:8080"
        )
    return host, number


def url_of(sock: socket.socket) -> str:
    """Return the address under which a bound socket is reached, as http://HOST:PORT."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """Serves one application on one socket."""

    def __init__(self, app: App, sock: socket.socket, max_connections: int) -> None:
        self._app: AppWrapper = partial(_without_wsgi, app)
        self._sock = sock
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._refusals = 0
        self._failed = app.failed

    @property
    def connections(self) -> int:
        """How many clients are being served."""
        return len(self._connections)

    async def serve(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer until cancelled. Closes the socket. Raises the LocalFault of an answer."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._sock))
        async with listener, trio.open_nursery() as nursery:
            accept = partial(self._accept, settings(), WorkerContext(None))
            nursery.start_soon(trio.serve_listeners, accept, [listener])
            task_status.started()
            await self._failed()

    async def _accept(
        self, config: Any, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        if len(self._connections) >= self._max_connections:
            await self._refuse(stream)
            return
        connection = Connection(self._app, config, context, stream)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _refuse(self, stream: trio.SocketStream) -> None:
        """Tell a client that there is no room; wait for its end, else it may not read it."""
        self._refusals += 1
        try:
            async with stream:
                if self._refusals > MAX_REFUSALS:
                    return
                with trio.move_on_after(REFUSE_S):
                    await stream.send_all(_NO_ROOM)
                    await stream.send_eof()
                    while await stream.receive_some(65_536):
                        pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it did not wait for the answer
        finally:
            self._refusals -= 1


async def _without_wsgi(
    app: App, scope: Any, receive: Any, send: Any, to_thread: Any, from_thread: Any
) -> None:
    await app(scope, receive, send)


def _no_room() -> bytes:
    refusal = Refusal(429, "too many connections are open; try again", code="busy")
    body = json.dumps(refusal.body()).encode()
    head = (
        "HTTP/1.1 429 Too Many Requests\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        f"retry-after: {BUSY_RETRY_S}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body


_NO_ROOM = _no_room()
