"""How an option is declared, checked and spelled; the options stand in config.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from blyand.errors import ConfigFault

Value = bool | int | str | tuple[str, ...]

NO_BOUND = 2**31 - 1


def option(
    default: Value,
    help: str,
    *,
    unit: str = "",
    choices: Sequence[str] = (),
    low: int = 0,
    high: int = NO_BOUND,
    env: str = "",
) -> Any:
    """Declare a field. `low` and `high` bound integers, `choices` texts and lists."""
    about = dict(help=help, unit=unit, choices=choices, low=low, high=high, env=env)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Option:
    """One declared option."""

    section: str
    name: str
    kind: type  # bool, int, str or tuple
    default: Value
    help: str
    unit: str
    choices: Sequence[str]
    low: int
    high: int
    env: str

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return ", ".join(self.choices)
        words = _KINDS[self.kind]
        if self.kind is int:
            top = "" if self.high == NO_BOUND else f" to {self.high}"
            words = f"{self.low}{top or ' or more'}"
        return f"{words}, {self.unit}" if self.unit else words

    def check(self, value: object, where: str) -> Value:
        """Return `value` if the option may have it, else raise ConfigFault."""
        if self.kind is tuple and isinstance(value, (list, tuple)):
            for item in value:
                if not isinstance(item, str):
                    raise self._refuse(item, where, "texts only")
                self._choose(item, where)
            return tuple(value)
        if type(value) is not self.kind:
            raise self._refuse(value, where, _KINDS[self.kind])
        if isinstance(value, str):
            return self._choose(value, where)
        assert isinstance(value, int)
        if self.kind is int and not self.low <= value <= self.high:
            raise self._refuse(value, where, f"{self.low} to {self.high}")
        return value

    def parse(self, text: str, where: str) -> Value:
        """Return the value that an environment variable or an argument spells."""
        if self.kind is tuple:
            items = (item.strip() for item in text.split(","))
            return self.check([item for item in items if item], where)
        if self.kind is bool and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        if self.kind is int and _is_integer(text):
            return self.check(int(text), where)
        return self.check(text, where)

    def _choose(self, value: str, where: str) -> str:
        if self.choices and value not in self.choices:
            raise self._refuse(value, where, " or ".join(self.choices))
        return value

    def _refuse(self, value: object, where: str, wanted: str) -> ConfigFault:
        return ConfigFault(f"{where}: {self.key} is {value!r}, but must be {wanted}")


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    tuple: "a list of texts",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 20
