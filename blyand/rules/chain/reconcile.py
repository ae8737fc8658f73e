"""Which ids another node has that we lack, without sending what both have.

Range-based set reconciliation (Meyer, arXiv 2212.13567) over the hexadecimal digits of
block ids; docs/protocols/blocks.md says how and why. The client walks down the ranges
whose sums differ; the server keeps nothing between two requests. Sets may change
meanwhile: what is missed is found the next time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import accumulate

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.blocks import (
    LIST_AT,
    MAX_DIGITS,
    MAX_LISTED,
    MAX_RANGES,
    MAX_SPLITS,
    PARTS,
    Compare,
    Compared,
    Held,
    Range,
    Sum,
    sum_of,
)

MAX_ROUNDS = 64  # requests of one comparison
MAX_OPEN = 8192  # ranges not yet looked into
MAX_FOUND = 16_384  # ids of one comparison
EMPTY = sum_of(0, 0)
ID_BITS = 256


class IdSet:
    """Block ids in order, and what each range of them adds up to.

    A change costs a shift of the list; the first sum after it costs a pass over all ids
    (a millisecond for 16,384), every further one two searches.
    """

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._keys = sorted({int.from_bytes(id, "big") for id in ids})
        self._totals: list[int] | None = None  # of the first 0, 1, 2 … keys

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, id: bytes) -> bool:
        key = int.from_bytes(id, "big")
        at = bisect_left(self._keys, key)
        return at < len(self._keys) and self._keys[at] == key

    def with_more(self, ids: Iterable[bytes]) -> IdSet:
        """Return a set with these, too."""
        return IdSet([*(key.to_bytes(32, "big") for key in self._keys), *ids])

    def add(self, id: bytes) -> None:
        """Put in an id that is not here."""
        insort(self._keys, int.from_bytes(id, "big"))
        self._totals = None

    def remove(self, id: bytes) -> None:
        """Take out an id that is here."""
        del self._keys[bisect_left(self._keys, int.from_bytes(id, "big"))]
        self._totals = None

    def sum_of(self, prefix: str) -> Sum:
        """Return the sum of the ids that begin with `prefix`."""
        low, bits = _bounds(prefix)
        return self._between(
            bisect_left(self._keys, low), bisect_left(self._keys, low + (1 << bits))
        )

    def parts_of(self, prefix: str) -> tuple[Sum, ...]:
        """Return the sums of the 16 ranges with one digit more."""
        low, bits = _bounds(prefix)
        step = 1 << (bits - 4)
        places = [bisect_left(self._keys, low + step * n) for n in range(PARTS + 1)]
        return tuple(self._between(*pair) for pair in zip(places, places[1:]))

    def ids_of(self, prefix: str) -> tuple[bytes, ...]:
        """Return the ids that begin with `prefix`, ascending."""
        low, bits = _bounds(prefix)
        first = bisect_left(self._keys, low)
        last = bisect_left(self._keys, low + (1 << bits))
        return tuple(key.to_bytes(32, "big") for key in self._keys[first:last])

    def _between(self, first: int, last: int) -> Sum:
        if first == last:
            return EMPTY
        if self._totals is None:
            self._totals = list(accumulate(self._keys, initial=0))
        return sum_of(last - first, self._totals[last] - self._totals[first])


def answer(own: IdSet, request: Compare) -> Compared:
    """Return what the server has in the ranges asked for, as many as fit one answer.

    Work is bounded by the splits and ids of one answer.
    """
    held: list[Held] = []
    listed = splits = 0
    for one in request.ranges:
        have = own.sum_of(one.prefix)
        if not have.count or have.fingerprint == one.known:
            held.append(Held(have.count, (), ()))
            continue
        wants_list = one.known is None or have.count <= LIST_AT
        if len(one.prefix) == MAX_DIGITS or (wants_list and have.count <= MAX_LISTED):
            ids = own.ids_of(one.prefix)[:MAX_LISTED]
            if held and listed + len(ids) > MAX_LISTED:
                break
            listed += len(ids)
            held.append(Held(have.count, ids, ()))
        else:
            if splits == MAX_SPLITS:
                break
            splits += 1
            held.append(Held(have.count, (), own.parts_of(one.prefix)))
    return Compared(tuple(held))


class Comparison:
    """The client's side: what to ask next, what an answer means, when to stop.

    Whatever the answers are, it ends within MAX_ROUNDS requests and holds at most
    MAX_OPEN ranges.
    """

    def __init__(self, own: IdSet, rounds: int = MAX_ROUNDS) -> None:
        """At most `rounds` requests; after one it is known how many ids they have."""
        self._own = own
        self._most = rounds
        self._open = [Range("", own.sum_of("").fingerprint)]
        self._asked: tuple[Range, ...] = ()
        self._rounds = 0
        self.theirs = 0  # how many ids the server has in all, once it said
        self.found: list[bytes] = []  # what the server has and we lack

    def request(self) -> Compare | None:
        """Return the next request; None when there is nothing left to ask."""
        if not self._open or self._rounds == self._most or len(self.found) >= MAX_FOUND:
            return None
        self._rounds += 1

        self._open.sort(key=lambda one: one.prefix)
        self._asked = tuple(self._open[:MAX_RANGES])
        del self._open[:MAX_RANGES]
        return Compare(self._asked)

    def answer(self, compared: Compared) -> list[bytes]:
        """Return the ids in an answer that we lack. UnexpectedMessage when it is none."""
        if len(compared.ranges) > len(self._asked):
            raise UnexpectedMessage("more ranges than were asked for")
        found: list[bytes] = []
        for one, held in zip(self._asked, compared.ranges):
            _check(one, held)
            if not one.prefix:
                self.theirs = held.count
            found += (id for id in held.ids if id not in self._own)
            self._descend(one.prefix, held.parts)
        rest = self._asked[len(compared.ranges) :]
        self._open += rest[: MAX_OPEN - len(self._open)]
        self.found += found
        return found

    def _descend(self, prefix: str, parts: tuple[Sum, ...]) -> None:
        ours = [self._own.sum_of(f"{prefix}{digit:x}") for digit in range(len(parts))]
        differ = [n for n, theirs in enumerate(parts) if theirs.count]
        differ = [n for n in differ if parts[n] != ours[n]]
        # Where nearly all parts differ, so will nearly all of theirs.
        list_at = LIST_AT * 3 if len(differ) >= PARTS - 1 else LIST_AT
        for n in differ[: MAX_OPEN - len(self._open)]:
            count = parts[n].count
            known: bytes | None = ours[n].fingerprint
            # Much more than ours: a list is shorter than going on to look for it.
            if count <= list_at or count - ours[n].count >= count // 4:
                known = None
            if len(prefix) + 1 == MAX_DIGITS:
                known = None
            self._open.append(Range(f"{prefix}{n:x}", known))


def _check(asked: Range, held: Held) -> None:
    """Raise UnexpectedMessage unless what is held is a possible answer."""
    low, bits = _bounds(asked.prefix)
    before = low - 1
    for id in held.ids:
        key = int.from_bytes(id, "big")
        if key <= before or key >= low + (1 << bits):
            raise UnexpectedMessage("ids outside the range, or not in order")
        before = key
    if held.parts and len(asked.prefix) == MAX_DIGITS:
        raise UnexpectedMessage("a range that has no parts")


def _bounds(prefix: str) -> tuple[int, int]:
    """Return the lowest id of a range, and the bits in which its ids differ."""
    bits = ID_BITS - 4 * len(prefix)
    return int(prefix or "0", 16) << bits, bits
