"""Backups: a copy of a running node's home, and a home made from one (DEC-D5).

A backup is a folder with the database as of one instant, the durable blobs (the same
files, linked where the disk allows) and the key with its passphrase, so it is as secret
as the home. The intent log is left out: it would be older than what was signed since,
so a restored home signs nothing until its peers have told it (DEC-A9).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from blyand.errors import ConfigFault, StorageFault
from blyand.home import Home, create_home
from blyand.store.blobs import BlobStore
from blyand.store.db import LevelStore
from blyand.store.medium import sync_path

MARKER = "blyan-backup"
UNFINISHED = MARKER + ".unfinished"  # its name until the backup is complete
VERSION = "1\n"
_KEPT = ("config.toml", "genesis.json", "key", "passphrase")

Report = Callable[[str, int, int | None], None]  # stage, done, total


def back_up(
    home: Home, database: LevelStore, blobs: BlobStore, to: Path, report: Report
) -> tuple[int, int]:
    """Write a backup into the folder `to`, which must be absent or empty. Blocking.

    It appears whole or not at all. Returns the blobs in it and their bytes. ConfigFault
    for a folder that cannot be one, StorageFault when the disk refuses.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigFault(f"{to} is not an empty folder; name a new one")
    if to.resolve().is_relative_to(home.path.resolve()):
        raise ConfigFault(f"{to} is inside the home that it is to save")
    partial = to.with_name(to.name + ".partial")
    if partial.exists():
        if not (partial / UNFINISHED).exists():
            raise ConfigFault(f"{partial} is not ours to replace; name another folder")
        shutil.rmtree(partial)
    try:
        partial.mkdir(mode=0o700, parents=True)
        (partial / UNFINISHED).write_text(VERSION)
        database.copy_to(partial / "db", lambda done: report("database", done, None))
        roots = blobs.roots(durable=True)
        paths = [blobs.path(root) for root in roots if blobs.has(root)]
        saved = _share(paths, home.blobs, partial / "blobs", report)
        _keep(home.path, partial)
        (partial / UNFINISHED).rename(partial / MARKER)
        for folder in (partial / "db", partial):
            sync_path(folder)
        if to.exists():
            to.rmdir()
        partial.rename(to)
        sync_path(to.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageFault(f"no backup was made: {error}") from error
    return saved


def restore(backup: Path, path: Path, report: Report) -> Home:
    """Make the new home `path` from a backup. Blocking.

    ConfigFault when the folder is no backup or the home is in use, StorageFault when
    the disk refuses.
    """
    marker = backup / MARKER
    if not marker.is_file():
        raise ConfigFault(f"{backup} is no backup; `blyanctl node backup` makes one")
    if marker.read_text() != VERSION:
        raise ConfigFault(f"{backup} was made by another version of blyand")
    home = create_home(path)
    if home.key.exists() or home.database.exists():
        raise ConfigFault(f"{path} is in use; restore into a new home")
    try:
        home.restored.write_text("signs nothing until peers told what was signed\n")
        sync_path(home.path)  # before there is anything to sign with
        shutil.copytree(backup / "db", home.database)
        home.database.chmod(0o700)
        files = [file for file in (backup / "blobs").rglob("*") if file.is_file()]
        _share(files, backup / "blobs", home.blobs, report)
        _keep(backup, home.path)
    except OSError as error:
        raise StorageFault(f"the home was not restored: {error}") from error
    return home


def _keep(source: Path, target: Path) -> None:
    keys = sorted(
        path.name for path in source.glob("key.*")
    )  # older ones, the next one
    for name in (*_KEPT, *keys):
        if (source / name).exists():
            _copy(source / name, target / name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, with its mode, durably."""
    shutil.copy2(source, target)
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _share(
    files: Iterable[Path], source: Path, target: Path, report: Report
) -> tuple[int, int]:
    """Put files below `target` as they stand below `source`; return number and bytes."""
    every, size, folders = list(files), 0, set()
    target.mkdir(mode=0o700, exist_ok=True)
    for done, file in enumerate(every, 1):
        place = target / file.relative_to(source)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            os.link(file, place)
        except FileNotFoundError:  # pruned meanwhile
            continue
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            _copy(file, place)
        size += place.stat().st_size
        folders.add(place.parent)
        report("blobs", done, len(every))
    for folder in (*folders, target):
        sync_path(folder)
    return len(every), size
