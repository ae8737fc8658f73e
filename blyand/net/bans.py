"""Bans as bytes for the disk, in wall time: they outlive the process and its clock."""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U16, U64, Size, decode, encode, message

MAX_BANS = 4096
MAX_SENTENCE_CHARACTERS = 200
MAX_REASONS = 8  # of a key
MAX_FILE_BYTES = 64 << 20


@message
class Reason:
    """Why a key has points or a ban."""

    time_ms: U64
    error: Annotated[str, Size(1, 64)]  # class, or "operator"
    sentence: Annotated[str, Size(0, 4 * MAX_SENTENCE_CHARACTERS)]
    points: U16


@message
class StoredBan:
    """A ban, or the memory of one that ended."""

    peer: Annotated[str, Size(1, 96)]
    until_ms: U64
    bans: U16  # earned ones, this included; an operator's are not counted
    reasons: Annotated[tuple[Reason, ...], Size(0, MAX_REASONS)]


@message
class _StoredBans:
    bans: Annotated[tuple[StoredBan, ...], Size(0, MAX_BANS)]


def encode_bans(bans: tuple[StoredBan, ...]) -> bytes:
    """Return the bytes of at most `MAX_BANS` bans."""
    return encode(_StoredBans(bans))


def decode_bans(raw: bytes) -> tuple[StoredBan, ...]:
    """Return the bans in a file's bytes; ProtocolError when they are none."""
    return decode(_StoredBans, raw, MAX_FILE_BYTES).bans
