"""Money for a service: reserved, then captured, released, expired or reversed.

                     capture -> CAPTURED -> reverse -> REVERSED
    reserve -> OPEN  release -> RELEASED
                     (time)  -> EXPIRED

What is reserved stands in the payer's HELD purse and leaves it once: what was captured
to the payee, the rest back to the payer. Nothing else is a transition (LEDGER-03).
"""

from __future__ import annotations

import enum
from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.ledger import Capture, Release, Reserve, Reverse
from blyan_proto.codec import U64, message
from blyan_proto.errors import BadSignature
from blyan_proto.genesis import Genesis
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.types import Account, BlockId, MaybeHash
from blyand.rules.economy import fee, pools
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.economy.due import Due, Task, schedule
from blyand.rules.economy.once import spend_key
from blyand.rules.economy.rotation import may_sign
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


class Status(enum.IntEnum):
    """What became of a reserve."""

    OPEN = 0
    CAPTURED = 1
    RELEASED = 2
    EXPIRED = 3
    REVERSED = 4  # captured, and all of it given back


@message
class Escrow:
    """A reserve and what became of it."""

    id: BlockId  # the block that reserved
    payer: Account
    payee: Account
    quote: MaybeHash
    status: Status
    reserved_micro: U64
    captured_micro: U64
    reversed_micro: U64
    fee_micro: U64  # what the network kept; bounds what the service is rewarded (HZ-41)
    expires_ms: U64
    ends_ms: U64  # open: expires_ms; closed: when the record goes


ESCROWS = Table(b"escrow", Escrow)  # id


def reserve(
    view: Overlay, block: Block, payload: Reserve, genesis: Genesis, now_ms: int
) -> None:
    """Lock the author's money for a payee."""
    payer = block.header.account
    spend_key(view, block, payload, now_ms, genesis.setting("idempotency_span_ms"))
    if payload.to == payer:
        raise Reject("an account reserves nothing for itself")
    if payload.to in pools.RESERVED:
        raise Reject("nobody could capture what is reserved for a pool")
    if not payload.amount_micro:
        raise Reject("nothing is reserved")
    if payload.quoted_until_ms and now_ms > payload.quoted_until_ms:
        raise Reject("the quote expired before it was authorised")
    if payload.expires_ms <= now_ms:
        raise Reject("the reserve expired before it was made")
    if payload.expires_ms - now_ms > genesis.setting("escrow_span_ms"):
        raise Reject("the reserve would last longer than this network allows")
    if payload.amount_micro + payload.fee_micro > amount(view, payer):
        raise Reject("the account owns less than it reserves")
    fee.charge(view, payer, payload.fee_micro, genesis.setting("transfer_fee_micro"))
    free, held = (payer, Purse.FREE), (payer, Purse.HELD)
    move(view, free, held, payload.amount_micro, "reserve")
    made = Escrow(
        id=block.id,
        payer=payer,
        payee=payload.to,
        quote=payload.quote,
        status=Status.OPEN,
        reserved_micro=payload.amount_micro,
        captured_micro=0,
        reversed_micro=0,
        fee_micro=payload.fee_micro,
        expires_ms=payload.expires_ms,
        ends_ms=payload.expires_ms,
    )
    _put(view, made, now_ms)


def capture(
    view: Overlay, block: Block, payload: Capture, genesis: Genesis, now_ms: int
) -> Escrow:
    """Pay the payee what the payer signed for; return the escrow, closed."""
    statement = payload.statement
    escrow = _open(view, block, statement.reserve)
    if now_ms >= escrow.expires_ms:
        raise Reject("the reserve has expired")
    if not statement.amount_micro:
        raise Reject("nothing is captured: release the reserve")
    if statement.amount_micro > escrow.reserved_micro:
        raise Reject("more is captured than was reserved")
    if not may_sign(view, escrow.payer, payload.payer_key):
        raise Reject("the delivery is signed by a key that is not the payer's")
    try:
        check_signature(
            Purpose.DELIVERY,
            genesis.id,
            statement,
            payload.payer_key,
            payload.signature,
        )
    except BadSignature as error:
        raise Reject("the payer did not sign this delivery") from error
    held, taken = (escrow.payer, Purse.HELD), statement.amount_micro
    move(view, held, (escrow.payee, Purse.FREE), taken, "capture")
    closed = replace(escrow, captured_micro=taken)
    return _close(view, closed, Status.CAPTURED, genesis, now_ms)


