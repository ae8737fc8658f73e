"""The one door to the files of one folder: every durable operation, and nothing else.

Blobs, intents and the small files of the home use a `Medium` alone, so that a test can put a recording one in its
place and replay what a power cut would have left (DEC-D2). Names are relative to the
root, at most one folder deep; no link is ever followed (DEC-C6).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blyand.errors import DiskFull, StorageFault

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a pipe that somebody put in a file's place must not make us wait.
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABSENT = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR)


@dataclass(frozen=True)
class Entry:
    """A file in a folder."""

    name: str
    bytes: int
    changed_s: float  # Unix time of its last change


class Medium:
    """Files under `root` on a real disk.

    A failure of the disk is a StorageFault, but DiskFull when only room is lacking.
    """

    def __init__(self, root: Path) -> None:
        with _faults(f"open {root}"):
            if not root.is_dir():
                root.mkdir(mode=0o700, parents=True)
                sync_path(root.parent)
            # The operator may have put the root itself elsewhere by a link.
            self._root = os.open(root, _FOLDER & ~os.O_NOFOLLOW)

    def create(self, name: str) -> int:
        """Return a descriptor of a new file, mode 0600; the caller closes it."""
        with _faults(f"create {name}"), self._folder(name) as (folder, base):
            flags = _FILE | os.O_CREAT | os.O_EXCL | os.O_RDWR
            return os.open(base, flags, 0o600, dir_fd=folder)

    def open(self, name: str, *, write: bool = False) -> int | None:
        """Return a descriptor of a regular file, None when there is none.

        The caller closes it.
        """
        flags = _FILE | (os.O_RDWR if write else os.O_RDONLY)
        with _faults(f"open {name}"), self._folder(name) as (folder, base):
            try:
                fd = os.open(base, flags, dir_fd=folder)
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd

    def allocate(self, fd: int, size: int) -> None:
        """Reserve `size` bytes of zeros, so that a full disk shows before the writes."""
        if size:
            with _faults("reserve space"):
                os.posix_fallocate(fd, 0, size)

    def write(self, fd: int, offset: int, piece: bytes | memoryview) -> None:
        """Write all of `piece` at `offset`."""
        with _faults("write"), memoryview(piece).cast("B") as view:
            written = 0
            while written < len(view):
                written += os.pwrite(fd, view[written:], offset + written)

    def read(self, fd: int, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset`; fewer where the file ends."""
        parts = []
        with _faults("read"):
            while size and (part := os.pread(fd, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        with _faults("truncate"):
            os.ftruncate(fd, size)

    def seal(self, fd: int) -> None:
        """Make the file read-only, mode 0444."""
        with _faults("seal"):
            os.fchmod(fd, 0o444)

    def sync(self, fd: int) -> None:
        """Make the file's content and size durable; its name is `sync_folder`'s."""
        with _faults("sync"):
            os.fdatasync(fd)

    def rename(self, old: str, new: str) -> None:
        """Move a file, over another if there is one."""
        with (
            _faults(f"rename {old}"),
            self._folder(old) as (old_folder, old_base),
            self._folder(new) as (new_folder, new_base),
        ):
            os.rename(old_base, new_base, src_dir_fd=old_folder, dst_dir_fd=new_folder)

    def put(self, name: str, raw: bytes) -> None:
        """Put a small file with these bytes in a name's place, durable on return.

        Whatever happens, the name stands for the old bytes or for the new ones.
        """
        draft = f"{name}.new"
        self.unlink(draft)
        fd = self.create(draft)
        try:
            self.write(fd, 0, raw)
            self.sync(fd)
        finally:
            self.close_file(fd)
        self.rename(draft, name)
        self.sync_folder(name.rpartition("/")[0])

    def adopt(self, path: Path, new: str) -> None:
        """Move a file from elsewhere on the same file system to the name `new`."""
        with _faults(f"adopt {path}"), self._folder(new) as (folder, base):
            os.rename(path, base, dst_dir_fd=folder)

    def unlink(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        with _faults(f"remove {name}"), self._folder(name) as (folder, base):
            try:
                os.unlink(base, dir_fd=folder)
            except FileNotFoundError:
                pass

    def make_folder(self, name: str) -> None:
        """Make a folder, mode 0700; one that exists is left as it is."""
        with _faults(f"make {name}"):
            try:
                os.mkdir(name, 0o700, dir_fd=self._root)
            except FileExistsError:
                pass

    def sync_folder(self, name: str) -> None:
        """Make the names in a folder durable; "" is the root itself."""
        with _faults(f"sync {name or 'the folder'}"), self._opened(name) as folder:
            os.fsync(folder)

    def folders(self) -> list[str]:
        """Return the names of the folders in the root, sorted."""
        with _faults("list the folder"), os.scandir(self._root) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_dir(follow_symlinks=False)
            )

    def files(self, folder: str) -> list[Entry]:
        """Return the regular files of a folder, by name."""
        found = []
        with _faults(f"list {folder}"), self._opened(folder) as opened:
            with os.scandir(opened) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue  # it went meanwhile
                        found.append(Entry(entry.name, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.name)

    def close_file(self, fd: int) -> None:
        """Close a descriptor that this medium gave."""
        os.close(fd)

    def close(self) -> None:
        """Let go of the root; further use is an error."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    @contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        if not folder:
            yield self._root
            return
        fd = os.open(folder, _FOLDER, dir_fd=self._root)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _folder(self, name: str) -> Iterator[tuple[int, str]]:
        folder, _, base = name.rpartition("/")
        with self._opened(folder) as fd:
            yield fd, base


def open_outside(path: Path) -> int:
    """Return a read-only descriptor of a regular file anywhere; the caller closes it."""
    with _faults(f"open {path}"):
        fd = os.open(path, _FILE | os.O_RDONLY)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file")
    return fd


@contextmanager
def _faults(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault_of(action, error) from error


def fault_of(action: str, error: OSError) -> DiskFull | StorageFault:
    """Return what a failure of the disk is to the rest of the daemon."""
    if error.errno in _FULL:
        return DiskFull(
            f"cannot {action}: the disk is full ({error.strerror}); make room"
        )
    return StorageFault(f"cannot {action}: {error.strerror or error}")


def sync_path(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
