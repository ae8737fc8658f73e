"""Calls: many requests with numbers on one long stream. docs/protocols/streams.md

A call frame is `u8 kind | u32 big-endian number | body`. What a body holds is the
matter of the protocol that uses calls.
"""

from __future__ import annotations

import enum

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.result import ResultCode

HEAD_BYTES = 5
MAX_NUMBER = 2**32 - 1
MAX_REASON_BYTES = 256
MAX_REFUSAL_BYTES = 1 + MAX_REASON_BYTES
MAX_IN_FLIGHT = 64  # calls of one stream, and of all streams of one peer
IDLE_S = 60.0  # a client ends a stream without a call for longer
SERVER_IDLE_S = 90.0  # so does a server: later, so that no call meets the end


class Kind(enum.IntEnum):
    """What a call frame is; the first two come from the client."""

    CALL = 1  # body: the request
    CANCEL = 2  # no body: nobody waits for the answer any more
    ANSWER = 3  # body: the answer
    REFUSAL = 4  # body: u8 result code, then a reason for people


FROM_CLIENT = frozenset({Kind.CALL, Kind.CANCEL})


def head(kind: Kind, number: int) -> bytes:
    """Return the first bytes of a call frame."""
    return bytes([kind]) + number.to_bytes(HEAD_BYTES - 1, "big")


def read_head(raw: bytes, from_client: bool) -> tuple[Kind, int]:
    """Return kind and number. DecodeError unless that side may send such a frame."""
    if len(raw) != HEAD_BYTES:
        raise DecodeError(f"a call frame of {len(raw)} bytes")
    if raw[0] not in Kind._value2member_map_:
        raise DecodeError(f"a call frame of kind {raw[0]}")
    kind = Kind(raw[0])
    if (kind in FROM_CLIENT) is not from_client:
        raise DecodeError(f"{kind.name} from the wrong side")
    return kind, int.from_bytes(raw[1:], "big")


def refusal(code: ResultCode, reason: str) -> bytes:
    """Return the body of a refusal; a long reason is cut."""
    return bytes([code]) + reason.encode()[:MAX_REASON_BYTES].decode(
        errors="ignore"
    ).encode(errors="ignore")


def read_refusal(body: bytes) -> tuple[ResultCode, str]:
    """Return code and reason. DecodeError for OK, an unknown code or what is no text."""
    if not 1 <= len(body) <= MAX_REFUSAL_BYTES:
        raise DecodeError(f"a refusal of {len(body)} bytes")
    if body[0] not in ResultCode._value2member_map_ or not body[0]:
        raise DecodeError(f"a refusal with code {body[0]}")
    try:
        return ResultCode(body[0]), body[1:].decode()
    except UnicodeDecodeError as error:
        raise DecodeError("a refusal whose reason is no text") from error
