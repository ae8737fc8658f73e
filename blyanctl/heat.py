"""Which experts were visited, as a map for the terminal: a row per layer, a cell each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blyan_proto.rpc.spec import JsonObject

SHADES = " ·░▒▓█"  # from nobody to the hottest of all
ROW_CELLS = 64
MOST_NAMED = 8


def heat(usage: JsonObject) -> str:
    """Return the visits of `expert usage` as text."""
    experts: Sequence[dict[str, Any]] = usage["experts"]
    most = max((one["visits"] for one in experts), default=0)
    head = f"{usage['model']}: {usage['tokens']} tokens in the last hour"
    if not most:
        return f"{head}; no expert was visited as far as this node saw"
    rows: dict[int, str] = {}
    for one in experts:
        shade = SHADES[-(-one["visits"] * (len(SHADES) - 1) // most)]
        rows[one["layer"]] = rows.get(one["layer"], "") + shade
    lines = [f"{head}; the darkest cell is {most} visits", ""]
    for layer, row in sorted(rows.items()):
        for start in range(0, len(row), ROW_CELLS):
            label = f"layer {layer}" if not start else f"from {start}"
            lines.append(f"{label:>9} |{row[start : start + ROW_CELLS]}|")
    visited = [one for one in experts if one["visits"]]
    hottest = sorted(visited, key=lambda one: -one["visits"])[:MOST_NAMED]
    named = ", ".join(f"{one['name']} {one['visits']}" for one in hottest)
    return "\n".join([*lines, "", f"hottest: {named}"])
