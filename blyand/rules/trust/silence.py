"""Validators that do not sign, and what a long silence costs (SLASH-02, HZ-85).

Silence is chain time since a validator's last precommit that a checkpoint named. A
checkpoint that names nobody says nothing about anybody. One proposer can leave a
signature out; a whole day of silence needs all of them. Time in which the chain stood
still does not count, for then nobody could sign.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from blyan_proto.codec import U16, U64, Size, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.types import PublicKey
from blyand.rules.chain.validators import predecessors
from blyand.rules.economy.rotation import owner_of
from blyand.rules.table import Table
from blyand.rules.trust.slashing import punish_silence
from blyand.rules.view import Overlay, View

MAX_SPANS = 65_535


@message
class Silence:
    """One member of the set that has missed the newest checkpoints."""

    key: PublicKey
    missed_ms: U64
    charged: U16  # spans of it that were punished


@message
class Silences:
    """All that are silent, in the order of the set."""

    members: Annotated[tuple[Silence, ...], Size(0, MAX_VALIDATORS)]


SILENCES = Table(b"silence", Silences)  # one record


def count(view: Overlay, signed: frozenset[bytes], passed_ms: int) -> None:
    """Count `passed_ms` for everybody whose precommit for the parent is not named.

    `view` is the state that the checkpoint is executed on.
    """
    if not signed:
        return
    known = {one.key: one for one in silences(view)}
    silent = []
    for member in predecessors(view):
        if member.key not in signed:
            one = known.get(member.key) or Silence(member.key, 0, 0)
            silent.append(replace(one, missed_ms=one.missed_ms + passed_ms))
    if silent or known:
        SILENCES.put(view, Silences(tuple(silent)))


def silences(view: View) -> tuple[Silence, ...]:
    """Return who is silent."""
    found = SILENCES.get(view)
    return found.members if found else ()


def silent_ms(view: View, key: bytes) -> int:
    """Return for how long a member of the set has been silent; 0 when it signs."""
    return next((one.missed_ms for one in silences(view) if one.key == key), 0)


def charge(view: Overlay, span_ms: int, height: int, time_ms: int) -> None:
    """Punish every whole span of silence once."""
    charged = []
    for one in silences(view):
        spans = min(one.missed_ms // span_ms, MAX_SPANS)
        account = owner_of(view, one.key)
        if spans > one.charged and account is not None:
            punish_silence(view, account, spans - one.charged, height, time_ms)
        charged.append(replace(one, charged=max(spans, one.charged)))
    if charged:
        SILENCES.put(view, Silences(tuple(charged)))
