"""Money moves from one account to another. Sums are conserved; amounts are micro-BLY."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Transfer
from blyand.rules.records import BALANCES, Balance
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


def balance_of(view: View, account: bytes) -> Balance:
    """Return an account's balance; an account nobody paid yet owns nothing."""
    return BALANCES.get(view, account) or Balance(account, None, 0, 0)


def transfer(view: Overlay, block: Block, payload: Transfer) -> None:
    """Execute a transfer. Fees are zero until something collects them."""
    if payload.fee_micro:
        raise Reject("fees are not in this version")
    source = balance_of(view, block.header.account)
    if payload.amount_micro > source.micro:
        raise Reject("the account owns less than it sends")
    source = replace(
        source, key=block.header.author, micro=source.micro - payload.amount_micro
    )
    BALANCES.put(view, source, source.account)
    target = balance_of(view, payload.to)
    BALANCES.put(
        view, replace(target, micro=target.micro + payload.amount_micro), target.account
    )
