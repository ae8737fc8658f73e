"""Rewards become money: they wait for a minimum, then can still be slashed for a while.

A reward is in its account's UNCLAIMED purse at once. When what waits there reaches the
minimum payout, a day is set on which it moves to FREE. Penalties that took from the
purse meanwhile (SLASH-06) are missing from what is paid last.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from blyan_proto.codec import U64, Size, message
from blyan_proto.types import Account
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.economy.statement import MAX_RECIPIENTS
from blyand.rules.table import Table
from blyand.rules.view import Overlay

PAYOUTS_PER_CHECKPOINT = 64
EPOCHS_PER_CHECKPOINT = 64  # looked at for payouts that are due


@message
class Payout:
    """What one account will be paid."""

    account: Account
    micro: U64


@message
class Payable:
    """What the rewards of one epoch set free, and when."""

    due_ms: U64
    payouts: Annotated[tuple[Payout, ...], Size(1, MAX_RECIPIENTS)]  # by account


@message
class Head:
    """The first epoch whose payouts may not all be made."""

    epoch: U64


PAYABLE = Table(b"payable", Payable)  # epoch
HEAD = Table(b"vesting", Head)  # one record


def set_due(
    view: Overlay, epoch: int, due_ms: int, payouts: tuple[Payout, ...]
) -> None:
    """Set the day for what an epoch's end let reach the minimum."""
    if payouts:
        PAYABLE.put(view, Payable(due_ms, payouts), epoch)


def pay_due(view: Overlay, running: int, time_ms: int) -> None:
    """Pay what is due at a checkpoint, oldest epoch first; `running` is no such epoch."""
    known = HEAD.get(view)
    first = known.epoch if known else 0
    left = PAYOUTS_PER_CHECKPOINT
    epoch = first
    while left and epoch < min(running, first + EPOCHS_PER_CHECKPOINT):
        due = PAYABLE.get(view, epoch)
        if due is not None:
            if due.due_ms > time_ms:
                break
            for payout in due.payouts[:left]:
                _pay(view, payout)
            rest = due.payouts[left:]
            left -= min(left, len(due.payouts))
            if rest:
                PAYABLE.put(view, replace(due, payouts=rest), epoch)
                break
            PAYABLE.remove(view, epoch)
        epoch += 1
    if epoch != first:
        HEAD.put(view, Head(epoch))


def _pay(view: Overlay, payout: Payout) -> None:
    account = payout.account
    micro = min(payout.micro, amount(view, account, Purse.UNCLAIMED))
    if micro:
        move(view, (account, Purse.UNCLAIMED), (account, Purse.FREE), micro, "payout")
