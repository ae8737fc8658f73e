"""What peers take from us in bulk, within limits, each in its turn, and counted.

The decisions are `rules/net/uploads`; here are the waiting and the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from blyand.errors import Busy
from blyand.metrics import Metrics
from blyand.net.stream import MessageStream
from blyand.rules.net.uploads import Pace, Places, UploadLimits


class Uploads:
    """The uploads of a node."""

    def __init__(
        self, limits: UploadLimits | None = None, metrics: Metrics | None = None
    ) -> None:
        self._limits = limits or UploadLimits()
        self._places = Places(self._limits)
        self._pace: Pace | None = None  # made when a clock runs
        self._moved = trio.Event()
        metrics = metrics or Metrics()
        self._running = metrics.gauge("blyan_blob_uploads")
        self._refused = metrics.counter("blyan_blob_uploads_refused")
        self._bytes = metrics.counter("blyan_blob_upload_bytes")
        self._waits = metrics.histogram("blyan_blob_upload_wait_seconds")

    @contextmanager
    def place(self, peer: str) -> Iterator[None]:
        """Hold a place for a request of a peer. Busy when there is none for it."""
        if not self._places.take(peer):
            self._refused.add()
            raise Busy("too many uploads are under way")
        self._running.set(self._places.taken)
        try:
            yield
        finally:
            self._places.free(peer)
            self._running.set(self._places.taken)

    async def send(
        self,
        stream: MessageStream,
        room: memoryview,
        sizes: Sequence[int],
        deadline_s: float,
    ) -> None:
        """Send frames of these sizes that begin `room`; under a limit, each in its turn."""
        if self._pace is None:
            self._pace = Pace(self._limits, trio.current_time())
        if not self._pace.is_limited:
            await stream.send_framed(room[: sum(sizes)], deadline_s)
            self._bytes.add(sum(sizes))
            return
        await stream.flush()  # the OK need not wait
        for size in sizes:
            began_s = trio.current_time()
            await self._wait(self._pace, stream.peer, size)
            self._waits.observe(trio.current_time() - began_s)
            await stream.send_framed(room[:size], deadline_s)
            self._bytes.add(size)
            room = room[size:]

    async def _wait(self, pace: Pace, peer: str, size: int) -> None:
        ticket = pace.queue(peer, size, trio.current_time())
        sent = False
        try:
            while wait_s := pace.wait_s(ticket, trio.current_time()):
                with trio.move_on_after(wait_s):
                    await self._moved.wait()
            sent = True
        finally:
            pace.leave(ticket, trio.current_time(), sent=sent)
            self._moved.set()
            self._moved = trio.Event()
