"""A strict decoder and encoder of canonical MessagePack, driven by the pages' tables."""

from __future__ import annotations

from typing import Any

from tests.documents import tables

PAGES = (
    "block-format.md",
    "consensus.md",
    *(
        f"protocols/{name}.md"
        for name in "hello blocks sync blobs delta edge votes audit".split()
    ),
)
SIZES = {
    "Hash": 32,
    "BlockId": 32,
    "CheckpointId": 32,
    "BlobId": 32,
    "Account": 20,
    "PublicKey": 33,
    "Signature": 64,
}
TEXTS = {"Name": (1, 128), "Text": (0, 512)}


class Malformed(ValueError):
    """Bytes that the page does not allow."""


def schema() -> dict[str, list[tuple[str, str, str]]]:
    """Return record -> (field, type, meaning) as the pages say.

    A member of a choice has its code as a first field without a name.
    """
    found: dict[str, list[tuple[str, str, str]]] = {}
    for page in PAGES:
        for head, *rows in tables(page):
            if "type" not in head:
                continue
            at = 1 if head[0] == "code" else 0
            if head[at][:1].isupper():
                kind = head.index("type")
                code = [("", f"code {rows[0][0]}", "")] if at else []
                fields = [(row[at], row[kind], row[-1]) for row in rows]
                found[head[at]] = code + fields
    return found


SCHEMA = schema()


def decode(kind: str, raw: bytes) -> Any:
    """Return a value of a documented type; records as dicts. Malformed."""
    value, end = _value(kind, raw, 0, is_whole=True)
    if end != len(raw):
        raise Malformed("bytes after the end")
    if encode(kind, value, is_whole=True) != raw:
        raise Malformed("not the canonical encoding")
    return value


def _fields(kind: str, is_whole: bool) -> list[tuple[str, str, str]]:
    """Return a record's fields. Inside of others a member of a choice has no code."""
    return [field for field in SCHEMA[kind] if is_whole or field[0]]


def _value(kind: str, raw: bytes, at: int, is_whole: bool = False) -> tuple[Any, int]:
    if kind.endswith("?"):
        if raw[at : at + 1] == b"\xc0":
            return None, at + 1
        return _value(kind[:-1], raw, at)
    if kind in SCHEMA:
        count, at = _head(raw, at, "array")
        fields = _fields(kind, is_whole)
        if count != len(fields):
            raise Malformed(f"{kind} has {len(fields)} fields")
        record = {}
        for name, of, _ in fields:
            record[name], at = _value(of, raw, at)
        return record, at
    if kind.startswith("["):
        of, low, high = _array(kind)
        count, at = _head(raw, at, "array")
        _within(count, low, high)
        items = []
        for _ in range(count):
            item, at = _value(of, raw, at)
            items.append(item)
        return items, at
    if kind == "bool":
        if raw[at] not in (0xC2, 0xC3):
            raise Malformed("not a bool")
        return raw[at] == 0xC3, at + 1
    bounds = _bytes(kind)
    if bounds or _text(kind):
        low, high = bounds or _text(kind)
        length, at = _head(raw, at, "bin" if bounds else "str")
        if bounds:
            _within(length, low, high)
        chunk = raw[at : at + length]
        if len(chunk) < length:
            raise Malformed("cut off")
        if not bounds:
            _within(len(chunk), low, high)
        return (chunk if bounds else chunk.decode()), at + length
    number, at = _integer(raw, at)
    low, high = _integers(kind)
    _within(number, low, high)
    return number, at


def _within(number: int, low: int, high: int) -> None:
    if not low <= number <= high:
        raise Malformed(f"{number} is outside {low} … {high}")


def _integers(kind: str) -> tuple[int, int]:
    if kind == "I64":
        return -(2**63), 2**63 - 1
    if kind.startswith("code "):
        return int(kind.removeprefix("code ")), int(kind.removeprefix("code "))
    if " of " in kind:
        return _span(kind.partition(" of ")[2])
    bits = (
        int(kind[1:]) if kind[:1] == "U" and kind[1:].isdigit() else 8
    )  # an enumeration
    return 0, 2**bits - 1


