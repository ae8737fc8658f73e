"""A gateway on loopback with a few routes, and clients that write raw bytes."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import trio

from blyand.http.app import App, Route
from blyand.http.door import Door
from blyand.http.place import Place
from blyand.http.server import Server, bound, url_of
from blyand.metrics import Metrics

TOKEN = "t" * 43


class World:
    """Routes that echo, wait and fail; what became of requests that waited."""

    def __init__(self, max_requests=8):
        self.place = Place(token=TOKEN)
        self.metrics = Metrics()
        self.waiting = 0
        self.cancelled = 0
        self.go_on = trio.Event()
        self.failure = RuntimeError("a bug")
        routes = {
            "/open": Route("GET", self.hello, is_open=True),
            "/echo": Route("POST", self.echo),
            "/wait": Route("POST", self.wait),
            "/flow": Route("POST", self.flow),
            "/late": Route("GET", self.late),
            "/fail": Route("POST", self.fail),
            "/part/*": Route("GET", self.hello),
        }
        self.app = App(
            Door(self.place, ("proxy.example",)), routes, max_requests, self.metrics
        )

    async def hello(self, request, reply):
        await reply.json({"path": request.path})

    async def echo(self, request, reply):
        await reply.json(await request.json())

    async def wait(self, request, reply):
        await request.json()
        self.waiting += 1
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        await reply.json({"waited": True})

    async def flow(self, request, reply):
        """Events without end."""
        await request.json()
        await reply.begin("text/event-stream")
        self.waiting += 1
        try:
            while True:
                await reply.event({"more": "x" * 10_000})
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def late(self, request, reply):
        """All of an answer, and its end only when the next request is here."""
        await reply._begin("text/plain", 200, [("content-length", "4")])
        await reply._body(b"late", more=True)
        await trio.sleep(0.05)
        await reply.end()

    async def fail(self, request, reply):
        raise self.failure


@asynccontextmanager
async def serving(world, max_connections=64):
    """Serve it on a free port; give the server."""
    sock = bound("127.0.0.1:0")
    world.place.url = url_of(sock)
    world.port = sock.getsockname()[1]
    server = world.server = Server(world.app, sock, max_connections)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()


class Answered:
    """A response, read to its end."""

    def __init__(self, raw):
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1]) if raw else None
        self.headers = dict(line.split(": ", 1) for line in lines[1:])

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


def head(world, method, path, body=b"", **headers):
    """Return the bytes of a request; a header given as None is left out."""
    named = {
        "host": f"127.0.0.1:{world.port}",
        "authorization": f"Bearer {TOKEN}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in named.items() if value is not None]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def connect(world):
    return await trio.open_tcp_stream("127.0.0.1", world.port)


async def read_all(stream):
    raw = b""
    try:
        while part := await stream.receive_some(65536):
            raw += part
    except trio.BrokenResourceError:
        pass
    return raw


async def ask(world, method="GET", path="/open", body=b"", **headers):
    """Send one request on a connection of its own; return the whole response."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    async with await connect(world) as stream:
        with trio.fail_after(20):
            await stream.send_all(head(world, method, path, body, **headers))
            return Answered(await read_all(stream))
