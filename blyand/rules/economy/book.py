"""Money in executed state: purses, and the three ways in which they change.

Nothing else writes an amount. A movement takes from one purse what it gives to another;
minting and burning post their other side to `ISSUE`, an account that owns nothing. So
the postings of every transaction sum to zero (LEDGER-01), and the sum of all purses is
always what was issued less what was burnt. Amounts are micro-BLY.
"""

from __future__ import annotations

import enum
from dataclasses import replace

from blyan_proto.codec import U64, message
from blyan_proto.types import Account
from blyand.rules.posting import Posting
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

MICRO = 1_000_000  # micro-BLY in one BLY
MAX_SUPPLY_MICRO = 1_000_000_000 * MICRO  # TOKEN-01
ISSUE = bytes(20)  # the other side of minting and burning


class Purse(enum.IntEnum):
    """What an account's money is for."""

    FREE = 0
    BOND = 1  # locked for a privileged role; may be slashed
    UNBONDING = 2  # on its way back to FREE; may still be slashed
    HELD = 3  # reserved for a service that was ordered
    UNCLAIMED = 4  # rewards that are not paid out yet; may be slashed
    STAKED = 5  # locked for priority (TOKEN-04)
    UNSTAKING = 6  # on its way back from there


@message
class Balance:
    """What one purse of one account holds; an empty purse has no record."""

    account: Account
    purse: Purse
    micro: U64


@message
class Supply:
    """What was ever issued and burnt."""

    issued_micro: U64
    burnt_micro: U64

    @property
    def micro(self) -> int:
        """What there is."""
        return self.issued_micro - self.burnt_micro


BALANCES = Table(b"balance", Balance)  # account, purse
SUPPLY = Table(b"supply", Supply)  # one record


def amount(view: View, account: bytes, purse: Purse = Purse.FREE) -> int:
    """Return what a purse holds; nothing where nobody ever paid in."""
    balance = BALANCES.get(view, account, bytes([purse]))
    return 0 if balance is None else balance.micro


def supply(view: View) -> Supply:
    """Return what was issued and burnt so far."""
    return SUPPLY.get(view) or Supply(0, 0)


def move(
    view: Overlay,
    source: tuple[bytes, Purse],
    target: tuple[bytes, Purse],
    micro: int,
    why: str,
) -> None:
    """Move money between two purses. Reject when the source holds less.

    Both sides are posted one after the other, and nothing for nothing: so it is with
    every movement, and readers of the journal rely on it.
    """
    _change(view, source, -micro, why)
    _change(view, target, micro, why)


def mint(view: Overlay, target: tuple[bytes, Purse], micro: int, why: str) -> None:
    """Issue new money. Reject when there would be more than TOKEN-01 allows.

    Only the genesis and `supply.issue` call this: the year has its limit, too.
    """
    known = supply(view)
    if known.micro + micro > MAX_SUPPLY_MICRO:
        raise Reject("there would be more than 1,000,000,000 BLY")
    SUPPLY.put(view, replace(known, issued_micro=known.issued_micro + micro))
    if micro:
        view.journal.append(Posting(ISSUE, Purse.FREE, -micro, why))
    _change(view, target, micro, why)


def burn(view: Overlay, source: tuple[bytes, Purse], micro: int, why: str) -> None:
    """Destroy money. Reject when the source holds less."""
    known = supply(view)
    _change(view, source, -micro, why)
    SUPPLY.put(view, replace(known, burnt_micro=known.burnt_micro + micro))
    if micro:
        view.journal.append(Posting(ISSUE, Purse.FREE, micro, why))


def _change(view: Overlay, of: tuple[bytes, Purse], micro: int, why: str) -> None:
    account, purse = of
    left = amount(view, account, purse) + micro
    if left < 0:
        raise Reject(f"the account has less than that {purse.name.lower()}")
    if left:
        BALANCES.put(view, Balance(account, purse, left), account, bytes([purse]))
    else:
        BALANCES.remove(view, account, bytes([purse]))
    if micro:
        view.journal.append(Posting(account, purse, micro, why))
