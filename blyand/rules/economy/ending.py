"""What the ledger does at the end of every checkpoint: the wheel's tasks, by name."""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.genesis import Genesis
from blyand.rules.economy import escrow, once, stake
from blyand.rules.economy.due import Due, Task, turn
from blyand.rules.view import Overlay

ENDED: dict[Task, Callable[[Overlay, Due, Genesis, int], None]] = {
    Task.KEY: lambda view, due, genesis, now_ms: once.forget(view, due.key, now_ms),
    Task.ESCROW: lambda view, due, genesis, now_ms: escrow.end(
        view, due.key, genesis, now_ms
    ),
    Task.STAKE: lambda view, due, genesis, now_ms: stake.free(view, due.key, due.micro),
}


def end(view: Overlay, genesis: Genesis, now_ms: int) -> None:
    """Do what has come due."""
    turn(view, now_ms, lambda due: ENDED[due.task](view, due, genesis, now_ms))
