"""The agreement of one node on one height: Tendermint (arXiv 1807.04938), algorithm 1.

Strategy. One object a height: the set, the turns and the promises belong to a height, and
with the object goes all memory of it. Methods take what happened (a message whose
signature was checked, a verdict, a timeout) and return effects; nothing here waits, signs,
stores or knows the time. Comments name the lines of the algorithm. Where it differs:
validity is asked for and answered later (until then a proposal gets no prevote); the
proposer's time is judged when its message came and counts for fresh proposals only; a node
jumps to the highest round that more than a third of the weight has reached, counting
whoever is beyond; a checkpoint with a quorum of precommits is decided without a verdict of
our own, as every follower does. docs/consensus.md, "Agreement".
"""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.checkpoint import Checkpoint, Proposal, Vote, VoteStage
from blyan_proto.validators import ValidatorSet
from blyand.rules.chain.effects import (
    Behind,
    Cast,
    Decide,
    Effect,
    Evidence,
    Lock,
    Promises,
    Propose,
    Repropose,
    Schedule,
    Step,
    Validate,
    signer_of,
)
from blyand.rules.chain.heard import ROUNDS_AHEAD, Heard, Held, Round, reached

NOT_STARTED = -1


class Agreement:
    """The state machine. `me` is None on a node that must not vote or has no vote."""

    def __init__(
        self,
        height: int,
        validators: ValidatorSet,
        proposer_of: Callable[[int], bytes],
        me: bytes | None,
        promises: Promises = Promises(),
    ) -> None:
        self.height = height
        self.validators = validators
        self.heard = Heard(validators)
        self.round = NOT_STARTED
        self.step = Step.PROPOSE
        self.decision: Decide | None = None
        self.locked: bytes | None = None
        self.locked_round = -1
        self.valid: tuple[bytes, Checkpoint] | None = None
        self.valid_round = -1
        self._me = me
        self._proposer_of = proposer_of
        self._repeated = promises.votes if me is not None else {}  # by `start`
        self._verdicts: dict[bytes, bool] = {}
        self._asked: set[bytes] = set()  # checkpoints whose verdict was asked for
        self._waited: set[Step] = set()  # timeouts scheduled in this round
        self._polled: set[bytes] = set()  # line 36: "for the first time"
        self._accused: set[bytes] = set()
        self._heights: dict[bytes, int] = {}  # signer: height, if above ours
        self._behind = height
        self._out: list[Effect] = []
        if me is not None:
            self._remember(promises)

    # What happens to the node

    def start(self) -> list[Effect]:
        """Begin the height: there is something to order, or it was quiet long enough.

        Call it at once where there are promises: it gives the promised votes again. A
        height also begins with a proposal of round 0 or with messages of more than a
        third of the weight.
        """
        for (round, stage), id in sorted(self._repeated.items()):
            self._out.append(Cast(stage, round, id))
        self._repeated = {}
        if self.round == NOT_STARTED:
            self._enter(0)
        elif self.step is Step.PROPOSE:
            self._wait(Step.PROPOSE)
        return self._settle()

    def receive_proposal(self, proposal: Proposal, *, is_timely: bool) -> list[Effect]:
        """Take a signed proposal whose statement names its checkpoint's id.

        `is_timely`: the checkpoint's time was within the clock bound of our clock when
        this message came.
        """
        statement = proposal.statement
        round, proof = statement.round, statement.valid_round
        if statement.height != self.height:
            return self._note_height(proposal.proposer, statement.height)
        if proof is not None and proof >= round or not self._is_rightful(proposal):
            return []
        is_new, earlier = self.heard.add_proposal(Held(proposal, is_timely))
        if earlier is not None:
            self._accuse(earlier, proposal)
        if is_new and self.decision is None:
            deciding = self.heard.deciding_round(statement.checkpoint)
            if deciding is not None:
                self._decide(deciding, statement.checkpoint)
        return self._settle(round)

    def receive_vote(self, vote: Vote) -> list[Effect]:
        """Take a signed vote of a member of the set; our own as well."""
        statement = vote.statement
        if statement.height != self.height:
            return self._note_height(vote.voter, statement.height)
        if not self._hear(vote):
            return self._take()
        if statement.stage is VoteStage.PRECOMMIT and statement.checkpoint:
            self._decide(statement.round, statement.checkpoint)
        return self._settle(statement.round)

    def judge(self, id: bytes, is_valid: bool) -> list[Effect]:
        """Take the answer to `Validate`; for our own proposal before it is received."""
        self._verdicts[id] = is_valid
        return self._settle()

    def timeout(self, step: Step, round: int) -> list[Effect]:
        """The time that was scheduled for a step is over."""
        if round != self.round or self.decision:
            return []
        if step is Step.PROPOSE and self.step is Step.PROPOSE:  # line 57
            self._vote(VoteStage.PREVOTE, None)
        elif step is Step.PREVOTE and self.step is Step.PREVOTE:  # line 61
            self._vote(VoteStage.PRECOMMIT, None)
        elif step is Step.PRECOMMIT:  # line 65
            self._enter(round + 1)
        return self._settle()

    def conclude(self, decision: Decide) -> list[Effect]:
        """The height is final by a checkpoint that came from a peer, checked.

        From here on as after a decision of our own: votes are counted, and tell who lied.
        """
        if self.decision is None:
            self.decision = decision
        for vote in decision.precommits:
            self._hear(vote)
        return self._take()

    def precommits(self) -> tuple[Vote, ...]:
        """Return the precommits of the decision that are known, late ones included."""
        if self.decision is None:
            return ()
        place = self.heard.rounds.get(self.decision.round)
        known = place.precommits.votes_for(self.decision.id) if place else ()
        return max(known, self.decision.precommits, key=len)

    # The algorithm

    def _settle(self, round: int = NOT_STARTED) -> list[Effect]:
        """Apply the rules until none fires, after a message of `round` or another event."""
        if self.decision is None:
            if round > self.round:
                self._jump()
            while self._apply():
                pass
        return self._take()

    def _jump(self) -> None:
        """Go where more than a third of the weight is (line 55), or begin."""
        reached_round = self.heard.round_reached()
        if reached_round > self.round:
            self._enter(reached_round)
        elif self.round == NOT_STARTED:
            first = self.heard.rounds.get(0)
            if first is not None and first.proposals:
                self._enter(0)

    def _apply(self) -> bool:
        """Apply one rule of the current round; return whether there may be another."""
        place = self.heard.rounds.get(self.round)
        if place is None:
            return False
        for held in place.proposals:
            self._ask(held)
        if place.precommits.is_quorum:  # line 47
            self._wait(Step.PRECOMMIT)
        if self.step is Step.PROPOSE:
            return any(self._answer(held) for held in place.proposals)
        if self._poll(place):
            return True
        if self.step is Step.PREVOTE and place.prevotes.has_quorum(None):  # line 44
            self._vote(VoteStage.PRECOMMIT, None)
        elif self.step is Step.PREVOTE and place.prevotes.is_quorum:  # line 34
            self._wait(Step.PREVOTE)
        return False

    def _enter(self, round: int) -> None:
        """Begin a round (line 11)."""
        self.round, self.step = round, Step.PROPOSE
        self._waited.clear()
        self._polled.clear()
        self.heard.move_to(round, self.valid_round)
        if self._me is not None and self._proposer_of(round) == self._me:
            if self.valid is None:
                self._out.append(Propose(round))
            else:
                id, checkpoint = self.valid
                self._out.append(Repropose(round, checkpoint, id, self.valid_round))
        self._wait(Step.PROPOSE)

    def _ask(self, held: Held) -> None:
        if held.id not in self._verdicts and held.id not in self._asked:
            self._asked.add(held.id)
            self._out.append(Validate(held.proposal))

    def _answer(self, held: Held) -> bool:
        """Prevote for or against a proposal, if its time has come (lines 22 and 28)."""
        proof = held.proposal.statement.valid_round
        is_ours = self.locked == held.id
        if proof is None:
            is_open = is_ours or (self.locked is None and held.is_timely)
        elif self.heard.proves(held.id, proof):
            is_open = is_ours or self.locked_round <= proof
        else:
            return False
        if is_open and held.id not in self._verdicts:
            return False
        accepted = is_open and self._verdicts[held.id]
        self._vote(VoteStage.PREVOTE, held.id if accepted else None)
        return True

    def _poll(self, place: Round) -> bool:
        """Lock and precommit what a quorum prevoted (line 36)."""
        for id in place.prevotes.chosen():
            checkpoint = self._checkpoint_of(id)
            if id in self._polled or checkpoint is None or not self._verdicts.get(id):
                continue
            self._polled.add(id)
            self.valid, self.valid_round = (id, checkpoint), self.round
            if self.step is Step.PREVOTE:
                self.locked, self.locked_round = id, self.round
                lock = Lock(self.round, checkpoint, place.prevotes.votes_for(id))
                self._vote(VoteStage.PRECOMMIT, id, lock)
            return True
        return False

    def _decide(self, round: int, id: bytes) -> None:
        """Decide at whatever round of the height a quorum precommitted (line 49)."""
        precommits = self.heard.rounds[round].precommits
        if self.decision is None and precommits.has_quorum(id):
            checkpoint = self._checkpoint_of(id)
            if checkpoint is not None:
                votes = precommits.votes_for(id)
                self.decision = Decide(checkpoint, id, round, votes)
                self._out.append(self.decision)

    def _vote(
        self, stage: VoteStage, id: bytes | None, lock: Lock | None = None
    ) -> None:
        self.step = Step.PREVOTE if stage is VoteStage.PREVOTE else Step.PRECOMMIT
        if self._me is not None:
            self._out.append(Cast(stage, self.round, id, lock))

    def _wait(self, step: Step) -> None:
        if step not in self._waited:
            self._waited.add(step)
            self._out.append(Schedule(step, self.round))

    # What the rules rest on

    def _remember(self, promises: Promises) -> None:
        """Stand where the promises say: in their last round, at its last step, locked.

        What was promised there is never decided anew; earlier rounds are over.
        """
        rounds = {round for round, _ in promises.votes} | promises.proposed
        if promises.lock is not None:
            rounds.add(promises.lock.round)
        if not rounds:
            return
        self.round = max(rounds)
        for stage in VoteStage:
            if (self.round, stage) in promises.votes:
                self.step = Step(stage)
        for (round, stage), id in promises.votes.items():
            if stage is VoteStage.PRECOMMIT and id and round > self.locked_round:
                self.locked, self.locked_round = id, round
        if promises.lock is not None:
            self._recall(promises.lock)
        self.heard.move_to(self.round, self.valid_round)

    def _recall(self, lock: Lock) -> None:
        """Know again what was locked; whether the precommit was promised or not."""
        id = lock.prevotes[0].statement.checkpoint
        assert id is not None, "a lock is on a checkpoint"
        self.valid, self.valid_round = (id, lock.checkpoint), lock.round
        self._verdicts[id] = True
        for vote in lock.prevotes:
            self.heard.add_vote(vote)

    def _hear(self, vote: Vote) -> bool:
        """Count a vote; return whether that may change anything."""
        if not self.validators.weight_of(vote.voter):
            return False
        counts, earlier = self.heard.add_vote(vote)
        if earlier is not None:
            self._accuse(earlier, vote)
        return counts

    def _checkpoint_of(self, id: bytes) -> Checkpoint | None:
        if self.valid is not None and self.valid[0] == id:
            return self.valid[1]
        return self.heard.checkpoint_of(id)

    def _is_rightful(self, proposal: Proposal) -> bool:
        round = proposal.statement.round
        if round > max(self.round, 0) + ROUNDS_AHEAD:
            return False  # whose turn it is takes time in proportion to the round
        return self._proposer_of(round) == proposal.proposer

    def _accuse(self, first: Vote | Proposal, second: Vote | Proposal) -> None:
        """Tell once of each signer. One checkpoint under two valid rounds is no offence,
        and must not hide one that is."""
        if first.statement.checkpoint == second.statement.checkpoint:
            return
        signer = signer_of(first)
        if signer not in self._accused:
            self._accused.add(signer)
            self._out.append(Evidence(first, second))

    def _note_height(self, signer: bytes, height: int) -> list[Effect]:
        if height > self._heights.get(signer, self.height):
            self._heights[signer] = height
            most = reached(self._heights, self.validators, self.height)
            if most > self._behind:
                self._behind = most
                self._out.append(Behind(most))
        return self._take()

    def _take(self) -> list[Effect]:
        out, self._out = self._out, []
        return out
