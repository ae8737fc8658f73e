"""Answers consensus.status: how the validators stand with the next checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.rpc import consensus as spec
from blyand.chain.machine import Machine
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.finality.standing import Part, standing_of
from blyand.finality.voter import Voter
from blyand.net.identity import peer_id_of
from blyand.rpc.bind import Answers
from blyand.rules.chain.validators import signers
from blyand.rules.economy.rotation import current_key, owner_of


def bind(
    answers: Answers,
    *,
    machine: Machine,
    voter: Voter | None,
    connected: Callable[[], set[str]],
    me: str,
    clock: Clock,
    lane: Threads,
) -> None:
    """Bind consensus.*. `connected`: peers that hear our votes; `me`: our peer id."""

    def member_of(part: Part) -> spec.Member:
        key = part.member.key
        owner = owner_of(machine.view, key)  # its key may have changed since
        peer = peer_id_of((current_key(machine.view, owner) if owner else None) or key)
        return spec.Member(
            key=part.member.key,
            peer_id=peer,
            weight=part.member.weight,
            me=peer == me,
            connected=peer == me or peer in connected(),
            proposed=part.is_proposer,
            prevote=part.prevote,
            precommit=part.precommit,
        )

    def last_of(final: FinalCheckpoint) -> spec.Last:
        checkpoint, voters = final.checkpoint, signers(machine.view)
        return spec.Last(
            height=checkpoint.height,
            id=checkpoint.id,
            round=final.votes[0].statement.round,
            time_ms=checkpoint.time_ms,
            age_s=(clock.now_ms() - checkpoint.time_ms) / 1000,
            latency_s=voter.latency_s if voter is not None else None,
            signers=len(final.votes),
            weight=sum(voters.weight_of(vote.voter) for vote in final.votes),
            proposer=checkpoint.proposer,
        )

    @answers(spec.status)
    async def status(params: spec.GetStatus) -> spec.Consensus:
        height = machine.clock.height
        final = await lane.run(machine.stored, height) if height else None
        stands = standing_of(voter, machine.view, machine.clock.height + 1)
        now = voter.now if voter is not None else None
        return spec.Consensus(
            height=stands.height,
            round=stands.round,
            step=stands.step,
            votes=now is not None and now.votes,
            waits=machine.halted or stands.waits,
            heard_weight=stands.heard_weight,
            total_weight=stands.total_weight,
            quorum_weight=2 * stands.total_weight // 3 + 1,
            validators=[member_of(part) for part in stands.parts],
            last=last_of(final) if final is not None else None,
        )
