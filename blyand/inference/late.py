"""Calls that take longer than usual are noticed, without a task for each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

TICK_S = 0.005  # between two looks, while there is a call to look at


class Watch:
    """Tells `act` once `late_s` (trio time) has passed, unless it is forgotten before."""

    def __init__(self, late_s: float, act: Callable[[], None]) -> None:
        self.late_s, self.act = late_s, act


class Lateness:
    """Watches calls; `run` is the service behind it. Use it from the loop only."""

    def __init__(self) -> None:
        self._watched: dict[Watch, None] = {}
        self._arrived = trio.Event()
        self._nursery: trio.Nursery | None = None

    def watch(self, late_s: float, act: Callable[[], None]) -> Watch:
        """Call `act` on the loop some milliseconds after `late_s`."""
        made = Watch(late_s, act)
        self._watched[made] = None
        self._arrived.set()
        return made

    def forget(self, watch: Watch) -> None:
        self._watched.pop(watch, None)

    def start(self, one: Callable[..., Awaitable[None]], *args: object) -> bool:
        """Run a task beside whoever is late; False while the service does not run."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(one, *args)
        return True

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at what is watched, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                while not self._watched:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                await trio.sleep(TICK_S)
                now_s = trio.current_time()
                for watch in [one for one in self._watched if one.late_s <= now_s]:
                    self.forget(watch)
                    watch.act()
