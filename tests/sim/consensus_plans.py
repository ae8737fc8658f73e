"""What a seed means, by the mix of faults, and how a run is judged.

Below a third of lying weight every history must be safe, and must go on after the heal.
From a third on it may not be; then the votes that honest nodes heard must show who lied.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from blyan_proto.checkpoint import Vote, VoteStage
from blyan_proto.validators import ValidatorSet
from blyand.rules.chain.agreement import Agreement
from blyand.rules.chain.effects import Evidence
from tests.sim.consensus import EVERYWHERE, Crash, Cut, Plan, World
from tests.sim.consensus_liars import (
    Anything,
    DoubleLocking,
    Forgetful,
    Late,
    Silent,
    Turncoat,
    TwoFaced,
    WrongRoot,
)
from tests.sim.consensus_node import Node

BELOW_A_THIRD: dict[str, tuple[type[Node], ...]] = {
    "crashes": (),
    "power cuts": (),
    "silent": (Silent,),
    "two-faced": (TwoFaced,),
    "wrong root": (WrongRoot,),
    "late": (Late,),
    "double-locking": (DoubleLocking,),
    "forgetful": (Forgetful,),
    "anything": (Anything,),
    "all kinds": (
        Silent,
        TwoFaced,
        WrongRoot,
        Late,
        DoubleLocking,
        Forgetful,
        Anything,
    ),
}
A_THIRD_OR_MORE: dict[str, tuple[type[Node], ...]] = {
    "⅓ two-faced": (TwoFaced,),
    "⅓ turncoat": (Turncoat,),
    "⅓ forgetful": (Forgetful,),
}
ROUNDS_AFTER_HEAL = 20  # in which the height that was stuck has to be decided


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    plan: Plan
    violations: tuple[str, ...]
    decisions: int  # heights that honest nodes hold for final
    rounds: tuple[int, ...]  # that heights took after the heal; 0: the first one
    messages: int
    time_ms: int  # virtual, from the heal to the goal
    is_forked: bool
    by_evidence: int = 0  # weight that evidence names, in a fork
    by_history: int = 0  # weight that these or its votes over rounds show to have lied


def make_plan(
    mix: str,
    seed: int,
    machine: type[Agreement] = Agreement,
    forgets: bool = False,
) -> Plan:
    """Return the history of a seed."""
    rng = random.Random(f"{mix} {seed}")
    count = rng.choice((4, 4, 4, 5, 6, 7, 7, 8, 10, 13, 16))
    weights = tuple(rng.choice((1, 1, 2, 3, 5, 10)) for _ in range(count))
    if rng.random() < 0.3:
        weights = (1,) * count
    kinds = BELOW_A_THIRD.get(mix)
    forks = kinds is None
    kinds = A_THIRD_OR_MORE[mix] if kinds is None else kinds
    liars = _choose(rng, weights, kinds, forks)
    heal_ms = rng.randint(2_000, 6_000)
    sides = tuple(rng.randrange(2) for _ in weights)
    plan = Plan(
        seed=seed,
        weights=weights,
        liars=liars,
        loss=rng.choice((0.0, 0.0, 0.02, 0.1, 0.3)),
        unkindness=rng.choice((0.5, 0.9) if forks else (0.0, 0.5, 0.9)),
        delay_ms=rng.choice((20, 20, 80, 300)),
        duplication=rng.choice((0.0, 0.1)),
        execution_ms=rng.choice((5, 5, 40, 200)),
        heal_ms=heal_ms,
        cuts=_cut(rng, count, liars, heal_ms, sides if forks else None),
        crashes=() if forks else _crash(rng, count, heal_ms),
        blackouts=0.7 if mix == "power cuts" else 0.0,
        sides=sides,
        machine=machine,
        forgets=forgets,
    )
    # Nothing but the lies stands in the way of a fork.
    return replace(plan, loss=0.0, delay_ms=20, execution_ms=5) if forks else plan


def play(plan: Plan) -> Outcome:
    """Run a history and judge it."""
    world = World(plan, Node)
    world.run()
    violations = list(world.violations) if plan.is_safe else []
    rounds = _rounds(world)
    if plan.is_safe:
        if not world.is_over():
            at = sorted((n.height, n.machine.round) for n in world.honest)
            violations.append(f"stuck at (height, round) {at}")
        elif max(rounds) > ROUNDS_AFTER_HEAL:
            violations.append(f"{max(rounds)} rounds after the heal")
    honest = {node.key for node in world.honest}
    for node in world.honest:
        if any(accusation.signer in honest for accusation in node.accusations):
            violations.append(f"{node.index} accuses an honest one")
    outcome = Outcome(
        plan,
        tuple(violations),
        len(world.decisions),
        tuple(rounds),
        world.messages,
        world.now - plan.heal_ms,
        any(len(ids) > 1 for ids in world.decisions.values()),
    )
    return outcome if not outcome.is_forked or plan.is_safe else _accuse(world, outcome)


def _choose(
    rng: random.Random,
    weights: tuple[int, ...],
    kinds: tuple[type[Node], ...],
    forks: bool,
) -> dict[int, type[Node]]:
    """Return who lies: as many as fit below a third, or from a third to two thirds."""
    liars: dict[int, type[Node]] = {}
    lying, total = 0, sum(weights)
    for index in rng.sample(range(len(weights)), len(weights)):
        if not kinds or forks and 3 * lying > total and rng.random() < 0.4:
            break
        if 3 * (lying + weights[index]) < (2 if forks else 1) * total:
            liars[index] = rng.choice(kinds)
            lying += weights[index]
    return liars


def _cut(
    rng: random.Random,
    count: int,
    liars: dict[int, type[Node]],
    heal_ms: int,
    sides: tuple[int, ...] | None,
) -> tuple[Cut, ...]:
    if sides is not None:
        groups = tuple(EVERYWHERE if i in liars else s for i, s in enumerate(sides))
        again = tuple(
            EVERYWHERE if i in liars else rng.randrange(2) for i in range(count)
        )
        turn = rng.choice((heal_ms // 2, heal_ms))
        return Cut(0, turn, groups), Cut(turn, heal_ms, again)
    cuts = []
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        start = rng.randrange(heal_ms)
        groups = tuple(rng.randrange(rng.choice((2, 2, 3))) for _ in range(count))
        cuts.append(Cut(start, start + rng.randint(200, 3_000), groups))
    return tuple(cuts)


def _crash(rng: random.Random, count: int, heal_ms: int) -> tuple[Crash, ...]:
    crashes = []
    busy = rng.choice(((0,), (0, 0, 0, 1), (0, 1, 2)))
    for index in range(count):
        for _ in range(rng.choice(busy)):
            start = rng.randrange(heal_ms)
            down = rng.randint(50, 2_000)
            crashes.append(Crash(start, down, index, rng.randrange(4)))
    for _ in range(rng.choice((0, 0, 1))):
        start, while_voting = rng.randrange(heal_ms), rng.randrange(4)
        for index in range(count):  # the power goes, everywhere at once
            down = rng.randint(10, 300)
            crashes.append(Crash(start, down, index, while_voting))
    return tuple(crashes)


def _rounds(world: World) -> list[int]:
    height, round = world.at_heal
    found = []
    for decided, ids in sorted(world.decisions.items()):
        if decided >= height:
            least = min(ids.values())
            found.append(max(0, least - round) if decided == height else least)
    return found or [0]


# Accountability


def _accuse(world: World, outcome: Outcome) -> Outcome:
    """Judge a fork by the votes that honest nodes heard."""
    height = min(h for h, ids in world.decisions.items() if len(ids) > 1)
    for node in world.honest:
        for vote in node.finals[height].votes if height in node.finals else ():
            world.note_vote(vote)
    votes = {place[1:]: vote for place, vote in world.log.items() if place[0] == height}
    liars = double_voters(set(votes))
    accused = _collect(world, height, list(votes.values()))
    turncoats = flip_floppers(set(votes), world.validators)
    violations = list(outcome.violations)
    honest = {node.key for node in world.honest}
    if honest & (liars | turncoats):
        violations.append("honest votes look like lies")
    weigh = world.validators.weight_of
    if not accused <= liars:
        violations.append("evidence that the votes do not bear out")
    by_history = sum(map(weigh, liars | turncoats))
    if not world.validators.exceeds_third(by_history):
        violations.append(f"a fork, and only {by_history} of weight lied visibly")
    return Outcome(
        outcome.plan,
        tuple(violations),
        outcome.decisions,
        outcome.rounds,
        outcome.messages,
        outcome.time_ms,
        True,
        by_evidence=sum(map(weigh, accused)),
        by_history=by_history,
    )


def _collect(world: World, height: int, votes: list[Vote]) -> set[bytes]:
    """Return whom the evidence names, once honest nodes hear each other's votes."""
    named = set()
    for node in world.honest:
        machine = node.past.get(height)
        if machine is not None:
            for vote in votes:
                for effect in machine.receive_vote(vote):
                    node.accusations += [effect] if isinstance(effect, Evidence) else []
        named |= {
            accusation.signer
            for accusation in node.accusations
            if accusation.first.statement.height == height
        }
    return named


