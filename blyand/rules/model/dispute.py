"""A holder computed another result than an update claims: who is right (DEC-A5).

Execution cannot recompute: it has no blobs. Validators do so outside, and each says in a
block of its own what it found. More than two thirds of their weight decide: the update
is void, or the dispute was wrong; whoever signed the false root pays.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Dispute, DisputeVerdict, Offence
from blyan_proto.codec import U16, U32, U64, Size, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.types import Account, BlockId, PublicKey, members
from blyan_proto.validators import ValidatorSet
from blyand.rules.chain.appointment import member_of
from blyand.rules.model import void
from blyand.rules.records import (
    CLOCK,
    GROUPS,
    NODES,
    RUNS,
    VERSIONS,
    VERSIONS_KEPT,
    Group,
    Version,
)
from blyand.rules.table import Table
from blyand.rules.trust import offences
from blyand.rules.trust.slashing import at_stake, is_banned
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

MAX_OPEN = 64  # disputes without a verdict, one of an author

Voters = Annotated[tuple[PublicKey, ...], Size(0, MAX_VALIDATORS)]


class Stand(enum.IntEnum):
    """Where a dispute stands. One that voided its update, or ran out, is forgotten."""

    OPEN = 0
    WRONG = 1  # the update was right; remembered as long as its version


@message
class Disputed:
    """An update that a holder doubts."""

    update: BlockId
    model: BlockId
    run: BlockId
    group: U16
    round: U32
    dispute: BlockId  # the block that began it
    author: Account  # who doubts
    opened_ms: U64
    stand: Stand
    says_right: Voters  # validators that got the update's result
    says_false: Voters  # and those that got another one


DISPUTES = Table(b"dispute", Disputed)  # update


def begin(view: Overlay, block: Block, payload: Dispute) -> None:
    """Execute a dispute: validators are to look at the update."""
    author = block.header.account
    record = RUNS.get(view, payload.run)
    version = VERSIONS.get(view, payload.run, payload.round, payload.group)
    if record is None or version is None or version.update != payload.update:
        raise Reject("no version that state remembers was made by that update")
    if not version.signers:
        raise Reject("that round of the group is void already")
    group = _group(view, record.run.model, payload.group)
    if group.run != payload.run:
        raise Reject("a later run has moved the group: it is too late for a dispute")
    node = NODES.get(view, author)
    if node is None or node.model != group.model:
        raise Reject("only a registered holder of the group disputes")
    if payload.group not in members(node.held):
        raise Reject("only a holder of the group disputes")
    if payload.tile >= len(version.tiles):
        raise Reject(f"the group has {len(version.tiles)} tiles")
    if payload.computed == version.tiles[payload.tile]:
        raise Reject("it computes what the update claims")
    if DISPUTES.get(view, payload.update) is not None:
        raise Reject("that update is or was disputed")
    if is_banned(view, author):
        raise Reject("a banned node disputes nothing")
    opened = list(open_disputes(view))
    if any(one.author == author for one in opened):
        raise Reject("the author has another open dispute")
    if len(opened) >= MAX_OPEN:
        _make_room(view, opened, author)
    clock = CLOCK.get(view)
    assert clock is not None
    disputed = Disputed(
        update=payload.update,
        model=group.model,
        run=payload.run,
        group=payload.group,
        round=payload.round,
        dispute=block.id,
        author=author,
        opened_ms=clock.time_ms,
        stand=Stand.OPEN,
        says_right=(),
        says_false=(),
    )
    DISPUTES.put(view, disputed, payload.update)


def _make_room(view: Overlay, opened: list[Disputed], author: bytes) -> None:
    """Drop the dispute whose author risks least, for one who risks more.

    Whoever registers for nothing fills no place that somebody with a bond needs. What
    was dropped may be disputed again.
    """
    least = min(
        opened, key=lambda one: (at_stake(view, one.author), -one.opened_ms, one.update)
    )
    if at_stake(view, least.author) >= at_stake(view, author):
        raise Reject(f"{MAX_OPEN} disputes are open, of authors who risk as much")
    _close(view, least)


def judge(
    view: Overlay,
    block: Block,
    payload: DisputeVerdict,
    validators: ValidatorSet,
    liveness_ms: int,
) -> None:
    """Execute a validator's verdict; the one that makes more than 2/3 decides."""
    known = DISPUTES.get(view, payload.update)
    if known is None or known.stand is not Stand.OPEN:
        raise Reject("no such open dispute")
    voter = member_of(view, block.header.account)
    if voter is None or not validators.weight_of(voter):
        raise Reject("only a validator judges")
    if voter in known.says_right or voter in known.says_false:
        raise Reject("this validator has said what it found")
    # Who left the set counts no more, and makes room: a record holds one set's voters.
    right, false = (
        tuple(key for key in said if validators.weight_of(key))
        for said in (known.says_right, known.says_false)
    )
    if payload.is_right:
        known = replace(known, says_right=(*right, voter), says_false=false)
    else:
        known = replace(known, says_right=right, says_false=(*false, voter))
    DISPUTES.put(view, known, known.update)
    if _decides(validators, known.says_false):
        _uphold(view, known, block.id, liveness_ms)
    elif _decides(validators, known.says_right):
        _dismiss(view, known, block.id)


