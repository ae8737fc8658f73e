"""Reads the tables of docs/*.md, so that tests can hold them against the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
Table = list[list[str]]


def tables(page: str) -> Iterator[Table]:
    """Yield the tables of a page: rows of cells, the header first, no ruler."""
    table: Table = []
    for line in [*(DOCS / page).read_text().splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip().strip("`") for cell in line.strip()[1:-1].split("|")]
            if not set("".join(cells)) <= {"-"}:
                table.append(cells)
        elif table:
            yield table
            table = []


def fields_in(page: str) -> dict[str, list[str]]:
    """Return record name -> field names, of every table headed by a record's name."""
    found: dict[str, list[str]] = {}
    for head, *rows in tables(page):
        column = 1 if head[0] == "code" and head[1][:1].isupper() else 0
        if head[column][:1].isupper() and "type" in head:
            found[head[column]] = [row[column] for row in rows]
    return found
