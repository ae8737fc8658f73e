"""Answers before learning: processes that stand still while a lane computes.

Strategy. Niceness leaves a process its slice of a core, and a step of training fills the
caches meanwhile; a stopped process takes neither. So the kernel stops the learning ones
(SIGSTOP) when the lane begins, and lets them go on a moment after it went quiet: between
two tokens of an answer there is no time for a step. So that a node that always answers
still learns, they run for a part of the time whatever happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from blyand.compute import Threads
from blyand.metrics import Metrics

R = TypeVar("R")

LINGER_S = 0.03  # of quiet, until the others go on
MOST_S = 2.0  # for which they stand still in a row
PATIENCE_S = 0.5  # of a call that can wait


class FirstLane(Threads):
    """A lane before which others give way; `serve` is the service behind it.

    `hold(True)` stops the others and `hold(False)` lets them go on; each may be called
    again. `least_percent` of the time they go on although the lane computes.
    """

    def __init__(
        self,
        name: str,
        width: int,
        hold: Callable[[bool], None],
        least_percent: int,
        metrics: Metrics,
    ) -> None:
        super().__init__(name, width)
        self._hold = hold
        rest = 100 - least_percent
        self._given_s = MOST_S * least_percent / rest if rest else math.inf
        self._running = 0  # calls
        self._quiet_s = 0.0  # since when there is none
        self._held_s: float | None = None  # since when the others stand still
        self._free_s = math.inf if math.isinf(self._given_s) else 0.0  # until then not
        self._held = trio.Event()
        self._quiet = trio.Event()
        self._held_ms = metrics.counter("training_held_milliseconds")

    async def run(self, fn: Callable[..., R], *args: Any) -> R:
        """Return ``fn(*args)``, run in a thread while the others stand still."""
        self._running += 1
        try:
            self._stop_others()
            return await super().run(fn, *args)
        finally:
            self._running -= 1
            if not self._running:
                self._quiet_s = trio.current_time()
                self._quiet.set()

    async def until_quiet(self) -> None:
        """Return once there was no call for a moment, at the latest after PATIENCE_S."""
        with trio.move_on_after(PATIENCE_S):
            await self._until_quiet()

    async def serve(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Let the others go on in time, until cancelled; then they do."""
        task_status.started()
        try:
            while True:
                await self._held.wait()
                is_quiet = await self._until_due()
                self._let_go()
                if not is_quiet:  # the others' turn, though the lane computes
                    self._free_s = trio.current_time() + self._given_s
                    await trio.sleep_until(self._free_s)
                    if self._running:
                        self._stop_others()
        finally:
            self._let_go()

    def _stop_others(self) -> None:
        now = trio.current_time()
        if self._held_s is None and now >= self._free_s:
            self._held_s = now
            self._hold(True)
            self._held.set()

    async def _until_due(self) -> bool:
        """Wait until the others may go on; True: as it is quiet."""
        assert self._held_s is not None
        with trio.CancelScope() as most:
            most.deadline = self._held_s + MOST_S if self._given_s else math.inf
            await self._until_quiet()
        return not most.cancelled_caught

    async def _until_quiet(self) -> None:
        while self._running or trio.current_time() < self._quiet_s + LINGER_S:
            if self._running:
                if self._quiet.is_set():
                    self._quiet = trio.Event()
                await self._quiet.wait()
            else:
                await trio.sleep_until(self._quiet_s + LINGER_S)

    def _let_go(self) -> None:
        if self._held_s is not None:
            self._held_ms.add(round(1000 * (trio.current_time() - self._held_s)))
            self._held_s = None
            self._held = trio.Event()
            self._hold(False)


class Aside(Threads):
    """The same threads, for what nobody waits for as for an answer: the others go on."""

    def __init__(self, first: FirstLane) -> None:
        self.name, self._limiter = first.name, first._limiter


class Quiet(Aside):
    """Likewise, and its calls begin when it is quiet, one at a time."""

    def __init__(self, first: FirstLane) -> None:
        super().__init__(first)
        self._first = first
        self._turn = trio.Lock()

    async def run(self, fn: Callable[..., R], *args: Any) -> R:
        """Return ``fn(*args)``, run in a thread after a moment without answers."""
        async with self._turn:
            await self._first.until_quiet()
            return await super().run(fn, *args)
