"""Keeping the datasets of the network here, before a run asks for them."""

from __future__ import annotations

from collections.abc import Callable

import trio

from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.records import DATASETS, NODES, DatasetRecord
from blyand.rules.view import View

MAX_EAGER_BYTES = 256 << 20


class Custody:
    """Asks for every dataset's archive. Runs on nodes that learn."""

    def __init__(
        self,
        view: Callable[[], View],
        has: Callable[[bytes], bool],
        want: Callable[[bytes, bytes], None],
        events: Broadcast,
    ) -> None:
        """`want(blob, account)` fetches a blob in the background, from its author first."""
        self._view = view
        self._has = has
        self._want = want
        self._events = events

    def _is_small_and_known(self, record: DatasetRecord) -> bool:
        """A large one, or a stranger's, is fetched only when a run names it."""
        known = NODES.get(self._view(), record.author) is not None
        return known and record.dataset.bytes <= MAX_EAGER_BYTES

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at the datasets after every checkpoint."""
        with self._events.subscribe(CheckpointFinalised, capacity=1) as facts:
            task_status.started()
            while True:
                for record in DATASETS.scan(self._view()):
                    if self._is_small_and_known(record):
                        if not self._has(record.dataset.blob):
                            self._want(record.dataset.blob, record.author)
                await facts.receive()
