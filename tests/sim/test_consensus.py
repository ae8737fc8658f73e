"""Three hundred histories of validators with every kind of fault; two bugs put in.

A failure names mix and seed: `play(make_plan(mix, seed))` is that history again.
`python -m tests.bench.bench_agreement` plays ten thousand.
"""

from __future__ import annotations

import pytest

from blyand.rules.chain.agreement import Agreement
from tests.sim.consensus_liars import Lockless
from tests.sim.consensus_plans import (
    A_THIRD_OR_MORE,
    BELOW_A_THIRD,
    Outcome,
    make_plan,
    play,
)

SEEDS = dict.fromkeys(BELOW_A_THIRD, 24) | dict.fromkeys(A_THIRD_OR_MORE, 20)
assert sum(SEEDS.values()) == 300


def outcomes(mix: str) -> list[Outcome]:
    """Play the seeds of a mix; fail on whatever must not be."""
    played = [play(make_plan(mix, seed)) for seed in range(SEEDS[mix])]
    wrong = [(mix, o.plan.seed, o.violations) for o in played if o.violations]
    assert not wrong
    return played


@pytest.mark.parametrize("mix", BELOW_A_THIRD)
def test_below_a_third_it_is_safe_and_goes_on(mix: str) -> None:
    played = outcomes(mix)
    assert not any(outcome.is_forked for outcome in played)
    assert all(outcome.decisions >= 2 for outcome in played)


def test_whoever_forks_by_double_votes_is_named_by_evidence() -> None:
    forks = [outcome for outcome in outcomes("⅓ two-faced") if outcome.is_forked]
    assert forks
    for fork in forks:
        assert 3 * fork.by_evidence > sum(fork.plan.weights)


def test_amnesia_shows_in_the_history_and_not_in_evidence() -> None:
    forks = [outcome for outcome in outcomes("⅓ turncoat") if outcome.is_forked]
    assert forks
    for fork in forks:
        assert 3 * fork.by_history > sum(fork.plan.weights)
        assert not fork.by_evidence


def test_who_forgets_what_it_signed_is_shown_to_have_lied() -> None:
    for outcome in outcomes("⅓ forgetful"):
        if outcome.is_forked:
            assert 3 * outcome.by_history > sum(outcome.plan.weights)


@pytest.mark.parametrize(
    ("machine", "forgets"),
    [
        pytest.param(Lockless, False, id="no lock"),
        pytest.param(Agreement, True, id="votes after a restart"),
    ],
)
def test_a_bug_is_found(machine: type[Agreement], forgets: bool) -> None:
    for seed in range(SEEDS["power cuts"]):
        outcome = play(make_plan("power cuts", seed, machine, forgets))
        if outcome.is_forked:
            assert any("two decisions" in found for found in outcome.violations)
            return
    pytest.fail("no history shows it")


def test_a_seed_is_a_whole_history() -> None:
    one, other = (play(make_plan("all kinds", 5)) for _ in range(2))
    assert one == other