def open_disputes(view: View) -> Iterator[Disputed]:
    """Yield the disputes that have no verdict, ascending by update."""
    return (one for one in DISPUTES.scan(view) if one.stand is Stand.OPEN)


def is_doubted(view: View, run: bytes, round: int) -> bool:
    """True while some group's version after this round stands on a disputed update."""
    return any(one.run == run and one.round <= round for one in open_disputes(view))


def is_single(view: View, model: bytes, index: int) -> bool:
    """True when nobody but its author recomputed a group's final version (DEC-A5)."""
    group = GROUPS.get(view, model, index)
    if group is None or group.run is None or not group.rounds:
        return False
    version = VERSIONS.get(view, group.run, group.rounds - 1, index)
    return version is not None and version.is_single


def drop_old(view: Overlay, span_ms: int) -> None:
    """At the end of a checkpoint: forget what got no verdict, and what is past."""
    clock = CLOCK.get(view)
    assert clock is not None
    for one in list(DISPUTES.scan(view)):
        if one.stand is Stand.OPEN:
            is_over = clock.time_ms - one.opened_ms > span_ms
        else:
            version = VERSIONS.get(view, one.run, one.round, one.group)
            is_over = version is None or version.update != one.update
        if is_over:
            _close(view, one)


def _decides(validators: ValidatorSet, voters: tuple[bytes, ...]) -> bool:
    """By the weights of now: who left the set meanwhile does not count."""
    return validators.is_quorum(sum(validators.weight_of(key) for key in voters))


def _uphold(view: Overlay, known: Disputed, proof: bytes, liveness_ms: int) -> None:
    """The update is false: void it, and name everybody who signed it."""
    version = _version(view, known)
    if version is not None:
        for account in version.signers:
            _record(view, account, known.update, proof)
        if _group(view, known.model, known.group).run == known.run:
            place = known.run, known.round, known.group
            void.void(view, known.model, *place, liveness_ms)
    _close(view, known)


def _dismiss(view: Overlay, known: Disputed, proof: bytes) -> None:
    """The update is right: more than its ranks recomputed it; the doubt was false."""
    _record(view, known.author, known.dispute, proof)
    version = _version(view, known)
    if version is None:
        _close(view, known)
        return
    place = known.run, known.round, known.group
    VERSIONS.put(view, replace(version, is_single=False), *place)
    _forget_versions(view, known)
    DISPUTES.put(view, replace(known, stand=Stand.WRONG), known.update)


def _record(view: Overlay, offender: bytes, subject: bytes, proof: bytes) -> None:
    clock = CLOCK.get(view)
    assert clock is not None
    offences.record(view, Offence.FALSE_ROOT, offender, subject, clock.height, proof)


def _close(view: Overlay, known: Disputed) -> None:
    _forget_versions(view, known)
    DISPUTES.remove(view, known.update)


def _forget_versions(view: Overlay, known: Disputed) -> None:
    """Drop the versions that stayed for the sake of this dispute alone."""
    record = RUNS.get(view, known.run)
    others = [
        one.round
        for one in open_disputes(view)
        if (one.run, one.group) == (known.run, known.group)
        if one.update != known.update
    ]
    assert record is not None
    kept = min([record.closed - VERSIONS_KEPT, *others])
    for round in range(known.round, kept):
        VERSIONS.remove(view, known.run, round, known.group)


def _version(view: View, known: Disputed) -> Version | None:
    """Return what the update made; None where an earlier verdict voided it too."""
    version = VERSIONS.get(view, known.run, known.round, known.group)
    return version if version and version.update == known.update else None


def _group(view: View, model: bytes, index: int) -> Group:
    group = GROUPS.get(view, model, index)
    if group is None:
        raise Reject(f"unknown group {index}")
    return group
