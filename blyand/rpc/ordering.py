"""Waiting until a checkpoint has ordered what this node published."""

from __future__ import annotations

from collections.abc import Callable

import trio

from blyand.chain.machine import Machine
from blyand.errors import TooSlow
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.view import View
from blyand.store.blocks import BlockStore
from blyand.store.schema import Outcome

ORDERED_S = 45.0  # below the deadline of an ordinary call


class Ordering:
    """Where blocks stand in the order of the checkpoints."""

    def __init__(self, machine: Machine, blocks: BlockStore, events: Broadcast) -> None:
        self._machine = machine
        self._blocks = blocks
        self._events = events

    @property
    def view(self) -> View:
        """The executed state, as of the newest checkpoint."""
        return self._machine.view

    def outcome(self, block: bytes) -> Outcome | None:
        """Return what came of a block that is executed here, None while it is pending."""
        found = self._blocks.outcome(block)
        # The store is written a moment before the state in memory moves.
        if found is None or found.height > self._machine.clock.height:
            return None
        return found

    def place_of(self, block: bytes) -> tuple[int, int]:
        """Return (height, position) of a block in the order: what is older is smaller."""
        found = self._blocks.outcome(block)
        return (found.height, found.position) if found else (2**63, 0)

    async def wait(self, block: bytes, deadline_s: float = ORDERED_S) -> str | None:
        """Return once a checkpoint has executed `block`: None, or why it had no effect.

        TooSlow when none did in time.
        """
        await self.until(lambda: self.outcome(block) is not None, deadline_s)
        found = self.outcome(block)
        assert found is not None
        return (found.text or "no reason is recorded") if found.code else None

    async def until(
        self, condition: Callable[[], bool], deadline_s: float = ORDERED_S
    ) -> None:
        """Return once `condition` holds at a checkpoint. TooSlow."""
        with trio.move_on_after(deadline_s):
            with self._events.subscribe(CheckpointFinalised, capacity=1) as facts:
                while not condition():
                    await facts.receive()
        if not condition():
            raise TooSlow(
                f"no checkpoint took it within {deadline_s:g} s; it stays pending. "
                "`blyanctl consensus status` says what the next one waits for"
            )
