"""Group commit: many submissions, one synced batch, one wake-up (DEC-D1).

While the disk is full every submission is refused at once, and the database is tried
again with a growing delay; so nothing waits in memory for a disk that may stay full.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

import trio

from blyand.errors import DiskFull, StorageFault
from blyand.store.db import Store
from blyand.store.schema import Batch

logger = logging.getLogger(__name__)

FIRST_TRY_S, LONGEST_TRY_S = 0.5, 15.0  # delays between tries while the disk is full
GROUP_OPERATIONS = 4096  # most writes in one batch: about a millisecond of LevelDB
GROUP_BYTES = 4 * 1024 * 1024  # and most bytes, unless one submission is larger


class _Submission:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.bytes = sum(len(key) + len(value or b"") for key, value in batch)
        self.done = trio.Event()
        self.fault: StorageFault | DiskFull | None = None


class GroupCommit:
    """The one writer of the database while the daemon runs.

    Queue: `capacity` submissions; when it is full, `submit` waits.
    """

    def __init__(self, store: Store, *, capacity: int = 1024) -> None:
        self._store = store
        self._capacity = capacity
        self._waiting: deque[_Submission] = deque()
        self._changed = trio.Condition()
        self._closed = False
        self._full: DiskFull | None = None
        self._limiter = trio.CapacityLimiter(1)

    @property
    def waiting(self) -> int:
        """How many submissions are not being written yet."""
        return len(self._waiting)

    async def submit(self, batch: Batch) -> None:
        """Write `batch`; it is durable on return. Submissions keep their order.

        DiskFull, and nothing is written, while there is no room; StorageFault when it
        could not be written. If cancelled, it may or may not be.
        """
        submission = _Submission(batch)
        async with self._changed:
            while len(self._waiting) >= self._capacity and not self._closed:
                await self._changed.wait()
            if self._closed:
                raise StorageFault("the database no longer takes writes")
            if self._full is not None:
                raise DiskFull(str(self._full))
            self._waiting.append(submission)
            self._changed.notify_all()
        await submission.done.wait()
        if submission.fault is not None:
            raise submission.fault

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve submissions until cancelled.

        A write that fails ends the service, unless only room is lacking.
        """
        task_status.started()
        group: list[_Submission] = []
        fault = StorageFault("the database was closed before the write")
        try:
            while True:
                async with self._changed:
                    while not self._waiting:
                        await self._changed.wait()
                    group = self._take()
                    self._changed.notify_all()
                # Not abandoned on cancel: what was written is also acknowledged.
                try:
                    await self._write(group)
                except DiskFull as error:
                    await self._wait_for_room(group, error)
                for submission in group:
                    submission.done.set()
                group = []
        except StorageFault as error:
            fault = error
            raise
        finally:
            self._closed = True
            _refuse([*group, *self._waiting], fault)
            self._waiting.clear()
            with trio.CancelScope(shield=True):
                async with self._changed:
                    self._changed.notify_all()

    def _take(self) -> list[_Submission]:
        """Take submissions up to the group's bounds, at least one."""
        group: list[_Submission] = []
        operations = size = 0
        while self._waiting:
            head = self._waiting[0]
            operations += len(head.batch)
            size += head.bytes
            if group and (operations > GROUP_OPERATIONS or size > GROUP_BYTES):
                break
            group.append(self._waiting.popleft())
        return group

    async def _wait_for_room(self, group: list[_Submission], error: DiskFull) -> None:
        """Refuse everything until the database takes writes again."""
        self._full = error
        delay_s = FIRST_TRY_S
        logger.error("%s; nothing new is stored until there is room", error)
        while self._full is not None:
            async with self._changed:
                _refuse([*group, *self._waiting], self._full)
                self._waiting.clear()
                self._changed.notify_all()
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_TRY_S)
            try:
                await self._write([])
                self._full = None
            except DiskFull as still:
                self._full = still

    async def _write(self, group: list[_Submission]) -> None:
        batch = [write for submission in group for write in submission.batch]
        await trio.to_thread.run_sync(
            lambda: self._store.write_batch(batch, sync=True), limiter=self._limiter
        )


def _refuse(submissions: Iterable[_Submission], fault: StorageFault | DiskFull) -> None:
    for submission in submissions:
        submission.fault = fault
        submission.done.set()