Said = tuple[int, VoteStage, bytes, bytes | None]  # round, stage, voter, checkpoint


def double_voters(said: set[Said]) -> set[bytes]:
    """Return who signed two votes of one stage in one round: self-contained evidence."""
    seen: dict[tuple[int, VoteStage, bytes], bytes | None] = {}
    found = set()
    for round, stage, voter, id in said:
        if seen.setdefault((round, stage, voter), id) != id:
            found.add(voter)
    return found


def flip_floppers(said: set[Said], validators: ValidatorSet) -> set[bytes]:
    """Return who precommitted one checkpoint and later prevoted another without reason.

    A reason is a quorum of prevotes for the other one, in the round of the precommit or
    a later one. That there is none follows only from all votes together: no pair of
    signed votes proves it.
    """
    weights: dict[tuple[int, bytes | None], int] = {}
    for round, stage, voter, id in said:
        if stage is VoteStage.PREVOTE:
            place = round, id
            weights[place] = weights.get(place, 0) + validators.weight_of(voter)
    polls = {place for place, weight in weights.items() if validators.is_quorum(weight)}
    prevotes = [s for s in said if s[1] is VoteStage.PREVOTE and s[3] is not None]
    found = set()
    for round, stage, voter, id in said:
        if stage is not VoteStage.PRECOMMIT or id is None:
            continue
        for later, _, other, new in prevotes:
            if other == voter and later > round and new != id:
                if not any((r, new) in polls for r in range(round, later)):
                    found.add(voter)
    return found
