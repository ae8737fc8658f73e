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
from blyand.replica import Replica

logger = logging.getLogger(__name__)

FULL_S = 2.0  # before a disk that was full is tried again
ALARM = -1  # its place among the alarms, which go by height


def begin(base: Base) -> None:
    """Let the node sign at once, or raise the alarm that says why it may not."""
    if base.home.restored.exists() or base.stores.intents.damaged:
        base.alarms[ALARM] = (
            "what this node signed before is not known here; it signs nothing until all "
            "connected peers, and at least one, have told it"
        )
    else:
        base.settled.set()


async def settle(
    base: Base,
    replica: Replica,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Learn from the peers what this node signed before its records were lost (DEC-A9)."""
    task_status.started()
    if not base.settled.is_set():
        await replica.follower.level()
        intents, account = base.stores.intents, base.key.account
        known = base.stores.blocks.highest_sequence(account)
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
