"""The application behind the gateway: finds the route, guards it, tells every failure.

The boundary where a stranger can reach a bug of ours: it is logged as BROKEN, and the
client is told no more than that.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import trio

from blyand.errors import Damaged, LocalFault
from blyand.http.door import Door
from blyand.http.refusal import BUSY_RETRY_S, Refusal, refusal_of
from blyand.http.reply import Reply
from blyand.http.request import Request
from blyand.log import broken
from blyand.metrics import Metrics

log = logging.getLogger(__name__)

Answer = Callable[[Request, Reply], Awaitable[None]]


@dataclass(frozen=True)
class Route:
    """How one path is answered. `is_open`: it needs no token, and is never refused."""

    method: str
    answer: Answer
    is_open: bool = False


class App:
    """An ASGI application."""

    def __init__(
        self,
        door: Door,
        routes: Mapping[str, Route],
        max_requests: int,
        metrics: Metrics,
    ) -> None:
        """`routes` by path; a path that ends in ``/*`` takes one more part."""
        self._door = door
        self._routes = routes
        self._max_requests = max_requests
        self._metrics = metrics
        self._under_way = 0
        self._fault: LocalFault | None = None
        self._failed = trio.Event()

    async def failed(self) -> NoReturn:
        """Wait for an answer to fail by this machine's fault, and raise that."""
        await self._failed.wait()
        assert self._fault is not None
        raise self._fault

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request; a LocalFault ends `failed`, once the client was told."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        reply = Reply(send, receive)
        began_s = trio.current_time()
        name = "other"
        try:
            request = Request(scope, receive)
            name, route = self._find(request.path)
            await self._answer(request, reply, route)
        except (Exception, BaseExceptionGroup) as error:
            await self._tell(reply, name, error)
        finally:
            self._count(name, reply, began_s)

    async def _answer(
        self, request: Request, reply: Reply, route: Route | None
    ) -> None:
        # Whoever may not come in learns nothing of what is here.
        self._door.check(request, needs_token=route is None or not route.is_open)
        if route is None:
            raise Refusal(404, f"there is no {request.path[:100]}", code="unknown_url")
        if request.method not in (route.method, "HEAD" if route.is_open else ""):
            allowed = (("allow", route.method),)
            text = f"{request.path[:100]} takes {route.method}"
            raise Refusal(405, text, code="method_not_allowed", headers=allowed)
        if route.is_open:
            await route.answer(request, reply)
            return
        if self._under_way >= self._max_requests:
            raise Refusal(
                429,
                f"{self._under_way} requests are under way; try again",
                code="busy",
                retry_s=BUSY_RETRY_S,
            )
        self._under_way += 1
        try:
            await route.answer(request, reply)
        finally:
            self._under_way -= 1

    def _find(self, path: str) -> tuple[str, Route | None]:
        """Return the name and route of a path."""
        if path in self._routes:
            return path, self._routes[path]
        many = path.rpartition("/")[0] + "/*"
        return (many, self._routes[many]) if many in self._routes else ("other", None)

    async def _tell(self, reply: Reply, name: str, error: BaseException) -> None:
        try:
            refusal = refusal_of(error)
        except LocalFault as fault:
            await self._tell_fault(reply, fault)
            return
        if refusal is None:
            broken(log, f"http {name}", error)
            text = "internal error; the daemon's log says more"
            refusal = Refusal(500, text, code="internal_error")
        await reply.refuse(refusal)

    async def _tell_fault(self, reply: Reply, fault: LocalFault) -> None:
        ends = "starts again" if isinstance(fault, Damaged) else "stops"
        text = f"{fault}; the daemon {ends}"
        try:
            await reply.refuse(Refusal(500, text, code="internal_error"))
        finally:  # whether or not the client waits for it
            self._fault = self._fault or fault
            self._failed.set()

    def _count(self, name: str, reply: Reply, began_s: float) -> None:
        status = str(reply.status or "none")
        self._metrics.counter("blyan_http_requests", path=name, status=status).add()
        seconds = trio.current_time() - began_s
        self._metrics.histogram("blyan_http_seconds", path=name).observe(seconds)
        self._metrics.gauge("blyan_http_requests_under_way").set(self._under_way)
