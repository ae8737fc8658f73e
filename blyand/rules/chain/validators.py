"""The validator sets in state: who signs the next checkpoint, and the one after it.

A set that an epoch's end computes signs two checkpoints later, so that a checkpoint can
name its successor's signers before it is executed (DEC-A11).
"""

from __future__ import annotations

from blyan_proto.checkpoint import beacon_link
from blyan_proto.codec import message
from blyan_proto.genesis import Genesis
from blyan_proto.types import Hash
from blyan_proto.validators import Validators, ValidatorSet
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View

_NEXT, _AFTER, _LAST = 0, 1, 2


@message
class Link:
    """How far a validator has opened its hash chain (DEC-A7)."""

    revealed: Hash  # at first its tail


# 0: who signs the next checkpoint, 1: the one after, 2: who signed the newest
SETS = Table(b"signers", Validators)
LINKS = Table(b"link", Link)  # key of a validator


def begin(view: Overlay, genesis: Genesis) -> None:
    """Write the sets of the genesis."""
    founders = Validators(genesis.validators)
    SETS.put(view, founders, _LAST)
    SETS.put(view, founders, _NEXT)
    appoint(view, founders)


def signers(view: View) -> ValidatorSet:
    """Return the set that signs the checkpoint after this state."""
    return _set(view, _NEXT)


def successors(view: View) -> ValidatorSet:
    """Return the set that signs the checkpoint after that one."""
    return _set(view, _AFTER)


def predecessors(view: View) -> ValidatorSet:
    """Return the set that signed the newest checkpoint; of the genesis, the founders."""
    return _set(view, _LAST)


def revealed_by(view: View, validator: bytes) -> bytes | None:
    """Return the link that a validator opened last, None for one unknown."""
    link = LINKS.get(view, validator)
    return None if link is None else link.revealed


def opens(view: View, validator: bytes, preimage: bytes) -> bool:
    """True when `preimage` is the next link of that validator's chain."""
    return beacon_link(preimage) == revealed_by(view, validator)


def advance(view: Overlay, proposer: bytes, preimage: bytes) -> None:
    """Note what a checkpoint did: its proposer's link, and whose turn it is to sign."""
    LINKS.put(view, Link(preimage), proposer)
    for place, later in ((_LAST, _NEXT), (_NEXT, _AFTER)):
        members = SETS.get(view, later)
        assert members is not None
        if members != SETS.get(view, place):
            SETS.put(view, members, place)


def appoint(view: Overlay, chosen: Validators) -> None:
    """Let `chosen` sign from the checkpoint after the next one."""
    SETS.put(view, chosen, _AFTER)
    for member in chosen.members:
        if LINKS.get(view, member.key) is None:
            LINKS.put(view, Link(member.beacon_tail), member.key)


def _set(view: View, place: int) -> ValidatorSet:
    found = SETS.get(view, place)
    assert found is not None
    return ValidatorSet(found.members)
