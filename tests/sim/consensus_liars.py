"""Validators that break the rules, each in its own way, with their own key only."""

from __future__ import annotations

from typing import Any

from blyan_proto.checkpoint import Proposal, Vote, VoteStage
from blyand.rules.chain.agreement import Agreement
from blyand.rules.chain.effects import Effect, Promises
from blyand.rules.chain.heard import Held
from tests.sim.consensus import World
from tests.sim.consensus_node import Node

LATE_MS = 1_500
GARBAGE = b"\xff" * 32


class Lockless(Agreement):
    """Prevotes whatever is valid: the lock is kept and never looked at."""

    def _answer(self, held: Held) -> bool:
        self.locked = None
        if held.id not in self._verdicts:
            return False
        accepted = self._verdicts[held.id]
        self._vote(VoteStage.PREVOTE, held.id if accepted else None)
        return True


class Amnesiac(Lockless):
    """Lets a round with a decision pass, and begins the next one as if there was none."""

    turned_at = -1  # round whose decision was passed over

    def _decide(self, round: int, id: bytes) -> None:
        precommits = self.heard.rounds[round].precommits
        if self.turned_at < 0 and precommits.has_quorum(id):
            self.turned_at = round

    def _enter(self, round: int) -> None:
        self.valid, self.valid_round = None, -1
        super()._enter(round)


class Liar(Node):
    """Whoever is counted as faulty."""

    is_honest = False

    @property
    def forgets(self) -> bool:
        return False


class Silent(Liar):
    """Takes part in nothing."""

    def boot(self) -> None:
        super().boot()
        self.is_up = False
        self.boots += 1


class TwoFaced(Liar):
    """Two honest-looking processes with one key, each shown to half of the others.

    So it equivocates in proposals and votes alike, in the most convincing way.
    """

    @classmethod
    def behind(cls, world: World, index: int) -> list[Node]:
        return [cls(world, index, 0), cls(world, index, 1)]


class WrongRoot(Liar):
    """Proposes what is not valid and stands by it."""

    def makes_valid(self) -> bool:
        return False

    def accepts(self, id: bytes, proposal: Proposal) -> bool:
        return self.world.truth[id] or proposal.proposer == self.key


class Late(Liar):
    """Follows the rules after everybody's patience is over."""

    lag_ms = LATE_MS


class DoubleLocking(Liar):
    """Prevotes and precommits one checkpoint after the other."""

    def new_machine(self, proposer_of: Any, promises: Promises) -> Agreement:
        return Lockless(
            self.height, self.world.validators, proposer_of, self.key, promises
        )


class Turncoat(Liar):
    """Decides with one side, then with the other one in a later round.

    It never signs two votes in one round: what it does is amnesia, for which no pair of
    signatures is proof.
    """

    def new_machine(self, proposer_of: Any, promises: Promises) -> Agreement:
        return Amnesiac(
            self.height, self.world.validators, proposer_of, self.key, promises
        )

    def tell(self, message: Any) -> None:
        if isinstance(message, (Vote, Proposal)):
            assert isinstance(self.machine, Amnesiac)
            turned_at = self.machine.turned_at
            side = int(0 <= turned_at < message.statement.round)
            for peer in self.peers:
                if not peer.is_honest or self.world.plan.sides[peer.index] == side:
                    self.world.send(self, peer, message)

    def _learn(self, final: Any) -> None:
        if self.world.now >= self.world.plan.heal_ms:
            super()._learn(final)

    def _answer(self, peer: Node, theirs: Any) -> None:
        pass


class Forgetful(Liar):
    """Starts again and again and votes as if it never had."""

    @property
    def forgets(self) -> bool:
        return True

    def boot(self) -> None:
        super().boot()
        self.world.after(self._some(1_200), self._faint, self.boots)

    def _faint(self, boots: int) -> None:
        if boots == self.boots:
            self._die(1)
            if not self.world.plan.is_safe:
                self.height = 1  # its chain is lost as well
                self.finals.clear()


class Anything(Liar):
    """Votes for all it hears of and for what never was, to some and not to others."""

    def _hear(self, message: Vote | Proposal) -> None:
        super()._hear(message)
        draw = self.world.rng.random
        if draw() < 0.1:
            id = message.statement.checkpoint
            lie = id if draw() < 0.7 else None if draw() < 0.7 else GARBAGE
            at = message.statement.round
            round = at if draw() < 0.8 else int(at + draw() * 200)
            stage = VoteStage.PREVOTE if draw() < 0.5 else VoteStage.PRECOMMIT
            vote = self.vote(stage, round, lie)
            for peer in self.peers:
                if draw() < 0.5:
                    self.world.send(self, peer, vote)

    def give_vote(self, stage: VoteStage, round: int, id: bytes | None) -> list[Effect]:
        for peer in self.peers:
            lie = id if self.world.rng.random() < 0.5 else None
            self.world.send(self, peer, self.vote(stage, round, lie))
        return self.machine.receive_vote(self.vote(stage, round, id))
