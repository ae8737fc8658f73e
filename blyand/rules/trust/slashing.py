"""What an offence costs (SLASH-01 … SLASH-06, HZ-72).

A share of the account's bond, unbonding money and unclaimed rewards, and of nothing
else; and a time in which it neither validates nor leads. Rewards go first, then the bond,
then what is on its way back. What is taken is burnt: nobody earns by an accusation, so
nobody has a reason to provoke one. While an account is banned for a kind of offence, more
of that kind costs nothing: one fault of a machine can show a hundred times at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from blyan_proto.block.economy import Offence
from blyan_proto.codec import U32, U64, message
from blyan_proto.constants import PPM
from blyan_proto.settings import DAY_MS
from blyan_proto.types import Account, BlockId, Hash
from blyand.rules.economy.book import Purse, amount, burn
from blyand.rules.table import Table
from blyand.rules.trust.offences import (
    Offending,
    mark_applied,
    offence_id,
    unapplied,
)
from blyand.rules.view import Overlay, View

APPLIED_AT_ONCE = 64  # offences that one checkpoint takes up
BASE = (Purse.UNCLAIMED, Purse.BOND, Purse.UNBONDING)  # in the order of taking


class Penalty(NamedTuple):
    """What one kind of offence costs."""

    ppm: int  # of the base
    ban_ms: int


PENALTIES = {
    Offence.DOUBLE_VOTE: Penalty(100_000, 30 * DAY_MS),
    Offence.DOUBLE_PROPOSAL: Penalty(100_000, 30 * DAY_MS),
    Offence.DOUBLE_HEAD: Penalty(100_000, 30 * DAY_MS),
    Offence.INVALID_BLOCK: Penalty(50_000, 7 * DAY_MS),
    Offence.FALSE_ROOT: Penalty(50_000, 7 * DAY_MS),
    Offence.FALSE_EVIDENCE: Penalty(10_000, DAY_MS),
    Offence.DOWNTIME: Penalty(1_000, 0),  # for each span of silence
    Offence.CENSORSHIP: Penalty(200_000, 90 * DAY_MS),
}


@message
class Slash:
    """One penalty, with everything that it was computed from."""

    id: Hash  # of the offence
    offender: Account
    offence: Offence
    height: U64  # of the checkpoint that applied it
    time_ms: U64
    ppm: U32
    # What the purses held before, and what was taken from each.
    unclaimed_micro: U64
    bond_micro: U64
    unbonding_micro: U64
    taken_unclaimed_micro: U64
    taken_bond_micro: U64
    taken_unbonding_micro: U64
    banned_until_ms: U64  # 0: no ban
    proof: BlockId | None  # the block that showed it; none for downtime
    earlier: Hash | None  # the one before it: of anybody, and of the offender
    earlier_own: Hash | None

    @property
    def taken_micro(self) -> int:
        """What it cost in all."""
        taken = self.taken_unclaimed_micro, self.taken_bond_micro
        return sum(taken) + self.taken_unbonding_micro


@message
class Ban:
    """Until when an account neither validates nor leads; then it registers again."""

    until_ms: U64
    offence: Offence


@message
class Punished:
    """The last time that an account was punished for one kind of offence."""

    height: U64
    until_ms: U64


@message
class Toll:
    """What penalties came to, and the newest: from it `earlier` leads to all others."""

    times: U32
    taken_micro: U64
    last: Hash


SLASHES = Table(b"slash", Slash)  # offence id
TOLLS = Table(b"toll", Toll)  # account; none: of everybody
BANS = Table(b"ban", Ban)  # account
PUNISHED = Table(b"punished", Punished)  # account, offence


def at_stake(view: View, account: bytes) -> int:
    """Return what a penalty can take from, micro-BLY."""
    return sum(amount(view, account, purse) for purse in BASE)


def is_banned(view: View, account: bytes) -> bool:
    """True until a node whose ban is over has registered again."""
    return BANS.get(view, account) is not None


def lift(view: Overlay, account: bytes, now_ms: int) -> None:
    """A node registers again: its ban ends, if the time of it is over."""
    ban = BANS.get(view, account)
    if ban is not None and ban.until_ms <= now_ms:
        BANS.remove(view, account)


def is_spent(
    view: View, account: bytes, offence: Offence, height: int, now_ms: int
) -> bool:
    """True when an offence of that height was paid for with an earlier one of its kind."""
    last = PUNISHED.get(view, account, bytes([offence]))
    return last is not None and (height <= last.height or now_ms < last.until_ms)


def penalties(
    view: View, account: bytes | None = None, before: bytes | None = None
) -> Iterator[Slash]:
    """Yield penalties, newest first: of everybody, or of one account.

    Only those before the penalty `before`, which state has and which is one of them.
    """
    if before is None:
        toll = TOLLS.get(view) if account is None else TOLLS.get(view, account)
        id = toll.last if toll else None
    else:
        id = before
    while id is not None:
        slash = SLASHES.get(view, id)
        assert slash is not None
        if id != before:
            yield slash
        id = slash.earlier if account is None else slash.earlier_own


def apply_offences(view: Overlay, height: int, now_ms: int) -> None:
    """Take up what was recorded: at most 64 offences at one checkpoint."""
    for offending in unapplied(view, APPLIED_AT_ONCE):
        mark_applied(view, offending)
        offender, offence = offending.offender, offending.offence
        if not is_spent(view, offender, offence, offending.height, now_ms):
            _punish(view, offending, PENALTIES[offence], height, now_ms)


def punish_silence(
    view: Overlay, account: bytes, spans: int, height: int, now_ms: int
) -> None:
    """Take what `spans` of downtime cost; nothing where there is no base."""
    subject = height.to_bytes(8, "little")
    id = offence_id(Offence.DOWNTIME, account, subject)
    if not at_stake(view, account):
        return
    offending = Offending(id, account, Offence.DOWNTIME, height, bytes(32), True)
    share = min(PPM, PENALTIES[Offence.DOWNTIME].ppm * spans)
    _punish(view, offending, Penalty(share, 0), height, now_ms)


def _punish(
    view: Overlay, offending: Offending, penalty: Penalty, height: int, now_ms: int
) -> None:
    account = offending.offender
    held = {purse: amount(view, account, purse) for purse in BASE}
    left = sum(held.values()) * penalty.ppm // PPM
    taken = {}
    why = f"slashed: {offending.offence.name.lower().replace('_', ' ')}"
    for purse, micro in held.items():
        taken[purse] = min(micro, left)
        left -= taken[purse]
        if taken[purse]:
            burn(view, (account, purse), taken[purse], why)
    until_ms = now_ms + penalty.ban_ms if penalty.ban_ms else 0
    every, own = TOLLS.get(view), TOLLS.get(view, account)
    slash = Slash(
        id=offending.id,
        offender=account,
        offence=offending.offence,
        height=height,
        time_ms=now_ms,
        ppm=penalty.ppm,
        unclaimed_micro=held[Purse.UNCLAIMED],
        bond_micro=held[Purse.BOND],
        unbonding_micro=held[Purse.UNBONDING],
        taken_unclaimed_micro=taken[Purse.UNCLAIMED],
        taken_bond_micro=taken[Purse.BOND],
        taken_unbonding_micro=taken[Purse.UNBONDING],
        banned_until_ms=until_ms,
        proof=offending.proof if any(offending.proof) else None,
        earlier=every.last if every else None,
        earlier_own=own.last if own else None,
    )
    SLASHES.put(view, slash, slash.id)
    TOLLS.put(view, _add(every, slash))
    TOLLS.put(view, _add(own, slash), account)
    if until_ms:
        PUNISHED.put(
            view, Punished(height, until_ms), account, bytes([offending.offence])
        )
        known = BANS.get(view, account)
        if known is None or known.until_ms < until_ms:
            BANS.put(view, Ban(until_ms, offending.offence), account)


def _add(toll: Toll | None, slash: Slash) -> Toll:
    known = toll or Toll(0, 0, slash.id)
    return Toll(known.times + 1, known.taken_micro + slash.taken_micro, slash.id)
