"""The first frame of every answer: one byte that says how the exchange went.

docs/protocols/streams.md
"""

from __future__ import annotations

import enum


class ResultCode(enum.IntEnum):
    """How a request ended; anything but OK is the whole answer."""

    OK = 0  # the answer follows in further frames
    INVALID_REQUEST = 1  # the request broke a format or a rule; the sender pays
    SERVER_ERROR = 2  # the server's own fault; nobody pays
    UNAVAILABLE = 3  # cannot now, for a reason that has no code of its own
    BUSY = 4  # queue or budget full; another peer, or later
    STALE_VERSION = 5  # the version that was named is not served here (DEC-B8)
    ABSENT = 6  # never had it, as far as it knows
    PRUNED = 7  # had it and dropped it after its retention window (DEC-B9)


RESULT_BYTES = 1  # the length of a result frame's body
