"""/blyan/audit/1: a learner shows drawn steps of its log of a round (PoDL).
docs/protocols/audit.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto import merkle
from blyan_proto.codec import U8, U16, U32, U64, Choice, Size, encode, message
from blyan_proto.constants import MAX_GROUPS, MIB
from blyan_proto.digest import leaf_digest
from blyan_proto.errors import BadSignature, UnexpectedMessage
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.types import Account, BlockId, Hash, PublicKey, Signature

PROTOCOL_ID = "/blyan/audit/1"
MAX_STEPS = 65_535  # of a round
MAX_ASKED = 64  # steps of one request
MAX_PROOF = 16  # hashes from a step to the root of MAX_STEPS
MAX_REQUEST_BYTES = 1024
MAX_ANSWER_BYTES = 8 * MIB  # a model of MAX_GROUPS groups
MAX_AT_ONCE = 2  # requests of one peer: a log of many steps is read as a whole
DEADLINE_S = 30.0
KEPT_ROUNDS = 16  # how long a learner has to keep the log of a round
MARKS = 4  # steps of a round whose state is logged, the last among them


@message
class LoggedStep:
    """What a learner notes of one inner step."""

    batch: Hash  # LEAF digest of the batch's tokens, u32 little-endian, row by row
    loss_micro: U64  # before the step, micro-nats per token
    state: Hash | None  # blake3 of the parameters after it; none between the marks

    @property
    def leaf(self) -> bytes:
        """The step's leaf in the log's tree."""
        return leaf_digest(encode(self))


@message
class LogEntry:
    """What came of one group that was trained; all none: too few tokens (DEC-B13)."""

    group: U16
    delta: Hash | None  # digest of its Delta
    change: Hash | None  # plain blake3 of base - local (DEC-B12)
    residual: Hash | None  # likewise of the error feedback that went in


@message
class LogStatement:
    """The signed part of a log; purpose "training log"."""

    version: U8
    run: BlockId
    round: U32
    learner: Account
    lease_epoch: U32  # of the schedule that the round was trained under
    steps: U16  # how many the log has
    log: Hash  # Merkle root over the leaves of the steps, in order
    entries: Annotated[tuple[LogEntry, ...], Size(1, MAX_GROUPS)]  # of what was trained
    device: Annotated[str, Size(1, 64)]  # its class; equal classes give equal bits
    threads: U8
    worked_ms: U64  # what the round took, as the learner says

    def __post_init__(self) -> None:
        groups = [entry.group for entry in self.entries]
        if any(left >= right for left, right in zip(groups, groups[1:])):
            raise ValueError("groups are not ascending")


@message
class SignedLog:
    """A log as its learner stands for it."""

    statement: LogStatement
    signer: PublicKey
    signature: Signature


@message
class Ask:
    """Which steps of which round are to be shown."""

    run: BlockId
    round: U32
    steps: Annotated[tuple[U16, ...], Size(1, MAX_ASKED)]  # from 0, ascending

    def __post_init__(self) -> None:
        if any(left >= right for left, right in zip(self.steps, self.steps[1:])):
            raise ValueError("steps are not ascending")


@message
class ShownStep:
    """One step with its proof."""

    index: U16
    step: LoggedStep
    proof: Annotated[tuple[Hash, ...], Size(0, MAX_PROOF)]


@message
class Shown:
    """The log's signed part, and the steps that were asked for."""

    log: SignedLog
    steps: Annotated[tuple[ShownStep, ...], Size(0, MAX_ASKED)]


@message
class Absent:
    """No log of that round is kept here."""

    round: U32


REQUEST = Choice("audit request", {1: Ask})
ANSWER = Choice("audit answer", {1: Shown, 2: Absent})


def root_of(steps: tuple[LoggedStep, ...]) -> bytes:
    """Return the root of a log."""
    return merkle.root([step.leaf for step in steps])


def is_mark(index: int, steps: int) -> bool:
    """True when the state after this step (from 0) of a round of `steps` is logged."""
    every = max(1, steps // MARKS)
    return index + 1 == steps or (index + 1) % every == 0


def check_shown(
    ask: Ask, shown: Shown, learner: bytes, key: bytes, network: bytes
) -> None:
    """Raise ProtocolError unless an answer is what was asked, proved and signed.

    `key`: that of `learner` in the round. BadProof, BadSignature, UnexpectedMessage.
    """
    statement = shown.log.statement
    if (statement.run, statement.round) != (ask.run, ask.round):
        raise UnexpectedMessage("a log of another round")
    if statement.learner != learner or shown.log.signer != key:
        raise BadSignature("a log of another learner")
    check_signature(Purpose.TRAINING_LOG, network, statement, key, shown.log.signature)
    wanted = [index for index in ask.steps if index < statement.steps]
    if [one.index for one in shown.steps] != wanted:
        raise UnexpectedMessage("other steps than were asked for")
    for one in shown.steps:
        merkle.verify(
            one.step.leaf, one.index, statement.steps, one.proof, statement.log
        )
