"""A wire with a delay between real daemons on one machine.

Before every node stands a proxy that hands each byte on `one_way_s` after it came, both
ways, however many there are: a round trip costs twice that, and bandwidth nothing. The
nodes announce their proxies' addresses, so that nobody dials past them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blyanctl import devnet
from tests.functional.harness import Network, wait_for

CHUNK_BYTES = 1 << 18
AHEAD = 4096  # chunks on the wire of one direction


class Wire:
    """Proxies on loopback, in a thread of their own."""

    def __init__(self, one_way_s: float) -> None:
        self.one_way_s = one_way_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    def before(self, port: int) -> int:
        """Return the port of a new proxy before `port`."""
        made = asyncio.run_coroutine_threadsafe(self._open(port), self._loop)
        return made.result(10)

    def close(self) -> None:
        """End all connections and the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _open(self, port: int) -> int:
        async def carry(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            there = await asyncio.open_connection("127.0.0.1", port)
            for source, sink in ((reader, there[1]), (there[0], writer)):
                task = asyncio.create_task(self._pump(source, sink))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(carry, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self._servers.append(server)
        own: int = server.sockets[0].getsockname()[1]
        return own

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        wire: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(AHEAD)

        async def arrive() -> None:
            while True:
                when, data = await wire.get()
                await asyncio.sleep(when - self._loop.time())
                if not data:
                    break
                sink.write(data)
                await sink.drain()
            sink.close()

        arriving = asyncio.create_task(arrive())
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                await wire.put((self._loop.time() + self.one_way_s, data))
        await wire.put((self._loop.time() + self.one_way_s, b""))
        with suppress(OSError):
            await arriving


@contextmanager
def delayed(network: Network, one_way_s: float) -> Iterator[Wire]:
    """Start the nodes of a network again with a delaying wire before each.

    Its delay may be changed while it is there.
    """
    wire = Wire(one_way_s)
    devnet.down(network.directory)
    ports = {node.name: _free_port() for node in network.nodes}  # not those in books
    (network.directory / devnet.STATE).write_text(json.dumps({"ports": ports}))
    for node in network.nodes:
        front = wire.before(ports[node.name])
        announce = f'announce = ["/ip4/127.0.0.1/tcp/{front}"]'
        _write(node.home / "config.toml", "# announce = []", announce)
    try:
        for node in network.nodes:
            node.start()
        for node in network.nodes:
            wait_for(
                lambda: node.status()["peers"] >= len(network.nodes) - 1, "a full mesh"
            )
        yield wire
    finally:
        wire.close()


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


def _write(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text, f"{path} has no line {before!r}"
    path.write_text(text.replace(before, after))
