"""What an error of a peer costs it, and what follows: throttle, disconnect, ban.

Strategy. Points stand for evidence against a key and halve every `HALF_LIFE_S`, so that
rare faults are forgotten and repeated ones add up. Bans end; each further one is twice
as long. Only what a sender could have known to be wrong has a price (DEC-A2, DEC-C1).
docs/protocols/misbehaviour.md
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace

from blyan_proto.errors import (
    BadProof,
    BadSignature,
    DecodeError,
    LimitExceeded,
    ProtocolError,
    UnexpectedMessage,
)
from blyand.rules.verdict import Reject

# (peer, error): whoever finds a fault of a peer says so through one of these
Blame = Callable[[str, Exception], None]

# Points by class; a subclass costs what the nearest class above it costs. Whatever is
# not here costs nothing: our own faults, Ignore, Busy, TooSlow and the like.
POINTS: dict[type[Exception], int] = {
    BadSignature: 50,
    BadProof: 50,
    Reject: 25,
    DecodeError: 10,
    LimitExceeded: 10,
    UnexpectedMessage: 10,
    ProtocolError: 10,
}

HALF_LIFE_S = 600
THROTTLE_AT = 45
DISCONNECT_AT = 90
BAN_AT = 140
PROBATION = 75  # points with which a peer comes back from a ban

FIRST_BAN_S = 900
LONGEST_BAN_S = 604_800  # a week
FORGIVE_S = 86_400  # without a ban, and one earlier ban is forgotten

# Addresses are shared by peers that do not know each other: they are never banned, only
# their new connections are spaced.
BANNED_KEY = 50  # what a ban of a key adds to its address
BANNED_KNOCK = 2  # what it adds when a banned key comes back
GROUP_SHARE = 8  # its /24 or /48 is charged one part in so many
SPACE_AT = 100
SPACE_FIRST_S = 1
SPACE_LONGEST_S = 60
ADDRESS_MOST = 1000  # points; so that every address is forgotten within the hour


class Step(enum.Enum):
    """What follows from a peer's points."""

    NOTHING = "nothing"
    THROTTLE = "throttle"
    DISCONNECT = "disconnect"
    BAN = "ban"


@dataclass(frozen=True)
class Conduct:
    """How a key has behaved. Times in seconds of one clock that never jumps."""

    points: float = 0.0
    at_s: float = 0.0  # when `points` were as they are
    bans: int = 0  # earned ones, the last included
    banned_until_s: float = float("-inf")

    def points_at(self, now_s: float) -> float:
        """Return the points that are left."""
        return decayed(self.points, now_s - self.at_s)

    def bans_at(self, now_s: float) -> int:
        """Return how many bans are not forgotten."""
        if not self.bans:
            return 0
        good_s = max(0.0, now_s - self.banned_until_s)
        return max(0, self.bans - int(good_s / FORGIVE_S))

    def is_banned(self, now_s: float) -> bool:
        """True while a ban lasts."""
        return now_s < self.banned_until_s

    def is_throttled(self, now_s: float) -> bool:
        """True while it is banned or has points enough to be served little."""
        return self.is_banned(now_s) or self.points_at(now_s) >= THROTTLE_AT


def points_for(error: Exception) -> int:
    """Return what an error costs its sender; 0 for what is nobody's or our own fault."""
    return next((POINTS[kind] for kind in type(error).__mro__ if kind in POINTS), 0)


def decayed(points: float, elapsed_s: float) -> float:
    """Return what is left of points after a time; all of it if time ran backwards."""
    return float(points * 0.5 ** (max(0.0, elapsed_s) / HALF_LIFE_S))


def blamed(conduct: Conduct, points: int, now_s: float) -> tuple[Conduct, Step]:
    """Return the conduct after a fault worth `points`, and what follows from it.

    Nothing is added during a ban: what still arrives was under way.
    """
    if conduct.is_banned(now_s) or points <= 0:
        return conduct, Step.NOTHING
    total = conduct.points_at(now_s) + points
    if total >= BAN_AT:
        bans = conduct.bans_at(now_s) + 1
        until_s = now_s + ban_seconds(bans)
        return Conduct(PROBATION, until_s, bans, until_s), Step.BAN
    after = replace(conduct, points=total, at_s=now_s)
    if total >= DISCONNECT_AT:
        return after, Step.DISCONNECT
    return after, Step.THROTTLE if total >= THROTTLE_AT else Step.NOTHING


def ban_seconds(bans: int) -> int:
    """Return how long the ban number `bans` (from 1) lasts."""
    return int(min(LONGEST_BAN_S, FIRST_BAN_S * 2 ** min(bans - 1, 32)))


def spacing_s(points: float) -> float:
    """Return the time between two new connections of an address with these points."""
    if points < SPACE_AT:
        return 0.0
    doublings = (points - SPACE_AT) / SPACE_AT
    return float(min(SPACE_LONGEST_S, SPACE_FIRST_S * 2**doublings))
