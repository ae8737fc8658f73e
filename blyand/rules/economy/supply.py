"""The only way to issue money after the genesis, within the year's limit (HZ-67).

A year is 365 days of chain time, counted from the time of the genesis. In each, at most
min(10 % of what circulated when it began, what is missing to 1,000,000,000 BLY) is
issued (TOKEN-01, 02). What stands in the pools does not circulate.
"""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.amounts import bly
from blyan_proto.codec import U32, U64, message
from blyand.rules.economy import book, pools
from blyand.rules.economy.book import MAX_SUPPLY_MICRO, Purse
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

YEAR_MS = 365 * 86_400_000
ISSUED_ONE_IN = 10  # of what circulates, a year


@message
class Year:
    """What may be issued in a year, and was."""

    number: U32  # 0: the first one after the genesis
    began_ms: U64
    circulating_micro: U64  # when it began
    issued_micro: U64  # in it, so far


YEAR = Table(b"year", Year)  # one record


def circulating(view: View) -> int:
    """Return what is in accounts that somebody has a key for, micro-BLY."""
    return book.supply(view).micro - pools.pooled(view)


def begin(view: Overlay, genesis_ms: int) -> None:
    """Open the first year. Reject when the genesis gives nobody anything."""
    given = circulating(view)
    if not given:
        raise Reject("the genesis gives nobody anything, so nothing could ever be paid")
    YEAR.put(view, Year(0, genesis_ms, given, 0))


def turn_year(view: Overlay, now_ms: int) -> Year:
    """Open a new year when its time has come; return the one that `now_ms` is in."""
    year = YEAR.get(view)
    assert year is not None
    passed = (now_ms - year.began_ms) // YEAR_MS
    if passed > 0:
        year = Year(
            year.number + passed,
            year.began_ms + passed * YEAR_MS,
            circulating(view),
            0,
        )
        YEAR.put(view, year)
    return year


def limit_of(view: View, year: Year) -> int:
    """Return what may be issued in the whole of `year`, micro-BLY.

    Burning in the year makes room under the cap, and none under the tenth.
    """
    headroom = MAX_SUPPLY_MICRO - book.supply(view).micro
    return min(year.circulating_micro // ISSUED_ONE_IN, year.issued_micro + headroom)


def room(view: Overlay, now_ms: int) -> int:
    """Return what may still be issued now, micro-BLY."""
    year = turn_year(view, now_ms)
    return max(0, limit_of(view, year) - year.issued_micro)


def issue(
    view: Overlay, target: tuple[bytes, Purse], micro: int, why: str, now_ms: int
) -> None:
    """Issue new money. Reject when the year's limit has less left."""
    left = room(view, now_ms)
    if micro > left:
        raise Reject(f"only {bly(left)} may still be issued this year")
    year = YEAR.get(view)
    assert year is not None
    book.mint(view, target, micro, why)
    YEAR.put(view, replace(year, issued_micro=year.issued_micro + micro))


def year_end_ms(view: View) -> int:
    """Return the chain time at which the running year ends."""
    year = YEAR.get(view)
    assert year is not None
    return year.began_ms + YEAR_MS
