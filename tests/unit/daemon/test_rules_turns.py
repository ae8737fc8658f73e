"""Whose turn it is: shares as weights, nobody waits for ever, sets may change."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from blyan_proto.validators import Validator, ValidatorSet
from blyand.rules.chain.turns import Turns, carry_over, take_turn

WEIGHTS = st.lists(st.integers(1, 0xFFFF), min_size=1, max_size=12)


def set_of(weights: list[int], first: int = 0) -> ValidatorSet:
    return ValidatorSet(
        tuple(
            Validator(bytes([first + index]) * 33, weight, bytes(32))
            for index, weight in enumerate(weights)
        )
    )


def proposers(validators: ValidatorSet, count: int) -> list[int]:
    priorities = carry_over({}, validators)
    found = []
    for _ in range(count):
        index, priorities = take_turn(validators, priorities)
        found.append(index)
    return found


def test_equal_weights_take_turns_in_order() -> None:
    assert proposers(set_of([5, 5, 5]), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_heavy_one_is_spread_evenly() -> None:
    assert "".join(map(str, proposers(set_of([4, 1, 1]), 12))) == "001020001020"


@given(WEIGHTS)
def test_as_many_turns_as_weight_in_a_cycle(weights: list[int]) -> None:
    weights = [1 + weight % 20 for weight in weights]
    found = Counter(proposers(set_of(weights), sum(weights)))
    assert [found[index] for index in range(len(weights))] == weights


@given(WEIGHTS, st.integers(1, 300))
def test_at_any_time_all_have_had_their_share_but_one(
    weights: list[int], turns: int
) -> None:
    total = sum(weights)
    found = Counter(proposers(set_of(weights), turns))
    for index, weight in enumerate(weights):
        assert abs(found[index] - turns * weight / total) < max(2, len(weights))


@given(WEIGHTS)
def test_nobody_waits_longer_than_its_weight_says(weights: list[int]) -> None:
    weights = [1 + weight % 30 for weight in weights]
    validators, total = set_of(weights), sum(weights)
    found = proposers(validators, 2 * total)
    for index, weight in enumerate(weights):
        places = [place for place, taker in enumerate(found) if taker == index]
        waits = [later - place for place, later in zip(places, places[1:])]
        assert max([places[0], *waits]) <= 2 * -(-total // weight)


@given(
    WEIGHTS, st.lists(st.integers(-(10**9), 10**9), min_size=12, max_size=12), WEIGHTS
)
def test_a_change_of_the_set_keeps_priorities_bounded(
    weights: list[int], old: list[int], newcomers: list[int]
) -> None:
    before = {bytes([index]) * 33: priority for index, priority in enumerate(old)}
    validators = set_of(weights + newcomers)
    priorities = carry_over(before, validators)
    total = validators.total
    assert max(priorities) - min(priorities) <= 2 * total
    assert 0 <= sum(priorities) < len(validators)
    for _ in range(5):
        _, after = take_turn(validators, priorities)
        assert sum(after) == sum(priorities)
        priorities = after
        assert max(map(abs, priorities)) <= 3 * total + len(validators)


def test_leaving_and_coming_back_wins_no_turn() -> None:
    old = set_of([3, 3, 3])
    _, priorities = take_turn(old, (0, 0, 0))
    known = {m.key: p for m, p in zip(old.members, priorities)}
    stayed = carry_over(known, old)
    del known[old.members[1].key]
    came_back = carry_over(known, old)
    assert came_back[1] < stayed[1] and came_back[1] == min(came_back)
    index, _ = take_turn(old, came_back)
    assert index != 1


def test_rounds_are_turns_on_a_copy() -> None:
    validators = set_of([2, 1, 1])
    turns = Turns(validators, (0, 0, 0))
    expected = proposers(validators, 9)
    keys = [validators.members[index].key for index in expected]
    assert turns.proposer_of(8) == keys[8]
    assert [turns.proposer_of(round) for round in range(9)] == keys
