"""Validators in one process, without keys, streams or a clock: a seed is a whole history.

A heap of events drives real `Agreement` machines over links that lose, delay, reorder and
duplicate, through partitions, crashes and power cuts, with liars among them. Time is in
virtual milliseconds. From `heal_ms` on, links are whole and quick and all honest are up.
`consensus_node` is a node, `consensus_liars` those who lie, `consensus_plans` what a seed
means and how a run is judged.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blyan_proto.checkpoint import Checkpoint, Proposal, Vote, VoteStage
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.holdings import Holdings
from blyan_proto.validators import Validator, ValidatorSet
from blyand.rules.chain.agreement import Agreement
from blyand.rules.chain.turns import Turns, carry_over, take_turn

if TYPE_CHECKING:
    from tests.sim.consensus_node import Node

QUIET_DELAY_MS = 30  # of links after the heal, at most
PATIENCE_MS = 120_000  # after the heal, until a run counts as stuck
FORKED_MS = 5_000  # after the heal, where a fork may stop them for good
HEIGHTS = 2  # to be decided after the heal
NOTHING = bytes(32)
EVERYWHERE = -1
PRECOMMIT = VoteStage.PRECOMMIT


@dataclass(frozen=True)
class Cut:
    """No message passes between groups for a while.

    `groups` is by validator; those in group EVERYWHERE are not cut off.
    """

    start_ms: int
    end_ms: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Crash:
    """A validator loses its memory, at a moment or while it gives its next vote."""

    start_ms: int
    down_ms: int
    validator: int
    while_voting: int = (
        0  # 1: before the lock is stored; 2: before the promise; 3: after
    )


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    weights: tuple[int, ...]
    liars: dict[int, type[Node]]  # by validator
    loss: float
    unkindness: float  # share of rounds in which everybody misses some votes
    delay_ms: int
    duplication: float
    execution_ms: int
    heal_ms: int
    cuts: tuple[Cut, ...]
    crashes: tuple[Crash, ...]
    blackouts: float  # share of heights at which all crash when one has decided
    sides: tuple[int, ...]  # by validator: which face of two-faced ones it sees
    machine: type[Agreement]  # of the honest
    forgets: bool  # whether the honest lose their promises in a crash: a bug put in

    @property
    def is_safe(self) -> bool:
        """True while less than a third of the weight lies."""
        lying = sum(self.weights[index] for index in self.liars)
        return 3 * lying < sum(self.weights)


@dataclass(frozen=True)
class Final:
    """A decided checkpoint with its precommits."""

    height: int
    id: bytes
    checkpoint: Checkpoint
    round: int
    votes: tuple[Vote, ...]


class World:
    """The links, the clock, and what an all-knowing observer writes down."""

    def __init__(self, plan: Plan, kind: type[Node]) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.now = 0
        self.messages = 0
        self.violations: list[str] = []
        self.truth: dict[bytes, bool] = {}  # checkpoint: is it valid
        self.decisions: dict[int, dict[bytes, int]] = {}  # height: id: first round
        self.log: dict[tuple[Any, ...], Vote] = {}  # what honest nodes heard
        self.goal: int | None = None
        self.at_heal = (0, 0)  # height and round of the honest one furthest ahead
        self.validators = ValidatorSet(
            tuple(
                Validator(bytes([index]) * 33, weight, NOTHING)
                for index, weight in enumerate(plan.weights)
            )
        )
        self._priorities = [carry_over({}, self.validators)]
        self._turns: list[Turns] = []
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._unheard: dict[tuple[Any, ...], frozenset[bytes]] = {}
        self._unkind: dict[tuple[int, int | None], bool] = {}
        self._count = itertools.count()
        self._ids = itertools.count(1)
        self.nodes: list[Node] = []
        for index in range(len(plan.weights)):
            self.nodes += plan.liars.get(index, kind).behind(self, index)
        self.honest = [node for node in self.nodes if node.is_honest]

    def run(self) -> None:
        """Play it to the end: all honest at the goal, or nobody's patience left."""
        for node in self.nodes:
            node.boot()
        for crash in self.plan.crashes:
            for node in self.nodes:
                if node.index == crash.validator:
                    self.after(crash.start_ms, node.suffer, crash)
        self.after(self.plan.heal_ms, self._heal)
        end = self.plan.heal_ms + (PATIENCE_MS if self.plan.is_safe else FORKED_MS)
        while not self.is_over():
            self.now, _, action, args = heapq.heappop(self._queue)
            if self.now > end:
                break
            action(*args)

    def is_over(self) -> bool:
        """True when every honest node has decided the height to be reached."""
        goal = self.goal
        return goal is not None and all(node.height > goal for node in self.honest)

    def after(self, delay_ms: int, action: Callable[..., None], *args: Any) -> None:
        entry = (self.now + delay_ms, next(self._count), action, args)
        heapq.heappush(self._queue, entry)

    def send(self, sender: Node, receiver: Node, message: Any) -> None:
        self.messages += 1
        draw = self.rng.random
        if self.now >= self.plan.heal_ms:
            delay = draw() * QUIET_DELAY_MS
        else:
            if (
                draw() < self.plan.loss
                or self._is_cut(sender.index, receiver.index)
                or not self._reaches(message, receiver.index)
            ):
                return
            delay = draw() * self.plan.delay_ms
            if draw() < self.plan.duplication:
                again = sender.lag_ms + int(draw() * 3 * self.plan.delay_ms)
                self.after(again, receiver.deliver, sender, message)
        self.after(sender.lag_ms + int(delay), receiver.deliver, sender, message)

    def turns(self, height: int) -> Turns:
        """Return the proposers of a height, as state would have them."""
        while len(self._turns) <= height:
            self._turns.append(Turns(self.validators, self._priorities[-1]))
            _, after = take_turn(self.validators, self._priorities[-1])
            self._priorities.append(after)
        return self._turns[height]

    def new_checkpoint(
        self, maker: Node, round: int, is_valid: bool
    ) -> tuple[bytes, Checkpoint]:
        """Return the id and the contents of a checkpoint that is like no other."""
        id = next(self._ids).to_bytes(32, "big")
        self.truth[id] = is_valid
        return id, Checkpoint(
            version=FORMAT_VERSION,
            network=NOTHING,
            height=maker.height,
            parent=maker.last_id,
            round=round,
            proposer=maker.key,
            time_ms=self.now,
            beacon=NOTHING,
            preimage=NOTHING,
            blocks=(),
            receipts=(),
            state_root=NOTHING,
            validators_root=NOTHING,
            next_validators_root=NOTHING,
        )

    def note_decision(self, final: Final) -> None:
        """An honest node holds this for final."""
        if final.height not in self.decisions:
            self._black_out()
        decided = self.decisions.setdefault(final.height, {})
        decided.setdefault(final.id, final.round)
        if not self.truth[final.id]:
            self.violations.append(f"height {final.height}: decided an invalid one")
        if len(decided) == 2:
            self.violations.append(f"height {final.height}: two decisions")

    def _black_out(self) -> None:
        if self.now < self.plan.heal_ms and self.rng.random() < self.plan.blackouts:
            for node in self.nodes:
                down_ms = int(self.rng.random() * 200)
                self.after(0, node.suffer, Crash(self.now, down_ms, node.index))

    def note_vote(self, message: Vote | Proposal) -> None:
        """Some honest node heard this."""
        if isinstance(message, Vote):
            said = message.statement
            place = said.height, said.round, said.stage, message.voter, said.checkpoint
            self.log.setdefault(place, message)

    def _is_cut(self, one: int, other: int) -> bool:
        for cut in self.plan.cuts:
            if cut.start_ms <= self.now < cut.end_ms:
                groups = cut.groups[one], cut.groups[other]
                if groups[0] != groups[1] and EVERYWHERE not in groups:
                    return True
        return False

    def _reaches(self, message: Any, index: int) -> bool:
        """Whether an unkind network brings this to a validator before the heal.

        Some hear a quorum of which others never hear, and still all hear enough votes to
        go on to the next round, whose proposer knows least: that is what locks are for,
        and chance alone seldom does it.
        """
        if not self.plan.unkindness or isinstance(message, Holdings):
            return True
        if isinstance(message, Final):
            return not self._is_unkind(message.height, None)
        said = message.statement
        if not self._is_unkind(said.height, said.round):
            return True
        is_next = index == self.turns(said.height).proposer_of(said.round + 1)[0]
        if isinstance(message, Proposal):
            return not is_next
        place = said.height, said.round, said.stage, index
        if place not in self._unheard:
            likely = 1.0 if is_next else 0.7 if said.stage == PRECOMMIT else 0.2
            misses = self.rng.random() < likely
            self._unheard[place] = self._some_voters() if misses else frozenset()
        return message.voter not in self._unheard[place]

    def _is_unkind(self, height: int, round: int | None) -> bool:
        """Whether the network is bad to a round, or to what was decided at a height.

        A bad round is followed by a good one: the trap, and what falls into it.
        """
        place = height, round
        if place not in self._unkind:
            likely = self.plan.unkindness if round is None or round % 2 == 0 else 0.0
            self._unkind[place] = self.rng.random() < likely
        return self._unkind[place]

    def _some_voters(self) -> frozenset[bytes]:
        """Return as many voters as leave a quorum of the others."""
        chosen, weight = set(), 0
        for member in self.rng.sample(self.validators.members, len(self.validators)):
            weight += member.weight
            if 3 * weight >= self.validators.total:
                break
            chosen.add(member.key)
        return frozenset(chosen)

    def _heal(self) -> None:
        for node in self.honest:
            node.recover()
        furthest = max(self.honest, key=lambda node: (node.height, node.machine.round))
        self.at_heal = furthest.height, max(furthest.machine.round, 0)
        self.goal = furthest.height - 1 + HEIGHTS
