"""Reads the fields of a JSON object one by one, and says what is wrong with the first.

Every field has a kind and bounds. A field given as null counts as left out, as OpenAI's
clients send it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from blyan_proto.rpc.records import nearest
from blyand.http.refusal import Refusal


class Fields:
    """The fields of one object; `path` is put in front of their names in errors."""

    def __init__(self, value: Any, path: str = "") -> None:
        self._path = path
        self._left: dict[str, Any] = {}
        if not isinstance(value, Mapping):
            raise self.wrong("", "is not an object")
        self._left = {name: one for name, one in value.items() if one is not None}
        self._known: list[str] = []

    def take(self, name: str) -> Any:
        """Return a field as it is, None if it was left out."""
        self._known.append(name)
        return self._left.pop(name, None)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is not None and type(value) is not int:
            raise self.wrong(name, "is not a whole number", "invalid_type")
        if value is not None and not low <= value <= high:
            raise self.wrong(name, f"is {value}, but must be {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise self.wrong(name, "is not a number", "invalid_type")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong(name, "is not finite")
        if not low <= value <= high:
            raise self.wrong(name, f"is {value:g}, but must be {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "is not true or false", "invalid_type")
        return bool(value)

    def text(self, name: str, longest: int) -> str | None:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "is not text", "invalid_type")
        if value is not None and len(value) > longest:
            raise self.wrong(name, f"has {len(value)} characters, at most {longest}")
        return value

    def choice(self, name: str, known: Iterable[str]) -> str | None:
        value = self.take(name)
        known = tuple(known)
        if value is not None and value not in known:
            raise self.wrong(name, f"is none of {', '.join(known)}")
        return value if value is None else str(value)

    def items(self, name: str, most: int) -> list[Any] | None:
        value = self.take(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "is not a list", "invalid_type")
        if value is not None and len(value) > most:
            raise self.wrong(name, f"has {len(value)} items, at most {most}")
        return value

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """Return one text or a list of them; none may be empty."""
        value = self.take(name)
        given = [value] if isinstance(value, str) else value
        if given is None:
            return ()
        if not isinstance(given, list) or not all(isinstance(t, str) for t in given):
            raise self.wrong(
                name, "is neither text nor a list of texts", "invalid_type"
            )
        if len(given) > most:
            raise self.wrong(name, f"has {len(given)} texts, at most {most}")
        if not all(0 < len(text) <= longest for text in given):
            raise self.wrong(
                name, f"has a text that is not of 1 to {longest} characters"
            )
        return tuple(given)

    def inner(self, name: str) -> Fields | None:
        """Return the fields of an object in this one."""
        value = self.take(name)
        return None if value is None else Fields(value, self._named(name))

    def refuse(self, names: Mapping[str, str]) -> None:
        """Refuse fields that would change the answer, and are not for this server."""
        for name, why in names.items():
            if self.take(name) is not None:
                raise self.wrong(name, why, "unsupported_parameter")

    def ignore(self, names: Iterable[str]) -> None:
        """Pass over fields that change nothing in the answer."""
        for name in names:
            self.take(name)

    def end(self) -> None:
        """Refuse what nobody took: as OpenAI does, in its words."""
        for name in self._left:
            raise Refusal(
                400,
                f"Unrecognized request argument supplied: {self._named(name)[:100]}"
                f"{nearest(name, self._known)}",
                param=self._named(name)[:100],
                code="unknown_parameter",
            )

    def wrong(self, name: str, what: str, code: str = "invalid_value") -> Refusal:
        """Return the refusal of one field."""
        named = self._named(name) or "the body"
        return Refusal(400, f"{named} {what}", param=named, code=code)

    def _named(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path and name else self._path or name
