"""The ordered key-value database under every index: LevelDB, opened with suspicion.

`Store` is what the rest of the store uses; `memory.MemoryStore` is its twin for
simulations. Only this file imports plyvel. TILE facts: a lenient open may leave holes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import plyvel

from blyand.errors import StorageFault
from blyand.store.medium import sync_path
from blyand.store.schema import (
    META_CLEAN,
    META_SCHEMA,
    SCHEMA_VERSION,
    Batch,
    after,
)

logger = logging.getLogger(__name__)

COPIED_AT_ONCE = 1000  # entries in one batch of a copy
BLOOM_BITS = 10  # per key: a miss costs 6 us instead of a disk read


class Store(Protocol):
    """Ordered bytes to bytes. Blocking; safe to use from several threads."""

    repaired: (
        bool  # opened leniently: there may be holes, walk the chain again (DEC-D4)
    )
    was_clean: bool  # the last stop was in order, or the store is new

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None when absent."""

    def write_batch(self, batch: Batch, *, sync: bool) -> None:
        """Write all of `batch` or nothing. With `sync` it is durable on return."""

    def scan(
        self, prefix: bytes, *, start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate the pairs under `prefix` in key order, as they stand now.

        Keys come with their prefix. `start` is the part behind it from which to begin
        (with `reverse`: at which to end).
        """

    def close(self) -> None:
        """Mark the stop as clean and close. Further use is a StorageFault."""


class LevelStore:
    """A `Store` in LevelDB; made by `open_store`."""

    def __init__(
        self, path: Path, database: Any, *, repaired: bool, was_clean: bool
    ) -> None:
        self._path = path
        self._database = database
        self.repaired = repaired
        self.was_clean = was_clean

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._database.get(key, verify_checksums=True)
        except (plyvel.Error, RuntimeError) as error:
            raise self._unreadable(error) from error
        return value

    def write_batch(self, batch: Batch, *, sync: bool) -> None:
        try:
            with self._database.write_batch(sync=sync) as written:
                for key, value in batch:
                    if value is None:
                        written.delete(key)
                    else:
                        written.put(key, value)
        except (plyvel.Error, RuntimeError) as error:
            raise StorageFault(f"cannot write to the database: {error}") from error

    def scan(
        self, prefix: bytes, *, start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        try:
            # LevelDB fixes an iterator's view when it is made, so make it now.
            pairs = self._database.iterator(
                start=None if reverse else prefix + start,
                stop=after(prefix),
                reverse=reverse,
                verify_checksums=True,
            )
        except (plyvel.Error, RuntimeError) as error:
            raise self._unreadable(error) from error
        # In reverse, plyvel 1.5.1 finds nothing if the last key is `start` itself.
        return self._guarded(pairs, prefix + start)

    def copy_to(self, path: Path, report: Callable[[int], None]) -> None:
        """Write the database as it stands now into a new one in the folder `path`.

        Writers are not held up. `report` hears how many entries are copied. StorageFault.
        """
        try:
            made = _open(path, paranoid=True)
            with self._database.snapshot() as snapshot:
                with snapshot.iterator(verify_checksums=True) as pairs:
                    for count, some in enumerate(_batches(pairs), 1):
                        with made.write_batch() as written:
                            for key, value in some:
                                written.put(key, value)
                        report(count * COPIED_AT_ONCE)
            made.put(META_CLEAN, b"\x01", sync=True)
            made.close()
        except (plyvel.Error, RuntimeError, OSError) as error:
            raise StorageFault(f"cannot copy the database: {error}") from error

    def close(self) -> None:
        if self._database.closed:
            return
        try:
            self.write_batch([(META_CLEAN, b"\x01")], sync=True)
        finally:
            self._database.close()

    def _guarded(self, pairs: Any, lowest: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            with pairs:
                for key, value in pairs:
                    if key < lowest:
                        return
                    yield key, value
        except (plyvel.Error, RuntimeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StorageFault:
        if isinstance(error, plyvel.CorruptionError):
            _damage_mark(self._path).touch(mode=0o600)  # the next open repairs
        return StorageFault(f"cannot read the database: {error}")


def open_store(path: Path) -> LevelStore:
    """Open or create the database in the folder `path`.

    StorageFault in one sentence when it cannot be opened, is in use, or was written by
    another version. The caller closes it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not any(path.iterdir())
    if is_new:
        sync_path(path.parent)
    database, repaired = _open_suspiciously(path)
    try:
        version = database.get(META_SCHEMA)
        if version is None and not is_new and not repaired and any(database):
            raise StorageFault(f"{path} is a LevelDB, but not one of blyand's")
        _check_version(path, version)
        was_clean = is_new or database.get(META_CLEAN) is not None
        with database.write_batch(sync=True) as written:
            written.put(META_SCHEMA, SCHEMA_VERSION.to_bytes(4, "big"))
            written.delete(META_CLEAN)
    except BaseException:
        database.close()
        raise
    return LevelStore(path, database, repaired=repaired, was_clean=was_clean)


def _batches(pairs: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(pairs)
    while some := list(islice(rest, COPIED_AT_ONCE)):
        yield some


def _check_version(path: Path, raw: bytes | None) -> None:
    if raw is None:
        return
    version = int.from_bytes(raw, "big")
    if version != SCHEMA_VERSION:
        raise StorageFault(
            f"the database in {path} has schema {version} and this blyand knows "
            f"{SCHEMA_VERSION}: run the blyand that wrote it, or begin with a new home"
        )


def _damage_mark(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def _open_suspiciously(path: Path) -> tuple[Any, bool]:
    """Return (database, whether damage had to be overlooked to open it)."""
    # Without CURRENT, LevelDB would start an empty database and erase the old tables.
    headless = not (path / "CURRENT").exists() and any(path.glob("*.l[do][bg]"))
    if not headless and not _damage_mark(path).exists():
        for paranoid in (True, False):
            try:
                return _open(path, paranoid=paranoid), not paranoid
            except plyvel.Error as error:
                if not _is_damage(error):
                    raise StorageFault(f"cannot open the database: {error}") from error
                logger.warning("the database in %s is damaged: %s", path, error)
    try:
        plyvel.repair_db(str(path), paranoid_checks=True)
        database = _open(path, paranoid=False)
    except plyvel.Error as error:
        raise StorageFault(f"cannot repair the database: {error}") from error
    _damage_mark(path).unlink(missing_ok=True)
    return database, True


def _open(path: Path, *, paranoid: bool) -> Any:
    return plyvel.DB(
        str(path),
        create_if_missing=True,
        paranoid_checks=paranoid,
        bloom_filter_bits=BLOOM_BITS,
    )


def _is_damage(error: Exception) -> bool:
    """True for a file that is wrong, short or missing; not for a lock or a full disk."""
    text = str(error)
    return (
        isinstance(error, plyvel.CorruptionError)
        or "No such file" in text
        or "missing files" in text
    )