def release(
    view: Overlay, block: Block, payload: Release, genesis: Genesis, now_ms: int
) -> Escrow:
    """Give a whole reserve back to the payer."""
    escrow = _open(view, block, payload.reserve)
    return _close(view, escrow, Status.RELEASED, genesis, now_ms)


def reverse(
    view: Overlay, block: Block, payload: Reverse, genesis: Genesis, now_ms: int
) -> Escrow:
    """Give back some of what was captured; the payee pays it out of its free money."""
    spend_key(view, block, payload, now_ms, genesis.setting("idempotency_span_ms"))
    escrow = _of_payee(view, block, payload.reserve)
    if escrow.status is not Status.CAPTURED:
        raise Reject(f"nothing is to be given back: it is {_name(escrow)}")
    if now_ms >= escrow.ends_ms:
        raise Reject("the time to give it back is over; make a transfer")
    if not payload.amount_micro:
        raise Reject("nothing is given back")
    back = escrow.reversed_micro + payload.amount_micro
    if back > escrow.captured_micro:
        raise Reject("more is given back than was captured")
    payee, payer = (escrow.payee, Purse.FREE), (escrow.payer, Purse.FREE)
    move(view, payee, payer, payload.amount_micro, "reverse")
    whole = back == escrow.captured_micro
    status = Status.REVERSED if whole else Status.CAPTURED
    changed = replace(escrow, reversed_micro=back, status=status)
    ESCROWS.put(view, changed, escrow.id)
    return changed


def end(view: Overlay, id: bytes, genesis: Genesis, now_ms: int) -> None:
    """Give an open reserve back whose time is over; forget a closed one."""
    escrow = ESCROWS.get(view, id)
    if escrow is None or escrow.ends_ms > now_ms:
        return
    if escrow.status is Status.OPEN:
        _close(view, escrow, Status.EXPIRED, genesis, now_ms)
    else:
        ESCROWS.remove(view, id)


def _of_payee(view: View, block: Block, id: bytes) -> Escrow:
    escrow = ESCROWS.get(view, id)
    if escrow is None:
        raise Reject("there is no such reserve, or it ended long ago")
    if block.header.account != escrow.payee:
        raise Reject("only its payee can do that with a reserve")
    return escrow


def _open(view: View, block: Block, id: bytes) -> Escrow:
    escrow = _of_payee(view, block, id)
    if escrow.status is not Status.OPEN:
        raise Reject(f"the reserve is {_name(escrow)} already")
    return escrow


def _name(escrow: Escrow) -> str:
    return escrow.status.name.lower()


def _close(
    view: Overlay, escrow: Escrow, status: Status, genesis: Genesis, now_ms: int
) -> Escrow:
    payer, left = escrow.payer, escrow.reserved_micro - escrow.captured_micro
    why = "expire" if status is Status.EXPIRED else "release"
    move(view, (payer, Purse.HELD), (payer, Purse.FREE), left, why)
    ends_ms = now_ms + genesis.setting("reversal_span_ms")
    closed = replace(escrow, status=status, ends_ms=ends_ms)
    _put(view, closed, now_ms)
    return closed


def _put(view: Overlay, escrow: Escrow, now_ms: int) -> None:
    ESCROWS.put(view, escrow, escrow.id)
    schedule(view, now_ms, escrow.ends_ms, Due(Task.ESCROW, escrow.id, 0))
