"""Not signing what may contradict an earlier signature (DEC-A9).

A home that was restored, or whose intent log is damaged, does not know what it signed.
It signs nothing until every connected peer, and at least one, has shown it everything.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from blyand.errors import DiskFull
from blyand.foundation import Base
from blyand.home import Home
from blyand.replica import Replica
from blyand.stores import Stores

logger = logging.getLogger(__name__)

FULL_S = 2.0  # before a disk that was full is tried again
ALARM = -1  # its place among the alarms, which go by height


def is_amnesic(home: Home, stores: Stores) -> bool:
    """True when it is not known what this node signed before (DEC-A9)."""
    return home.restored.exists() or stores.intents.damaged


def begin(base: Base, *, must_join: bool = False) -> None:
    """Let the node sign at once, or raise the alarm that says why it may not.

    One that `must_join` may have lost what it signed in a former life.
    """
    if must_join:
        return
    if base.is_amnesic:
        base.alarms[ALARM] = (
            "what this node signed before is not known here; it signs nothing until all "
            "connected peers, and at least one, have told it"
        )
    else:
        base.settled.set()


async def settle(
    base: Base,
    replica: Replica,
    remember: Callable[[], Awaitable[None]] | None,
    joined: trio.Event | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Learn from the peers what this node signed before its records were lost (DEC-A9).

    `remember` does so for votes, on a node that has a say in checkpoints.
    """
    task_status.started()
    if not base.settled.is_set():
        if joined is not None:
            await joined.wait()
        await replica.follower.level()
        if remember is not None:
            await remember()
        intents, account = base.stores.intents, base.key.account
        keys = [key.public for key in base.keys]
        known = base.stores.blocks.highest_sequence(account, keys)
        while True:
            try:
                await base.disk_lane.run(intents.raise_sequence_to, account, known)
                await base.disk_lane.run(intents.settle)
                break
            except DiskFull as error:
                logger.warning("%s; nothing is signed before", error)
                await trio.sleep(FULL_S)
        base.home.restored.unlink(missing_ok=True)
        base.alarms.pop(ALARM, None)  # later alarms may have taken its place
        base.settled.set()
    await trio.sleep_forever()


def once_settled(
    base: Base, run: Callable[[], Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    """Return a service that begins its work when this node may sign."""

    async def later(
        *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await base.settled.wait()
        await run()

    return later
