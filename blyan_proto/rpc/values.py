"""JSON values <-> typed values: text, numbers, hexadecimal bytes, lists.

Reading is strict: a wrong type or a value out of bounds is refused with a sentence
that says where. Standard library only, so that the CLI starts fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

JsonObject = dict[str, Any]


class Mismatch(ValueError):
    """A JSON value does not fit its declaration."""


@dataclass(frozen=True)
class HexBytes:
    """Marks bytes that travel as hexadecimal text; `length` in bytes, None for any."""

    length: int | None = None


Hex = Annotated[bytes, HexBytes()]
Id = Annotated[bytes, HexBytes(32)]  # a block, checkpoint, root: blake3-256
Address = Annotated[bytes, HexBytes(20)]  # an account
Key = Annotated[bytes, HexBytes(33)]  # a compressed public key


@dataclass(frozen=True)
class Shape:
    """How one type reads from JSON and writes to it."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    schema: JsonObject
    words: str  # for people: "list of text"
    record: type | None = None  # the record in it, if any


def _exact(kind: type, words: str, schema: str) -> Shape:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise Mismatch(f"expected {words}")
        return value

    return Shape(check, check, {"type": schema}, words)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Mismatch("expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Mismatch("expected text of Unicode scalar values") from error
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise Mismatch("expected an integer")
    if not -(2**63) <= value < 2**64:
        raise Mismatch("expected an integer of 64 bits")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Mismatch("expected a number")
    try:
        number = float(value)
    except OverflowError as error:
        raise Mismatch("expected a finite number") from error
    if not math.isfinite(number):
        raise Mismatch("expected a finite number")
    return number


def hexadecimal(bound: HexBytes) -> Shape:
    length = bound.length
    words = "hex" if length is None else f"hex of {length} bytes"

    def check(value: Any) -> bytes:
        if type(value) is not bytes or length not in (None, len(value)):
            raise Mismatch(f"expected {words}")
        return value

    def read(value: Any) -> bytes:
        try:
            # fromhex forgives spaces; one value has one spelling
            if type(value) is not str or bytes.fromhex(value).hex() != value.lower():
                raise ValueError
        except ValueError:
            raise Mismatch(f"expected {words}") from None
        return check(bytes.fromhex(value))

    digits = "*" if length is None else f"{{{2 * length}}}"
    schema = {"type": "string", "pattern": f"^[0-9a-fA-F]{digits}$"}
    return Shape(read, lambda value: check(value).hex(), schema, words)


def _json(value: Any) -> Any:
    """Check a free JSON value; only the encoder of the reply bounds its size."""
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {_text(key): _json(item) for key, item in value.items()}
    if isinstance(value, float):
        return _number(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise Mismatch("expected a JSON value")


def _json_object(value: Any) -> JsonObject:
    if not isinstance(value, dict):
        raise Mismatch("expected an object")
    checked: JsonObject = _json(value)
    return checked


def optional(inner: Shape) -> Shape:
    kind = inner.schema.get("type")
    schema: JsonObject = (
        {**inner.schema, "type": [kind, "null"]}
        if isinstance(kind, str) and "properties" not in inner.schema
        else {"anyOf": [inner.schema, {"type": "null"}]}
    )
    return Shape(
        lambda value: None if value is None else inner.read(value),
        lambda value: None if value is None else inner.write(value),
        schema,
        inner.words,
        inner.record,
    )


def many(inner: Shape, make: Callable[[Any], Any]) -> Shape:
    def items(convert: Callable[[Any], Any], values: Any) -> list[Any]:
        if not isinstance(values, (list, tuple)):
            raise Mismatch("expected a list")
        return [
            located(f"[{place}]", convert, value) for place, value in enumerate(values)
        ]

    return Shape(
        lambda values: make(items(inner.read, values)),
        lambda values: items(inner.write, values),
        {"type": "array", "items": inner.schema},
        f"list of {inner.words}",
        inner.record,
    )


def located(where: str, convert: Callable[[Any], Any], value: Any) -> Any:
    """Convert `value`; a Mismatch names `where` in front."""
    try:
        return convert(value)
    except Mismatch as error:
        text = str(error)
        joint = "" if text.startswith("[") else ": "
        raise Mismatch(f"{where}{joint}{text}") from None


PLAIN = {
    str: Shape(_text, _text, {"type": "string"}, "text"),
    int: Shape(_integer, _integer, {"type": "integer"}, "integer"),
    float: Shape(_number, _number, {"type": "number"}, "number"),
    bool: _exact(bool, "true or false", "boolean"),
    object: Shape(_json, _json, {}, "any value"),
}
OBJECT = Shape(_json_object, _json_object, {"type": "object"}, "object")
