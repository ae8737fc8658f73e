"""Bringing a database of an older schema up to ours, in place.

A step is one version to the next, in bounded batches: each is written together with the
place to go on from, so a kill costs one batch. From the first on the database says that
it is under way to the newer version, so an older blyand refuses it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from blyand.errors import StorageFault
from blyand.store.schema import META_MIGRATING, META_SCHEMA, SCHEMA_VERSION, Batch

if TYPE_CHECKING:
    from blyand.store.db import Store

logger = logging.getLogger(__name__)

REPORTED_EVERY = 50  # batches between two lines of the log

# (database, where to go on: b"" at first) -> (writes, where to go on next: None at last).
# Run twice from one place it must give the same.
Step = Callable[["Store", bytes], tuple[Batch, bytes | None]]
Steps = Mapping[int, Step]


def check_version(path: Path, found: int, steps: Steps) -> None:
    """Raise StorageFault unless this blyand reads the version, or leads there from it."""
    if all(version in steps for version in range(found, SCHEMA_VERSION)):
        if found <= SCHEMA_VERSION:
            return
    raise StorageFault(
        f"the database in {path} has schema {found} and this blyand knows "
        f"{SCHEMA_VERSION}: run the blyand that wrote it, or begin with a new home"
    )


def migrate(store: Store, steps: Steps) -> None:
    """Bring an open database to SCHEMA_VERSION; one of that version is left as it is.

    It is read whole first: a damaged one is repaired before anything is made of it.
    """
    found, at = version_of(store)
    if found == SCHEMA_VERSION:
        return
    logger.warning("the database is of schema %d: it is checked first", found)
    rows = sum(1 for _ in store.scan(b""))
    for version in range(found, SCHEMA_VERSION):
        logger.warning("%d rows go from schema %d to %d", rows, version, version + 1)
        _take(store, steps[version], version, at)
        at = b""


def version_of(store: Store) -> tuple[int, bytes]:
    """Return the schema of a database, and how far it is on the way to the next."""
    under_way = store.get(META_MIGRATING)
    if under_way is not None:
        return int.from_bytes(under_way[:4], "big"), under_way[4:]
    return int.from_bytes(store.get(META_SCHEMA) or b"", "big"), b""


def _take(store: Store, step: Step, version: int, at: bytes | None) -> None:
    following = (META_SCHEMA, _u32(version + 1))
    batches = 0
    while at is not None:
        writes, at = step(store, at)
        place = None if at is None else _u32(version) + at
        store.write_batch([*writes, following, (META_MIGRATING, place)], sync=True)
        batches += 1
        if batches % REPORTED_EVERY == 0:
            logger.warning("schema %d: %d batches are done", version + 1, batches)
    logger.warning("the database is of schema %d now", version + 1)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")
