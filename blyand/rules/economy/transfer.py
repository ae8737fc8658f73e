"""Money goes from one account to another. Sums are conserved; amounts are micro-BLY."""

from __future__ import annotations

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Transfer
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay


def transfer(view: Overlay, block: Block, payload: Transfer) -> None:
    """Execute a transfer. Fees are zero until something collects them."""
    if payload.fee_micro:
        raise Reject("fees are not in this version")
    source = block.header.account
    if payload.amount_micro > amount(view, source):
        raise Reject("the account owns less than it sends")
    move(
        view,
        (source, Purse.FREE),
        (payload.to, Purse.FREE),
        payload.amount_micro,
        "transfer",
    )
