"""Bonds: money that a privileged role locks and that can be slashed until it is free.

Who releases some waits: it stays in the purse UNBONDING, and may be slashed, for longer
than the trust span, so that whoever is trusted in the meantime has something to lose
(DEC-A11). The wait ends with the epoch in which it is over.
"""

from __future__ import annotations

from itertools import islice

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Bond
from blyan_proto.codec import U8, U64, message
from blyan_proto.genesis import Genesis
from blyan_proto.types import Account
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.records import NODES
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay

MAX_RELEASES = 8  # of one account under way
FREED_AT_ONCE = 256  # at one epoch's end; the rest at the next one's


@message
class Release:
    """Money on its way back."""

    account: Account
    due_ms: U64  # free at the end of the epoch in which this is
    micro: U64


@message
class Releases:
    """How many releases of an account are under way."""

    count: U8


RELEASES = Table(b"release", Release)  # due time, account
UNDER_WAY = Table(b"releases", Releases)  # account


def change(
    view: Overlay, block: Block, payload: Bond, genesis: Genesis, time_ms: int
) -> None:
    """Execute a bond block: lock more, or begin to release some."""
    account = block.header.account
    if NODES.get(view, account) is None:
        raise Reject("only a registered node has a bond")
    if bool(payload.lock_micro) == bool(payload.release_micro):
        raise Reject("a bond block either locks or releases")
    if payload.lock_micro:
        lock_more(view, account, payload.lock_micro)
    else:
        _release(view, account, payload.release_micro, genesis, time_ms)


def lock(view: Overlay, account: bytes, bond_micro: int) -> None:
    """Bring an account's bond up to `bond_micro`."""
    lock_more(view, account, max(0, bond_micro - amount(view, account, Purse.BOND)))


def lock_more(view: Overlay, account: bytes, micro: int) -> None:
    """Lock that much more."""
    if micro > amount(view, account):
        raise Reject("the bond is more than the account owns")
    move(view, (account, Purse.FREE), (account, Purse.BOND), micro, "bond")


def free_due(view: Overlay, time_ms: int) -> None:
    """Set free, at an epoch's end, what is due.

    A slash may have taken some of it: then it is what is left.
    """
    due = list(islice(RELEASES.scan(view), FREED_AT_ONCE))
    for release in due:
        if release.due_ms > time_ms:
            break
        account = release.account
        RELEASES.remove(view, release.due_ms, account)
        under_way = UNDER_WAY.get(view, account)
        assert under_way is not None
        if under_way.count > 1:
            UNDER_WAY.put(view, Releases(under_way.count - 1), account)
        else:
            UNDER_WAY.remove(view, account)
        left = min(release.micro, amount(view, account, Purse.UNBONDING))
        unbonding, free = (account, Purse.UNBONDING), (account, Purse.FREE)
        move(view, unbonding, free, left, "bond released")


def _release(
    view: Overlay, account: bytes, micro: int, genesis: Genesis, time_ms: int
) -> None:
    if micro > amount(view, account, Purse.BOND):
        raise Reject("the bond is less than that")
    # Up to the next multiple of an epoch: releases of one epoch are one.
    span_ms = genesis.setting("epoch_span_ms")
    due = -(-(time_ms + genesis.setting("unbond_span_ms")) // span_ms) * span_ms
    begun = RELEASES.get(view, due, account)
    if begun is None:
        under_way = UNDER_WAY.get(view, account) or Releases(0)
        if under_way.count >= MAX_RELEASES:
            raise Reject(f"the account has {MAX_RELEASES} releases under way")
        UNDER_WAY.put(view, Releases(under_way.count + 1), account)
    total = micro + (begun.micro if begun else 0)
    RELEASES.put(view, Release(account, due, total), due, account)
    bond, unbonding = (account, Purse.BOND), (account, Purse.UNBONDING)
    move(view, bond, unbonding, micro, "bond release begun")
