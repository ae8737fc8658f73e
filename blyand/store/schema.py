"""Every key and value of the LevelDB, in one table; docs/store-schema.md says it in prose.

A key is one prefix byte and fixed-width parts, integers big-endian, so that a scan runs
in the order of its heights. A value is a canonical message, a raw id or integer, or empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

from blyan_proto.codec import U8, U16, U32, U64, Size, decode, message
from blyan_proto.errors import ProtocolError
from blyand.errors import StorageFault

T = TypeVar("T")

SCHEMA_VERSION = 2

Batch = list[tuple[bytes, bytes | None]]  # in order; None deletes the key


@message
class Arrival:
    """How a block that no checkpoint has ordered yet came here."""

    time_ms: U64  # our clock when it was accepted
    peer: Annotated[str, Size(0, 128)]  # who sent it; "" for our own


MAX_OUTCOME_TEXT_BYTES = 200


@message
class Outcome:
    """Where a checkpoint placed a block and what came of it (DEC-A3)."""

    height: U64  # of the checkpoint
    position: U16  # in its order
    code: U8  # 0: took effect, 1: did not, 2: executed before our first state
    text: Annotated[str, Size(0, MAX_OUTCOME_TEXT_BYTES)]  # why it did not


@message
class Gone:
    """A blob that was removed after its retention (DEC-B9)."""

    slot: U32  # its place in the ring of those that are remembered
    time_ms: U64  # chain time of the removal


@dataclass(frozen=True)
class Row:
    """One kind of key."""

    prefix: bytes
    key: str
    value: str


META = b"M"
HEADER = b"B"
PAYLOAD = b"L"
PENDING = b"P"
ORDERED = b"O"
PLACE = b"H"
AUTHOR = b"S"
CHILD = b"C"
EQUIVOCATION = b"E"
CHECKPOINT = b"F"
EXECUTED = b"X"
ENTRY = b"T"
BUCKET = b"U"
RESTORED = b"Y"
NAMED = b"N"
DROPPED = b"D"
KEPT = b"K"
DOOMED = b"Z"
GONE = b"G"
GONE_SLOT = b"R"
PIN = b"I"
SET = b"V"
LOCK = b"W"
STATED = b"q"
MOVED = b"a"
BASELINE = b"w"
SESSION = b"s"
SESSION_KEY = b"k"
HANDOVER = b"J"
LIVED = b"r"
HEARD = b"h"
ANSWERED = b"g"
MOVES = b"m"

TABLE = (
    Row(META, "name", "schema: u32; executed: u64 height; clean, holes, area …"),
    Row(HEADER, "block id 32", "SignedHeader"),
    Row(PAYLOAD, "block id 32", "payload bytes; absent once pruned"),
    Row(PENDING, "block id 32", "Arrival; absent once ordered"),
    Row(ORDERED, "block id 32", "Outcome"),
    Row(PLACE, "chain u8, height u64, block id 32", "empty"),
    Row(AUTHOR, "account 20, sequence u64, block id 32", "empty"),
    Row(CHILD, "parent id 32, block id 32", "empty"),
    Row(EQUIVOCATION, "account 20, chain u8", "Equivocation (equivocations.py)"),
    Row(CHECKPOINT, "height u64", "FinalCheckpoint"),
    Row(EXECUTED, "key of the executed state", "its value; x in the other area"),
    Row(ENTRY, "path 32", "digest 32 of a value, its key; t in the other area"),
    Row(BUCKET, "bucket u16", "its hash 32, entries u32; u in the other area"),
    Row(RESTORED, "chunk u8", "Restored (restore.py)"),
    Row(NAMED, "blob root 32, block id 32", "empty"),
    Row(DROPPED, "block id 32", "u64 chain time, ms"),
    Row(KEPT, "model 32, group u16, height u64, position u16", "block id"),
    Row(DOOMED, "blob root 32", "empty"),
    Row(GONE, "blob root 32", "Gone"),
    Row(GONE_SLOT, "slot u32", "blob root"),
    Row(PIN, "kind u8, id 32", "u64 Unix time, ms"),
    Row(SET, "root of a validator set 32", "Validators"),
    Row(LOCK, "alone", "Lock: what this validator precommitted last (DEC-A9)"),
    Row(STATED, "height u64, position u32", "Entry (statements.py)"),
    Row(MOVED, "account 20, 2^64-1-height u64, 2^32-1-position u32", "empty"),
    Row(BASELINE, "account 20, purse u8", "u64 micro-BLY at the last audit"),
    Row(SESSION, "id 32", "Session (sessions.py)"),
    Row(SESSION_KEY, "digest of the key 32", "Keyed (sessions.py)"),
    Row(HANDOVER, "height u64", "empty: another validator set signs the next one"),
    Row(LIVED, "run 32, rounds behind it u32", "Report (rounds.py)"),
    Row(HEARD, "run 32, round u32, learner 20, ms u64, digest 8", "Heard (rounds.py)"),
    Row(MOVES, "run 32, round u32", "Moves: the updates of the round"),
    Row(ANSWERED, "run 32, round u32, rank 20, ms u64, digest 8", "Answered"),
)

META_SCHEMA = META + b"schema"
META_CLEAN = META + b"clean"  # there only while the database is closed in order
META_MIGRATING = META + b"migrating"  # u32 from which version, and the step's own place
META_HOLES = META + b"holes"  # there while what a repair lost is not all back
META_EXECUTED = META + b"executed"  # height of the checkpoint that the state is after
META_AREA = META + b"area"  # u8: which of AREAS holds the executed state; absent: 0
META_RESTORING = META + b"restoring"  # Restoring, while the other area is being filled
META_JUDGED = META + b"judged"  # height up to which retention looked at every block
META_STATED = META + b"stated"  # u64: height from which on the statements are whole
META_AUDITED = META + b"audited"  # Audited: the last audit that found nothing
META_FLOOR = META + b"floor"  # Floor (history.py), where history is not whole
META_FLOOR_NEXT = META + b"floor_next"  # what it becomes with the state on its way
META_NAMED = META + b"named"  # there once all payloads are in the index of names
META_GONE = (
    META + b"gone"
)  # u64: blobs removed so far; the next slot, modulo its number


@dataclass(frozen=True)
class Area:
    """The prefixes under which a whole state is kept."""

    value: bytes
    entry: bytes
    bucket: bytes

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        return self.value, self.entry, self.bucket


# Two, so that a state that was fetched replaces the executed one in one batch.
AREAS = (Area(EXECUTED, ENTRY, BUCKET), Area(b"x", b"t", b"u"))


def u64(value: int) -> bytes:
    """Return `value` so that bytes compare as the integers do."""
    return value.to_bytes(8, "big")


def u16(value: int) -> bytes:
    """Return `value` so that bytes compare as the integers do."""
    return value.to_bytes(2, "big")


def place_key(chain: int, height: int, block: bytes) -> bytes:
    """Return the key that orders the blocks of a chain by height, then id."""
    return PLACE + bytes([chain]) + u64(height) + block


def author_key(account: bytes, sequence: int, block: bytes = b"") -> bytes:
    """Return the key of a block by its author's count; without an id, the scan prefix."""
    return AUTHOR + account + u64(sequence) + block


def checkpoint_key(height: int) -> bytes:
    """Return the key of the final checkpoint at `height`."""
    return CHECKPOINT + u64(height)


def kept_key(model: bytes, group: int, height: int = 0, position: int = 0) -> bytes:
    """Return the key of a needed block by its group and place in the order."""
    group_part = model + group.to_bytes(2, "big")
    return KEPT + group_part + u64(height) + position.to_bytes(2, "big")


def after(prefix: bytes) -> bytes | None:
    """Return the first key behind every key that starts with `prefix`, None for no end."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes([stripped[-1] + 1])


def decode_own(cls: type[T], raw: bytes, limit: int) -> T:
    """Decode a value of our own database: StorageFault when it does not, our fault."""
    try:
        return decode(cls, raw, limit)
    except ProtocolError as error:
        raise StorageFault(f"a {cls.__name__} in the database: {error}") from error
