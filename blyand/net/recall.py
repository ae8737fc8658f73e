"""What gossip remembers of messages: ids that were judged, and the newest themselves.

Both are bounded in number, the messages also in bytes; neither has a thread or a timer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

SEEN_IDS = 65_536  # in each of two generations
SEEN_S = 60.0  # that a generation lasts: an id is known for 60 to 120 s
RECENT_MESSAGES = 8192
RECENT_BYTES = 16 * 1024 * 1024
RECENT_BEATS = 5  # heartbeats that a message can be asked for
OFFERED_BEATS = 3  # heartbeats that it is offered
GIVEN_AGAIN = 3  # times that one peer is given the same message


class Seen:
    """Ids of judged messages, with the interface of libp2p's LastSeenCache."""

    def __init__(self, *_: object) -> None:
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()
        self._since = time.monotonic()

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def has(self, identity: bytes) -> bool:
        self._turn()
        return identity in self._new or identity in self._old

    def add(self, identity: bytes) -> bool:
        """Remember an id; return True if it was not known."""
        known = self.has(identity)
        self._new.add(identity)
        return not known

    def stop(self) -> None:
        """Do nothing: there is no thread."""

    def _turn(self) -> None:
        now = time.monotonic()
        if len(self._new) >= SEEN_IDS or now - self._since >= SEEN_S:
            stale = now - self._since >= 2 * SEEN_S
            self._old = set() if stale else self._new
            self._new, self._since = set(), now


@dataclass
class Kept:
    """A message that can be asked for."""

    topic: str
    message: bytes  # the field of an RPC
    beat: int
    given: Counter[Hashable] = field(default_factory=Counter)


class Recent:
    """The accepted messages of the last heartbeats, oldest first."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Kept] = {}
        self._bytes = 0
        self._beat = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, identity: bytes, topic: str, message: bytes) -> None:
        if identity in self._kept:
            return
        self._kept[identity] = Kept(topic, message, self._beat)
        self._bytes += len(message)
        while self._bytes > RECENT_BYTES or len(self._kept) > RECENT_MESSAGES:
            self._drop_oldest()

    def get(self, identity: bytes, peer: Hashable) -> bytes | None:
        """Return a message that `peer` asks for, but not again and again."""
        kept = self._kept.get(identity)
        if kept is None or kept.given[peer] >= GIVEN_AGAIN:
            return None
        kept.given[peer] += 1
        return kept.message

    def offered(self, topic: str) -> list[bytes]:
        """Return the ids of a topic to tell others of."""
        oldest = self._beat - OFFERED_BEATS
        return [
            identity
            for identity, kept in self._kept.items()
            if kept.topic == topic and kept.beat > oldest
        ]

    def beat(self) -> None:
        """A heartbeat has passed."""
        self._beat += 1
        while self._kept:
            if next(iter(self._kept.values())).beat > self._beat - RECENT_BEATS:
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        identity = next(iter(self._kept))
        self._bytes -= len(self._kept.pop(identity).message)
