"""The validator sets in state: who signs the next checkpoint, and the one after it.

A set that an epoch's end computes signs two checkpoints later, so that a checkpoint can
name its successor's signers before it is executed (DEC-A11). The set that signed last
stays, for the votes that the next checkpoint shows; so do the turns to propose.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from blyan_proto.checkpoint import beacon_link
from blyan_proto.codec import I64, Size, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.genesis import Genesis
from blyan_proto.types import Hash
from blyan_proto.validators import Validators, ValidatorSet
from blyand.rules.chain.turns import Turns, carry_over, take_turn
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View

_NEXT, _AFTER, _LAST = 0, 1, 2


@message
class Link:
    """How far a validator has opened its hash chain (DEC-A7)."""

    revealed: Hash  # at first its tail
    tail: Hash  # of the chain that this is a link of


@message
class Priorities:
    """Who has waited how long to propose, in the order of the set that signs next."""

    values: Annotated[tuple[I64, ...], Size(1, MAX_VALIDATORS)]


# 0: of the next checkpoint, 1: of the one after, 2: of the newest one
SETS = Table(b"signers", Validators)
TURNS = Table(b"turns", Priorities)
LINKS = Table(b"link", Link)  # key of a validator
LEFT = Table(b"link-left", Link)  # key, tail: of chains that it opened before


def begin(view: Overlay, genesis: Genesis) -> None:
    """Write the sets of the genesis."""
    founders = Validators(genesis.validators)
    SETS.put(view, founders, _LAST)
    SETS.put(view, founders, _NEXT)
    SETS.put(view, founders, _AFTER)
    TURNS.put(view, Priorities((0,) * len(founders.members)))
    _begin_chains(view, founders)


def signers(view: View) -> ValidatorSet:
    """Return the set that signs the checkpoint after this state."""
    return _set(view, _NEXT)


def successors(view: View) -> ValidatorSet:
    """Return the set that signs the checkpoint after that one."""
    return _set(view, _AFTER)


def predecessors(view: View) -> ValidatorSet:
    """Return the set that signed the newest checkpoint; of the genesis, the founders."""
    return _set(view, _LAST)


def turns(view: View) -> Turns:
    """Return who proposes in the rounds of the next height."""
    found = TURNS.get(view)
    assert found is not None
    return Turns(signers(view), found.values)


def turn_of(validator: bytes, view: View, height: int) -> int | None:
    """Return how many validators come before one for a duty that fell due at `height`.

    None for whoever is no validator. For what one of them has to do, and the next one
    should the first not.
    """
    keys = [member.key for member in signers(view)]
    if validator not in keys:
        return None
    return (keys.index(validator) - height) % len(keys)


def revealed_by(view: View, validator: bytes) -> bytes | None:
    """Return the link that a validator opened last, None for one unknown."""
    link = LINKS.get(view, validator)
    return None if link is None else link.revealed


def opens(view: View, validator: bytes, preimage: bytes) -> bool:
    """True when `preimage` is the next link of that validator's chain."""
    return beacon_link(preimage) == revealed_by(view, validator)


def advance(view: Overlay, proposer: bytes, preimage: bytes) -> None:
    """Note what a checkpoint did: its proposer's link, and whose turn it is to sign.

    A height costs one turn to propose, whatever round decided it.
    """
    link = LINKS.get(view, proposer)
    LINKS.put(view, Link(preimage, link.tail if link else preimage), proposer)
    signed, now = SETS.get(view, _NEXT), SETS.get(view, _AFTER)
    priorities = TURNS.get(view)
    assert signed is not None and now is not None and priorities is not None
    if signed != SETS.get(view, _LAST):
        SETS.put(view, signed, _LAST)
    _, values = take_turn(ValidatorSet(signed.members), priorities.values)
    if now != signed:
        SETS.put(view, now, _NEXT)
        _begin_chains(view, now)
        keys = (member.key for member in signed.members)
        values = carry_over(dict(zip(keys, values)), ValidatorSet(now.members))
    TURNS.put(view, Priorities(values))


def appoint(view: Overlay, chosen: Validators) -> None:
    """Let `chosen` sign from the checkpoint after the next one."""
    SETS.put(view, chosen, _AFTER)


def is_member(view: View, key: bytes) -> bool:
    """True for a key that may still sign a checkpoint: the next, or the one after."""
    return bool(signers(view).weight_of(key) or successors(view).weight_of(key))


def _begin_chains(view: Overlay, signing: Validators) -> None:
    """From now on a member opens the chain whose tail is in the set.

    Not before: until the old set has signed its last checkpoint, the old chain counts.
    Who comes back to an earlier tail goes on where it stopped: no link is opened twice.
    """
    for member in signing.members:
        link, tail = LINKS.get(view, member.key), member.beacon_tail
        if link is not None and link.tail == tail:
            continue
        if link is not None:
            LEFT.put(view, link, member.key, link.tail)
        earlier = LEFT.get(view, member.key, tail)
        LINKS.put(view, earlier or Link(tail, tail), member.key)


def _set(view: View, place: int) -> ValidatorSet:
    found = SETS.get(view, place)
    assert found is not None
    return _set_of(found)


@lru_cache(maxsize=8)  # with its root, which takes a digest of all members
def _set_of(found: Validators) -> ValidatorSet:
    return ValidatorSet(found.members)
