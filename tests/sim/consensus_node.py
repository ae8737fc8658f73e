"""One simulated node: what a driver does around the agreement, on virtual time.

Votes and proposals are promised on its disk before they are sent, locks are stored before
that; a crash loses everything else. Signatures are blank: nobody in here makes a vote in
another's name.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from blyan_proto.checkpoint import (
    Checkpoint,
    Proposal,
    ProposalStatement,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.holdings import Holdings
from blyand.rules.chain.agreement import Agreement
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
)
from blyand.rules.chain.holdings import holdings_of, lacking
from tests.sim.consensus import NOTHING, Crash, Final, World

CLOCK_BOUND_MS = 2_000
ASK_MS = 500  # between two tellings of what it holds
ASKED = 3  # peers at a time
ANSWER = 256  # messages
EARLY_KEPT = 64  # messages of the next height
WAIT_MS = {Step.PROPOSE: (250, 120), Step.PREVOTE: (120, 60), Step.PRECOMMIT: (120, 60)}
BLANK = bytes(64)


@dataclass
class Disk:
    """What survives a crash: what was promised at a height."""

    votes: dict[tuple[int, VoteStage], bytes | None] = field(default_factory=dict)
    proposed: set[int] = field(default_factory=set)
    lock: Lock | None = None


class Node:
    """Holds a validator's key and follows the rules. Liars are made from it."""

    is_honest = True
    lag_ms = 0  # of everything it sends

    def __init__(self, world: World, index: int, face: int | None = None) -> None:
        self.world = world
        self.index = index
        self.face = face  # of a validator that shows two
        self.key = world.validators.members[index].key
        self.height = 1  # that is being decided
        self.finals: dict[int, Final] = {}
        self.past: dict[int, Agreement] = {}  # of decided heights
        self.accusations: list[Evidence] = []
        self.is_up = False
        self.boots = 0
        self._disk = Disk()
        self._dies: Crash | None = None  # at the next vote
        self._early: list[Vote | Proposal] = []
        self._peers: list[Node] | None = None

    @classmethod
    def behind(cls, world: World, index: int) -> list[Node]:
        """Return the processes that have the key of a validator."""
        return [cls(world, index)]

    @property
    def last_id(self) -> bytes:
        last = self.finals.get(self.height - 1)
        return NOTHING if last is None else last.id

    # Life and death

    def boot(self) -> None:
        """Start with what the disk kept."""
        self.is_up = True
        self.boots += 1
        self.past.clear()
        self.world.after(self._some(ASK_MS), self._ask, self.boots)
        self._begin()

    def suffer(self, crash: Crash) -> None:
        if crash.while_voting:
            self._dies = crash
        else:
            self._die(crash.down_ms)

    def recover(self) -> None:
        """Nothing bad happens any more."""
        self._dies = None
        if not self.is_up:
            self.boot()

    def _die(self, down_ms: int) -> None:
        if self.is_up:
            self.is_up, self._dies = False, None
            self.boots += 1
            if self.forgets:
                self._disk = Disk()
            self.world.after(down_ms, self._rise, self.boots)

    def _rise(self, boots: int) -> None:
        if boots == self.boots and not self.is_up:
            self.boot()

    @property
    def forgets(self) -> bool:
        return self.world.plan.forgets

    # Heights

    def _begin(self) -> None:
        turns = self.world.turns(self.height)
        disk = self._disk
        promises = Promises(dict(disk.votes), frozenset(disk.proposed), disk.lock)
        self.machine = self.new_machine(turns.proposer_of, promises)
        if disk.votes or disk.proposed or disk.lock:
            self._carry_out(self.machine.start())
        else:
            has_work = self.world.rng.random() < 0.9
            pause = self._some(300) if has_work else 1_500
            self.world.after(pause, self._start, self.boots, self.height)
        early, self._early = self._early, []
        for message in early:
            self._hear(message)

    def new_machine(self, proposer_of: Any, promises: Promises) -> Agreement:
        kind = self.world.plan.machine if self.is_honest else Agreement
        return kind(self.height, self.world.validators, proposer_of, self.key, promises)

    def _start(self, boots: int, height: int) -> None:
        if boots == self.boots and height == self.height:
            self._carry_out(self.machine.start())

    def _conclude(self, final: Final) -> None:
        """Keep a final checkpoint, tell it, and turn to the next height."""
        self.finals[self.height] = final
        self.past[self.height] = self.machine
        if self.is_honest:
            self.world.note_decision(final)
        self.tell(final)
        self.height += 1
        self._disk = Disk()
        self._begin()

    # The wire

    @property
    def peers(self) -> list[Node]:
        if self._peers is None:
            self._peers = [node for node in self.world.nodes if self._meets(node)]
        return self._peers

    def _meets(self, other: Node) -> bool:
        """Each side meets one face of a two-faced validator; all others meet."""
        if other.index == self.index:
            return False
        side = self.world.plan.sides
        mine = side[self.index] if self.face is None else self.face
        theirs = side[other.index] if other.face is None else other.face
        return mine == theirs or self.face is None and other.face is None

    def tell(self, message: Any) -> None:
        for peer in self.peers:
            self.world.send(self, peer, message)

    def deliver(self, sender: Node, message: Any) -> None:
        if not self.is_up:
            return
        kind = type(message)
        if kind is Vote or kind is Proposal:
            self._hear(message)
        elif kind is Final:
            self._learn(message)
        else:
            self._answer(sender, message)

    def _hear(self, message: Vote | Proposal) -> None:
        height = message.statement.height
        if self.is_honest and not self.world.plan.is_safe:
            self.world.note_vote(message)
        if height < self.height:
            if height in self.past:
                self._carry_out(self._give(self.past[height], message))
        else:
            if height == self.height + 1 and len(self._early) < EARLY_KEPT:
                self._early.append(message)
            self._carry_out(self._give(self.machine, message))

    def _give(self, machine: Agreement, message: Vote | Proposal) -> list[Effect]:
        if isinstance(message, Vote):
            return machine.receive_vote(message)
        off = abs(message.checkpoint.time_ms - self.world.now)
        return machine.receive_proposal(message, is_timely=off <= CLOCK_BOUND_MS)

    def _learn(self, final: Final) -> None:
        """Believe a quorum; of a height that was decided otherwise, hear the votes."""
        if final.height == self.height and self._is_signed(final):
            self._accuse(self.machine, final)
            self._conclude(final)
        elif final.height in self.past:
            self._accuse(self.past[final.height], final)

    def _accuse(self, machine: Agreement, final: Final) -> None:
        decision = Decide(final.checkpoint, final.id, final.round, final.votes)
        self._carry_out(machine.conclude(decision))

    def _is_signed(self, final: Final) -> bool:
        wanted = VoteStatement(
            FORMAT_VERSION, VoteStage.PRECOMMIT, final.height, final.round, final.id
        )
        voters = {vote.voter for vote in final.votes if vote.statement == wanted}
        weight = sum(map(self.world.validators.weight_of, voters))
        return self.world.validators.is_quorum(weight)

    def _ask(self, boots: int) -> None:
        """Tell some peers what is held; again and again."""
        if boots != self.boots:
            return
        self.world.after(ASK_MS, self._ask, boots)
        if self.machine.round >= 0:
            self._ask_some()

    def _ask_some(self) -> None:
        held = holdings_of(self.machine)
        count = min(ASKED, len(self.peers))
        for peer in self.world.rng.sample(self.peers, count):
            self.world.send(self, peer, held)

    def _answer(self, peer: Node, theirs: Holdings) -> None:
        if theirs.height < self.height:
            self.world.send(self, peer, self.finals[theirs.height])
        else:
            for message in lacking(self.machine, theirs, ANSWER):
                self.world.send(self, peer, message)

    # Effects

    def _carry_out(self, effects: list[Effect]) -> None:
        """Do what the agreement asks; what follows from our own messages as well."""
        todo = deque(effects)
        boots = self.boots
        while todo and boots == self.boots:
            effect = todo.popleft()
            kind = type(effect)
            if kind is Cast:
                todo.extend(self._cast(effect))
            elif kind is Schedule:
                first, more = WAIT_MS[effect.step]
                wait = first + more * effect.round
                args = self.boots, self.height, effect.step, effect.round
                self.world.after(wait, self._time_out, *args)
            elif kind is Validate:
                wait = self._some(self.world.plan.execution_ms)
                self.world.after(wait, self._judge, boots, effect.proposal)
            elif kind is Propose:
                wait = self._some(self.world.plan.execution_ms)
                self.world.after(wait, self._propose, boots, self.height, effect.round)
            elif kind is Repropose:
                round, proof = effect.round, effect.valid_round
                todo.extend(self._offer(round, effect.id, effect.checkpoint, proof))
            elif kind is Decide:
                votes = effect.precommits
                self._conclude(
                    Final(
                        self.height, effect.id, effect.checkpoint, effect.round, votes
                    )
                )
                return
            elif kind is Evidence:
                self.accusations.append(effect)
            elif kind is Behind:
                self._ask_some()

    def _time_out(self, boots: int, height: int, step: Step, round: int) -> None:
        if boots == self.boots and height == self.height:
            self._carry_out(self.machine.timeout(step, round))

    def _judge(self, boots: int, proposal: Proposal) -> None:
        if boots == self.boots and proposal.checkpoint.height == self.height:
            id = proposal.statement.checkpoint
            self._carry_out(self.machine.judge(id, self.accepts(id, proposal)))

    def accepts(self, id: bytes, proposal: Proposal) -> bool:
        follows = proposal.checkpoint.parent == self.last_id
        return follows and self.world.truth[id]

    def _propose(self, boots: int, height: int, round: int) -> None:
        if (boots, height, round) != (self.boots, self.height, self.machine.round):
            return
        id, checkpoint = self.world.new_checkpoint(self, round, self.makes_valid())
        effects = self.machine.judge(id, True)
        self._carry_out(effects + self._offer(round, id, checkpoint, None))

    def makes_valid(self) -> bool:
        return True

    def _offer(
        self, round: int, id: bytes, checkpoint: Checkpoint, proof: int | None
    ) -> list[Effect]:
        """Promise and send a proposal; return what follows for ourselves."""
        if round in self._disk.proposed and self.is_honest:
            self.world.violations.append(f"{self.index} proposes twice")
        self._disk.proposed.add(round)
        statement = ProposalStatement(FORMAT_VERSION, self.height, round, proof, id)
        proposal = Proposal(statement, checkpoint, self.key, BLANK)
        self.tell(proposal)
        return self.machine.receive_proposal(proposal, is_timely=True)

    def _cast(self, cast: Cast) -> list[Effect]:
        """Store, promise and send a vote, or die on the way."""
        crash = self._dies
        if crash is not None and crash.while_voting == 1:
            self._die(crash.down_ms)
            return []
        if cast.lock is not None:
            self._disk.lock = cast.lock
        if crash is not None and crash.while_voting == 2:
            self._die(crash.down_ms)
            return []
        place = cast.round, cast.stage
        promised = self._disk.votes.setdefault(place, cast.checkpoint)
        if promised != cast.checkpoint:
            self.world.violations.append(f"{self.index} breaks its promise at {place}")
        if crash is not None:
            self._die(crash.down_ms)
            return []
        return self.give_vote(cast.stage, cast.round, cast.checkpoint)

    def give_vote(self, stage: VoteStage, round: int, id: bytes | None) -> list[Effect]:
        vote = self.vote(stage, round, id)
        self.tell(vote)
        return self.machine.receive_vote(vote)

    def vote(self, stage: VoteStage, round: int, id: bytes | None) -> Vote:
        statement = VoteStatement(FORMAT_VERSION, stage, self.height, round, id)
        return Vote(statement, self.key, BLANK)

    def _some(self, most_ms: int) -> int:
        return int(self.world.rng.random() * most_ms)
