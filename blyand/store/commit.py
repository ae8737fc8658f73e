"""Group commit: many submissions, one synced batch, one wake-up (DEC-D1)."""

from __future__ import annotations

from collections import deque

import trio

from blyand.errors import StorageFault
from blyand.store.db import Store
from blyand.store.schema import Batch

GROUP_OPERATIONS = 4096  # most writes in one batch: about a millisecond of LevelDB
GROUP_BYTES = 4 * 1024 * 1024  # and most bytes, unless one submission is larger


class _Submission:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.bytes = sum(len(key) + len(value or b"") for key, value in batch)
        self.done = trio.Event()
        self.fault: StorageFault | None = None


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
        self._limiter = trio.CapacityLimiter(1)

    async def submit(self, batch: Batch) -> None:
        """Write `batch`; it is durable on return. Submissions keep their order.

        StorageFault when it could not be written. If cancelled, it may or may not be.
        """
        submission = _Submission(batch)
        async with self._changed:
            while len(self._waiting) >= self._capacity and not self._closed:
                await self._changed.wait()
            if self._closed:
                raise StorageFault("the database no longer takes writes")
            self._waiting.append(submission)
            self._changed.notify_all()
        await submission.done.wait()
        if submission.fault is not None:
            raise submission.fault

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve submissions until cancelled. A write that fails ends the service."""
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
                await trio.to_thread.run_sync(self._write, group, limiter=self._limiter)
                for submission in group:
                    submission.done.set()
                group = []
        except StorageFault as error:
            fault = error
            raise
        finally:
            self._closed = True
            for submission in [*group, *self._waiting]:
                submission.fault = fault
                submission.done.set()
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

    def _write(self, group: list[_Submission]) -> None:
        batch = [write for submission in group for write in submission.batch]
        self._store.write_batch(batch, sync=True)
