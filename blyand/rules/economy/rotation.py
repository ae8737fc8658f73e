"""An account keeps its name when its key changes (DEC-A10, KEY-02).

The account is the address of its first key for ever. Until the first rotation that
address decides who signs for it; afterwards `ACCOUNTS` does, from the place in the order
on where the rotation stands. Old keys are remembered, so that what they signed while
they were current can still be punished.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from blyan_proto.block.block import Block
from blyan_proto.block.economy import KeyRotation, RotationStatement
from blyan_proto.codec import U32, U64, message
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import BadSignature
from blyan_proto.signing import Purpose, account_of, check_signature
from blyan_proto.types import Account, PublicKey
from blyand.rules.chain.validators import is_member
from blyand.rules.economy.book import Purse, amount
from blyand.rules.model.places import open_runs
from blyand.rules.records import NODES, SCHEDULES
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


@message
class Holder:
    """Who signs for an account that has rotated."""

    key: PublicKey
    rotations: U32
    time_ms: U64  # of the last one


@message
class Owned:
    """Whose a key is or was; only keys of accounts that have rotated are listed."""

    account: Account
    # Last height at which its signatures count; none: it is current, or it still votes.
    until_height: U64 | None


ACCOUNTS = Table(b"account", Holder)  # account
KEYS = Table(b"key", Owned)  # public key


def current_key(view: View, account: bytes) -> bytes | None:
    """Return the key of an account that has rotated; None: its address decides."""
    holder = ACCOUNTS.get(view, account)
    return holder.key if holder else None


def may_sign(view: View, account: bytes, key: bytes) -> bool:
    """True for the key that signs for an account at this place in the order."""
    current = current_key(view, account)
    return is_first_key(key, account) if current is None else key == current


def is_first_key(key: bytes, account: bytes) -> bool:
    """True when the account is named by this key; any 33 bytes may come."""
    return address_of(key) == account


@lru_cache(maxsize=4096)  # of every member, for every block that only members make
def address_of(key: bytes) -> bytes | None:
    """Return the account that a key names, None for 33 bytes that are no key."""
    try:
        return account_of(key)
    except ValueError:
        return None


def owner_of(view: View, key: bytes) -> bytes | None:
    """Return the account that a key signs or signed for; None when it is no key."""
    owned = KEYS.get(view, key)
    return owned.account if owned else address_of(key)


def answers_for(view: View, account: bytes, key: bytes, height: int) -> bool:
    """True when what `key` signed about `height` is the account's own doing.

    An old key that somebody else uses after the rotation does its account no harm.
    """
    owned = KEYS.get(view, key)
    if owned is None:
        return current_key(view, account) is None and is_first_key(key, account)
    until = owned.until_height
    return owned.account == account and (until is None or height <= until)


def rotate(
    view: Overlay,
    block: Block,
    payload: KeyRotation,
    height: int,
    now_ms: int,
    span_ms: int,
) -> None:
    """Execute a key rotation: from here on the new key signs for the account.

    At most one for each `span_ms` (the epoch), so that the set's key follows.
    """
    header = block.header
    account, old, new = header.account, header.author, payload.new_key
    holder = ACCOUNTS.get(view, account)
    if holder is not None and now_ms - holder.time_ms < span_ms:
        raise Reject("the account's key was changed in this epoch already")
    if NODES.get(view, account) is None and not amount(view, account, Purse.FREE):
        raise Reject("an account that is not registered and owns nothing has no key")
    own = address_of(new)
    if own is None or KEYS.get(view, new) is not None or own == account:
        raise Reject("the new key is none, or was an account's before")
    if NODES.get(view, own) is not None:
        raise Reject("the new key is another node's")
    statement = RotationStatement(FORMAT_VERSION, account, new)
    try:
        check_signature(
            Purpose.KEY_ROTATION, header.network, statement, new, payload.proof
        )
    except BadSignature as error:
        raise Reject(f"the new key's proof: {error}") from error
    KEYS.put(view, Owned(account, None if is_member(view, old) else height), old)
    KEYS.put(view, Owned(account, None), new)
    rotations = holder.rotations + 1 if holder else 1
    ACCOUNTS.put(view, Holder(new, rotations, now_ms), account)
    _carry_over(view, account, new)


def retire(view: Overlay, key: bytes, height: int) -> None:
    """A key left the validator set: if it is an old one, it signs nothing after `height`."""
    owned = KEYS.get(view, key)
    if owned is None or current_key(view, owned.account) == key:
        return
    if owned.until_height is None:
        KEYS.put(view, replace(owned, until_height=height), key)


def _carry_over(view: Overlay, account: bytes, key: bytes) -> None:
    """Give the node its new key, and its seats in the rounds that are open.

    Its hash chain was made from the old key: it registers a new tail (DEC-A7).
    """
    node = NODES.get(view, account)
    if node is None:
        return
    NODES.put(view, replace(node, key=key, beacon_tail=None), account)
    for run in open_runs(view):
        if run.run.model != node.model:
            continue
        last = min(run.closed + run.run.rounds_ahead + 1, run.run.rounds)
        for round in range(run.closed, last):
            schedule = SCHEDULES.get(view, run.id, round)
            if schedule is None:
                continue
            seats = tuple(
                replace(seat, key=key) if seat.account == account else seat
                for seat in schedule.seats
            )
            if seats != schedule.seats:
                moved = replace(schedule, seats=seats)
                SCHEDULES.put(view, moved, run.id, round)
