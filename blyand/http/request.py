"""What a client asked, read within bounds: head at once, body when somebody wants it."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import trio

from blyand.http.refusal import Refusal

MAX_BODY_BYTES = 1024 * 1024
BODY_S = 20.0  # for a whole body to arrive

Receive = Callable[[], Awaitable[Any]]
ONCE = frozenset({"host", "origin", "authorization", "content-type", "content-length"})


class Request:
    """One request. `headers` are by lower-case name; text is latin-1."""

    def __init__(self, scope: Any, receive: Receive) -> None:
        """Refusal when a header that decides something is given twice."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.server: tuple[str, int] = tuple(scope["server"][:2])
        self.headers: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = raw.decode("latin-1").lower()
            if name in self.headers and name in ONCE:
                raise Refusal(400, f"the request has two headers {name}")
            self.headers[name] = value.decode("latin-1").strip()
        self._receive = receive

    async def body(self) -> bytes:
        """Return the whole body. Refusal 413 above the limit, 408 when it is too slow."""
        too_long = Refusal(
            413, f"the body is above {MAX_BODY_BYTES} bytes", code="body_too_long"
        )
        length = self.headers.get("content-length", "0")
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:  # h11 checked the digits
            raise too_long
        parts, size = [], 0
        with trio.move_on_after(BODY_S):
            while True:
                event = await self._receive()
                if event["type"] != "http.request":
                    raise Refusal(400, "the body ends before it is complete")
                size += len(event.get("body", b""))
                if size > MAX_BODY_BYTES:
                    raise too_long
                parts.append(event.get("body", b""))
                if not event.get("more_body"):
                    return b"".join(parts)
        raise Refusal(408, f"the body was not here after {BODY_S:g} s")

    async def json(self) -> dict[str, Any]:
        """Return the JSON object of the body. Refusal 400, 408, 413, 415."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "send content-type: application/json", code="media_type")
        value = loads(await self.body())
        if not isinstance(value, dict):
            raise Refusal(400, "the body is not a JSON object", code="invalid_json")
        return value


def loads(raw: bytes) -> Any:
    """Return the value that JSON text spells. Refusal 400.

    NaN and infinities, numbers of thousands of digits, text that is not Unicode, and
    nesting without end are refused.
    """
    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=_no_constant)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a character in it?
        return value
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeEncodeError:
        reason = "it escapes half a character"
    except ValueError as error:
        reason = str(error)
    raise Refusal(400, f"the body is not JSON: {reason}", code="invalid_json")


_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
