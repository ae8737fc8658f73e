"""What a checkpoint must be to follow the newest one: one place for voters and followers.

A voter checks all of it before it prevotes. A follower checks `check_place` and
`check_contents`, executes, and compares the state root; what it cannot know (whether
blobs are available, whether a reference of old history was ordered) the votes say.
docs/consensus.md, "Validators at work".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import BlobReceipt, Checkpoint, Vote, next_beacon
from blyan_proto.genesis import Genesis
from blyan_proto.types import bitmap, members
from blyan_proto.validators import ValidatorSet
from blyand.rules.chain import validators
from blyand.rules.chain.execute import Moment
from blyand.rules.chain.limits import fit
from blyand.rules.chain.order import is_before, order, references
from blyand.rules.records import CLOCK
from blyand.rules.verdict import Reject
from blyand.rules.view import View

MAX_ROUND = 10_000  # whose turn it is takes time in proportion to the round


@dataclass(frozen=True)
class Draft:
    """What a proposer decides by itself about a checkpoint."""

    blocks: Sequence[Block]
    time_ms: int
    proposer: bytes
    preimage: bytes
    round: int = 0
    receipts: tuple[BlobReceipt, ...] = ()
    voters: Sequence[Vote] | None = None  # for the parent; None: those on disk


def check_place(
    view: View, genesis: Genesis, parent: bytes, checkpoint: Checkpoint
) -> None:
    """Check what a checkpoint says about itself against the state before it, or Reject.

    `parent`: id of the newest checkpoint, after which `view` stands.
    """
    clock = CLOCK.get(view)
    assert clock is not None
    if checkpoint.network != genesis.id:
        raise Reject("a checkpoint of another network")
    if checkpoint.height != clock.height + 1 or checkpoint.parent != parent:
        raise Reject("the checkpoint does not follow the newest one")
    if checkpoint.time_ms <= clock.time_ms:
        raise Reject("the checkpoint's time does not grow")
    if checkpoint.validators_root != validators.signers(view).root:
        raise Reject("the checkpoint is signed by another set than state says")
    if checkpoint.next_validators_root != validators.successors(view).root:
        raise Reject("the checkpoint names another next set than state says")
    if checkpoint.round > MAX_ROUND:
        raise Reject("the checkpoint was proposed in a round out of reach")
    if checkpoint.proposer != validators.turns(view).proposer_of(checkpoint.round):
        raise Reject("the checkpoint was proposed by a validator whose turn it was not")
    if not validators.opens(view, checkpoint.proposer, checkpoint.preimage):
        raise Reject("the checkpoint reveals another preimage than was committed")
    if checkpoint.beacon != next_beacon(clock.beacons[-1], checkpoint.preimage):
        raise Reject("the checkpoint's beacon is not the rule's")
    _check_signers(view, checkpoint.parent_signers)


def check_contents(
    genesis: Genesis, checkpoint: Checkpoint, blocks: Sequence[Block]
) -> list[Block]:
    """Return the blocks of a checkpoint in its order, or Reject: order, limits."""
    if not fit(blocks, genesis.parameters):
        raise Reject("the checkpoint orders more than the genesis allows")
    ordered = order(blocks)
    if tuple(block.id for block in ordered) != checkpoint.blocks:
        raise Reject("the checkpoint's blocks are not in the rule's order")
    return ordered


def check_ordering(
    blocks: Iterable[Block], is_ordered: Callable[[bytes], bool]
) -> None:
    """Check that each block may be ordered now: what it stands on is, or comes before.

    Reject otherwise. `blocks` are in the rule's order.
    """
    inside = {block.id: block for block in blocks}
    for id, block in inside.items():
        if is_ordered(id):
            raise Reject("the checkpoint orders a block a second time")
        parents, named = set(block.header.parents), set(references(block))
        for needed in parents | named:
            if is_ordered(needed):
                continue
            earlier = inside.get(needed)
            if earlier is None or not is_before(
                earlier, block, is_parent=needed not in named
            ):
                raise Reject("the checkpoint orders a block before one that it needs")


def moment_of(view: View, genesis: Genesis, checkpoint: Checkpoint) -> Moment:
    """Return what executing a checkpoint knows besides state."""
    signed = validators.predecessors(view)
    keys = [member.key for member in signed]
    return Moment(
        checkpoint.height,
        checkpoint.time_ms,
        genesis,
        checkpoint.proposer,
        checkpoint.preimage,
        frozenset(keys[index] for index in members(checkpoint.parent_signers)),
    )


def signers_of(voters: ValidatorSet, votes: Iterable[Vote]) -> bytes:
    """Return the bitmap of who voted, over the set that signed the parent (VAL-05)."""
    known = {vote.voter for vote in votes}
    places = {i for i, member in enumerate(voters.members) if member.key in known}
    return bitmap(places, len(voters.members)).rstrip(b"\0")


def _check_signers(view: View, signers: bytes) -> None:
    """The parent was final, so a quorum of its set is named; no bit is of nobody."""
    signed, clock = validators.predecessors(view), CLOCK.get(view)
    assert clock is not None
    if clock.height == 0:
        if signers:
            raise Reject("the first checkpoint names signers of its parent")
        return
    places = members(signers)
    if signers.endswith(b"\0") or any(place >= len(signed) for place in places):
        raise Reject("the checkpoint names signers that its parent did not have")
    if not signed.is_quorum(sum(signed.members[place].weight for place in places)):
        raise Reject("the checkpoint names no quorum of signers of its parent")
