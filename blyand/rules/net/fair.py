"""Whose work is next: our own first by weight, then peers, each in turn (CONC-01).

Deficit round robin (Shreedhar and Varghese, 1995): every owner saves up an allowance
of rows each turn and is served while it lasts, so that who asks for much, or often,
gets no more than who asks for little.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")

QUANTUM = 64  # rows that a peer may have in a turn
OWN = ""  # the owner of what this node asks itself
EVALUATION = "evaluation"  # of what no answer waits for: it has a peer's turn
OWN_WEIGHT = 8  # times what a peer has: inference of this node's user goes first


class FairQueue(Generic[T]):
    """Items of several owners with their sizes. Unbounded: whoever fills it bounds it."""

    def __init__(self) -> None:
        self.size = 0  # of all items
        self._queues: OrderedDict[str, deque[tuple[int, T]]] = OrderedDict()
        self._saved: dict[str, int] = {}
        self._turn: str | None = None  # whose turn it is: the first queue's, once begun

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, owner: str, size: int, item: T) -> None:
        """Add an item behind its owner's others."""
        if owner not in self._queues:
            self._queues[owner] = deque()
            self._saved[owner] = 0
            if owner == OWN:
                self._queues.move_to_end(OWN, last=False)
                self._turn = None
        self._queues[owner].append((size, item))
        self.size += size

    def take(self, limit: int) -> list[T]:
        """Remove and return items of at most `limit` in all; at least one, if any."""
        taken: list[T] = []
        room = limit
        while self._queues:
            owner, queue = next(iter(self._queues.items()))
            if self._turn != owner:  # its turn begins
                self._turn = owner
                self._saved[owner] += QUANTUM * (OWN_WEIGHT if owner == OWN else 1)
            size = queue[0][0]
            if size > self._saved[owner]:
                self._queues.move_to_end(owner)
                self._turn = None
                continue
            if taken and size > room:
                break
            self._saved[owner] -= size
            taken.append(queue.popleft()[1])
            room -= size
            self.size -= size
            if not queue:
                del self._queues[owner], self._saved[owner]
                self._turn = None
        return taken
