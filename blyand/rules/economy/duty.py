"""What validators do in an epoch, counted from votes that final checkpoints carry (VAL-05).

A checkpoint names whose precommits for its parent its proposer knew. So everybody
counts the same: no clock and no report takes part. A proposer that leaves out others'
signatures lowers its own uptime by more than their loss gives it.
"""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.constants import PPM
from blyand.rules.chain import validators
from blyand.rules.economy.rotation import owner_of
from blyand.rules.economy.statement import Duties, Duty
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View

DUTIES = Table(b"duty", Duties)  # one record: of the running epoch


def count(view: Overlay, proposer: bytes, signers: frozenset[bytes]) -> None:
    """Count the votes for the newest checkpoint that its successor carries.

    `view` is the state that the successor is executed on.
    """
    owing = [member.key for member in validators.predecessors(view)]
    carried = len(signers.intersection(owing))
    known = {duty.key: duty for duty in running(view)}
    for key in {*owing, proposer} - known.keys():
        known[key] = Duty(key, owner_of(view, key) or bytes(20), 0, 0, 0, 0, 0)
    for key in owing:
        duty = known[key]
        known[key] = replace(
            duty, owed=duty.owed + 1, signed=duty.signed + (key in signers)
        )
    duty = known[proposer]
    known[proposer] = replace(
        duty,
        proposed=duty.proposed + 1,
        due=duty.due + len(owing),
        carried=duty.carried + carried,
    )
    DUTIES.put(view, Duties(tuple(known[key] for key in sorted(known))))


def running(view: View) -> tuple[Duty, ...]:
    """Return the duties of the running epoch, by key."""
    found = DUTIES.get(view)
    return found.duties if found else ()


def forget(view: Overlay) -> None:
    """Begin to count anew, with the next epoch."""
    DUTIES.put(view, Duties(()))


def uptime_ppm(duty: Duty) -> int:
    """Return the share of its checkpoints that a validator signed in time.

    Times the share of the others' signatures that its own proposals carried.
    """
    signed = duty.signed * PPM // max(1, duty.owed)
    return signed * duty.carried // duty.due if duty.due else signed
