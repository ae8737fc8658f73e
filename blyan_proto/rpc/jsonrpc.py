"""JSON-RPC 2.0 envelopes, one JSON value per line, sans-I/O. CARD-02.

A request without `id` is a notification and gets no reply. A streaming method sends
notifications ``{"method": "stream", "params": {"id": …, "item": {…}}}`` that carry the
request's id, then one result. Params go by name only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from blyan_proto.errors import LimitExceeded
from blyan_proto.rpc.errors import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorCode,
    RpcError,
)
from blyan_proto.rpc.values import JsonObject

MAX_LINE_BYTES = 1024 * 1024  # of a request, newline not counted
MAX_REPLY_BYTES = 16 * 1024 * 1024  # of a reply, or of all replies to one batch
MAX_BATCH = 100  # requests in one array
MAX_ID_CHARACTERS = 128  # an id is repeated in every notification of a stream

RequestId = str | int | None


@dataclass(frozen=True)
class Request:
    """A well-formed request; `id` means nothing in a notification."""

    id: RequestId
    method: str
    params: JsonObject
    notification: bool = False


@dataclass(frozen=True)
class Malformed:
    """What could not be read as a request, and the error to answer."""

    id: RequestId
    error: RpcError


@dataclass(frozen=True)
class Batch:
    """Several requests in one line, answered by one line."""

    items: tuple[Request | Malformed, ...]


@dataclass(frozen=True)
class Reply:
    """The end of a call: a result or an error."""

    id: RequestId
    result: JsonObject | None
    error: RpcError | None


@dataclass(frozen=True)
class Item:
    """One streamed item of the call `id`."""

    id: RequestId
    item: JsonObject


class LineReader:
    """Collects received bytes and gives back whole lines without their newline."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0  # no newline before here

    def feed(self, received: bytes) -> None:
        """Add received bytes; the caller takes every whole line before the next feed."""
        self._buffer += received

    def take(self) -> bytes | None:
        """Return the next line, or None when more bytes are needed.

        LimitExceeded as soon as a line is known to be above the limit.
        """
        end = self._buffer.find(b"\n", self._searched)
        if (end if end >= 0 else len(self._buffer)) > self._limit:
            raise LimitExceeded(f"a line above {self._limit} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line


def line(value: Any) -> bytes:
    """Return one JSON value as a line. ValueError for a number that is not finite."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def request(id: RequestId, method: str, params: JsonObject) -> JsonObject:
    """Return the envelope of a request."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def result(id: RequestId, value: JsonObject) -> JsonObject:
    """Return the envelope of a result."""
    return {"jsonrpc": "2.0", "id": id, "result": value}


def failure(id: RequestId, error: RpcError) -> JsonObject:
    """Return the envelope of an error."""
    return {"jsonrpc": "2.0", "id": id, "error": error.to_json()}


def item(id: RequestId, value: JsonObject) -> JsonObject:
    """Return the notification that carries one streamed item."""
    return {"jsonrpc": "2.0", "method": "stream", "params": {"id": id, "item": value}}


def parse_requests(raw: bytes) -> Request | Malformed | Batch:
    """Read one line from a client. Never raises for what the line says."""
    try:
        value = _loads(raw)
    except ValueError as error:
        return Malformed(None, RpcError(PARSE_ERROR, f"not JSON: {error}"))
    if not isinstance(value, list):
        return _request(value)
    if not value:
        return _malformed(None, INVALID_REQUEST, "the batch is empty")
    if len(value) > MAX_BATCH:
        text = f"{len(value)} requests in a batch, at most {MAX_BATCH}"
        return _malformed(None, INVALID_REQUEST, text)
    return Batch(tuple(_request(entry) for entry in value))


def parse_reply(raw: bytes) -> Reply | Item | list[Reply]:
    """Read one line from a daemon. ValueError when it is not a reply."""
    value = _loads(raw)
    if isinstance(value, list):
        replies = [_reply(entry) for entry in value]
        return [reply for reply in replies if isinstance(reply, Reply)]
    return _reply(value)


def _loads(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _malformed(id: RequestId, code: ErrorCode, text: str) -> Malformed:
    return Malformed(id, RpcError(code, text))


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_ID_CHARACTERS
    return value is None or (type(value) is int and -(2**63) <= value < 2**64)


def _request(value: Any) -> Request | Malformed:
    if not isinstance(value, dict):
        return _malformed(None, INVALID_REQUEST, "a request is an object")
    id = value.get("id")
    if not _is_id(id):
        text = f"an id is null, an integer or text of {MAX_ID_CHARACTERS} characters"
        return _malformed(None, INVALID_REQUEST, text)
    if value.get("jsonrpc") != "2.0":
        return _malformed(id, INVALID_REQUEST, 'a request says "jsonrpc": "2.0"')
    if extra := value.keys() - {"jsonrpc", "id", "method", "params"}:
        return _malformed(id, INVALID_REQUEST, f"a request has no {min(extra)!r}")
    method, params = value.get("method"), value.get("params")
    if not isinstance(method, str):
        return _malformed(id, INVALID_REQUEST, "a request names its method as text")
    if isinstance(params, list):
        return _malformed(id, INVALID_PARAMS, "params go by name, in an object")
    if params is not None and not isinstance(params, dict):
        return _malformed(id, INVALID_REQUEST, "params are an object")
    return Request(id, method, params or {}, notification="id" not in value)


def _reply(value: Any) -> Reply | Item:
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise ValueError("not a JSON-RPC 2.0 reply")
    params = value.get("params")
    if value.get("method") == "stream" and isinstance(params, dict):
        if not isinstance(params.get("item"), dict):
            raise ValueError("a stream notification without an item")
        return Item(params.get("id"), params["item"])
    id = value.get("id")
    if isinstance(value.get("result"), dict):
        return Reply(id, value["result"], None)
    error = value.get("error")
    if not isinstance(error, dict) or type(error.get("code")) is not int:
        raise ValueError("a reply has neither result nor error")
    failed = RpcError(error["code"], str(error.get("message")), error.get("data"))
    return Reply(id, None, failed)
