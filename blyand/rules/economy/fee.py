"""Fees: one hundredth is burnt, the rest goes to the validators' pool (TOKEN-03).

Rounding. What is burnt altogether is always floor(all fees / 100): the remainders of
small fees are carried on, so that splitting a payment burns neither less nor more.
"""

from __future__ import annotations

from blyan_proto.amounts import bly
from blyan_proto.codec import U64, message
from blyand.rules.economy import pools
from blyand.rules.economy.book import Purse, burn, move
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

BURNT_ONE_IN = 100


@message
class Fees:
    """What was ever paid as fees."""

    paid_micro: U64


FEES = Table(b"fees", Fees)  # one record


def paid(view: View) -> int:
    """Return all fees so far, micro-BLY."""
    known = FEES.get(view)
    return 0 if known is None else known.paid_micro


def burnt_of(before_micro: int, fee_micro: int) -> int:
    """Return what of a fee is burnt when `before_micro` were paid before it."""
    after = before_micro + fee_micro
    return after // BURNT_ONE_IN - before_micro // BURNT_ONE_IN


def charge(view: Overlay, payer: bytes, fee_micro: int, least_micro: int) -> None:
    """Take a fee out of the payer's free money. Reject below the network's least."""
    if fee_micro < least_micro:
        raise Reject(f"the fee is below this network's {bly(least_micro)}")
    if not fee_micro:
        return
    before = paid(view)
    burnt = burnt_of(before, fee_micro)
    source = (payer, Purse.FREE)
    burn(view, source, burnt, "fee burnt")
    move(view, source, (pools.VALIDATORS, Purse.FREE), fee_micro - burnt, "fee")
    FEES.put(view, Fees(before + fee_micro))
