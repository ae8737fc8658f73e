"""Whether a block is carried (DEC-A2, C1). Whether it takes effect is decided by its order.

Verdicts that depend on newer state, on room or on time are Ignore, never Reject.
"""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.block.block import Block, check_block_signature, check_wellformed
from blyan_proto.block.header import has_work
from blyan_proto.checkpoint import FinalCheckpoint, VoteStage, validators_root
from blyan_proto.errors import BadSignature, DecodeError
from blyan_proto.genesis import Genesis
from blyan_proto.signing import Purpose, check_signature
from blyand.rules.verdict import Ignore, Reject

MAX_AHEAD_MS = 60_000  # a clock may be this far ahead of ours
MAX_PENDING_PER_ACCOUNT = 2048


@dataclass(frozen=True)
class Checked:
    """A block whose format, work and signature are good. Only `check` makes one."""

    block: Block


def check(block: Block, genesis: Genesis, now_ms: int) -> Checked:
    """Check everything that needs no state but the genesis (37 us for the signature)."""
    header = block.header
    if header.network != genesis.id:
        raise Reject("a block of another network")
    try:
        check_wellformed(block)
        if not has_work(header, genesis.parameters.work_bits):
            raise Reject("the nonce does not meet the difficulty")
        check_block_signature(block)
    except (DecodeError, BadSignature) as error:
        raise Reject(str(error)) from error
    if header.time_ms > now_ms + MAX_AHEAD_MS:
        raise Ignore("the block's time is ahead of ours")
    return Checked(block)


def check_final(final: FinalCheckpoint, genesis: Genesis) -> None:
    """Check that a checkpoint is signed by those who may finalise it, or Reject.

    This version: the genesis names one sequencer, whose precommit finalises
    (docs/consensus.md). The rule 3 w > 2 W over the validator set takes its place.
    """
    checkpoint = final.checkpoint
    sequencer = genesis.sequencer
    if checkpoint.network != genesis.id:
        raise Reject("a checkpoint of another network")
    if checkpoint.proposer != sequencer.key:
        raise Reject("a checkpoint that the sequencer did not make")
    if checkpoint.validators_root != validators_root((sequencer,)):
        raise Reject("a checkpoint of another validator set")
    if checkpoint.next_validators_root != checkpoint.validators_root:
        raise Reject("a checkpoint that changes the validator set")
    if len(final.votes) != 1 or final.votes[0].voter != sequencer.key:
        raise Reject("a checkpoint without the sequencer's vote alone")
    vote = final.votes[0]
    statement = vote.statement
    if (statement.stage, statement.height, statement.checkpoint) != (
        VoteStage.PRECOMMIT,
        checkpoint.height,
        checkpoint.id,
    ):
        raise Reject("the vote is for something else")
    try:
        check_signature(
            Purpose.CHECKPOINT_VOTE, genesis.id, statement, vote.voter, vote.signature
        )
    except BadSignature as error:
        raise Reject(str(error)) from error
