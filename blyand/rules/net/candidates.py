"""Who is tried for a blob next, each once; who had to give way, once more at the end.

Peers that somebody named come first. Of the others, few are bothered while a donor
gives. docs/protocols/blobs.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

MAX_GUESSES = 8  # peers that nobody named, tried beside a donor that gives


class Candidates:
    """The peers that may have a blob."""

    def __init__(self, told: Iterable[str], others: Iterable[str]) -> None:
        self._seen: set[str] = set()
        self._told = deque(self._new(told))
        self._others = deque(self._new(others))
        self._put_off: deque[str] = deque()
        self._gave_way: set[str] = set()
        self._guesses = 0

    def add(self, peers: Iterable[str]) -> None:
        """Others were found that should have it."""
        self._told.extend(self._new(peers))

    def next(self, is_given: bool) -> str | None:
        """Return whom to try now. `is_given`: somebody else gives already."""
        if self._told:
            return self._told.popleft()
        if self._others and (not is_given or self._guesses < MAX_GUESSES):
            self._guesses += is_given
            return self._others.popleft()
        return None

    def would_try(self, is_given: bool) -> bool:
        """True when `next` has somebody."""
        guess = not is_given or self._guesses < MAX_GUESSES
        return bool(self._told or (self._others and guess))

    def put_off(self, peer: str) -> bool:
        """A slow one gave way to another; False if it is not to be tried again."""
        if peer in self._gave_way:
            return False
        self._gave_way.add(peer)
        self._put_off.append(peer)
        return True

    def put_back(self) -> bool:
        """Nobody is left: try those again that gave way. False if there are none."""
        self._told.extend(self._put_off)
        self._put_off.clear()
        return bool(self._told)

    def _new(self, peers: Iterable[str]) -> list[str]:
        new = [peer for peer in dict.fromkeys(peers) if peer not in self._seen]
        self._seen.update(new)
        return new
