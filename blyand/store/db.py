"""The ordered key-value database under every index: LevelDB, opened with suspicion.

`Store` is what the rest of the store uses; `memory.MemoryStore` is its twin for
simulations. `level` opens the files; this file keeps them open for everybody.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import plyvel

from blyand.errors import Damaged, DiskFull, StorageFault
from blyand.store.gate import Gate
from blyand.store.level import (
    ERRORS,
    check_room,
    fault,
    forget_damage,
    mark_damage,
    open_level,
    open_suspiciously,
    text_of,
)
from blyand.store.medium import sync_path
from blyand.store.migrate import Steps, check_version, migrate, version_of
from blyand.store.reading import Reader
from blyand.store.schema import META_CLEAN, META_SCHEMA, SCHEMA_VERSION, Batch

logger = logging.getLogger(__name__)

COPIED_AT_ONCE = 1000  # entries in one batch of a copy


class Snapshot(Protocol):
    """The pairs as they stood at one moment. Blocking; safe from several threads.

    Letting go of it is enough to end it. Every call may raise StorageFault.
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None when absent."""

    def scan(
        self, prefix: bytes, *, start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate the pairs under `prefix` in key order, as `Store.scan`."""

    def many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, None for absent ones; quicker than one by one."""

    def under(self, prefixes: Sequence[bytes]) -> list[list[tuple[bytes, bytes]]]:
        """Return the pairs under each prefix: quick for many, in ascending order."""


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

    def snapshot(self, witness: bytes = b"") -> Snapshot:
        """Return the pairs as they stand now.

        A snapshot does not outlive the opening of the database; after another one it
        is taken again, if the value under `witness` is still the same.
        """

    def close(self) -> None:
        """Mark the stop as clean and close. Further use is a StorageFault."""


class Superseded(StorageFault):
    """A snapshot cannot be taken again: something else was written meanwhile."""


class _Taken(NamedTuple):
    snapshot: Any
    opening: int
    seen: bytes | None  # under the witness


class LevelStore:
    """A `Store` in LevelDB; made by `open_store`.

    Strategy. When a write fails, LevelDB's log ends in a torn record, and what is written
    behind that is lost at the next start without a word. So nothing more is written
    before the database was closed and opened again, which the next writer does as soon
    as there is room. Readers and scans pass a gate, and go on afterwards.
    """

    def __init__(
        self, path: Path, database: Any, *, repaired: bool, was_clean: bool
    ) -> None:
        self._path = path
        self._database = database
        self.repaired = repaired
        self.was_clean = was_clean
        self._gate = Gate()
        self._writing = threading.Lock()
        self._openings = 1
        self._torn: DiskFull | StorageFault | None = None  # why the last write failed
        self._reader = Reader(self._gate, self._now, self._unreadable)

    @property
    def full(self) -> str | None:
        """Why writes are refused now, in a sentence; None while they are not."""
        return str(self._torn) if isinstance(self._torn, DiskFull) else None

    def get(self, key: bytes) -> bytes | None:
        return self._reader.get(key)

    def write_batch(self, batch: Batch, *, sync: bool) -> None:
        """As `Store` says. DiskFull: nothing was written; try again later."""
        with self._writing:
            if self._torn is not None:
                self._open_again(self._torn)
            try:
                with self._gate, self._database.write_batch(sync=sync) as written:
                    for key, value in batch:
                        if value is None:
                            written.delete(key)
                        else:
                            written.put(key, value)
            except plyvel.CorruptionError as error:  # met when tables were compacted
                raise self._unreadable(error) from error
            except plyvel.Error as error:
                self._torn = fault("cannot write to the database", error)
                raise self._torn from error
            except RuntimeError as error:
                raise StorageFault(f"cannot write to the database: {error}") from error

    def scan(
        self, prefix: bytes, *, start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._reader.scan(prefix, start=start, reverse=reverse)

    def snapshot(self, witness: bytes = b"") -> Snapshot:
        with self._gate:
            taken = self._take(witness)

        def current() -> tuple[Any, int]:
            nonlocal taken
            if taken.opening != self._openings:
                anew = self._take(witness)
                if anew.seen != taken.seen:
                    raise Superseded("the database moved on before it was opened anew")
                taken = anew
            return taken.snapshot, taken.opening

        return Reader(self._gate, current, self._unreadable)

    def copy_to(self, path: Path, report: Callable[[int], None]) -> None:
        """Write the database as it stands now into a new one in the folder `path`.

        Writers are not held up. `report` hears how many entries are copied. DiskFull,
        StorageFault.
        """
        try:
            made = open_level(path, paranoid=True)
            with self._database.snapshot() as snapshot:
                with snapshot.iterator(verify_checksums=True) as pairs:
                    count = 0
                    while some := list(islice(pairs, COPIED_AT_ONCE)):
                        with made.write_batch() as written:
                            for key, value in some:
                                written.put(key, value)
                        report(count := count + len(some))
            made.put(META_CLEAN, b"\x01", sync=True)
            made.close()
        except (*ERRORS, OSError) as error:
            raise fault("cannot copy the database", error) from error

    def mended(self) -> None:
        """Whoever opened the store has noted what a repair lost."""
        forget_damage(self._path)

    def close(self) -> None:
        if self._database.closed:
            return
        try:
            if self._torn is None:
                self.write_batch([(META_CLEAN, b"\x01")], sync=True)
        except DiskFull as error:
            logger.warning("the stop is not noted as clean: %s", error)
        finally:
            with self._gate.alone():
                self._database.close()

    # Inside

    def _now(self) -> tuple[Any, int]:
        return self._database, self._openings

    def _take(self, witness: bytes) -> _Taken:
        try:
            snapshot = self._database.snapshot()
            return _Taken(snapshot, self._openings, snapshot.get(witness))
        except ERRORS as error:
            raise self._unreadable(error) from error

    def _open_again(self, why: DiskFull | StorageFault) -> None:
        if not isinstance(why, DiskFull):
            raise StorageFault(f"the database failed before: {why}")
        check_room(self._path)
        with self._gate.alone():
            self._database.close()
            self._database, repaired = open_suspiciously(self._path)
            self._openings += 1
        if repaired:
            raise Damaged("the database was damaged when the disk was full")
        self._torn = None
        logger.warning("there is room again; the database takes writes")

    def _unreadable(self, error: Exception) -> StorageFault:
        if isinstance(error, plyvel.Error):
            mark_damage(self._path)
            return Damaged(f"the database is damaged: {text_of(error)}")
        return StorageFault(f"cannot read the database: {error}")


def open_store(path: Path, steps: Steps = MappingProxyType({})) -> LevelStore:
    """Open or create the database in the folder `path`, migrated by `steps`.

    StorageFault in one sentence when it cannot be opened, is in use, or was written by
    another version; DiskFull. The caller closes it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not any(path.iterdir())
    if is_new:
        sync_path(path.parent)
    database, repaired = open_suspiciously(path)
    store = LevelStore(path, database, repaired=repaired, was_clean=is_new)
    try:
        known = store.get(META_SCHEMA) is not None
        if known:
            check_version(path, version_of(store)[0], steps)
            store.was_clean = store.get(META_CLEAN) is not None
            migrate(store, steps)
        elif not is_new and not repaired and any(True for _ in store.scan(b"")):
            raise StorageFault(f"{path} is a LevelDB, but not one of blyand's")
        version = SCHEMA_VERSION.to_bytes(4, "big")
        store.write_batch([(META_SCHEMA, version), (META_CLEAN, None)], sync=True)
    except BaseException:
        database.close()
        raise
    return store
