"""/rpc, /metrics, /health and /ready: the node itself, for programs that speak HTTP.

/rpc carries the same JSON-RPC as the control socket, one request or batch in each POST,
but only methods that are declared public (DEC-C3). A streaming method answers in lines:
its items as on the socket, the result last.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.errors import NOT_PUBLIC, REPLY_TOO_LONG, RpcError
from blyan_proto.rpc.jsonrpc import Batch, Malformed
from blyan_proto.rpc.jsonrpc import Request as Asked
from blyan_proto.rpc.spec import Method
from blyan_proto.rpc.values import JsonObject
from blyand.http.refusal import Refusal
from blyand.http.reply import JSON, LINES, Reply
from blyand.http.request import Request

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Emit = Callable[[JsonObject], Awaitable[None]]
Dispatch = Callable[[Asked, Emit], Awaitable[JsonObject]]


class Control:
    """Answers about the node. `troubles` says why no prompt can be answered now."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        dispatch: Dispatch,
        troubles: Callable[[], Sequence[str]],
    ) -> None:
        self._methods = methods
        self._dispatch = dispatch
        self._troubles = troubles

    async def health(self, request: Request, reply: Reply) -> None:
        """The daemon runs and its loop turns."""
        await reply.json({"status": "ok"})

    async def ready(self, request: Request, reply: Reply) -> None:
        """A prompt could be answered; 503 says why not."""
        troubles = list(self._troubles())
        body = {"status": "not ready" if troubles else "ready", "reasons": troubles}
        await reply.json(body, 503 if troubles else 200)

    async def metrics(self, request: Request, reply: Reply) -> None:
        """Every metric, as Prometheus reads it."""
        asked = Asked(None, "node.metrics", {})
        text = (await self._dispatch(asked, _no_item))["text"]
        await reply.whole(text.encode(), PROMETHEUS)

    async def rpc(self, request: Request, reply: Reply) -> None:
        """Answer one JSON-RPC request or batch."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise Refusal(415, "send content-type: application/json", code="media_type")
        asked = jsonrpc.parse_requests(await request.body())
        if isinstance(asked, Batch):
            await self._answer_all(asked, reply)
            return
        if isinstance(asked, Asked) and not asked.notification:
            method = self._methods.get(asked.method)
            if method is not None and method.streams is not None:
                await self._stream(asked, reply)
                return
        line = await self._answer(asked, jsonrpc.MAX_REPLY_BYTES, _no_item)
        await reply.whole(line, JSON, 200 if line else 204)

    async def _answer_all(self, batch: Batch, reply: Reply) -> None:
        lines: list[bytes] = []
        room = jsonrpc.MAX_REPLY_BYTES
        for one in batch.items:
            line = await self._answer(one, room, _no_item)
            room = max(0, room - len(line))
            if line:
                lines.append(line)
        body = b"[" + b",".join(lines) + b"]" if lines else b""
        await reply.whole(body, JSON, 200 if lines else 204)

    async def _stream(self, asked: Asked, reply: Reply) -> None:
        async def emit(item: JsonObject) -> None:
            if reply.status is None:
                await reply.begin(LINES)
            await reply.event(jsonrpc.item(asked.id, item))

        line = await self._answer(asked, jsonrpc.MAX_REPLY_BYTES, emit)
        if reply.status is None:
            await reply.whole(line, JSON)
            return
        await reply.event(line.decode())
        await reply.end()

    async def _answer(self, asked: Asked | Malformed, room: int, emit: Emit) -> bytes:
        """Return the reply to one request as JSON, empty for a notification."""
        if isinstance(asked, Malformed):
            return _json(jsonrpc.failure(asked.id, asked.error))
        try:
            method = self._methods.get(asked.method)
            if method is not None and not method.public:
                text = f"{method.name} is answered at the control socket only"
                raise RpcError(NOT_PUBLIC, text)
            line = _json(jsonrpc.result(asked.id, await self._dispatch(asked, emit)))
            if len(line) > room:
                text = f"the result has {len(line)} bytes; ask for less at once"
                raise RpcError(REPLY_TOO_LONG, text)
        except RpcError as error:
            line = _json(jsonrpc.failure(asked.id, error))
        return b"" if asked.notification else line


async def _no_item(item: JsonObject) -> None:
    """Items of a batch, and of who wants no answer, go nowhere."""


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
