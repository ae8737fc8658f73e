"""Which blob files there are, and which of them are believed.

Strategy. A blob is complete under a temporary name before it gets its own, so a file
with a blob's name is whole. Durable blobs are synced first (DEC-B4, D1); derived ones
are not, live in a folder of their own, and are hashed once before they are believed
again after a restart. What turns out wrong is removed, so that it is fetched again.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from blyan_proto.errors import BadProof, ProtocolError
from blyan_tile.tblock import Outline, read_outline, verify_file
from blyand.errors import NotHere
from blyand.store.medium import Medium

logger = logging.getLogger(__name__)

DERIVED, PARTIAL, TEMPORARY = "derived", "partial", "tmp"
SUFFIX = ".tblk"


@dataclass
class Held:
    """A file with a blob's name."""

    bytes: int
    durable: bool
    checked: bool  # by this process: the outline of a durable blob, all of a derived
    twin: bool = False  # durable, and the file it had as a derived one is still there


class Shelf:
    """The named files of one blob folder. Safe from several threads."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._lock = threading.Lock()
        self._held: dict[bytes, Held] = {}
        self._lost: set[bytes] = set()
        self._settling: Counter[bytes] = Counter()
        self._begun: dict[str, int] = {}  # names of unfinished files -> bytes
        medium.make_folder(DERIVED)
        self._folders = set(medium.folders())
        # A kill may have left names that are visible and not durable: those of folders
        # are made so now, those in a folder when one of its blobs is first asked for.
        medium.sync_folder("")
        self._unsynced = set(self._folders)
        for folder in sorted(self._folders - {PARTIAL, TEMPORARY, DERIVED}):
            self._take_stock(folder)
        self._take_stock(DERIVED)

    def roots(self, durable: bool) -> tuple[bytes, ...]:
        """Return the roots of all durable or all derived blobs, as the files say."""
        with self._lock:
            return tuple(r for r, held in self._held.items() if held.durable is durable)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(held.bytes for held in self._held.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of all files and of those that are being made, each counted once."""
        with self._lock:
            held = sum(held.bytes for held in self._held.values())
            return held + sum(self._begun.values())

    def begin(self, name: str, size: int) -> None:
        """Count an unfinished file, until `settle` or `give_up`."""
        with self._lock:
            self._begun[name] = size

    def give_up(self, name: str) -> None:
        """Count an unfinished file no longer."""
        with self._lock:
            self._begun.pop(name, None)

    @property
    def lost(self) -> frozenset[bytes]:
        """Roots that were removed as damaged and are not back yet."""
        with self._lock:
            return frozenset(self._lost)

    def checked(self, root: bytes) -> Held | None:
        """Return what is held of a blob once there is reason to believe it."""
        held = self._held.get(root)
        if held is None or held.checked:
            return held
        try:
            with self.file(root) as fd:
                if not held.durable:
                    verify_file(fd, root)
                elif read_outline(fd).root != root:
                    raise BadProof("the file has another root")
        except ProtocolError as error:
            self.lose(root, error)
            return None
        except NotHere:
            return None
        if held.durable:
            self._sync_inherited(_folder_of(root))
        held.checked = True
        return held

    def stands(self, root: bytes, *, durable: bool) -> bool:
        """True when the blob is here already, as durable as asked."""
        held = self.checked(root)
        return held is not None and (held.durable or not durable)

    @contextmanager
    def file(self, root: bytes) -> Iterator[int]:
        """Open a blob's file for reading. NotHere."""
        held = self._held.get(root)
        if held is None:
            raise NotHere(f"blob {root.hex()} is not here")
        fd = self._medium.open(name_of(root, held.durable))
        if fd is None:
            self.lose(root, "its file is gone or no regular file")
            raise NotHere(f"blob {root.hex()} is not here")
        try:
            yield fd
        except OSError as error:  # the disk does not give what it took
            self.lose(root, error)
            raise NotHere(f"blob {root.hex()} cannot be read") from error
        finally:
            self._medium.close_file(fd)

    def settle(self, fd: int, name: str, outline: Outline, durable: bool) -> None:
        """Give the complete file `name` its blob's name; nothing else makes a blob.

        With `durable`, it is on disk under its name on return. A derived file of the same
        blob stays beside it until the blob goes or the store is opened again: somebody
        who was told its name may be about to open it.
        """
        with self._lock:
            self._settling[outline.root] += 1
        try:
            self._settle(fd, name, outline, durable)
        finally:
            with self._lock:
                self._settling -= Counter({outline.root: 1})  # forgets zeros

    def _settle(self, fd: int, name: str, outline: Outline, durable: bool) -> None:
        root = outline.root
        self._medium.seal(fd)
        if durable:
            self._medium.sync(fd)
            self._need_folder(_folder_of(root))
        self._medium.rename(name, name_of(root, durable))
        if durable:
            self._medium.sync_folder(_folder_of(root))
        with self._lock:
            earlier = self._held.get(root)
            if earlier is None or durable:
                twin = earlier is not None and (earlier.twin or not earlier.durable)
                self._held[root] = Held(outline.file_bytes, durable, True, twin)
            self._begun.pop(name, None)
            self._lost.discard(root)
        if earlier is not None and earlier.durable and not durable and not earlier.twin:
            self._medium.unlink(name_of(root, False))  # the durable one is enough

    def lose(self, root: bytes, reason: object) -> None:
        """Remove a damaged blob and remember that it was here."""
        logger.warning("blob %s is damaged and removed: %s", root.hex(), reason)
        with self._lock:
            self._lost.add(root)
        self.remove(root)

    def remove(self, root: bytes) -> None:
        """Remove a blob; one that is not here is no error."""
        with self._lock:
            held = self._held.pop(root, None)
        if held is not None:
            self._medium.unlink(name_of(root, held.durable))
        if held is not None and held.twin:
            self._medium.unlink(name_of(root, False))

    def put_away(self, root: bytes) -> list[str] | None:
        """Take a blob off unless it is being settled (None); return what to `erase`.

        Its files lose their names under the lock, so that one which comes back meanwhile
        is not the one that goes. The rest of the work, which takes long for a large file,
        needs no lock.
        """
        with self._lock:
            if root in self._settling:
                return None
            held = self._held.pop(root, None)
            if held is None:
                return []
            named = [name_of(root, True)] if held.durable else []
            if held.twin or not held.durable:
                named.append(name_of(root, False))
            erased = []
            for name in named:
                fd = self._medium.open(name)
                if fd is not None:
                    self._medium.close_file(fd)
                    erased.append(f"{TEMPORARY}/{secrets.token_hex(16)}")
                    self._medium.rename(name, erased[-1])
            return erased

    def erase(self, names: list[str]) -> None:
        """Delete files that lost their names."""
        for name in names:
            self._medium.unlink(name)

    def is_named_durable(self, root: bytes) -> bool:
        """True when a durable file has the blob's name, believed or not."""
        held = self._held.get(root)
        return held is not None and held.durable

    def bytes_of(self, root: bytes) -> int:
        """Return the bytes of a blob's file, 0 when it is not here."""
        held = self._held.get(root)
        return 0 if held is None else held.bytes

    def stock(self, folder: str) -> list[tuple[bytes, float]]:
        """Return root and time of last change of each durable blob of a folder."""
        found = []
        for entry in self._medium.files(folder):
            root = _root_in(folder, entry.name)
            if root is not None:
                found.append((root, entry.changed_s))
        return found

    def folders(self) -> list[str]:
        """Return the folders of durable blobs."""
        with self._lock:
            return sorted(self._folders - {PARTIAL, TEMPORARY, DERIVED})

    def _take_stock(self, folder: str) -> None:
        for entry in self._medium.files(folder):
            root = _root_in(folder, entry.name)
            if root is None:
                continue
            if folder == DERIVED and root in self._held:
                self._medium.unlink(name_of(root, False))  # the durable one is enough
            else:
                self._held[root] = Held(entry.bytes, folder != DERIVED, False)

    def _need_folder(self, folder: str) -> None:
        with self._lock:
            if folder in self._folders:
                return
        self._medium.make_folder(folder)
        self._medium.sync_folder("")
        with self._lock:
            self._folders.add(folder)

    def _sync_inherited(self, folder: str) -> None:
        with self._lock:
            if folder not in self._unsynced:
                return
        self._medium.sync_folder(folder)
        with self._lock:
            self._unsynced.discard(folder)


def _folder_of(root: bytes) -> str:
    return root.hex()[:2]


def name_of(root: bytes, durable: bool) -> str:
    """Return a blob's file name, relative to the store's folder."""
    if durable:
        return f"{_folder_of(root)}/{root.hex()[2:]}{SUFFIX}"
    return f"{DERIVED}/{root.hex()}{SUFFIX}"


def _root_in(folder: str, name: str) -> bytes | None:
    """Return the root that a file's name stands for, None for a foreign file."""
    text = name.removesuffix(SUFFIX)
    if folder != DERIVED:
        text = folder + text
    try:
        root = bytes.fromhex(text)
    except ValueError:
        return None
    if len(root) != 32 or f"{folder}/{name}" != name_of(root, folder != DERIVED):
        return None
    return root
