"""Can others connect to us? Decided from what peers found when they dialled us back.

A statement is one peer's word. Peers of one neighbourhood (likely one operator) count
once, so that a liar needs several networks; statements grow old. docs/protocols/reach.md
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

AGREEING = 2  # neighbourhoods that must have reached us, where there are so many
FAILURES = 2  # failed dials before we believe that nobody can reach us
LIFE_S = 1800.0  # what was found longer ago says nothing
FIRST_PAUSE_S = 1.0
UNSURE_PAUSE_S = 60.0  # the longest while the state is unknown
LONGEST_PAUSE_S = 600.0


class Reach(StrEnum):
    """What is known about dialling this node from outside."""

    PUBLIC = "public"
    PRIVATE = "private"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Statement:
    """One peer's dial: where it sees us, and whether it got through."""

    peer: str
    neighbourhood: str
    observed: str  # literal IP
    port: int
    reached: bool
    at_s: float


@dataclass(frozen=True)
class Judgement:
    """The state, why, and the address it is about ("" while unknown)."""

    state: Reach
    reason: str
    observed: str = ""
    address: str = ""  # multiaddress without /p2p, where others reached us


def neighbourhood_of(ip: str) -> str:
    """Return what one operator likely owns: /16, or /32 in v6; "" for no IP."""
    try:
        parsed = ipaddress.ip_address(ip)
    except ValueError:
        return ""
    return parsed.packed[: 2 if parsed.version == 4 else 4].hex()


def fresh(statements: Iterable[Statement], now_s: float) -> list[Statement]:
    """Return what still counts, oldest first.

    Of each peer (and IP version): what it says of the address where it sees us now, the
    newest two if they agree, else the newest.
    """
    kept: dict[tuple[str, bool], list[Statement]] = {}
    for one in sorted(statements, key=lambda statement: statement.at_s):
        if now_s - one.at_s > LIFE_S:
            continue
        said = kept.setdefault((one.peer, ":" in one.observed), [])
        if said and _meaning(said[-1]) != _meaning(one):
            said.clear()
        said.append(one)
        del said[:-FAILURES]
    every = [one for said in kept.values() for one in said]
    return sorted(every, key=lambda statement: statement.at_s)


def _meaning(one: Statement) -> tuple[str, int, bool]:
    return one.observed, one.port, one.reached


def judge(
    statements: Iterable[Statement], neighbourhoods: int, now_s: float
) -> Judgement:
    """Return the state. `neighbourhoods` is how many could be asked at present."""
    valid = fresh(statements, now_s)
    if not valid:
        return Judgement(Reach.UNKNOWN, "no peer has dialled this node back yet")
    observed = valid[-1].observed
    needed = max(1, min(AGREEING, neighbourhoods))
    best: tuple[int, Statement] | None = None
    for one in valid:
        same = [s for s in valid if (s.observed, s.port) == (one.observed, one.port)]
        yes = {s.neighbourhood for s in same if s.reached}
        no = {s.neighbourhood for s in same if not s.reached} - yes
        if len(yes) >= needed and len(yes) > len(no):
            if best is None or len(yes) > best[0]:
                best = (len(yes), one)
    if best is not None:
        count, one = best
        address = address_of(one.observed, one.port)
        reason = f"{count} of the networks asked reached {address}"
        return Judgement(Reach.PUBLIC, reason, one.observed, address)
    failed = [one for one in valid if not one.reached]
    doubted = {one.neighbourhood for one in failed}
    hopeful = {one.neighbourhood for one in valid if one.reached}
    if len(failed) >= FAILURES and len(doubted) > len(hopeful):
        place = address_of(failed[-1].observed, failed[-1].port)
        reason = f"{len(failed)} dials to {place} did not come through"
        return Judgement(Reach.PRIVATE, reason, observed)
    reason = f"{len(valid)} answers, too few or not of one mind"
    return Judgement(Reach.UNKNOWN, reason, observed)


def pause_s(state: Reach, changed: bool, last_s: float) -> float:
    """Return how long to wait before asking again: longer while nothing changes."""
    if changed:
        return FIRST_PAUSE_S
    longest_s = UNSURE_PAUSE_S if state is Reach.UNKNOWN else LONGEST_PAUSE_S
    return min(max(2 * last_s, FIRST_PAUSE_S), longest_s)


def address_of(ip: str, port: int) -> str:
    """Return the multiaddress of a literal IP and a TCP port."""
    return f"/ip{6 if ':' in ip else 4}/{ip}/tcp/{port}"
