"""The Go implementation of libp2p, as the daemon `p2pd`, driven over its control socket.

The daemon is the one of hivemind's wheel: `make foreign` fetches it, or BLYAN_P2PD
names it. Messages on the socket are protobuf behind a varint; we need five of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from blyan_proto.signing import SigningKey
from blyand.net.identity import parse_peer_id, peer_id_of

FETCHED = Path(__file__).parents[2] / "build" / "foreign" / "p2pd"
IDENTIFY, CONNECT, STREAM_OPEN, STREAM_HANDLER = 0, 1, 2, 3  # kinds of requests
_READY_S = 10.0

Value = int | bytes | str


def p2pd_path() -> str | None:
    """Return where the daemon lies, or None."""
    return shutil.which(os.environ.get("BLYAN_P2PD") or FETCHED)


def varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def fields(*pairs: tuple[int, Value]) -> bytes:
    """Return a protobuf message of (number, value) pairs."""
    made = b""
    for number, value in pairs:
        if isinstance(value, int):
            made += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            made += varint(number << 3 | 2) + varint(len(raw)) + raw
    return made


def read_fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the (number, value) pairs of a protobuf message."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = raw[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(raw):
        tag = number()
        if tag & 7 == 0:
            yield tag >> 3, number()
        else:
            assert tag & 7 == 2, "a kind of field that the daemon does not use"
            size = number()
            yield tag >> 3, raw[place : place + size]
            place += size


class Pipe:
    """A socket of the daemon's: first messages, then the bytes of one stream."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket
        self._buffer = bytearray()

    async def send(self, raw: bytes) -> None:
        await self._socket.send_all(raw)

    async def finish(self) -> None:
        await self._socket.send_eof()

    async def read(self, size: int) -> bytes:
        """Return exactly `size` bytes. EOFError."""
        while len(self._buffer) < size:
            received = await self._socket.receive_some()
            if not received:
                raise EOFError(f"{size} bytes wanted, {bytes(self._buffer)!r} came")
            self._buffer += received
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def read_frame(self) -> bytes:
        """Return the next frame, as our protocols have them."""
        return await self.read(int.from_bytes(await self.read(4), "big"))

    async def read_message(self) -> dict[int, list[int | bytes]]:
        """Return the next message behind a varint: its values by number."""
        size = shift = 0
        while True:
            (byte,) = await self.read(1)
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        found: dict[int, list[int | bytes]] = {}
        for number, value in read_fields(await self.read(size)):
            found.setdefault(number, []).append(value)
        return found

    async def aclose(self) -> None:
        await self._socket.aclose()


class P2pd:
    """A running daemon. Made by `run_p2pd`."""

    def __init__(self, directory: Path, key: SigningKey) -> None:
        self.directory = directory
        self.peer_id = peer_id_of(key.public)

    async def _ask(self, *request: tuple[int, Value]) -> tuple[Pipe, dict]:
        pipe = Pipe(await trio.open_unix_socket(self.directory / "control"))
        body = fields(*request)
        await pipe.send(varint(len(body)) + body)
        answer = await pipe.read_message()
        assert answer[1] == [0], f"the daemon answers {answer}"
        return pipe, answer

    async def address(self) -> str:
        """Return where the daemon listens, with TCP on IPv4."""
        pipe, answer = await self._ask((1, IDENTIFY))
        await pipe.aclose()
        identity = dict(read_fields(answer[4][0]))[1]
        assert identity == parse_peer_id(self.peer_id).to_bytes(), "our key is its own"
        for number, raw in read_fields(answer[4][0]):
            if number == 2 and len(raw) == 8 and (raw[0], raw[5]) == (4, 6):
                ip = ".".join(map(str, raw[1:5]))
                port = int.from_bytes(raw[6:8], "big")
                return f"/ip4/{ip}/tcp/{port}/p2p/{self.peer_id}"
        raise AssertionError("the daemon listens on no TCP address")

    async def connect(self, address: str) -> None:
        """Connect to ``/ip4/…/tcp/…/p2p/…``."""
        _, _, ip, _, port, _, peer = address.split("/")
        raw = bytes([4, *map(int, ip.split("."))])
        raw += bytes([6]) + int(port).to_bytes(2, "big")
        identity = parse_peer_id(peer).to_bytes()
        asked = fields((1, identity), (2, raw), (3, 5))
        pipe, _ = await self._ask((1, CONNECT), (2, asked))
        await pipe.aclose()

    async def open(self, peer: str, protocol: str) -> Pipe:
        """Open a stream; the pipe carries its bytes."""
        asked = fields((1, parse_peer_id(peer).to_bytes()), (2, protocol), (3, 5))
        pipe, _ = await self._ask((1, STREAM_OPEN), (3, asked))
        return pipe

    async def serve_echo(self, protocol: str, nursery: trio.Nursery) -> None:
        """Send back what comes on streams of a protocol, until their end."""
        path = self.directory / "echo"
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(path))
        listener.listen()

        async def echo(socket: trio.SocketStream) -> None:
            pipe = Pipe(socket)
            await pipe.read_message()  # whose stream it is
            async with socket:
                while received := bytes(pipe._buffer) or await socket.receive_some():
                    pipe._buffer.clear()
                    await socket.send_all(received)

        nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(listener)])
        place = b"\x90\x03" + varint(len(str(path))) + str(path).encode()  # /unix/…
        pipe, _ = await self._ask(
            (1, STREAM_HANDLER), (4, fields((1, place), (2, protocol), (3, 0)))
        )
        await pipe.aclose()


@asynccontextmanager
async def run_p2pd(
    directory: Path, key: SigningKey, security: str
) -> AsyncIterator[P2pd]:
    """Run a daemon with a secp256k1 key; `security` is "tls" or "noise", and no other."""
    path = p2pd_path()
    assert path is not None
    identity = directory / "key"
    identity.write_bytes(fields((1, 2), (2, key.secret)))  # kind 2 is secp256k1
    options = dict.fromkeys(("relay", "relayService", "relayDiscovery"), "false")
    options |= {"tls": "false", "noise": "false"} | {security: "true"}
    options |= {
        "id": str(identity),
        "listen": f"/unix{directory / 'control'}",
        "hostAddrs": "/ip4/127.0.0.1/tcp/0",
    }
    command = [path, *(f"-{name}={value}" for name, value in options.items())]
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said = b""
        with trio.fail_after(_READY_S):
            while b"ontrol socket" not in said:
                received = await process.stdout.receive_some()
                assert received, f"the daemon ended: {said.decode()}"
                said += received
        yield P2pd(directory, key)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
