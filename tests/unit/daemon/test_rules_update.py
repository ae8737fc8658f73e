"""A tile update takes effect only as its round's rank, with the rule's own weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.model import Snapshot
from blyan_proto.constants import PPM
from blyan_proto.types import bitmap
from blyand.rules.model.election import ranks
from blyand.rules.model.update import contribution_weights
from blyand.rules.records import RUNS, VERSIONS
from tests.unit.daemon.chain_world import Training, beat, key, roots


@pytest.fixture
def world():
    return Training()


def refusal(world, update, author=None):
    """Return why an update has no effect; it must leave no trace."""
    author = author or world.author_of(update.cosignatures[0].signer)
    before = about_models(world)
    (error,) = world.errors(world.block(update, author))
    assert about_models(world) == before
    return error


def about_models(world):
    tables = (b"model/", b"group/", b"version/", b"run/", b"schedule/", b"used/")
    return {k: v for k, v in world.view.scan(b"") if k.startswith(tables)}


def test_an_update_moves_the_trained_head_and_not_the_adopted_one(world):
    run = world.open()
    before = world.group(3)
    block = world.update(run, 3)
    assert world.errors(block) == [None]
    after = world.group(3)
    assert (after.head, after.run, after.rounds) == (block.id, run, 1)
    assert after.tiles == block.content.result != before.tiles
    assert after.adopted == before.adopted
    version = VERSIONS.get(world.view, run, 0, 3)
    assert (version.update, version.tiles) == (block.id, after.tiles)


def test_an_update_without_deltas_keeps_the_tiles_and_counts(world):
    run = world.open()
    before = world.group(2).tiles
    assert world.errors(world.update(run, 2, learners=0)) == [None]
    assert world.group(2).tiles == before and world.group(2).rounds == 1
    changed = world.draft(run, 2, learners=0, result=roots("other", len(before)))
    assert "changes nothing" in refusal(world, changed)


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(parent=bytes(32)), "does not continue"),
        (dict(base=roots("another base", 1)), "does not continue"),
        (dict(lease_epoch=1), "lease epoch"),
        (dict(run=bytes(32)), "no such open run"),
    ],
)
def test_lineage_and_lease(world, change, why):
    run = world.open()
    if "base" in change:
        change = {"base": roots("another base", len(world.group(3).tiles))}
    update = world.draft(run, 3, **change)
    assert why in refusal(world, update, world.keys[0])


def test_unknown_groups_and_models(world):
    run = world.open()
    assert "unknown group 99" in refusal(world, world.draft(run, 3, group=99))
    assert "unknown group 3" in refusal(world, world.draft(run, 3, model=bytes(32)))


def test_rounds_in_order_only(world):
    run = world.open()
    early = world.draft(run, 3, round=1)
    assert "next round is 0" in refusal(world, early)
    assert "round 9 is not open" in refusal(world, world.draft(run, 3, round=9))
    world.move(run, 3)
    again = world.draft(run, 3, round=0)
    assert "next round is 1" in refusal(world, again)


def test_only_the_claimed_rank_authors(world):
    run = world.open()
    seats = ranks(world.schedule(run, 0), 3)
    second = world.author_of(seats[1].key)
    update = world.draft(run, 3, rank=0)
    assert "not rank 0" in refusal(world, update, second)
    nobody = replace(update, rank=7)
    assert "not rank 7" in refusal(world, nobody)
    stranger = key("stranger")
    assert "not rank 0" in refusal(world, update, stranger)


def test_a_late_standby_may_publish(world):
    run = world.open()
    assert world.errors(world.update(run, 3, rank=2)) == [None]


def cosigned(world, update, *signers):
    fields = {f: getattr(update, f) for f in update.__dataclass_fields__}
    del fields["cosignatures"]
    return world.cosigned(fields, *signers)


def test_cosignatures_are_of_ranks_and_the_authors_first():
    world = Training(nodes=5)
    run = world.open()
    first, second, third = (
        world.author_of(seat.key) for seat in ranks(world.schedule(run, 0), 3)
    )
    spare = next(k for k in world.keys if k not in (first, second, third))
    update = world.draft(run, 3)
    swapped = cosigned(world, update, second, first)
    assert "does not come first" in refusal(world, swapped, first)
    twice = cosigned(world, update, first, first)
    assert "no rank" in refusal(world, twice, first)
    foreign = cosigned(world, update, first, spare)
    assert "no rank" in refusal(world, foreign, first)
    assert world.errors(
        world.block(cosigned(world, update, first, second, third), first)
    ) == [None]


def test_a_cosignature_binds_everything_that_makes_the_result(world):
    run = world.open()
    update = world.draft(run, 3)
    for change in (
        {"result": roots("a lie", len(update.result))},
        {"blob": bytes(32)},
        {
            "contributions": (
                replace(update.contributions[0], delta=b"\1" * 32),
                *update.contributions[1:],
            )
        },
    ):
        assert "cosignature: wrong" in refusal(world, replace(update, **change))
    author = world.author_of(update.cosignatures[0].signer)
    elsewhere = replace(update.cosignatures[0], signature=b"\0" * 64)
    lie = replace(update, cosignatures=(elsewhere,))
    assert "cosignature" in refusal(world, lie, author)


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(weight_ppm=1), "weight is not the rule's"),
        (dict(clip_ppm=PPM - 1), "clip is not the rule's"),
        (dict(norm=5), "a run that does not clip"),
        (dict(learner=b"\xff" * 20), "no learner of the group"),
        (dict(tokens=129), "than were assigned"),
    ],
)
def test_contributions_are_the_rules(world, change, why):
    run = world.open()
    parts = list(world.draft(run, 3).contributions)
    parts[1] = replace(parts[1], **change)
    if "tokens" in change:
        weights = contribution_weights([part.tokens for part in parts])
        parts = [replace(p, weight_ppm=w) for p, w in zip(parts, weights)]
    assert why in refusal(world, world.draft(run, 3, contributions=tuple(parts)))


def test_one_delta_of_a_learner_and_only_of_holders(world):
    run = world.open()
    one, other = world.draft(run, 3).contributions
    twice = (one, replace(other, learner=one.learner, delta=b"\1" * 32))
    update = world.draft(run, 3, contributions=twice)
    assert "two contributions of one learner" in refusal(world, update)


def test_who_holds_the_group_when_the_round_is_scheduled_may_contribute():
    world = Training()
    partly = bitmap(set(range(world.groups)) - {3}, world.groups)
    away = sorted(world.keys, key=lambda k: k.account)[0]
    world.checkpoint(world.block(beat(world.model, partly), away))
    run = world.open()
    assert away.public not in [s.key for s in ranks(world.schedule(run, 0), 3)]
    assert "no learner of the group" in refusal(world, world.draft(run, 3, rank=1))
    assert world.errors(world.update(run, 2)) == [None]


def test_a_run_moves_only_its_own_model(world):
    """A rank of one model's group is nothing in another model."""
    other, _ = world.grow(name="other")
    run = world.open()
    victim = world.group(3, other)
    update = world.draft(run, 3, head=victim)
    assert "another model" in refusal(world, update)
    assert world.group(3, other) == victim


