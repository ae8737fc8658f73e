"""The far ends of bench_transport: our host, plain TCP, a TLS stream, a slow road.

    python -m tests.bench.transport_ends serve | delay PORT SECONDS...

The first line of stdout is JSON: where it listens. It runs until stdin ends.
"""

from __future__ import annotations

import datetime
import json
import ssl
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from blyan_proto.signing import SigningKey
from blyand.net.answers import serve_calls
from blyand.net.calls import CallProtocol
from blyand.net.connections import PeerInfo
from blyand.net.host import HostSettings, open_host
from blyand.net.stream import MessageStream

ECHO, SINK = "/blyan/bench/echo/1", "/blyan/bench/sink/1"
CALL = CallProtocol("/blyan/bench/call/1", max_bytes=1 << 16, deadline_s=30.0)
MOST_BYTES = 8 << 20
WAIT_S = 600.0
_ON_THE_ROAD = 8192  # pieces of at most 64 KiB that a slow road holds


def settings(number: int) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32)


# Ours


async def echo(stream: MessageStream) -> None:
    while (body := await stream.receive_or_end(MOST_BYTES, WAIT_S)) is not None:
        await stream.send(body)


async def sink(stream: MessageStream) -> None:
    """Count what comes; an empty frame asks for the count."""
    count = 0
    while (body := await stream.receive_or_end(MOST_BYTES, WAIT_S)) is not None:
        count += len(body)
        if not body:
            await stream.send(count.to_bytes(8, "big"))


async def same(peer: str, body: bytes) -> bytes:
    return body


# The limits: the same conversation on bare streams of trio

Bare = trio.abc.Stream


async def read_exactly(stream: Bare, buffer: bytearray, size: int) -> bytes:
    while len(buffer) < size:
        received = await stream.receive_some(256 * 1024)
        if not received:
            raise EOFError
        buffer += received
    with memoryview(buffer) as view:
        taken = bytes(view[:size])
    del buffer[:size]
    return taken


async def read_frame(stream: Bare, buffer: bytearray) -> bytes:
    size = int.from_bytes(await read_exactly(stream, buffer, 4), "big")
    return await read_exactly(stream, buffer, size)


async def send_frame(stream: Bare, body: bytes) -> None:
    prefix = len(body).to_bytes(4, "big")
    if len(body) < 65_000:
        await stream.send_all(prefix + body)
    else:
        await stream.send_all(prefix)
        await stream.send_all(body)


async def serve_bare(stream: Bare) -> None:
    """Echo frames after an E; after an S, count them until an empty one."""
    buffer, count = bytearray(), 0
    try:
        async with stream:
            sinks = await read_exactly(stream, buffer, 1) == b"S"
            while True:
                body = await read_frame(stream, buffer)
                count += len(body)
                if not sinks:
                    await send_frame(stream, body)
                elif not body:
                    await send_frame(stream, count.to_bytes(8, "big"))
    except (EOFError, trio.BrokenResourceError):
        pass


def certificate() -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    ).sign(key, hashes.SHA256())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        pem = serialization.Encoding.PEM
        Path(file.name).write_bytes(
            key.private_bytes(
                pem,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + made.public_bytes(pem)
        )
        context.load_cert_chain(file.name)
    return context


async def listen(
    nursery: trio.Nursery, serve: Callable[[trio.SocketStream], Awaitable[None]]
) -> int:
    """Serve TCP on a free port of loopback and return it."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    return int(listener.socket.getsockname()[1])


async def serve() -> None:
    async with open_host(settings(1)) as host, trio.open_nursery() as nursery:

        async def admit(info: PeerInfo) -> None:
            host.admit(info.peer_id)

        host.on_connected(admit)
        host.handle(ECHO, echo, deadline_s=None, concurrency=64)
        host.handle(SINK, sink, deadline_s=None, bulk=True)
        host.handle(CALL.id, serve_calls(CALL, bytes, same), deadline_s=None)
        context = certificate()

        async def serve_tls(stream: trio.SocketStream) -> None:
            await serve_bare(trio.SSLStream(stream, context, server_side=True))

        ports = {
            "ours": host.addresses[0],
            "tcp": await listen(nursery, serve_bare),
            "tls": await listen(nursery, serve_tls),
        }
        print(json.dumps(ports), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


# The slow road


async def carry(source: Bare, target: Bare, delay_s: float) -> None:
    """Hand bytes on, each `delay_s` after it came."""
    put, take = trio.open_memory_channel[tuple[float, bytes]](_ON_THE_ROAD)

    async def arrive() -> None:
        async with put:
            while received := await source.receive_some(64 * 1024):
                await put.send((trio.current_time() + delay_s, bytes(received)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrive)
        async for due, body in take:
            await trio.sleep_until(due)
            await target.send_all(body)


async def forward(near: trio.SocketStream, *, port: int, delay_s: float) -> None:
    far = await trio.open_tcp_stream("127.0.0.1", port)
    async with near, far, trio.open_nursery() as nursery:

        async def one_way(source: Bare, target: Bare) -> None:
            try:
                await carry(source, target, delay_s)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(one_way, near, far)
        nursery.start_soon(one_way, far, near)


async def delay(port: int, round_trips: list[float]) -> None:
    async with trio.open_nursery() as nursery:
        ports = [
            await listen(nursery, partial(forward, port=port, delay_s=seconds / 2))
            for seconds in round_trips
        ]
        print(json.dumps(ports), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


def main() -> None:
    if sys.argv[1] == "serve":
        trio.run(serve)
    else:
        trio.run(delay, int(sys.argv[2]), [float(text) for text in sys.argv[3:]])


if __name__ == "__main__":
    main()
