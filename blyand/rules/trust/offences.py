"""Proven offences, each once: what slashing takes up. Proving is left to who records."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from blyan_proto.block.economy import Offence
from blyan_proto.codec import U64, message
from blyan_proto.digest import Domain, digest
from blyan_proto.types import Account, BlockId, Hash
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View


@message
class Offending:
    """One proven offence."""

    id: Hash  # digest(Domain.OFFENCE, u8 offence, offender account, subject)
    offender: Account
    offence: Offence
    height: U64  # of the checkpoint that recorded it
    proof: BlockId  # the block that proved it
    applied: bool  # slashing has taken it up


@message
class Due:
    """An offence that slashing has not taken up."""

    id: Hash


@message
class Guilt:
    """When an account last offended."""

    height: U64  # of the checkpoint that recorded it


OFFENCES = Table(b"offence", Offending)  # offence id
DUE = Table(b"offence-due", Due)  # offence id
GUILT = Table(b"guilt", Guilt)  # account


def offence_id(offence: Offence, offender: bytes, subject: bytes) -> bytes:
    """Return the name of an offence. `subject` names the deed, so that it counts once."""
    return digest(Domain.OFFENCE, bytes([offence]), offender, subject)


def record(
    view: Overlay,
    offence: Offence,
    offender: bytes,
    subject: bytes,
    height: int,
    proof: bytes,
) -> bool:
    """Record a proven offence; False when it is known already, and nothing is written."""
    id = offence_id(offence, offender, subject)
    if OFFENCES.get(view, id) is not None:
        return False
    OFFENCES.put(view, Offending(id, offender, offence, height, proof, False), id)
    DUE.put(view, Due(id), id)
    GUILT.put(view, Guilt(height), offender)
    return True


def is_guilty(view: View, account: bytes, since: int) -> bool:
    """True when an offence of the account was recorded at this height, or later."""
    last = GUILT.get(view, account)
    return last is not None and last.height >= since


def unapplied(view: View, most: int) -> list[Offending]:
    """Return at most `most` offences that slashing has not taken up, ascending by id."""
    found = [OFFENCES.get(view, due.id) for due in islice(DUE.scan(view), most)]
    return [offending for offending in found if offending is not None]


def mark_applied(view: Overlay, offending: Offending) -> None:
    """Note that slashing has taken an offence up."""
    OFFENCES.put(view, replace(offending, applied=True), offending.id)
    DUE.remove(view, offending.id)
