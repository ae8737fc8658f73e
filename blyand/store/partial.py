"""A blob on its way: its leaves arrive in any order, from anyone, each checked alone.

The .part file has the blob's final size and outline from the start; which leaves are
there is never written down but found again by hashing, so a kill costs nothing.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable

from blyan_proto.errors import BadProof, ProtocolError
from blyan_tile.tblock import Outline, check_leaf, read_outline
from blyand.store.medium import Medium

Settle = Callable[[int, str, Outline, bool], None]


class PartialBlob:
    """One arriving blob; made by `BlobStore.begin_fetch`. Safe from several threads."""

    def __init__(
        self,
        medium: Medium,
        name: str,
        outline: Outline,
        *,
        settle: Settle,
        closed: Callable[[bytes], None],
    ) -> None:
        self.outline = outline
        self._medium = medium
        self._name = name
        self._settle = settle
        self._closed = closed
        self._lock = threading.Lock()
        self._missing = set(range(len(outline.leaves)))
        self._fd = self._resume()

    @property
    def root(self) -> bytes:
        """The BlobId."""
        return self.outline.root

    def missing(self) -> tuple[int, ...]:
        """Return the indices of the leaves still to come, ascending."""
        with self._lock:
            return tuple(sorted(self._missing))

    def write_leaf(self, index: int, chunk: bytes | memoryview) -> None:
        """Keep the data under one leaf. BadProof, and nothing kept, if it is not that."""
        check_leaf(self.outline, index, chunk)
        self.write_leaves([(index, chunk)])

    def write_leaves(self, leaves: Iterable[tuple[int, bytes | memoryview]]) -> None:
        """Keep leaves that the caller has checked against `outline`."""
        for index, chunk in leaves:
            with self._lock:
                if index not in self._missing:
                    continue
            self._medium.write(self._fd, self.outline.leaf_span(index)[0], chunk)
            with self._lock:
                self._missing.discard(index)

    def finish(self, *, durable: bool = True) -> bytes:
        """Make the whole blob one of the store and close; return its root.

        ValueError while leaves are missing.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} leaves are missing")
        self._settle(self._fd, self._name, self.outline, durable)
        self.close()
        return self.root

    def discard(self) -> None:
        """Throw away what came so far and close."""
        self._medium.unlink(self._name)
        self.close()

    def close(self) -> None:
        """Stop here; what came stays for a later `begin_fetch`. May be called twice."""
        if self._fd >= 0:
            self._medium.close_file(self._fd)
            self._fd = -1
            self._closed(self.root)

    def _resume(self) -> int:
        fd = self._medium.open(self._name, write=True)
        if fd is not None:
            if self._is_ours(fd):
                self._recount(fd)
                return fd
            self._medium.close_file(fd)
        self._medium.unlink(self._name)
        fd = self._medium.create(self._name)
        try:
            self._medium.allocate(fd, self.outline.file_bytes)
            self._medium.write(fd, 0, self.outline.header)
            behind = self.outline.data_offset + self.outline.data_bytes
            self._medium.write(fd, behind, self.outline.tail_bytes())
        except BaseException:
            self._medium.close_file(fd)
            raise
        return fd

    def _is_ours(self, fd: int) -> bool:
        try:
            return read_outline(fd) == self.outline
        except ProtocolError:  # torn by a power cut before its outline was on disk
            return False

    def _recount(self, fd: int) -> None:
        for index in tuple(self._missing):
            offset, length = self.outline.leaf_span(index)
            try:
                check_leaf(self.outline, index, pread(fd, offset, length))
            except BadProof:
                continue
            self._missing.discard(index)


def pread(fd: int, offset: int, length: int) -> bytes:
    """Return up to `length` bytes at `offset`; fewer where the file ends."""
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def read_into(fd: int, room: memoryview, offset: int, wait: bool) -> int:
    """Fill `room` from `offset` on; return how much there was.

    Without `wait`, only what is in the page cache.
    """
    size = 0
    while size < len(room):
        try:
            count = os.preadv(
                fd, [room[size:]], offset + size, 0 if wait else os.RWF_NOWAIT
            )
        except OSError as error:
            if not wait and error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                break
            raise
        if not count:
            break
        size += count
    return size
