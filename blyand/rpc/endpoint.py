"""The file behind the control socket: where it is bound, and that it is gone at the end.

A Unix socket's path is limited to 107 bytes. A longer one is bound in a short private
directory and linked from the home (DEC-C14).
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blyand.errors import ConfigFault, StorageFault

log = logging.getLogger(__name__)

MAX_PATH_BYTES = 100
BACKLOG = 64
PREFIX = "blyan-"  # of a short directory


@contextmanager
def bound_socket(path: Path) -> Iterator[socket.socket]:
    """Yield a socket that listens at `path`, readable and writable by its owner only.

    The caller holds the home's lock, so whatever socket or link is there is left over
    from a killed daemon and is removed. ConfigFault if something else is in the way,
    StorageFault if the file system refuses. Socket, link and directory are removed at
    the end.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made: list[Path] = []  # what to remove at the end, newest first
    try:
        try:
            _clear(path)
            target = path
            if len(os.fsencode(path)) > MAX_PATH_BYTES:
                made.append(_short_directory())
                target = made[0] / "s"
            sock.bind(os.fspath(target))
            made.insert(0, target)
            # Nobody can connect before listen(), so the mode is never too wide.
            target.chmod(0o600)
            sock.listen(BACKLOG)
            if target != path:
                path.symlink_to(target)
                made.insert(0, path)
        except OSError as error:
            raise StorageFault(f"cannot bind the socket {path}: {error}") from error
        yield sock
    finally:
        sock.close()
        for name in made:
            _remove(name)


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        _clear_short(Path(os.readlink(path)))
    elif not stat.S_ISSOCK(mode):
        raise ConfigFault(f"{path} is in the way of the control socket; move it")
    path.unlink()


def _clear_short(target: Path) -> None:
    """Remove the short directory of a daemon that was killed."""
    if target.name != "s" or not target.parent.name.startswith(PREFIX):
        return
    try:
        target.unlink(missing_ok=True)
        target.parent.rmdir()
    except OSError as error:  # not there, or no longer ours: nothing depends on it
        log.debug("left %s alone: %s", target.parent, error)


def _short_directory() -> Path:
    places = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    for place in places:
        if place and len(os.fsencode(place)) <= MAX_PATH_BYTES - 20:
            if os.access(place, os.W_OK):
                return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    raise ConfigFault("no short writable directory for the socket; set TMPDIR to one")


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error)
