"""Records: frozen dataclasses whose fields are declared with help, default and bounds.

A record is compiled once into a strict reader, a writer and a JSON Schema: an unknown
name is refused with the nearest known one, and so are missing names and wrong values.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, dataclass_transform

from blyan_proto.rpc.values import (
    OBJECT,
    PLAIN,
    HexBytes,
    JsonObject,
    Mismatch,
    Shape,
    hexadecimal,
    located,
    many,
    optional,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Arg:
    """What a declaration says about one field beyond its type."""

    help: str
    low: float | None = None  # inclusive; of a number, or the length of a list
    high: float | None = None
    choices: tuple[str, ...] = ()
    positional: bool = False  # the CLI also takes it by place
    path: bool = False  # absolute, on the daemon's machine; the CLI makes it so


def arg(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    positional: bool = False,
    path: bool = False,
) -> Any:
    """Declare a field: its help, and its default if it may be left out."""
    about = Arg(help, low, high, choices, positional, path)
    return dataclasses.field(default=default, metadata={"arg": about})


@dataclass_transform(frozen_default=True, field_specifiers=(arg,))
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass of declared fields."""
    return dataclass(frozen=True)(cls)  # no slots: they double the time of import


@dataclass(frozen=True)
class Field:
    """One field of a record, compiled."""

    name: str
    shape: Shape
    about: Arg
    required: bool
    default: Any


def word_of(name: str) -> str:
    """Return what a field is called on the command line: amounts are told in BLY there."""
    return name.removesuffix("_micro").replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word closest to `name`, or an empty string."""
    import difflib  # only wanted once something is wrong

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def shape_of(annotation: Any) -> Shape:
    """Compile one annotation. TypeError for a type that declarations may not use."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in PLAIN:
        return PLAIN[annotation]
    if origin is Annotated and isinstance(args[1], HexBytes):
        return hexadecimal(args[1])
    if origin in (Union, types.UnionType) and args[1:] == (type(None),):
        return optional(shape_of(args[0]))
    if origin is list:
        return many(shape_of(args[0]), list)
    if origin is dict and args == (str, Any):
        return OBJECT
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return record_shape(annotation)
    raise TypeError(f"{annotation!r} cannot be used in a declaration")


def _bounded(shape: Shape, about: Arg) -> Shape:
    """Add the limits that a field declares to the shape of its type."""
    if about.low is None and about.high is None and not about.choices:
        return shape
    schema = dict(shape.schema)
    many = "items" in schema
    low, high = about.low, about.high
    if low is not None:
        schema["minItems" if many else "minimum"] = low
    if high is not None:
        schema["maxItems" if many else "maximum"] = high
    if about.choices:
        schema["enum"] = [*about.choices]
        if isinstance(schema["type"], list):  # an optional field may also be null
            schema["enum"].append(None)

    def check(value: Any) -> Any:
        if value is None:
            return value
        if about.choices and value not in about.choices:
            raise Mismatch(f"expected one of {', '.join(about.choices)}")
        size = len(value) if many else value
        if (low is not None and size < low) or (high is not None and size > high):
            unit = " items" if many else ""
            if high is None:
                raise Mismatch(f"expected at least {low}{unit}")
            if low is None:
                raise Mismatch(f"expected at most {high}{unit}")
            raise Mismatch(f"expected {low} to {high}{unit}")
        return value

    return dataclasses.replace(
        shape, read=lambda value: check(shape.read(value)), schema=schema
    )


_FIELDS: dict[type, tuple[Field, ...]] = {}  # compiled once, at first use


def fields_of(cls: type) -> tuple[Field, ...]:
    """Return the compiled fields of a record, in declared order."""
    if cls in _FIELDS:
        return _FIELDS[cls]
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        about = field.metadata.get("arg")
        if not isinstance(about, Arg):
            raise TypeError(f"{cls.__name__}.{field.name} is not declared with arg()")
        required = field.default is dataclasses.MISSING
        default = None if required else field.default
        shape = _bounded(shape_of(hints[field.name]), about)
        fields.append(Field(field.name, shape, about, required, default))
    _FIELDS[cls] = tuple(fields)
    return _FIELDS[cls]


def read_record(cls: type[T], value: Any, *, complete: bool) -> T:
    """Return the record that a JSON object spells; Mismatch says what is wrong.

    `complete` wants every field present (replies); otherwise a field with a default
    may be missing or null (params).
    """
    if not isinstance(value, dict):
        raise Mismatch("expected an object")
    fields = fields_of(cls)
    names = [field.name for field in fields]
    for name in value:
        if name not in names:
            raise Mismatch(f"no field is called {name!r}{nearest(name, names)}")
    made = {}
    for field in fields:
        given = value.get(field.name)
        if field.name not in value and (complete or field.required):
            raise Mismatch(f"{field.name!r} is missing ({field.about.help})")
        if given is None and not field.required and not complete:
            continue
        made[field.name] = located(field.name, field.shape.read, given)
    return cls(**made)


def write_record(cls: type, value: Any) -> JsonObject:
    """Return the JSON object of a record, every field present."""
    if type(value) is not cls:
        raise Mismatch(f"expected a {cls.__name__}, got {type(value).__name__}")
    return {
        field.name: located(field.name, field.shape.write, getattr(value, field.name))
        for field in fields_of(cls)
    }


def record_shape(cls: type) -> Shape:
    """Compile a record that stands inside another."""
    schema: JsonObject = {
        "type": "object",
        "properties": {
            field.name: {**field.shape.schema, "description": field.about.help}
            for field in fields_of(cls)
        },
        "required": [field.name for field in fields_of(cls)],
        "additionalProperties": False,
    }
    return Shape(
        lambda value: read_record(cls, value, complete=True),
        lambda value: write_record(cls, value),
        schema,
        cls.__name__,
        cls,
    )
