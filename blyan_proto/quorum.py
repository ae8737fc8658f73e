"""Whether a checkpoint is final: the votes of more than two thirds of the weight.

Apart from the rules, since a light client asks it too. docs/consensus.md
"""

from __future__ import annotations

from blyan_proto.checkpoint import FinalCheckpoint, VoteStage
from blyan_proto.errors import BadProof
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.validators import ValidatorSet


def check_quorum(
    final: FinalCheckpoint, network: bytes, validators: ValidatorSet
) -> None:
    """Raise BadProof, or BadSignature, unless `validators` made a checkpoint final.

    Every vote must be good: a finished checkpoint has no room for others.
    """
    checkpoint = final.checkpoint
    if checkpoint.network != network:
        raise BadProof("a checkpoint of another network")
    if checkpoint.validators_root != validators.root:
        raise BadProof("a checkpoint of another validator set")
    if not validators.weight_of(checkpoint.proposer):
        raise BadProof("a checkpoint that no validator made")
    voters = [vote.voter for vote in final.votes]
    if len(set(voters)) != len(voters):
        raise BadProof("a checkpoint with two votes of one validator")
    if not validators.is_quorum(sum(map(validators.weight_of, voters))):
        raise BadProof("a checkpoint without the votes of a quorum")
    id, height = checkpoint.id, checkpoint.height
    rounds = {vote.statement.round for vote in final.votes}
    for vote in final.votes:
        told = vote.statement
        if not validators.weight_of(vote.voter):
            raise BadProof("a checkpoint with a vote of no validator")
        said = (told.stage, told.height, told.checkpoint)
        if len(rounds) != 1 or said != (VoteStage.PRECOMMIT, height, id):
            raise BadProof("a vote is for something else")
        check_signature(
            Purpose.CHECKPOINT_VOTE, network, told, vote.voter, vote.signature
        )
