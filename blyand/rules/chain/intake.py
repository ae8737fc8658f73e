"""Whether a block is carried (DEC-A2, C1). Whether it takes effect is decided by its order.

A block passes through four states. *Received*: a `Block` as it was decoded; nothing of it
is believed. `Checked`: good by itself. `Verified`: its place in the DAG is good, too;
only such a block can be stored. *Stored*: on the disk, told by the event BlockStored.
Only this module makes a `Checked` or a `Verified`. The cost of a block depends on its
parents alone, never on the length of the chain (CHAIN-07).

Verdicts that depend on newer state, on room or on time are Ignore, never Reject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass
from typing import NamedTuple

from blyan_proto.block.block import Block, check_block_signature, check_wellformed
from blyan_proto.block.work import has_work
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.quorum import check_quorum
from blyan_proto.types import Chain
from blyan_proto.validators import ValidatorSet
from blyand.rules.verdict import Ignore, Reject

MAX_AHEAD_MS = 60_000  # a clock may be this far ahead of ours
MAX_PENDING_PER_AUTHOR = 2048


class _Seal:
    """What the constructors below ask for. There is one, and it stays in this module."""


_SEAL = _Seal()


def _break(seal: _Seal) -> None:
    if seal is not _SEAL:
        raise TypeError("only the rules of intake check and verify blocks")


@dataclass(frozen=True, slots=True)
class Checked:
    """A block whose format, work and signature are good. Only `check` makes one."""

    block: Block
    id: bytes
    seal: InitVar[_Seal]

    def __post_init__(self, seal: _Seal) -> None:
        _break(seal)


@dataclass(frozen=True, slots=True)
class Verified:
    """A checked block whose parents are here and fit. Only `verify` makes one."""

    block: Block
    id: bytes
    seal: InitVar[_Seal]

    def __post_init__(self, seal: _Seal) -> None:
        _break(seal)


class Place(NamedTuple):
    """What a child has to know of its parent."""

    chain: Chain
    height: int


class ParentUnknown(Ignore):
    """Some of a block's parents are not here: it waits for them."""

    def __init__(self, missing: tuple[bytes, ...]) -> None:
        super().__init__("a parent is unknown")
        self.missing = missing


Judged = Checked | Reject | Ignore


def difficulty(genesis: Genesis, anchor_height: int) -> int:
    """Return the bits of work that a header with this anchor must have (DEC-A2).

    They are read from the anchor's state. No system of version 1 changes a parameter, so
    that the state of every checkpoint holds the genesis's.
    """
    return genesis.parameters.work_bits


def check(block: Block, genesis: Genesis, now_ms: int) -> Checked:
    """Check everything that needs no other block (37 us of it for the signature).

    Cheapest first (POL-08): what is wrong with the format or the work costs no signature.
    """
    return _check(block, genesis, genesis.id, now_ms)


def _check(block: Block, genesis: Genesis, network: bytes, now_ms: int) -> Checked:
    header = block.header
    if header.network != network:
        raise Reject("a block of another network")
    try:
        check_wellformed(block)
        if not has_work(header, difficulty(genesis, header.anchor_height)):
            raise Reject("the nonce does not meet the difficulty")
        check_block_signature(block)
    except ProtocolError as error:
        raise Reject(str(error)) from error
    if header.time_ms > now_ms + MAX_AHEAD_MS:
        raise Ignore("the block's time is ahead of ours")
    return Checked(block, header.id, _SEAL)


def check_many(
    blocks: Iterable[Block],
    genesis: Genesis,
    now_ms: int | None,
    verdicts: list[Judged],
) -> None:
    """Append the verdict on each of `blocks`; for one job of a thread lane.

    `now_ms` None: a final checkpoint orders them, so our clock does not count. An
    exception that is no verdict is a bug, and met the block after the last verdict.
    """
    network = genesis.id
    for block in blocks:
        clock_ms = block.header.time_ms if now_ms is None else now_ms
        try:
            verdicts.append(_check(block, genesis, network, clock_ms))
        except (Reject, Ignore) as verdict:
            verdicts.append(verdict)


def check_ordered(block: Block) -> Checked:
    """Check a block that a final checkpoint of ours names, to put it back where it was.

    Its place, its network and its work were found good when it was ordered.
    """
    try:
        check_wellformed(block)
        check_block_signature(block)
    except ProtocolError as error:
        raise Reject(str(error)) from error
    return Checked(block, block.header.id, _SEAL)


def verify(checked: Checked, place_of: Callable[[bytes], Place | None]) -> Verified:
    """Check a block against its parents; `place_of` looks up a verified block.

    Reject, or ParentUnknown. A cycle would need a header that holds its own digest; it
    is refused all the same, since heights must grow along every edge (CHAIN-08).
    """
    header = checked.block.header
    places = {parent: place_of(parent) for parent in header.parents}
    if checked.id in places:
        raise Reject("the block is its own parent")
    missing = tuple(parent for parent, place in places.items() if place is None)
    if missing:
        raise ParentUnknown(missing)
    known = [place for place in places.values() if place is not None]
    if any(place.chain != header.chain for place in known):
        raise Reject("a parent on another chain")
    if header.height != 1 + max((place.height for place in known), default=-1):
        raise Reject("the height is not one more than the highest parent's")
    return Verified(checked.block, checked.id, _SEAL)


def vouch(checked: Checked) -> Verified:
    """Return a block whose parents are not here, for they lie below this node's history.

    Only for a block that a final checkpoint orders: who signed that judged its place.
    """
    return Verified(checked.block, checked.id, _SEAL)


def check_final(
    final: FinalCheckpoint, genesis: Genesis, validators: ValidatorSet
) -> None:
    """Check that a quorum of `validators` made a checkpoint final, or Reject.

    Every vote must be good: a finished checkpoint has no room for others.
    """
    try:
        check_quorum(final, genesis.id, validators)
    except ProtocolError as error:
        raise Reject(str(error)) from error
