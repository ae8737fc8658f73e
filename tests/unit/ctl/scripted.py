"""A daemon that says what a test tells it to: one thread, one Unix socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.spec import SOCKET_NAME

# Takes a request, gives the envelopes to send back; None hangs up.
Script = Callable[[dict[str, Any]], list[Any] | None]


class Scripted:
    """The requests that came, in order."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []


@contextmanager
def scripted(home: Path, script: Script) -> Iterator[Scripted]:
    """Answer at the home's socket, one connection after the other."""
    seen = Scripted()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / SOCKET_NAME))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, script, seen))
        thread.start()
        try:
            yield seen
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, script: Script, seen: Scripted) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                seen.requests.append(request)
                replies = script(request)
                if replies is None:
                    break
                try:
                    for reply in replies:
                        raw = reply if isinstance(reply, bytes) else jsonrpc.line(reply)
                        connection.sendall(raw)
                except BrokenPipeError:
                    break
