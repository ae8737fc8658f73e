"""Results for people: key and value, tables, units. ``--json`` does not come here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from blyan_proto.amounts import bly
from blyan_proto.rpc.spec import JsonObject

MAX_LIST_CHARACTERS = 60  # of a list inside a table
PROSE_CHARACTERS = 100  # of a text with words that no column holds
A_DATE_MS = 10**12  # a number of milliseconds from here on is a date: 2001 and later
NEVER_MS = 253_402_300_800_000  # the year 10000
INLINE = frozenset(("line", "session"))  # records that a result only adds to
POOL_MARK = b"blyan ".hex()  # how the account of a pool begins
NOBODY = "00" * 20  # the other side of what is issued or burnt
UNITS = (
    "_bytes",
    "_micro",
    "_ppm",
    "_ms",
    "_s",
)  # at the end of a name, shown with the value


def render(result: JsonObject) -> str:
    """Return a result as text: plain fields first, then a table per list of records."""
    plain: list[tuple[str, str]] = []
    tables: list[tuple[str, list[JsonObject]]] = []
    _gather("", result, plain, tables)
    parts = []
    if plain:
        width = max(len(label) for label, _ in plain)
        parts.append("\n".join(f"{label:<{width}}  {text}" for label, text in plain))
    for title, records in tables:
        body = _body(records)
        alone = len(tables) == 1 and not plain
        parts.append(body if alone else f"{title}\n{body}")
    return "\n\n".join(parts)


def _body(records: Sequence[JsonObject]) -> str:
    """Return a list of records: a table, or one below the other where they hold prose."""
    if not records:
        return "none"
    if any(_is_prose(value) for record in records for value in record.values()):
        return "\n\n".join(render(record) for record in records)
    return table(records)


def _is_prose(value: Any) -> bool:
    return isinstance(value, str) and len(value) > PROSE_CHARACTERS and " " in value


def _gather(
    prefix: str,
    record: JsonObject,
    plain: list[tuple[str, str]],
    tables: list[tuple[str, list[JsonObject]]],
) -> None:
    for name, value in record.items():
        if isinstance(value, dict):
            inner = "" if name in INLINE else label(name) + " "
            _gather(prefix + inner, value, plain, tables)
        elif isinstance(value, list) and all(isinstance(v, dict) for v in value):
            if value or name in TABLES:
                tables.append((prefix + label(name), value))
            else:
                plain.append((prefix + label(name), "-"))
        elif isinstance(value, list):
            text = ", ".join(cell(name, item) for item in value) or "-"
            plain.append((prefix + label(name), text))
        else:
            plain.append((prefix + label(name), cell(name, value)))


# Lists that are the point of their result: an empty one is said to be empty.
TABLES = frozenset(
    "peers bans chains blocks experts models datasets tiles groups options protocols "
    "requests versions kinds problems pins recipients leaders windows slashes sessions "
    "lines".split()
)


def table(records: Sequence[JsonObject]) -> str:
    """Return records of one kind as aligned columns; numbers to the right."""
    names = list(records[0])
    rows = [[_short(name, record.get(name)) for name in names] for record in records]
    heads = [label(name) for name in names]
    right = [
        all(
            isinstance(r.get(name), (int, float)) or r.get(name) is None
            for r in records
        )
        for name in names
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    lines = []
    for row in [heads, *rows]:
        cells = [
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _short(name: str, value: Any) -> str:
    """A cell of a table: a list of records is a count, a long list is cut."""
    if not isinstance(value, list):
        return cell(name, value)
    if value and all(isinstance(item, dict) for item in value):
        return str(len(value))
    text = ", ".join(cell(name, item) for item in value) or "-"
    if len(text) > MAX_LIST_CHARACTERS:
        return text[: MAX_LIST_CHARACTERS - 1] + "…"
    return text


def label(name: str) -> str:
    """Return a field's name for people: no underscores, no unit."""
    if name.endswith("_per_s"):
        return name.removesuffix("_per_s").replace("_", " ") + "/s"
    for unit in UNITS:
        if name.endswith(unit):
            name = name[: -len(unit)]
            break
    name = {"micro": "amount", "ppm": "share"}.get(name, name)
    return name.replace("_", " ")


def cell(name: str, value: Any) -> str:
    """Return one plain value with its unit, as its name says."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(name, value)
    if isinstance(value, dict):
        return ", ".join(
            f"{label(key)} {cell(key, item)}" for key, item in value.items()
        )
    text = value if isinstance(value, str) else str(value)
    if name == "other":
        text = _called(text)
    # what a peer wrote must not steer the terminal
    return (
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        or "-"
    )


def _called(account: str) -> str:
    """Return the name of a pool, - for nobody, other accounts as they are."""
    if not account.startswith(POOL_MARK):
        return "-" if account == NOBODY else account
    name = bytes.fromhex(account[len(POOL_MARK) :]).rstrip(b"\0")
    return name.decode("ascii", "replace")


def _number(name: str, value: int | float) -> str:
    if name == "bytes" or name.endswith("_bytes") or name.startswith("bytes_"):
        return size(value)
    if name.endswith("_ms") and value >= A_DATE_MS:
        return date(value)
    if name == "micro" or name.endswith("_micro"):
        return bly(round(value))
    if name == "ppm" or name.endswith("_ppm"):
        return f"{value / 10_000:g} %"
    if name.endswith("_ms"):
        return f"{value:.1f} ms" if value < 1000 else duration(value / 1000)
    if name.endswith("per_s"):
        return f"{value:.1f}"
    if name.endswith("_s") or name == "seconds":
        return duration(value)
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)


def date(ms: float) -> str:
    """Return a moment, in milliseconds since 1970, as people write it, in UTC."""
    if ms >= NEVER_MS:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(ms / 1000))


def size(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a span of time: 0.25 s, 12.5 s, 3m 05s, 2h 03m, 4d 05h."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes:02}m"
    return f"{hours // 24}d {hours % 24:02}h"
