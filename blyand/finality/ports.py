"""What voting needs of the other rooms; handed over by the daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import (
    BlobReceipt,
    Checkpoint,
    FinalCheckpoint,
    Proposal,
    Vote,
)
from blyan_proto.holdings import Holdings
from blyand.rules.chain.checkpoint import Draft
from blyand.rules.records import Clock
from blyand.rules.view import View

Message = Proposal | Vote | Holdings | FinalCheckpoint


@dataclass(frozen=True)
class Chain:
    """The chain as this node has executed it, and the way in for what is final."""

    view: Callable[[], View]
    clock: Callable[[], Clock]
    last_id: Callable[[], bytes]
    halted: Callable[[], str | None]  # why nothing is executed any more
    stored: Callable[[int], FinalCheckpoint | None]  # by height
    draft: Callable[[Draft], Awaitable[tuple[Checkpoint, tuple[Block, ...]]]]
    check: Callable[[Checkpoint, Sequence[Block]], Awaitable[None]]
    take: Callable[[FinalCheckpoint, str], Awaitable[None]]  # from whom; "": ours
    peer_is_at: Callable[[str, int], None]  # a claim: look whether it is so
    level: Callable[[], Awaitable[None]]  # with all peers, and at least one


@dataclass(frozen=True)
class Pending:
    """The blocks that wait to be ordered."""

    ready: Callable[[], list[Block]]  # what may be ordered now, within the limits
    count: Callable[[], int]
    changed: Callable[[], Awaitable[None]]  # returns when a block has come
    drop: Callable[[bytes], None]  # one that cannot be executed here
    find: Callable[[bytes], Block | None]  # pending or ordered; blocking
    fetch: Callable[[str, Sequence[bytes]], Awaitable[None]]  # from a peer, into here
    peers: Callable[[], list[str]]  # whom to ask


@dataclass(frozen=True)
class Availability:
    """What may be ordered at all (DEC-A4, A5)."""

    is_ordered: Callable[[bytes], bool]
    may_order: Callable[[Block], bool]  # False also asks for what is missing
    receipts_for: Callable[[Sequence[Block]], tuple[BlobReceipt, ...]]
    take_receipts: Callable[[Sequence[BlobReceipt]], Awaitable[None]]


class Mesh(Protocol):
    """The streams to other validators."""

    @property
    def open(self) -> set[str]: ...
    def want(self, peers: Sequence[str]) -> None: ...
    def say(self, message: Message) -> None: ...
    def tell(self, peer: str, message: Message) -> None: ...
