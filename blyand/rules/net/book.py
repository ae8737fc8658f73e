"""Which peers a book keeps, which of them is dialled next, and whom others hear of.

A neighbourhood is what one operator likely owns: a /16, or a /32 in IPv6. Claims are
counted by who made them and by the neighbourhoods of both ends, so that nobody fills a
book with claims alone; what was confirmed never makes room for a claim (DEC-C9).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
Draw = Callable[[int], int]  # draw(n): a random number in [0, n)

MAX_PEERS = 1024
CLAIM_FAILURES = 3  # a claim that failed so often in a row makes room for another
PEER_FAILURES = 10  # a peer that we once reached is given more patience,
PEER_LOST_S = 7 * 86_400.0  # and as much time
BETTER_IN_4 = 3  # of four dials, those to peers that did not fail, that we reached


@dataclass(frozen=True)
class Limits:
    """How much of a book there is for whom."""

    peers: int = MAX_PEERS
    of_source: int = 128  # claims by one peer
    of_source_place: int = 256  # claims by peers of one neighbourhood
    of_place: int = 256  # claims about peers of one neighbourhood


class Known(Protocol):
    """What the rules see of an entry."""

    @property
    def peer(self) -> str: ...
    @property
    def place(self) -> str: ...  # neighbourhood of its first address
    @property
    def source(self) -> str: ...  # who told us; our own id for what we found
    @property
    def source_place(self) -> str: ...
    @property
    def heard_s(self) -> float: ...  # when it came into the book
    @property
    def reached_s(self) -> float: ...  # when we last reached it; 0: never
    @property
    def failures(self) -> int: ...  # in a row


def is_lost(known: Known, now_s: float) -> bool:
    """True if an entry is not worth its place any more."""
    if not known.reached_s:
        return known.failures >= CLAIM_FAILURES
    return known.failures >= PEER_FAILURES and now_s - known.reached_s > PEER_LOST_S


def make_room(
    entries: Iterable[Known], new: Known, limits: Limits, now_s: float
) -> tuple[str, ...] | None:
    """Return the peers that leave for `new`, a peer that is not in the book yet.

    None: it stays outside. A claim displaces what is lost, or, in a full book, the
    oldest claim of the neighbourhood that made most of them; never a confirmed peer.
    """
    entries = list(entries)
    out: dict[str, None] = {}
    if not new.reached_s:
        claims = [e for e in entries if not e.reached_s]
        for rivals, limit in (
            ([e for e in claims if e.source == new.source], limits.of_source),
            (
                [e for e in claims if e.source_place == new.source_place],
                limits.of_source_place,
            ),
            ([e for e in claims if e.place == new.place], limits.of_place),
        ):
            if sum(e.peer not in out for e in rivals) >= limit:
                lost = [e for e in rivals if is_lost(e, now_s)]
                if not lost:
                    return None
                out[min(lost, key=_worth).peer] = None
    if len(entries) - len(out) >= limits.peers:
        victim = _victim([e for e in entries if e.peer not in out], new, now_s)
        if victim is None:
            return None
        out[victim.peer] = None
    return tuple(out)


def _worth(known: Known) -> tuple[bool, int, float, str]:
    """Sort key: what goes first."""
    reached = known.reached_s or known.heard_s
    return bool(known.reached_s), -known.failures, reached, known.peer


def _victim(entries: Sequence[Known], new: Known, now_s: float) -> Known | None:
    lost = [e for e in entries if is_lost(e, now_s)]
    if lost:
        return min(lost, key=_worth)
    claims = [e for e in entries if not e.reached_s]
    if claims:
        by_place = Counter(e.source_place for e in claims)
        most = max(by_place, key=lambda place: (by_place[place], place))
        return min((e for e in claims if e.source_place == most), key=_worth)
    return min(entries, key=_worth) if new.reached_s else None


def choose(known: Sequence[Known], taken: Collection[str], draw: Draw) -> Known | None:
    """Return whom to dial next; `taken` are the neighbourhoods of those we dialled.

    A neighbourhood that we have no peer of comes first. Every neighbourhood is as
    likely as another, however many of its addresses we were told. The others get their
    turn too: a book of old friends learns nothing.
    """
    choice = [one for one in known if one.place not in taken] or list(known)
    if not choice:
        return None
    fewest = min(one.failures for one in choice)
    choice = _mostly(choice, lambda one: one.failures == fewest, draw)
    choice = _mostly(choice, lambda one: bool(one.reached_s), draw)
    places = sorted({one.place for one in choice})
    place = places[draw(len(places))]
    here = [one for one in choice if one.place == place]
    fewest = min(one.failures for one in here)
    best = [one for one in here if one.failures == fewest]
    return best[draw(len(best))]


def _mostly(
    choice: list[Known], is_better: Callable[[Known], bool], draw: Draw
) -> list[Known]:
    better = [one for one in choice if is_better(one)]
    if not better or len(better) == len(choice):
        return choice
    if draw(4) < BETTER_IN_4:
        return better
    return [one for one in choice if not is_better(one)]


def spread(
    items: Iterable[T], place_of: Callable[[T], str], count: int, draw: Draw
) -> list[T]:
    """Return up to `count` items at random, one of each neighbourhood in turn."""
    by_place: dict[str, list[T]] = {}
    for item in items:
        by_place.setdefault(place_of(item), []).append(item)
    waiting = [by_place[place] for place in sorted(by_place)]
    chosen: list[T] = []
    while waiting and len(chosen) < count:
        turn, later = list(waiting), []
        while turn and len(chosen) < count:
            place = turn.pop(draw(len(turn)))
            chosen.append(place.pop(draw(len(place))))
            if place:
                later.append(place)
        waiting = later
    return chosen