def test_the_run_counts_each_group_once(world):
    run = world.open()
    world.move(run, 1, 2)
    world.move(run, 1)
    assert RUNS.get(world.view, run).counts == (2, 1)
    world.move(run, 1)
    assert RUNS.get(world.view, run).counts == (2, 1, 1)
    assert "round 3 is not open" in refusal(world, world.draft(run, 1, rank=0, round=3))


def test_snapshots_name_a_version_that_state_knows(world):
    run = world.open(snapshot_every=1)
    world.move(run, 3)
    group = world.group(3)
    good = Snapshot(1, world.model, 3, group.head, 0, group.tiles)
    cases = [
        (replace(good, group=2), "not been trained"),
        (replace(good, round=1), "no recent version"),
        (replace(good, update=bytes(32)), "no recent version"),
        (replace(good, tiles=roots("x", len(group.tiles))), "not the version's"),
    ]
    for snapshot, why in cases:
        (error,) = world.errors(world.block(snapshot))
        assert why in error
    world.move(run, 3)
    assert world.errors(world.block(good)) == [None]
    assert world.group(3).snapshot == group.head


@pytest.mark.parametrize(
    "tokens, weights",
    [
        ([], []),
        ([500], [PPM]),
        ([0], [PPM]),
        ([0, 0, 0], [333_333] * 3),
        ([100, 100], [500_000, 500_000]),
        ([100, 900], [333_333, 666_666]),  # 900 counts as twice the lower median
        ([0, 7], [500_000, 500_000]),  # the median is 0: all count alike
        ([10, 10, 1000], [250_000, 250_000, 500_000]),
        ([1, 10**6, 10**6], [1, 499_999, 499_999]),
    ],
)
def test_weights_of_few_contributions(tokens, weights):
    assert contribution_weights(tokens) == weights


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_weights_are_capped_ordered_and_nearly_whole(tokens):
    weights = contribution_weights(tokens)
    assert all(1 <= weight <= PPM for weight in weights)
    assert PPM - len(tokens) <= sum(weights) <= PPM + len(tokens)
    cap = 2 * sorted(tokens)[(len(tokens) - 1) // 2]
    by_tokens = sorted(zip(tokens, weights))
    assert [w for _, w in by_tokens] == sorted(weights), "more tokens, no less weight"
    if cap:
        heavy = {w for t, w in zip(tokens, weights) if t >= cap}
        assert len(heavy) <= 1, "nobody gains by more than twice the median"


def test_a_stranger_with_many_tokens_gains_at_most_twice_the_median():
    honest = contribution_weights([1000] * 4 + [10**9])
    assert honest[-1] <= 2 * honest[0] + 1
