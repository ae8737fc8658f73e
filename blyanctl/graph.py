"""The block DAG as lines of text: one column per open path, newest block on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blyan_proto.rpc.spec import JsonObject
from blyanctl.render import cell

ID_CHARACTERS = 12
NODE, PENDING, REFUSED = "*", "o", "x"


def draw(blocks: Sequence[JsonObject]) -> str:
    """Return a `chain.log` (children before parents) as a graph with one block a line.

    `*` took effect, `o` waits for a checkpoint, `x` was ordered without effect.
    """
    texts = [_describe(block) for block in blocks]
    rows = list(_rows(blocks))
    width = max((len(row) for row, _ in rows), default=0)
    lines = [
        row if index is None else f"{row.ljust(width)}  {texts[index]}"
        for row, index in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _rows(blocks: Sequence[JsonObject]) -> Iterator[tuple[str, int | None]]:
    """Yield the drawn rows; those of a block with its index."""
    lanes: list[str | None] = []  # the block that each column leads down to
    for index, block in enumerate(blocks):
        waiting = [at for at, id in enumerate(lanes) if id == block["id"]]
        if waiting:
            column, *joined = waiting
        else:
            column, joined = _free(lanes), []
        if joined:
            yield _link(lanes, column, joined, "╯", "┴"), None
            for at in joined:
                lanes[at] = None
        lanes[column] = block["id"]
        yield _mark(lanes, column, block), index
        first, *others = block["parents"] or [None]
        lanes[column] = first
        branches = []
        for parent in others:
            if parent in lanes:
                continue  # its column is there; the id in the text tells the rest
            at = _free(lanes)
            lanes[at] = parent
            branches.append(at)
        if branches:
            yield _link(lanes, column, branches, "╮", "┬"), None
        while lanes and lanes[-1] is None:
            lanes.pop()


def _free(lanes: list[str | None]) -> int:
    """Return an empty column, made if there is none."""
    if None in lanes:
        return lanes.index(None)
    lanes.append(None)
    return len(lanes) - 1


def _mark(lanes: Sequence[str | None], column: int, block: JsonObject) -> str:
    mark = PENDING if block["checkpoint"] is None else NODE
    if block["error"] is not None:
        mark = REFUSED
    cells = ["│" if id is not None else " " for id in lanes]
    cells[column] = mark
    return " ".join(cells).rstrip()


def _link(
    lanes: Sequence[str | None], column: int, ends: list[int], last: str, middle: str
) -> str:
    """Return the row in which columns `ends` meet or leave `column`."""
    low, high = min(column, *ends), max(column, *ends)
    row = []
    for at in range(max(len(lanes), high + 1)):
        inside = low < at < high
        if at == column:
            mark = "├" if at == low else "┤" if at == high else "┼"
        elif at in ends:
            mark = middle if inside else last
            if at == low:
                mark = {"╯": "╰", "╮": "╭"}[last]
        elif at < len(lanes) and lanes[at] is not None:
            mark = "┼" if inside else "│"
        else:
            mark = "─" if inside else " "
        row.append(mark)
        row.append("─" if low <= at < high else " ")
    return "".join(row).rstrip()


def _describe(block: JsonObject) -> str:
    parts = [
        block["id"][:ID_CHARACTERS],
        f"{block['chain']}{block['height']}",
        cell("kind", block["kind"]),
        cell("subject", block["subject"]) if block["subject"] else "",
        f"by {block['account'][:10]}",
    ]
    if block["checkpoint"] is None:
        parts.append("pending")
    else:
        parts.append(f"in checkpoint {block['checkpoint']}")
    if block["error"] is not None:
        parts.append(f"no effect: {cell('error', block['error'])}")
    return "  ".join(part for part in parts if part)
