"""Money goes from one account to another. Sums are conserved; amounts are micro-BLY.

The order of an account's transfers is the sequence in their headers, its nonce: each is
spent once, and never a lower one after it (DEC-A9).
"""

from __future__ import annotations

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Transfer
from blyan_proto.genesis import Genesis
from blyand.rules.economy import fee
from blyand.rules.economy.book import ISSUE, Purse, amount, move
from blyand.rules.economy.once import spend_key
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay


def transfer(
    view: Overlay, block: Block, payload: Transfer, genesis: Genesis, now_ms: int
) -> None:
    """Execute a transfer and its fee."""
    source = block.header.account
    if payload.to == ISSUE:
        raise Reject("nobody owns the zero account; what is sent there would be lost")
    if not payload.amount_micro:
        raise Reject("nothing is sent")
    spend_key(view, block, payload, now_ms, genesis.setting("idempotency_span_ms"))
    if payload.amount_micro + payload.fee_micro > amount(view, source):
        raise Reject("the account owns less than it sends")
    fee.charge(view, source, payload.fee_micro, genesis.setting("transfer_fee_micro"))
    move(
        view,
        (source, Purse.FREE),
        (payload.to, Purse.FREE),
        payload.amount_micro,
        "transfer",
    )
