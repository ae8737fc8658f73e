"""With which weight a node is drawn as a primary: its bond and its latency (DEC-A8).

Who has less than a primary's bond contributes all the same; it leads only where no
holder has one (HZ-72). The numbers of the genesis stand in state, for rules that are
asked about a round and have no genesis at hand.
"""

from __future__ import annotations

from blyan_proto.block.economy import LatencyClass
from blyan_proto.codec import U64, message
from blyan_proto.genesis import Genesis
from blyand.rules.economy.book import Purse, amount
from blyand.rules.economy.latency import class_of
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View

MAX_BOND_SHARE = 4  # at eight times the bond and more
LATENCY_SHARES = {
    LatencyClass.LOCAL: 16,
    LatencyClass.NEAR: 12,
    LatencyClass.REGIONAL: 8,
    LatencyClass.FAR: 4,
    LatencyClass.DISTANT: 2,
    None: 8,  # nobody knows
}


@message
class DrawTerms:
    """What the genesis says of the draw."""

    bond_micro: U64  # that a primary needs
    latency_span_ms: U64  # how long a report counts


DRAW = Table(b"draw", DrawTerms)  # one record


def begin(view: Overlay, genesis: Genesis) -> None:
    """Write the terms of the genesis."""
    terms = DrawTerms(
        genesis.setting("primary_bond_micro"), genesis.setting("latency_span_ms")
    )
    DRAW.put(view, terms)


def draw_weight(view: View, account: bytes, time_ms: int) -> int:
    """Return the weight of a node's seat: 2 … 64, or 0 where the bond is too small.

    Latency gives 2 to 16, and the bond 1 to 4 times that: once more for each time that
    it is doubled.
    """
    terms = DRAW.get(view)
    assert terms is not None
    bond = amount(view, account, Purse.BOND)
    if bond < terms.bond_micro:
        return 0
    doubled = (bond // terms.bond_micro).bit_length() - 1 if terms.bond_micro else 0
    latency = class_of(view, account, time_ms, terms.latency_span_ms)
    return LATENCY_SHARES[latency] * min(MAX_BOND_SHARE, 1 + doubled)
