"""Blocking JSON-RPC over the daemon's Unix socket; what local Python programs import.

    with Client() as client:
        print(client.node.status().peers)
        answer = client.infer.generate("Once", max_tokens=64)
        for token in answer:
            print(token.text, end="")
        print(answer.result.timings)

Every declared method is there, with types (`nouns`); `call` and `stream` take and give
plain JSON. One call at a time per client; use one client per thread.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from blyan_proto.errors import LimitExceeded
from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.methods import find
from blyan_proto.rpc.spec import SOCKET_NAME, JsonObject, Method
from blyanctl.nouns import Answer, Nouns

GRACE_S = 10.0  # beyond the method's own deadline, before a silent daemon is given up
RECEIVE_BYTES = 256 * 1024
MAX_PATH_BYTES = 100  # a longer path is a link to a short one (DEC-C14)


class NoDaemon(Exception):
    """No daemon listens there, or it ended before it answered; the text says more."""


class NoAnswer(Exception):
    """The daemon did not answer in time."""


def home_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the daemon's home: as given, or $BLYAN_HOME, or ~/.blyan."""
    return Path(given or os.environ.get("BLYAN_HOME") or "~/.blyan").expanduser()


def unreachable(home: Path, error: OSError) -> NoDaemon:
    """Return why the daemon of a home cannot be reached, and what to do."""
    start = f"start one with `blyand run --home {home}`"
    if isinstance(error, PermissionError):
        text = f"The daemon at {home} belongs to another user."
    elif isinstance(error, FileNotFoundError) and not home.exists():
        text = f"There is no home at {home}: create it with `blyand init"
        text += f" --home {home}`, or name another with --home."
    elif isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        text = f"No daemon runs at {home}: {start}, or wait a moment if "
        text += "that is done already."
    else:
        text = f"Cannot reach the daemon at {home}: {error.strerror}."
    return NoDaemon(text)


def socket_path(home: Path) -> str:
    """Return where to connect: a path that a socket can have (DEC-C14)."""
    path = os.fspath(home / SOCKET_NAME)
    return os.readlink(path) if len(os.fsencode(path)) > MAX_PATH_BYTES else path


class Client(Nouns):
    """A connection to the daemon of one home; connects at the first call.

    `checked` validates every reply against its declaration (Mismatch); tests use it.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
        checked: bool = False,
    ) -> None:
        self.home = home_directory(home)
        self._timeout_s = timeout_s
        self._checked = checked
        self._socket: socket.socket | None = None
        self._lines = jsonrpc.LineReader(jsonrpc.MAX_REPLY_BYTES)
        self._last_id = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the daemon cancels whatever is under way."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> JsonObject:
        """Return the result of one call; items of a streaming method are dropped.

        Raises RpcError as the daemon says, NoDaemon, or NoAnswer after `timeout_s`
        (default: the client's, else the method's own deadline and a little more).
        """
        stream = self.stream(method, params, timeout_s=timeout_s)
        for _ in stream:
            pass
        return stream.result

    def stream(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Stream:
        """Send a request and return its stream: iterate over it, then take `.result`."""
        if timeout_s is None:
            timeout_s = self._timeout_s
        if timeout_s is None:
            declared = find(method)
            if declared is not None and declared.deadline_s is not None:
                timeout_s = declared.deadline_s + GRACE_S
        self._last_id += 1
        line = jsonrpc.line(jsonrpc.request(self._last_id, method, dict(params or {})))
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self._send(line, until)
        return Stream(self, self._last_id, method, until)

    def invoke(self, method: Method, params: JsonObject) -> Any:
        """Return the typed result of one method, or the Answer that streams it."""
        if method.streams is None:
            return method.read_result(self.call(method.name, params))
        return Answer(method, self.stream(method.name, params))

    def reply(self, until: float | None) -> jsonrpc.Reply | jsonrpc.Item:
        """Return the daemon's next line. NoAnswer when it is not whole at `until`."""
        try:
            while (line := self._lines.take()) is None:
                self._lines.feed(self._receive(until))
            reply = jsonrpc.parse_reply(line)
        except (LimitExceeded, ValueError) as error:
            self.close()
            raise NoDaemon(
                f"What answers at {self.path} is no blyand: {error}."
            ) from None
        assert not isinstance(reply, list)  # we send no batches
        return reply

    @property
    def checked(self) -> bool:
        return self._checked

    @property
    def path(self) -> Path:
        """The socket of this home."""
        return self.home / SOCKET_NAME

    def _connect(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(socket_path(self.home))
        except OSError as error:
            sock.close()
            raise unreachable(self.home, error) from None
        self._socket = sock
        self._lines = jsonrpc.LineReader(jsonrpc.MAX_REPLY_BYTES)
        return sock

    def _send(self, line: bytes, until: float | None) -> None:
        sock = self._connect()
        try:
            sock.settimeout(self._left(until))
            sock.sendall(line)
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            # It may have said why before it hung up: the reader finds out.
            pass

    def _receive(self, until: float | None) -> bytes:
        if self._socket is None:
            raise NoDaemon("The connection was closed before the answer.")
        try:
            self._socket.settimeout(self._left(until))
            received = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            received = b""
        if not received:
            self.close()
            raise NoDaemon(
                f"The daemon at {self.home} ended before it answered: see its log."
            )
        return received

    def _left(self, until: float | None) -> float | None:
        if until is None:
            return None
        left = until - time.monotonic()
        if left <= 0:
            raise self._silent()
        return left

    def _silent(self) -> NoAnswer:
        self.close()
        return NoAnswer(
            f"The daemon at {self.home} did not answer in time: see its log, or give"
            " it longer with --timeout."
        )


class Stream:
    """The items of one call as they come; `result` once they have all come.

    Leaving the loop early leaves the call under way: `Client.close` ends it.
    """

    def __init__(
        self, client: Client, id: int, method: str, until: float | None
    ) -> None:
        self._client = client
        self._id = id
        self._method = find(method)
        self._until = until
        self._result: JsonObject | None = None

    def __iter__(self) -> Iterator[JsonObject]:
        while self._result is None:
            reply = self._client.reply(self._until)
            if isinstance(reply, jsonrpc.Item):
                if reply.id == self._id:  # else: of a call that was left early
                    self._check("read_item", reply.item)
                    yield reply.item
            elif reply.error is not None and reply.id in (self._id, None):
                raise reply.error
            elif reply.id == self._id:
                assert reply.result is not None
                self._check("read_result", reply.result)
                self._result = reply.result

    @property
    def result(self) -> JsonObject:
        """The result; waits for it, dropping items, if they were not all taken."""
        for _ in self:
            pass
        assert self._result is not None
        return self._result

    def _check(self, read: str, value: JsonObject) -> None:
        if self._client.checked and self._method is not None:
            getattr(self._method, read)(value)
