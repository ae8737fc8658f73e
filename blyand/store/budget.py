"""The room that a home may take on its disk: asked for before anything large is written.

Strategy. What is used is measured, not remembered, so that no path that ends early can
leave it wrong. Whoever begins a blob reserves its file under one lock, and the file has
its whole size from then on: writers at once cannot overshoot together.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blyand.errors import OverBudget

SPARED = 8  # a share of 1/SPARED is left for what this node has to hold
MEASURED_AGAIN_S = 2.0
FULL_S = 30.0  # a refusal counts as "full" for this long
MIB = 1 << 20


class Budget:
    """The bytes of one home. Blocking; safe from several threads."""

    def __init__(self, limit_bytes: int | None, home: Path | None = None) -> None:
        """`home`: whose files count, all but the folder `blobs` (see `count`)."""
        self.limit_bytes = limit_bytes
        self._home = home
        self._lock = threading.Lock()
        self._counted: Callable[[], int] = lambda: 0
        self._others = 0
        self._measured_s = -1e9
        self._refused_s = -1e9
        self.make_room: Callable[[], None] = lambda: None
        self.is_ours: Callable[[bytes], bool] = lambda root: True

    def count(self, blobs: Callable[[], int]) -> None:
        """Take the bytes of all blobs, begun ones included, from `blobs`."""
        self._counted = blobs

    def used_bytes(self) -> int:
        """Return the bytes in use; those of the database may be seconds old."""
        now = time.monotonic()
        if self._home is not None and now - self._measured_s > MEASURED_AGAIN_S:
            self._others = _bytes_under(self._home)
            self._measured_s = now
        return self._counted() + self._others

    @property
    def trouble(self) -> str | None:
        """Say in a sentence that the budget is full; None while there is room."""
        if self.limit_bytes is None:
            return None
        used = self.used_bytes()
        if used < self.limit_bytes and time.monotonic() - self._refused_s > FULL_S:
            return None
        return (
            f"the disk budget is full: {used // MIB} of {self.limit_bytes // MIB} MiB are "
            "used; nothing new is kept before store.disk_mib is raised or something goes"
        )

    @contextmanager
    def room(self, size: int, root: bytes) -> Iterator[None]:
        """Hold room for a file of `size` bytes while it is being made. OverBudget.

        What may go, goes first. A blob that this node need not hold leaves a share of the
        budget to those that it has to.
        """
        if self.limit_bytes is None:
            yield
            return
        with self._lock:
            limit = self.limit_bytes
            if not self.is_ours(root):
                limit -= limit // SPARED
            if self.used_bytes() + size > limit:
                self.make_room()
            used = self.used_bytes()
            if used + size > limit:
                self._refused_s = time.monotonic()
                raise OverBudget(
                    f"the disk budget is full: {used // MIB} of "
                    f"{self.limit_bytes // MIB} MiB are used, and blob {root.hex()[:16]} "
                    f"needs {-(-size // MIB)} more; raise store.disk_mib, or unpin something "
                    "(`blyanctl pin list`)"
                )
            yield


def _bytes_under(home: Path) -> int:
    """Return the bytes of a home's files without its blobs."""
    total = 0
    for folder, folders, files in os.walk(home):
        if folder == str(home) and "blobs" in folders:
            folders.remove("blobs")
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                pass  # it went meanwhile
    return total
