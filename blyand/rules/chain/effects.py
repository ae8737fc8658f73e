"""What a node remembers for the agreement of one height, and what the agreement asks of it.

`agreement.Agreement` takes messages, verdicts and timeouts and returns these effects, in
the order in which they have to be carried out. docs/consensus.md, "Agreement".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from blyan_proto.checkpoint import Checkpoint, Proposal, Vote, VoteStage
from blyan_proto.codec import U32, Size, message
from blyan_proto.constants import MAX_VALIDATORS


class Step(enum.IntEnum):
    """Where a node stands in its round; also what a timeout is of."""

    PROPOSE = 0  # waits for the proposal
    PREVOTE = 1  # has prevoted
    PRECOMMIT = 2  # has precommitted


@message
class Lock:
    """A checkpoint with the prevotes that let a node precommit it: the proof of lock."""

    round: U32
    checkpoint: Checkpoint
    prevotes: Annotated[tuple[Vote, ...], Size(1, MAX_VALIDATORS)]


@dataclass(frozen=True)
class Promises:
    """What this node signed at a height before it was started again (DEC-A9).

    `votes` and `proposed` are all promises of that height in the intent log, sent or not.
    `lock` is the newest lock of that height that was stored; None if there is none or it
    is lost. Without it the node still honours its lock, which follows from its votes,
    but cannot help others to the locked checkpoint.
    """

    votes: Mapping[tuple[int, VoteStage], bytes | None] = field(default_factory=dict)
    proposed: frozenset[int] = frozenset()  # rounds
    lock: Lock | None = None


@dataclass(frozen=True)
class Propose:
    """Make a checkpoint, sign it as proposal of `round` without a valid round, send it.

    Durable in the intent log before it is signed. Not at all if the agreement has left
    that round meanwhile.
    """

    round: int


@dataclass(frozen=True)
class Repropose:
    """Sign this checkpoint, unchanged, as proposal of `round`, and send it."""

    round: int
    checkpoint: Checkpoint
    id: bytes
    valid_round: int


@dataclass(frozen=True)
class Validate:
    """Fetch, execute and check a proposed checkpoint, then call `judge`."""

    proposal: Proposal


@dataclass(frozen=True)
class Cast:
    """Sign a vote and send it. First `lock`, then the promise MUST be durable."""

    stage: VoteStage
    round: int
    checkpoint: bytes | None
    lock: Lock | None = None  # with a precommit for a checkpoint


@dataclass(frozen=True)
class Schedule:
    """Call `timeout(step, round)` after the time that this step of this round takes."""

    step: Step
    round: int


@dataclass(frozen=True)
class Decide:
    """The height is decided: these precommits make the checkpoint final."""

    checkpoint: Checkpoint
    id: bytes
    round: int
    precommits: tuple[Vote, ...]


@dataclass(frozen=True)
class Evidence:
    """Two conflicting statements of one signer about one place, both signed."""

    first: Vote | Proposal
    second: Vote | Proposal

    @property
    def signer(self) -> bytes:
        return signer_of(self.first)


@dataclass(frozen=True)
class Behind:
    """More than a third of the weight is at `height`: ask peers for what is final."""

    height: int


Effect = Propose | Repropose | Validate | Cast | Schedule | Decide | Evidence | Behind


def signer_of(message: Vote | Proposal) -> bytes:
    """Return the key that signed a vote or a proposal."""
    return message.voter if isinstance(message, Vote) else message.proposer
