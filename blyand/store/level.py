"""Opening LevelDB with suspicion: what is damaged is repaired and called so.

Only this file and `db` import plyvel. TILE facts: a lenient open may leave holes.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import plyvel

from blyand.errors import DiskFull, StorageFault
from blyand.store.medium import Medium, fault_of

logger = logging.getLogger(__name__)

BLOOM_BITS = 10  # per key: a miss costs 6 us instead of a disk read
BUFFER_BYTES = 1 << 20  # of recent writes in memory, before they are sorted on the disk
ROOM_BYTES = 1 << 20  # beside its log, what LevelDB writes when it is opened
ERRORS = (plyvel.Error, RuntimeError)  # RuntimeError: it is closed
_FULL = ("No space left", "Disk quota exceeded", "File too large")


def open_suspiciously(path: Path) -> tuple[Any, bool]:
    """Return (database, whether damage had to be overlooked to open it).

    In the second case the mark stays until `forget_damage`: whoever is killed while he
    mends what is missing finds it again. DiskFull, StorageFault.
    """
    # Without CURRENT, LevelDB would start an empty database and erase the old tables.
    headless = not (path / "CURRENT").exists() and any(path.glob("*.l[do][bg]"))
    if not headless and not _mark(path).exists():
        for paranoid in (True, False):
            try:
                return open_level(path, paranoid=paranoid), not paranoid
            except plyvel.Error as error:
                if not _is_damage(error):
                    raise fault("cannot open the database", error) from error
                logger.warning("%s is damaged: %s", path, text_of(error))
                mark_damage(path)
    logger.warning("%s is repaired", path)
    try:
        plyvel.repair_db(str(path), paranoid_checks=True)
        return open_level(path, paranoid=False), True
    except plyvel.Error as error:
        raise fault("cannot repair the database", error) from error


def open_level(path: Path, *, paranoid: bool) -> Any:
    """Open or create a database as it is. plyvel.Error."""
    return plyvel.DB(
        str(path),
        create_if_missing=True,
        paranoid_checks=paranoid,
        bloom_filter_bits=BLOOM_BITS,
        write_buffer_size=BUFFER_BYTES,
    )


def check_room(path: Path) -> None:
    """Raise DiskFull unless the disk has what an opening of the database may take."""
    probe = path.with_name(path.name + ".room")
    needed = ROOM_BYTES + sum(log.stat().st_size for log in path.glob("*.log"))
    try:
        fd = os.open(
            probe, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.posix_fallocate(fd, 0, needed)
        finally:
            os.close(fd)
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise fault_of("write to the database", error) from error


def mark_damage(path: Path) -> None:
    """Make the next opening repair the database."""
    try:
        medium = Medium(path.parent)
        try:
            medium.put(_mark(path).name, b"")
        finally:
            medium.close()
    except (StorageFault, DiskFull) as error:
        logger.warning("cannot note that %s is damaged: %s", path, error)


def forget_damage(path: Path) -> None:
    """What was lost is known elsewhere now."""
    _mark(path).unlink(missing_ok=True)


def fault(action: str, error: Exception) -> DiskFull | StorageFault:
    """Return what an error of LevelDB is to the rest of the daemon."""
    text = text_of(error)
    if any(reason in text for reason in _FULL):
        return DiskFull(f"{action}: the disk is full; make room")
    return StorageFault(f"{action}: {text}")


def text_of(error: Exception) -> str:
    """Return what LevelDB says; it says it in bytes."""
    said = error.args[0] if error.args else error
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


def _mark(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def _is_damage(error: Exception) -> bool:
    """True for a file that is wrong, short or missing; not for a lock or a full disk."""
    text = text_of(error)
    return (
        isinstance(error, plyvel.CorruptionError)
        or "No such file" in text
        or "missing files" in text
    )
