"""What a client is answered: one body, or events as they come (Server-Sent Events)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from blyand.http.refusal import Refusal
from blyand.http.request import Receive

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
DRAIN_S = 2.0  # for what a refused client still sends

# For every answer: nothing is cached, framed, sniffed, or told to other sites.
ALWAYS = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
)
Headers = Iterable[tuple[str, str]]


class Reply:
    """The answer to one request."""

    def __init__(
        self, send: Callable[[Any], Awaitable[None]], receive: Receive
    ) -> None:
        self.status: int | None = None  # once it has begun
        self._send = send
        self._receive = receive
        self._kind = JSON

    async def json(self, body: Any, status: int = 200, headers: Headers = ()) -> None:
        """Answer with one JSON value."""
        raw = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        await self.whole(raw, JSON, status, headers)

    async def whole(
        self, raw: bytes, kind: str, status: int = 200, headers: Headers = ()
    ) -> None:
        """Answer with one body."""
        await self._begin(kind, status, [*headers, ("content-length", str(len(raw)))])
        await self._body(raw, more=False)

    async def begin(self, kind: str, headers: Headers = ()) -> None:
        """Begin an answer of many pieces."""
        await self._begin(kind, 200, headers)

    async def event(self, value: Any) -> None:
        """Send one event, or one line where lines were begun."""
        text = (
            value
            if isinstance(value, str)
            else json.dumps(value, separators=(",", ":"), allow_nan=False)
        )
        framed = f"data: {text}\n\n" if self._kind == EVENTS else f"{text}\n"
        await self._body(framed.encode(), more=True)

    async def end(self) -> None:
        """Nothing follows."""
        await self._body(b"", more=False)

    async def refuse(self, refusal: Refusal) -> None:
        """Say why there is no answer, or no rest of it."""
        if self.status is None:
            await self.json(refusal.body(), refusal.status, refusal.headers)
            await self._drain()
            return
        if self._kind == EVENTS:
            await self.event(refusal.body())
        await self.end()

    async def _begin(self, kind: str, status: int, headers: Headers) -> None:
        self.status, self._kind = status, kind
        own = {name for name, _ in headers}
        every = [("content-type", kind), *headers]
        every += [(name, value) for name, value in ALWAYS if name not in own]
        raw = [(name.encode(), value.encode("latin-1")) for name, value in every]
        await self._send(
            {"type": "http.response.start", "status": status, "headers": raw}
        )

    async def _body(self, raw: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": raw, "more_body": more})

    async def _drain(self) -> None:
        """Read on for a while after a refusal: a client that still sends would not see it."""
        with trio.move_on_after(DRAIN_S):
            while (await self._receive())["type"] == "http.request":
                pass
