"""A canonical message read without its type: what a proved record holds, for people.

The records of executed state are the daemon's; a light client shows their fields in
order. Integers, texts, bytes (as hexadecimal), truth, nothing, and lists of these.
"""

from __future__ import annotations

from typing import Any

from blyan_proto.errors import DecodeError

MAX_DEPTH = 16

# code of the form -> (bytes of the length, kind)
_LONG = {
    **{0xC4 + n: (1 << n, "bytes") for n in range(3)},
    **{0xD9 + n: (1 << n, "text") for n in range(3)},
    **{0xDC + n: (2 << n, "list") for n in range(2)},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def read_untyped(raw: bytes) -> Any:
    """Return the one value that `raw` encodes, ready for JSON. DecodeError."""
    value, end = _value(raw, 0, 0)
    if end != len(raw):
        raise DecodeError("bytes after the end of a record")
    return value


def _value(raw: bytes, at: int, depth: int) -> tuple[Any, int]:
    code = _take(raw, at, 1)[0]
    at += 1
    if code < 0x80 or code >= 0xE0:
        return code if code < 0x80 else code - 256, at
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    if 0xCC <= code <= 0xD3:
        size = 1 << (code - 0xCC) % 4
        number = _take(raw, at, size)
        return int.from_bytes(number, "big", signed=code >= 0xD0), at + size
    if 0x90 <= code <= 0x9F:
        return _list(raw, at, code & 0x0F, depth)
    if 0xA0 <= code <= 0xBF:
        return _text(raw, at, code & 0x1F)
    if code not in _LONG:
        raise DecodeError(f"{code:#x} begins nothing that a record holds")
    size, kind = _LONG[code]
    count = int.from_bytes(_take(raw, at, size), "big")
    at += size
    if kind == "list":
        return _list(raw, at, count, depth)
    if kind == "text":
        return _text(raw, at, count)
    return _take(raw, at, count).hex(), at + count


def _take(raw: bytes, at: int, size: int) -> bytes:
    if at + size > len(raw):
        raise DecodeError("a record is cut off")
    return raw[at : at + size]


def _text(raw: bytes, at: int, size: int) -> tuple[str, int]:
    try:
        return _take(raw, at, size).decode(), at + size
    except UnicodeDecodeError as error:
        raise DecodeError("a text is not UTF-8") from error


def _list(raw: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    if depth == MAX_DEPTH:
        raise DecodeError("a record is nested too deep")
    items = []
    for _ in range(count):  # each item takes a byte at least
        item, at = _value(raw, at, depth + 1)
        items.append(item)
    return items, at