def _array(kind: str) -> tuple[str, int, int]:
    of, _, span = kind[1:-1].rpartition("; ")
    return of, *_span(span)


def _span(text: str) -> tuple[int, int]:
    low, _, high = text.replace(",", "").replace(" ", "").partition("…")
    return int(low), int(high or low)


def _bytes(kind: str) -> tuple[int, int] | None:
    if kind in SIZES:
        return SIZES[kind], SIZES[kind]
    if kind == "Bitmap":
        return 0, 8192
    if kind.startswith("bytes of "):
        return _span(kind.removeprefix("bytes of "))
    if kind.endswith(" bytes"):
        return _span(kind.removesuffix(" bytes"))
    return None


def _text(kind: str) -> tuple[int, int] | None:
    if kind.startswith("text of "):
        return _span(kind.removeprefix("text of "))
    return TEXTS.get(kind)


# code of the form -> (bytes of the length, kind)
LENGTHS = {0xC4: (1, "bin"), 0xC5: (2, "bin"), 0xC6: (4, "bin")}
LENGTHS |= {0xD9: (1, "str"), 0xDA: (2, "str"), 0xDB: (4, "str")}
LENGTHS |= {0xDC: (2, "array"), 0xDD: (4, "array")}
SHORT = {"str": (0xA0, 31), "array": (0x90, 15)}


def _head(raw: bytes, at: int, kind: str) -> tuple[int, int]:
    """Return a length and where what it counts begins."""
    code = raw[at] if at < len(raw) else -1
    base, most = SHORT.get(kind, (0x200, 0))
    if base <= code <= base + most:
        return code - base, at + 1
    size, found = LENGTHS.get(code, (0, ""))
    if found != kind:
        raise Malformed(f"{code:#x} begins no {kind}")
    return int.from_bytes(raw[at + 1 : at + 1 + size], "big"), at + 1 + size


def _integer(raw: bytes, at: int) -> tuple[int, int]:
    code = raw[at] if at < len(raw) else -1
    if 0 <= code < 0x80:
        return code, at + 1
    if code >= 0xE0:
        return code - 0x100, at + 1
    if 0xCC <= code <= 0xD3:
        size = 1 << (code - 0xCC) % 4
        chunk = raw[at + 1 : at + 1 + size]
        return int.from_bytes(chunk, "big", signed=code >= 0xD0), at + 1 + size
    raise Malformed(f"{code:#x} begins no integer")


def encode(kind: str, value: Any, is_whole: bool = False) -> bytes:
    """Return the one canonical encoding of a value."""
    if kind.endswith("?"):
        return b"\xc0" if value is None else encode(kind[:-1], value)
    if kind in SCHEMA:
        fields = _fields(kind, is_whole)
        parts = [encode(of, value[name]) for name, of, _ in fields]
        return _length("array", len(fields)) + b"".join(parts)
    if kind.startswith("["):
        of = _array(kind)[0]
        return _length("array", len(value)) + b"".join(encode(of, v) for v in value)
    if kind == "bool":
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, bytes):
        return _length("bin", len(value)) + value
    if isinstance(value, str):
        return _length("str", len(value.encode())) + value.encode()
    return _shortest(value)


def _length(kind: str, count: int) -> bytes:
    base, most = SHORT.get(kind, (0, -1))
    if count <= most:
        return bytes([base + count])
    for code, (size, of) in LENGTHS.items():
        if of == kind and count < 256**size:
            return bytes([code]) + count.to_bytes(size, "big")
    raise ValueError(count)


def _shortest(number: int) -> bytes:
    if -32 <= number < 128:
        return number.to_bytes(1, "big", signed=number < 0)
    for place in range(4):
        size = 1 << place
        if number >= 0 and number < 256**size:
            return bytes([0xCC + place]) + number.to_bytes(size, "big")
        if number < 0 and number >= -(256**size) // 2:
            return bytes([0xD0 + place]) + number.to_bytes(size, "big", signed=True)
    raise ValueError(number)
