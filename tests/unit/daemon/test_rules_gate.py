"""The gate before adoption: who scores, what decides, and what happens when nobody does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Dispute
from blyan_proto.block.gate import MOST_MICRO, Gate, Score, SealedScore
from blyan_proto.signing import SigningKey
from blyan_proto.validators import Validator
from blyand.rules.model import gate as rules
from blyand.rules.model.gate import GATES, OPEN_GATES, Gated, Scored, Stand
from blyand.rules.records import MODELS, VERSIONS
from blyand.rules.view import Overlay
from blyand.training.scorer import Scorer, micro_of, score_of
from tests.sim.network import InlineLane
from tests.unit.daemon.chain_world import (
    Training,
    genesis_of,
    roots,
)

RULE = Gate(validators=3, windows=64, bound_milli=1645, margin_micro=2_000)
RUN = dict(rounds=6, adopt_every=1, gate=RULE)


class Gatekeeping(Training):
    """Five validators, a model, a dataset."""

    def __init__(self) -> None:
        super().__init__(nodes=5)

    def opened(self, run: bytes) -> Gated:
        found = OPEN_GATES.get(self.view, run)
        assert found is not None
        return found

    def decided(self, run: bytes) -> Gated:
        assert OPEN_GATES.get(self.view, run) is None
        found = GATES.get(self.view, run)
        assert found is not None
        return found

    def score(self, gated: Gated, rise: float, noise: float = 0.01) -> Score:
        """Return a score by which the mean loss rises by so much."""
        source = np.random.default_rng(1)
        before = source.uniform(1, 4, 64)
        drawn = source.normal(0, 1, 64)
        after = before + rise + noise * (drawn - drawn.mean())
        return score_of(gated, micro_of(before), micro_of(after))

    def author(self, account: bytes) -> SigningKey:
        return next(key for key in self.keys if key.account == account)

    def sealed(self, gated: Gated, score: Score, author: SigningKey) -> Block:
        """Return the block by which a validator seals a score."""
        payload = SealedScore(
            version=1,
            model=gated.model,
            run=gated.run,
            round=gated.round,
            beacon=gated.beacon,
            seal=score.seal(author.account),
        )
        return self.block(payload, author)

    def seals(self, gated: Gated, *rises: float) -> list[tuple[SigningKey, Score]]:
        """Let the drawn validators seal their scores; return who has which to show."""
        made = [
            (self.author(account), self.score(gated, rise))
            for account, rise in zip(gated.drawn, rises)
        ]
        blocks = [self.sealed(gated, score, author) for author, score in made]
        assert self.errors(*blocks) == [None] * len(blocks)
        return made

    def says(self, gated: Gated, *rises: float) -> list[str | None]:
        """Let the drawn validators seal, then show one by one; return what came of it."""
        errors = []
        for author, score in self.seals(gated, *rises):
            errors += self.errors(self.block(score, author))
        return errors

    @property
    def adopted_round(self) -> int:
        record = MODELS.get(self.view, self.model)
        assert record is not None
        return record.adopted_round


@pytest.fixture
def world(monkeypatch) -> Gatekeeping:
    from tests.unit.daemon import chain_world

    def five(keys: list[SigningKey], tail: bytes, **changed):
        voters = tuple(Validator(one.public, 1, tail) for one in keys)
        return genesis_of(keys, tail, validators=voters, **changed)

    monkeypatch.setattr(chain_world, "genesis_of", five)
    return Gatekeeping()


def test_a_better_round_passes_and_is_adopted_by_the_quorum_s_score(world):
    run = world.open(**RUN)
    assert OPEN_GATES.get(world.view, run) is None
    world.move(run)
    gated = world.opened(run)
    assert gated.round == 0 and len(gated.drawn) == 3 and gated.draws == 1
    one, two, three = world.seals(gated, -0.02, -0.0201, -0.0199)
    for author, score in (three, one):
        assert world.errors(world.block(score, author)) == [None]
    assert world.adopted_round == 0 and len(world.opened(run).scores) == 2
    assert world.errors(world.block(two[1], two[0])) == [None]
    decided = world.decided(run)
    assert decided.stand is Stand.PASSED and not decided.outliers
    assert world.adopted_round == 1
    assert all(
        world.group(g).adopted == world.group(g).tiles for g in range(world.groups)
    )
    assert MODELS.get(world.view, world.model).heads_root == gated.after


def test_a_worse_round_fails_and_nothing_is_adopted(world):
    run = world.open(**RUN)
    world.move(run)
    before = MODELS.get(world.view, world.model).heads_root
    world.says(world.opened(run), 0.05, 0.05, 0.05)
    assert world.decided(run).stand is Stand.FAILED
    assert world.adopted_round == 0
    assert MODELS.get(world.view, world.model).heads_root == before


def test_one_liar_of_three_changes_nothing_and_is_recorded(world):
    run = world.open(**RUN)
    world.move(run)
    gated = world.opened(run)
    world.says(gated, 3.0, -0.02, -0.02)
    decided = world.decided(run)
    assert decided.stand is Stand.PASSED
    assert decided.outliers == (gated.drawn[0],)
    world.move(run)
    gated = world.opened(run)
    world.says(gated, -1.0, 0.5, 0.5)
    decided = world.decided(run)
    assert (decided.round, decided.stand) == (1, Stand.FAILED)
    assert decided.outliers == (gated.drawn[0],) and decided.median != gated.drawn[0]


def test_the_newest_round_comes_before_the_gate_once_it_is_free(world):
    run = world.open(**RUN)
    for _ in range(3):
        world.move(run)
    first = world.opened(run)
    assert first.round == 0
    world.says(first, -0.02, -0.02, -0.02)
    world.checkpoint()
    assert world.opened(run).round == 2
    for _ in range(3):
        world.move(run)
    world.says(world.opened(run), -0.02, -0.02, -0.02)
    world.checkpoint()
    last = world.opened(run)  # of a run that is finished by now
    assert last.round == 5
    world.says(last, -0.02, -0.02, -0.02)
    world.checkpoint()
    assert world.decided(run).stand is Stand.PASSED and world.adopted_round == 6
    assert not list(OPEN_GATES.scan(world.view))


def test_who_may_score_and_what(world):
    run = world.open(**RUN)
    world.move(run)
    gated = world.opened(run)
    outside = next(key for key in world.keys if key.account not in gated.drawn)
    first = world.author(gated.drawn[0])
    many = np.full(65, 1_000_000)
    long = score_of(gated, many, many)

    def seals(author, score, place=gated):
        return world.errors(world.sealed(place, score, author))[0]

    def shows(author, score):
        return world.errors(world.block(score, author))[0]

    score = world.score(gated, 0.0)
    assert "was drawn" in seals(outside, score)
    assert "no version" in seals(first, score, replace(gated, round=3))
    assert "another draw" in seals(first, score, replace(gated, beacon=bytes(32)))
    assert seals(first, score) is None
    assert "has sealed" in seals(first, world.score(gated, 0.1))
    assert "sealed still" in shows(first, score)
    for account in gated.drawn[1:]:
        assert seals(world.author(account), long) is None
    assert "other heads" in shows(first, replace(score, after=bytes(32)))
    assert "no version" in shows(first, replace(score, round=3))
    assert "not the score" in shows(first, world.score(gated, 0.0))
    assert "not the score" in shows(outside, score)
    assert "64 windows" in shows(world.author(gated.drawn[1]), long)
    assert shows(first, score) is None
    assert "has scored" in shows(first, score)
    (error,) = world.errors(world.block(world.adoption(run, 0)))
    assert "by its gate alone" in error


def test_a_score_is_copied_neither_before_nor_after_it_is_shown(world):
    """Without the measurement nothing can be sealed, and a seal opens for one only."""
    run = world.open(**RUN)
    world.move(run)
    gated = world.opened(run)
    honest, copier, third = map(world.author, gated.drawn)
    score = world.score(gated, -0.02)
    assert world.score(gated, -0.02).seal(honest.account) != score.seal(honest.account)
    mine = world.sealed(gated, score, honest)
    copy = world.block(mine.content, copier)
    assert world.errors(mine, copy) == [None, None]
    other = world.score(gated, -0.02)
    assert world.errors(world.sealed(gated, other, third)) == [None]
    assert world.errors(world.block(score, honest)) == [None]
    (error,) = world.errors(world.block(score, copier))
    assert "not the score" in error


def test_sealing_waits_for_all_that_were_drawn_for_one_deadline(world):
    run = world.open(**RUN | dict(gate=replace(RULE, validators=4)))
    world.move(run)
    gated = world.opened(run)
    rest = world.seals(gated, -0.02, -0.02, -0.02)
    assert world.opened(run).sealed_ms is None  # a quorum, and one is slower
    world.checkpoint(step_ms=10_000)
    opened = world.opened(run)
    assert opened.sealed_ms == world.time_ms
    late = world.author(gated.drawn[3])
    (error,) = world.errors(world.sealed(gated, world.score(gated, 0.0), late))
    assert "shown already" in error
    for author, score in rest:
        assert world.errors(world.block(score, author)) == [None]
    assert world.decided(run).stand is Stand.PASSED


def test_silent_validators_are_joined_by_others_and_then_it_expires(world):
    run = world.open(**RUN)
    world.move(run)
    gated = world.opened(run)
    made = world.seals(gated, -0.02)
    late_ms = rules.PATIENCE * 10_000 + 1
    world.checkpoint(step_ms=late_ms)
    again = world.opened(run)
    assert again.draws == 2 and len(again.drawn) == 5 and len(again.seals) == 1
    assert again.beacon == gated.beacon  # what is sealed stays of use
    fresh = [account for account in again.drawn if account not in gated.drawn]
    late = [(world.author(account), world.score(again, -0.02)) for account in fresh]
    blocks = [world.sealed(again, score, author) for author, score in late]
    assert world.errors(*blocks) == [None] * 2
    world.checkpoint(step_ms=10_000)
    for author, score in made + late:
        assert world.errors(world.block(score, author)) == [None]
    assert world.decided(run).stand is Stand.PASSED
    world.move(run)
    for _ in range(rules.MAX_DRAWS + 1):
        world.checkpoint(step_ms=late_ms)
    assert world.decided(run).stand is Stand.EXPIRED and world.adopted_round == 1


def test_who_sealed_and_does_not_show_is_drawn_no_more_and_all_measure_anew(world):
    run = world.open(**RUN)
    world.move(run)
    gated = world.opened(run)
    silent, *rest = world.seals(gated, -0.02, -0.02, -0.02)
    for author, score in rest:
        assert world.errors(world.block(score, author)) == [None]
    world.checkpoint(step_ms=rules.PATIENCE * 10_000 + 1)
    again = world.opened(run)
    assert again.withheld == (silent[0].account,)
    assert silent[0].account not in again.drawn and len(again.drawn) == 3
    assert (again.draws, again.seals, again.scores, again.sealed_ms) == (
        2,
        (),
        (),
        None,
    )
    assert again.beacon != gated.beacon  # other windows: what was shown is of no use
    (error,) = world.errors(world.sealed(gated, silent[1], silent[0]))
    assert "another draw" in error
    assert world.says(again, -0.02, -0.02, -0.02) == [None] * 3
    decided = world.decided(run)
    assert decided.stand is Stand.PASSED and decided.withheld == again.withheld


def test_the_draw_is_by_weight_and_by_beacon():
    weights = {bytes([n]) * 20: 1 for n in range(1, 9)} | {bytes([9]) * 20: 8}
    count = dict.fromkeys(weights, 0)
    for turn in range(400):
        drawn = rules.committee(weights, (), 3, bytes(32), b"run", turn, 0)
        assert len(set(drawn)) == 3 and list(drawn) == sorted(drawn)
        for one in drawn:
            count[one] += 1
    heavy = count.pop(bytes([9]) * 20)
    assert heavy > 1.8 * max(count.values()) and min(count.values()) > 60
    assert rules.committee(weights, list(weights)[:8], 3, b"x", b"y", 1, 1) == (
        bytes([9]) * 20,
    )


def test_a_validator_that_was_started_again_shows_what_it_sealed(world, tmp_path):
    run = world.open(**RUN | dict(gate=replace(RULE, validators=1)))
    world.move(run)
    author, made = world.author(world.opened(run).drawn[0]), []

    async def make(payload, meta_ref):
        made.append(payload)

    async def measured(gated):
        assert not made, "it measures once"
        return world.score(gated, -0.02)

    def started():
        parts: Any = (author.account, lambda: world.view, None, None, InlineLane())
        scorer = Scorer(*parts, make, None, tmp_path)  # type: ignore[arg-type]
        scorer._measured = measured  # type: ignore[method-assign]
        return scorer

    async def turn(scorer):
        return [await scorer._score(gated) for gated in scorer._waiting()]

    first = started()
    assert trio.run(turn, first) == [True] and trio.run(turn, first) == []
    assert world.errors(world.block(made[0], author)) == [None]
    assert trio.run(turn, started()) == [True]
    assert world.errors(world.block(made[1], author)) == [None]
    assert world.decided(run).stand is Stand.PASSED


@given(
    st.lists(st.tuples(st.floats(0, 17), st.floats(0, 17)), min_size=2, max_size=40),
    st.integers(0, 100_000),
    st.integers(0, 4_000),
)
def test_the_integers_decide_as_the_formula_does(pairs, margin_micro, bound_milli):
    before, after = (micro_of(np.array(side)) for side in zip(*pairs))
    assert after.max() <= MOST_MICRO
    rise = (after - before).astype(float)
    made = Scored(
        bytes(20),
        len(rise),
        int(before.sum()),
        int(after.sum()),
        int((rise**2).sum()),
    )
    rule = Gate(1, 64, bound_milli, margin_micro)
    error = rise.std(ddof=1) / len(rise) ** 0.5
    upper = rise.mean() + bound_milli / 1000 * error
    if abs(upper - margin_micro) > 1e-3 * (1 + abs(upper)):
        assert rules.passes(rule, made) == (upper <= margin_micro)


def test_sums_that_no_differences_have_are_refused():
    fine = dict(version=1, model=bytes(32), run=bytes(32), round=0)
    fine |= dict(before=bytes(32), after=bytes(32), windows=2, salt=bytes(32))
    Score(**fine, before_micro=10, after_micro=20, squares=50)
    with pytest.raises(ValueError, match="squares"):
        Score(**fine, before_micro=10, after_micro=20, squares=49)
    with pytest.raises(ValueError, match="bound"):
        Score(**fine, before_micro=0, after_micro=3 * MOST_MICRO, squares=2**63)


def test_more_than_two_thirds_of_the_drawn_decide():
    quorums = [rules.quorum_of(Gate(n, 2, 0, 0)) for n in range(1, 8)]
    assert quorums == [1, 2, 3, 3, 4, 5, 5]


def test_a_disputed_round_waits_for_the_verdict(world):
    run = world.open(**RUN)
    world.move(run)
    gated = world.opened(run)
    update = VERSIONS.get(world.view, run, 0, 1).update
    computed = roots("another", 1, momentum=True)[0]
    world.ordered(Dispute(1, run, 1, 0, update, 0, computed), world.keys[1])
    world.says(gated, -0.02, -0.02, -0.02)
    assert len(world.opened(run).scores) == 3 and world.adopted_round == 0
    world.checkpoint(step_ms=world.genesis.setting("dispute_span_ms") + 1)
    world.checkpoint()
    assert world.decided(run).stand is Stand.PASSED and world.adopted_round == 1


def test_heads_that_were_adopted_meanwhile_end_it(world):
    run = world.open(**RUN)
    world.move(run)
    gated = world.opened(run)
    record = MODELS.get(world.view, world.model)
    overlay = Overlay(world.view)
    MODELS.put(overlay, replace(record, heads_root=bytes(32)), world.model)
    world.view.apply(overlay.changes)
    world.says(gated, -0.02, -0.02, -0.02)
    assert world.decided(run).stand is Stand.EXPIRED and world.adopted_round == 0
