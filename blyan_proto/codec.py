"""Canonical MessagePack: frozen dataclasses <-> bytes, one encoding per value.

Strategy. ``@message`` compiles a dataclass once into an encoder and a decoder. A value
is the array of its fields in declared order; integers take the shortest form; there
are no floats, maps or extension types. Decoding walks the bytes along the declared
type, so that nothing is allocated that the type does not hold, checks every type,
range and length, then encodes the result again and compares: two different byte
strings never decode to one value. PERF-01.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

import msgpack

from blyan_proto.errors import DecodeError, LimitExceeded

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of an integer field."""

    low: int
    high: int


@dataclass(frozen=True)
class Size:
    """Inclusive bounds of a length: bytes of ``bytes`` or UTF-8 text, items of a tuple."""

    low: int
    high: int


U8 = Annotated[int, Range(0, 2**8 - 1)]
U16 = Annotated[int, Range(0, 2**16 - 1)]
U32 = Annotated[int, Range(0, 2**32 - 1)]
U64 = Annotated[int, Range(0, 2**64 - 1)]
I64 = Annotated[int, Range(-(2**63), 2**63 - 1)]

Convert = Callable[[Any], Any]
_NIL = 0xC0


class _Source:
    """MessagePack bytes, read item by item."""

    __slots__ = ("_raw", "_unpacker")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        # No containers inside an item: an array is opened only where the type has one.
        # (Unpacked whole, 4 MiB of empty lists took 300 MB.)
        self._unpacker = msgpack.Unpacker(
            raw=False,
            max_buffer_size=max(1, len(raw)),
            max_array_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
        self._unpacker.feed(raw)

    def item(self) -> Any:
        """Return the next integer, text, bytes, boolean or nil."""
        return self._next(self._unpacker.unpack, "not one MessagePack item")

    def opened(self) -> int:
        """Enter the array that comes next; return how many items it announces."""
        count: int = self._next(self._unpacker.read_array_header, "expected a list")
        return count

    def skipped_nil(self) -> bool:
        """Pass over a nil if one comes next."""
        place = self._unpacker.tell()
        if place >= len(self._raw) or self._raw[place] != _NIL:
            return False
        self._unpacker.skip()
        return True

    def _next(self, read: Callable[[], Any], otherwise: str) -> Any:
        try:
            return read()
        except (ValueError, msgpack.UnpackException) as error:
            raise DecodeError(otherwise) from error


@dataclass(frozen=True)
class _Shape:
    """How one annotated type maps to MessagePack and to JSON."""

    pack: Convert
    read: Callable[[_Source], Any]
    to_plain: Convert
    from_plain: Convert


_SHAPES: dict[type, _Shape] = {}
_FIELDS: dict[type, Callable[[_Source, int], Any]] = {}  # reads an opened record


def _item(check: Convert, plain: tuple[Convert, Convert] | None = None) -> _Shape:
    return _Shape(check, lambda source: check(source.item()), *(plain or (check,) * 2))


def _integer(bounds: Range) -> _Shape:
    def check(value: Any) -> int:
        if type(value) is not int or not bounds.low <= value <= bounds.high:
            raise DecodeError(f"expected an integer in {bounds.low}..{bounds.high}")
        return value

    return _item(check)


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise DecodeError("expected true or false")
    return value


def _bytes(size: Size) -> _Shape:
    def check(value: Any) -> bytes:
        if type(value) is not bytes:
            raise DecodeError("expected bytes")
        if not size.low <= len(value) <= size.high:
            raise LimitExceeded(f"{len(value)} bytes, allowed {size.low}..{size.high}")
        return value

    def from_hex(value: Any) -> bytes:
        if not isinstance(value, str):
            raise DecodeError("expected hexadecimal text")
        try:
            return check(bytes.fromhex(value))
        except ValueError as error:
            raise DecodeError("expected hexadecimal text") from error

    return _item(check, (lambda value: check(value).hex(), from_hex))


def _text(size: Size) -> _Shape:
    def check(value: Any) -> str:
        if type(value) is not str:
            raise DecodeError("expected text")
        try:
            length = len(value.encode())
        except UnicodeEncodeError as error:
            raise DecodeError("text is not Unicode scalar values") from error
        if not size.low <= length <= size.high:
            raise LimitExceeded(f"{length} bytes, allowed {size.low}..{size.high}")
        return value

    return _item(check)


def _enumeration(cls: type[enum.IntEnum]) -> _Shape:
    def pack(value: Any) -> int:
        if not isinstance(value, cls):
            raise DecodeError(f"expected a {cls.__name__}")
        return int(value)

    def member(value: Any) -> enum.IntEnum:
        if type(value) is not int:
            raise DecodeError(f"expected the number of a {cls.__name__}")
        if value not in cls._value2member_map_:
            raise DecodeError(f"{value} is not a {cls.__name__}")
        return cls(value)

    def from_name(value: Any) -> enum.IntEnum:
        if not isinstance(value, str) or value.upper() not in cls.__members__:
            raise DecodeError(f"{value!r} is not a {cls.__name__}")
        return cls[value.upper()]

    return _Shape(
        pack,
        lambda source: member(source.item()),
        lambda value: value.name.lower(),
        from_name,
    )


def _optional(inner: _Shape) -> _Shape:
    def lift(convert: Convert) -> Convert:
        return lambda value: None if value is None else convert(value)

    def read(source: _Source) -> Any:
        return None if source.skipped_nil() else inner.read(source)

    return _Shape(lift(inner.pack), read, lift(inner.to_plain), lift(inner.from_plain))


def _sequence(size: Size, inner: _Shape) -> _Shape:
    def check_count(count: int) -> None:
        if not size.low <= count <= size.high:
            raise LimitExceeded(f"{count} items, allowed {size.low}..{size.high}")

    def read(source: _Source) -> tuple[Any, ...]:
        count = source.opened()
        check_count(count)
        return tuple(inner.read(source) for _ in range(count))

    def lift(convert: Convert, accepts: type, make: Convert) -> Convert:
        def apply(value: Any) -> Any:
            if not isinstance(value, accepts):
                raise DecodeError("expected a list")
            assert isinstance(value, (list, tuple))
            check_count(len(value))
            return make(convert(item) for item in value)

        return apply

    return _Shape(
        lift(inner.pack, tuple, list),
        read,
        lift(inner.to_plain, tuple, list),
        lift(inner.from_plain, list, tuple),
    )


def _record(cls: type) -> _Shape:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    shapes = [_shape(hints[name], f"{cls.__name__}.{name}") for name in names]

    def pack(value: Any) -> list[Any]:
        if type(value) is not cls:
            raise DecodeError(f"expected a {cls.__name__}, got {type(value).__name__}")
        return [
            _at(cls, name, shape.pack, getattr(value, name))
            for name, shape in zip(names, shapes)
        ]

    def read(source: _Source) -> Any:
        return read_fields(source, source.opened())

    def read_fields(source: _Source, count: int) -> Any:
        if count != len(names):
            raise DecodeError(f"expected the {len(names)} fields of {cls.__name__}")
        return _made(
            cls,
            {
                name: _at(cls, name, shape.read, source)
                for name, shape in zip(names, shapes)
            },
        )

    def to_plain(value: Any) -> dict[str, Any]:
        return {
            name: shape.to_plain(getattr(value, name))
            for name, shape in zip(names, shapes)
        }

    def from_plain(value: Any) -> Any:
        if not isinstance(value, dict):
            raise DecodeError(f"expected an object for {cls.__name__}")
        if extra := value.keys() - set(names):
            raise DecodeError(f"{cls.__name__} has no field {sorted(extra)[0]!r}")
        if missing := [name for name in names if name not in value]:
            raise DecodeError(f"{cls.__name__} lacks the field {missing[0]!r}")
        return _made(
            cls,
            {
                name: _at(cls, name, shape.from_plain, value[name])
                for name, shape in zip(names, shapes)
            },
        )

    _FIELDS[cls] = read_fields
    return _Shape(pack, read, to_plain, from_plain)


def _made(cls: type, fields: dict[str, Any]) -> Any:
    try:
        return cls(**fields)
    except ValueError as error:  # a __post_init__ that relates fields to one another
        raise DecodeError(f"{cls.__name__}: {error}") from error


def _at(cls: type, name: str, convert: Convert, value: Any) -> Any:
    try:
        return convert(value)
    except (DecodeError, LimitExceeded) as error:
        raise type(error)(f"{cls.__name__}.{name}: {error}") from None


def _shape(annotation: Any, where: str) -> _Shape:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bound = args[1]
        if isinstance(bound, Range):
            return _integer(bound)
        if args[0] is bytes:
            return _bytes(bound)
        if args[0] is str:
            return _text(bound)
        return _sequence(bound, _shape(get_args(args[0])[0], where))
    if origin in (Union, types.UnionType) and args[1:] == (type(None),):
        return _optional(_shape(args[0], where))
    if annotation is bool:
        return _item(_truth)
    if isinstance(annotation, type) and issubclass(annotation, enum.IntEnum):
        return _enumeration(annotation)
    if annotation in _SHAPES:
        return _SHAPES[annotation]
    raise TypeError(f"{where}: {annotation!r} is not a codec type")


@dataclass_transform(frozen_default=True)
def message(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass with a canonical encoding.

    Field types: U8…U64, I64, bool, IntEnum, ``Annotated[bytes|str, Size]``,
    ``Annotated[tuple[X, ...], Size]``, another message, ``X | None``. A ValueError
    from ``__post_init__`` becomes DecodeError when the value came from outside.
    """
    made = dataclass(frozen=True, slots=True)(cls)
    _SHAPES[made] = _record(made)
    return made


def encode(value: Any) -> bytes:
    """Return the canonical bytes of a message. DecodeError if a field breaks its type."""
    packed = msgpack.packb(_SHAPES[type(value)].pack(value), use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def decode(cls: type[T], raw: bytes, limit: int) -> T:
    """Return the `cls` that `raw` canonically encodes.

    Raises LimitExceeded above `limit` bytes and DecodeError for anything but the one
    canonical encoding.
    """
    if len(raw) > limit:
        raise LimitExceeded(f"{len(raw)} bytes of {cls.__name__}, at most {limit}")
    value: T = _SHAPES[cls].read(_Source(raw))
    if encode(value) != raw:
        raise DecodeError(f"not the canonical encoding of {cls.__name__}")
    return value


def to_plain(value: Any) -> dict[str, Any]:
    """Return a message as JSON-ready values: bytes as hex, enums by name."""
    plain: dict[str, Any] = _SHAPES[type(value)].to_plain(value)
    return plain


def from_plain(cls: type[T], plain: Any) -> T:
    """Inverse of `to_plain`; strict about names, types and bounds (DecodeError)."""
    value: T = _SHAPES[cls].from_plain(plain)
    return value


class Choice:
    """A closed set of message types that share a stream: code <-> type.

    On the wire a choice is ``[code, fields…]``; an unknown code is a DecodeError.
    """

    def __init__(self, name: str, members: dict[int, type]) -> None:
        self.name = name
        self._types = members
        self._codes = {cls: code for code, cls in members.items()}

    def encode(self, value: Any) -> bytes:
        packed = [self._codes[type(value)], *_SHAPES[type(value)].pack(value)]
        raw = msgpack.packb(packed, use_bin_type=True)
        assert isinstance(raw, bytes)
        return raw

    def decode(self, raw: bytes, limit: int) -> Any:
        if len(raw) > limit:
            raise LimitExceeded(f"{len(raw)} bytes of {self.name}, at most {limit}")
        value = self._read(_Source(raw))
        if self.encode(value) != raw:
            raise DecodeError(f"not the canonical encoding of a {self.name}")
        return value

    def _read(self, source: _Source) -> Any:
        count, code = source.opened(), source.item()
        if type(code) is not int or code not in self._types:
            raise DecodeError(f"unknown {self.name}")
        return _FIELDS[self._types[code]](source, count - 1)
