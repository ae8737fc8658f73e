"""What arrived on a mux connection, for whoever drives the machine."""

from __future__ import annotations

from typing import NamedTuple


class Opened(NamedTuple):
    """The peer opened a stream."""

    stream: int


class Received(NamedTuple):
    """Bytes arrived on a stream."""

    stream: int
    body: bytes


class Finished(NamedTuple):
    """The peer sends nothing more on a stream."""

    stream: int


class WasReset(NamedTuple):
    """The peer gave a stream up."""

    stream: int
    code: int


class Ponged(NamedTuple):
    """A ping was answered."""

    token: int


class GoneAway(NamedTuple):
    """The peer opens no more streams and takes none."""

    code: int


Event = Opened | Received | Finished | WasReset | Ponged | GoneAway
