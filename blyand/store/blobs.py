"""Blobs: one TBLOCK file each, named by its root, written once, opened by mapping.

What is here, reading and writing; which files are believed is `shelf`'s. Durable blobs
are on disk when a call returns; derived ones may vanish and are made again (DEC-B4).
Every question about a blob counts as a use: retention leaves alone what is in use.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from blyan_proto.block.model import Dtype
from blyan_proto.errors import ProtocolError
from blyan_tile import tblock
from blyan_tile.tblock import Outline
from blyand.errors import Busy, NotHere, Pruned
from blyand.store.budget import Budget
from blyand.store.medium import Medium, open_outside
from blyand.store.partial import PartialBlob, pread, read_into
from blyand.store.shelf import PARTIAL, TEMPORARY, Shelf, name_of

OPEN_VIEWS = 256  # mappings kept; each holds one descriptor
MAX_USES = 65_536  # blobs whose last use is known; the older half is then forgotten
MAX_CHECKED = 4096  # leaves of one blob of which it is remembered that
CHECKED_S = 60.0  # a leaf in the page cache is not hashed again for so long


@dataclass
class _View:
    outline: Outline
    array: np.ndarray | None = None  # mapped at the first need
    checked: dict[int, float] = field(default_factory=dict)  # leaf -> when, to serve it


class BlobStore:
    """The blobs under one folder. Blocking; safe to use from several threads."""

    def __init__(
        self,
        path: Path,
        *,
        medium: Medium | None = None,
        open_views: int = OPEN_VIEWS,
        gone_since: Callable[[bytes], int | None] = lambda root: None,
        budget: Budget | None = None,
    ) -> None:
        """`gone_since` says when retention removed a blob: Pruned, not just NotHere."""
        self._gone_since = gone_since
        self._budget = Budget(None) if budget is None else budget
        self._uses: dict[bytes, float] = {}  # root -> monotonic seconds, oldest first
        self._path = path
        self._medium = Medium(path) if medium is None else medium
        self._shelf = Shelf(self._medium)
        self._open_views = open_views
        self._lock = threading.Lock()
        self._views: OrderedDict[bytes, _View] = OrderedDict()
        self._fetching: set[bytes] = set()
        self._medium.make_folder(PARTIAL)
        self._medium.make_folder(TEMPORARY)
        for entry in self._medium.files(TEMPORARY):
            self._medium.unlink(f"{TEMPORARY}/{entry.name}")
        for entry in self._medium.files(PARTIAL):
            self._shelf.begin(f"{PARTIAL}/{entry.name}", entry.bytes)
        self._budget.count(lambda: self._shelf.used_bytes)

    # What is here

    def has(self, root: bytes) -> bool:
        """True when the blob is here; a file of a wrong size counts as absent.

        The first question about a derived blob after a restart hashes it.
        """
        self._use(root)
        return self._shelf.checked(root) is not None

    def path(self, root: bytes) -> Path:
        """Return where the blob's file stands now, for a worker to map. NotHere."""
        self._use(root)
        held = self._shelf.checked(root)
        if held is None:
            raise self._absent(root)
        return self._path / name_of(root, held.durable)

    def is_durable(self, root: bytes) -> bool:
        """True when the blob is here and would survive a power cut."""
        self._use(root)
        return self._shelf.stands(root, durable=True)

    def bytes_of(self, root: bytes) -> int:
        """Return the bytes of a blob's file, 0 when it is not here. No use of it."""
        return self._shelf.bytes_of(root)

    def roots(self, *, durable: bool) -> tuple[bytes, ...]:
        """Return the roots of all durable or all derived blobs, as the files say."""
        return self._shelf.roots(durable)

    @property
    def total_bytes(self) -> int:
        """Bytes of all blobs, without partial ones."""
        return self._shelf.total_bytes

    @property
    def lost(self) -> frozenset[bytes]:
        """Roots of the blobs that were found damaged and are not back yet (DEC-D3)."""
        return self._shelf.lost

    # Reading

    def open_array(self, root: bytes) -> np.ndarray:
        """Return the blob's tensor as a read-only mapping, bf16 as uint16. NotHere.

        The array stays good after the blob is deleted.
        """
        view = self._view(root)
        if view.array is None:
            with self._shelf.file(root) as fd:
                view.array = tblock.open_array(fd)
        return view.array

    def outline(self, root: bytes) -> Outline:
        """Return the blob's outline. NotHere."""
        return self._view(root).outline

    def read_leaf(self, root: bytes, index: int) -> bytes:
        """Return the data under one leaf (at most 256 KiB), checked. NotHere.

        IndexError for a leaf that the blob does not have.
        """
        outline = self.outline(root)
        offset, length = outline.leaf_span(index)
        with self._shelf.file(root) as fd:
            chunk = pread(fd, offset, length)
        try:
            tblock.check_leaf(outline, index, chunk)
        except ProtocolError as error:
            self._lose(root, error)
            raise NotHere(f"blob {root.hex()} was damaged") from error
        return chunk

    def read_leaves(
        self,
        root: bytes,
        rooms: Iterable[tuple[int, memoryview]],
        *,
        wait: bool = True,
    ) -> bool:
        """Fill each room with the data under its leaf, checked; it has the leaf's size.

        For serving: memory that is used again costs no page faults. Without `wait`
        nothing is waited for: False when not all of it is in the page cache; what is
        there and was checked within `CHECKED_S` is not hashed again. Errors as of
        `read_leaf`.
        """
        view, now = self._view(root), time.monotonic()
        outline, checked = view.outline, view.checked
        with self._shelf.file(root) as fd:
            for index, room in rooms:
                size = read_into(fd, room, outline.leaf_span(index)[0], wait)
                if size < len(room) and not wait:
                    return False
                if not wait and now - checked.get(index, -CHECKED_S) < CHECKED_S:
                    continue
                try:
                    tblock.check_leaf(outline, index, room[:size])
                    if len(checked) >= MAX_CHECKED:
                        checked.clear()
                    checked[index] = now
                except ProtocolError as error:
                    self._lose(root, error)
                    raise NotHere(f"blob {root.hex()} was damaged") from error
        return True

    def verify(self, root: bytes) -> bool:
        """Hash the whole blob; a damaged one is removed. False when it is not here."""
        if self._shelf.checked(root) is None:
            return False
        try:
            with self._shelf.file(root) as fd:
                tblock.verify_file(fd, root)
        except ProtocolError as error:
            self._lose(root, error)
            return False
        except NotHere:
            return False
        return True

    # Writing

    def put_array(
        self, array: np.ndarray, *, dtype: Dtype | None = None, durable: bool = True
    ) -> bytes:
        """Store a tensor and return its root; if `durable`, it is on disk on return."""
        outline = tblock.outline_of(array, dtype)
        self._use(outline.root)
        if self._shelf.stands(outline.root, durable=durable):
            return outline.root
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        name = f"{TEMPORARY}/{secrets.token_hex(16)}"
        fd = self._medium.create(name)
        try:
            with self._budget.room(outline.file_bytes, outline.root):
                self._shelf.begin(name, outline.file_bytes)
            self._medium.allocate(fd, outline.file_bytes)
            self._medium.write(fd, 0, outline.header)
            self._medium.write(fd, outline.data_offset, data.data)
            self._medium.write(
                fd, outline.data_offset + outline.data_bytes, outline.tail_bytes()
            )
            self._shelf.settle(fd, name, outline, durable)
        except BaseException:
            self._medium.unlink(name)
            self._shelf.give_up(name)
            raise
        finally:
            self._medium.close_file(fd)
        return outline.root

    def put_bytes(self, raw: bytes, *, durable: bool = True) -> bytes:
        """Store plain bytes as a one-dimensional U8 TBLOCK and return its root."""
        return self.put_array(tblock.bytes_array(raw), durable=durable)

    def put_file(self, path: Path, *, durable: bool = True) -> bytes:
        """Take over a finished TBLOCK file of the same file system; return its root.

        The file is hashed first (ProtocolError, and it stays where it is). Afterwards
        the path is gone. Nobody may hold it open for writing.
        """
        fd = open_outside(path)
        try:
            outline = tblock.verify_file(fd)
            self._use(outline.root)
            if self._shelf.stands(outline.root, durable=durable):
                path.unlink()
            else:
                name = f"{TEMPORARY}/{secrets.token_hex(16)}"
                # It lies in the home already, so it needs no room of its own.
                with self._budget.room(0, outline.root):
                    self._medium.adopt(path, name)
                self._shelf.settle(fd, name, outline, durable)
        finally:
            self._medium.close_file(fd)
        return outline.root

    def begin_fetch(self, outline: Outline) -> PartialBlob:
        """Begin, or take up again, the arrival of a blob whose outline was checked.

        The caller closes the result. Busy when it is being fetched already, OverBudget
        when it does not fit.
        """
        root = outline.root
        with self._lock:
            if root in self._fetching:
                raise Busy(f"blob {root.hex()} is being fetched already")
            self._fetching.add(root)
        try:
            name = _partial_name(root)
            if self._partial_bytes(name) is None:  # else it has its room already
                with self._budget.room(outline.file_bytes, root):
                    self._shelf.begin(name, outline.file_bytes)
            settle, closed = self._shelf.settle, self._fetched
            return PartialBlob(
                self._medium, name, outline, settle=settle, closed=closed
            )
        except BaseException:
            self._fetched(root)
            raise

    def delete(self, root: bytes) -> None:
        """Remove a blob; what is mapped stays readable until it is let go."""
        with self._lock:
            self._views.pop(root, None)
        self._shelf.remove(root)

    def forget_derived(self, root: bytes) -> None:
        """Remove a blob unless it is durable: those are retention's."""
        if not self._shelf.is_named_durable(root):
            self.delete(root)

    def is_idle(self, root: bytes, idle_s: float) -> bool:
        """True when nobody asked about a blob for `idle_s`, as far as is known here."""
        used_s = self._uses.get(root)
        return used_s is None or time.monotonic() - used_s >= idle_s

    def put_away(self, root: bytes, idle_s: float) -> bool:
        """Remove a blob that nobody asked about for `idle_s`; False if it stays.

        What is mapped stays readable until it is let go.
        """
        with self._lock:
            if root in self._fetching or not self.is_idle(root, idle_s):
                return False
            names = self._shelf.put_away(root)
            if names is None:
                return False
            self._views.pop(root, None)
            self._uses.pop(root, None)
        self._shelf.erase(names)
        return True

    def stock(self) -> list[str]:
        """Return the folders of durable blobs, for `in_stock`."""
        return self._shelf.folders()

    def in_stock(self, folder: str) -> list[tuple[bytes, float]]:
        """Return root and Unix time of last change of a folder's durable blobs."""
        return self._shelf.stock(folder)

    def sweep_partials(self, before_s: float) -> int:
        """Remove partial blobs not written to since `before_s` (Unix time); count them."""
        removed = 0
        for entry in self._medium.files(PARTIAL):
            with self._lock:
                busy = any(entry.name.startswith(r.hex()) for r in self._fetching)
            if not busy and entry.changed_s < before_s:
                self._medium.unlink(f"{PARTIAL}/{entry.name}")
                self._shelf.give_up(f"{PARTIAL}/{entry.name}")
                removed += 1
        return removed

    def close(self) -> None:
        """Let go of all files. Arrays that were handed out stay good."""
        with self._lock:
            self._views.clear()
        self._medium.close()

    # Inside

    def _use(self, root: bytes) -> None:
        """Note a use; with `put_away` under one lock, so that neither overlooks it."""
        with self._lock:
            self._note_use(root)

    def _note_use(self, root: bytes) -> None:
        self._uses.pop(root, None)
        self._uses[root] = time.monotonic()
        if len(self._uses) > MAX_USES:
            for old in list(islice(self._uses, MAX_USES // 2)):
                del self._uses[old]

    def _absent(self, root: bytes) -> NotHere:
        if self._gone_since(root) is not None:
            return Pruned(f"blob {root.hex()} was here and is past its retention")
        return NotHere(f"blob {root.hex()} is not here")

    def _partial_bytes(self, name: str) -> int | None:
        """Return the bytes of an unfinished arrival, None when there is none."""
        fd = self._medium.open(name)
        if fd is None:
            return None
        try:
            return os.fstat(fd).st_size
        finally:
            self._medium.close_file(fd)

    def _view(self, root: bytes) -> _View:
        with self._lock:
            self._note_use(root)
            view = self._views.get(root)
            if view is not None:
                self._views.move_to_end(root)
                return view
        if self._shelf.checked(root) is None:
            raise self._absent(root)
        with self._shelf.file(root) as fd:
            view = _View(tblock.read_outline(fd))
        with self._lock:
            view = self._views.setdefault(root, view)
            while len(self._views) > self._open_views:
                self._views.popitem(last=False)
        return view

    def _lose(self, root: bytes, reason: ProtocolError) -> None:
        with self._lock:
            self._views.pop(root, None)
        self._shelf.lose(root, reason)

    def _fetched(self, root: bytes) -> None:
        """An arrival ended: it is a blob, or stays for later, or was thrown away."""
        name = _partial_name(root)
        size = self._partial_bytes(name)
        if size is None:
            self._shelf.give_up(name)
        else:
            self._shelf.begin(name, size)
        with self._lock:
            self._fetching.discard(root)


def _partial_name(root: bytes) -> str:
    return f"{PARTIAL}/{root.hex()}.part"
