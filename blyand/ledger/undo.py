"""All or nothing: what a failing block of code undoes on its way out (LEDGER-08)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from blyand.errors import Unavailable
from blyand.rules.economy.session import Illegal, Refused

logger = logging.getLogger(__name__)

UNDO_S = 60.0  # for all that is undone: some checkpoints

Action = Callable[[], Awaitable[object]]


class Undo:
    """Actions that are taken, last first, if the block ends in an exception.

    They run behind a shield, so that a cancellation is undone, too, and have `UNDO_S`
    together. What cannot be undone now is logged; the reserve's expiry ends it.
    """

    def __init__(self) -> None:
        self._actions: list[Action] = []

    def on_failure(self, action: Action) -> None:
        """Take `action` if the block fails."""
        self._actions.append(action)

    async def __aenter__(self) -> Undo:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        with trio.move_on_after(UNDO_S, shield=True):
            for action in reversed(self._actions):
                try:
                    await action()
                except (Refused, Illegal, Unavailable) as failed:
                    logger.warning("a payment could not be undone: %s", failed)
