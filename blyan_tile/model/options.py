"""A foreign configuration, read option by option; what nobody asked for is refused.

So an option is honoured, named as without effect, or an error: never ignored. Null
counts as absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from blyan_proto.errors import DecodeError

MAX_U8 = 2**8 - 1
MAX_U16 = 2**16 - 1
MAX_U32 = 2**32 - 1
MAX_U64 = 2**64 - 1
_SHOWN = 60  # characters of a value in an error


def shown(value: object) -> str:
    """Return a foreign value as an error shows it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or an endless integer
        return type(value).__name__
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


class Options:
    """The options of one object of a configuration file. Everything raises DecodeError."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self._where = where
        self._asked: set[str] = set()

    def refused(self, name: str, why: str) -> DecodeError:
        """Return the error that names an option, its value and what is wrong with it."""
        if name in self._values:
            return DecodeError(
                f"{self._where}{name} {shown(self._values[name])}: {why}"
            )
        return DecodeError(f"{self._where}{name} is missing: {why}")

    def has(self, name: str) -> bool:
        """Return whether an option stands there, if only as null."""
        return name in self._values

    def get(self, name: str) -> object:
        """Return an option as it stands, None if it is absent."""
        self._asked.add(name)
        return self._values.get(name)

    def whole(
        self, name: str, default: int | None = None, low: int = 0, high: int = MAX_U32
    ) -> int:
        """Return an integer from `low` to `high`; without a default it must be there."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.refused(name, f"must be an integer from {low} to {high}")
        return value

    def optional_whole(self, name: str, low: int = 0) -> int | None:
        """Return an integer from `low` to 2^32 - 1, None if it is absent."""
        return None if self.get(name) is None else self.whole(name, low=low)

    def number(self, name: str) -> float | None:
        """Return a finite number, None if it is absent."""
        value = self.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not abs(value) < 1e18:  # type: ignore
            raise self.refused(name, "must be a finite number")
        return float(value)  # type: ignore[arg-type]

    def parts(self, name: str, per_unit: int, value: float | None, most: int) -> int:
        """Return a positive number as an integer of 1 / `per_unit`, exact to 1e-7."""
        if value is None or not value > 0:
            raise self.refused(name, "must be a positive number")
        count = round(value * per_unit)
        if not 0 < count <= most or not math.isclose(
            count / per_unit, value, rel_tol=1e-7
        ):
            raise self.refused(name, f"must be whole 1/{per_unit}, at most {most}")
        return count

    def truth(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.refused(name, "must be true or false")
        return value

    def text(self, name: str) -> str | None:
        """Return a text, None if it is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.refused(name, "must be text")
        return value

    def either(self, *names: str) -> str | None:
        """Return which of an option's spellings is used, the first if several agree."""
        used = [name for name in names if self.get(name) is not None]
        for name in used[1:]:
            if self._values[name] != self._values[used[0]]:
                raise self.refused(name, f"{used[0]} says something else")
        return used[0] if used else None

    def within(self, name: str) -> "Options | None":
        """Return the options inside an option, None where it is absent or empty."""
        value = self.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.refused(name, "must be an object")
        return Options(value, f"{self._where}{name}.")

    def without_effect(self, names: Iterable[str]) -> None:
        """Accept these options whatever they say."""
        self._asked.update(names)

    def finish(self) -> None:
        """Refuse the first option that nobody asked for."""
        for name, value in self._values.items():
            if name not in self._asked and value is not None:
                raise DecodeError(
                    f"{self._where}{shown(name)[1:-1]} {shown(value)}: "
                    "this option is not supported"
                )
