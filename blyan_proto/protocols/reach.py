"""/blyan/reach/1: "dial me back": can a stranger open a connection to this node?
docs/protocols/reach.md"""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.codec import U16, Size, message

PROTOCOL_ID = "/blyan/reach/1"
MAX_MESSAGE_BYTES = 512
DEADLINE_S = 15.0  # of the exchange; the dial in it has less
DIAL_DEADLINE_S = 8.0


class Outcome(enum.IntEnum):
    """What came of the dial."""

    NOT_TRIED = 0  # asked too often, or the asker came through a relay
    REACHED = 1  # a fresh connection led to the asker's key
    FAILED = 2  # no connection, or another key: which of them is not told


@message
class DialBack:
    """Dial the address that you see me at, at this TCP port; 0: only tell me."""

    port: U16


@message
class Dialled:
    """What the peer sees, and what came of its dial."""

    outcome: Outcome
    observed: Annotated[str, Size(0, 45)]  # literal IP the asker is seen at, or empty
    relays: bool  # the peer lets others reserve a place at its relay
