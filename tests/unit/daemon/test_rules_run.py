"""A run opens, closes rounds K ahead of itself, ends, and is adopted by a validator."""

from __future__ import annotations

import pytest

from blyan_proto.block.model import Codec, CodecChoice, RateStep, TensorClass
from blyan_proto.genesis import Setting
from blyan_proto.types import bitmap
from blyand.rules.model import places
from blyand.rules.model import run as run_rules
from blyand.rules.model.election import ranks
from blyand.rules.model.places import OPEN_RUNS, open_runs
from blyand.rules.records import MODELS, RUNS, SCHEDULES, VERSIONS
from tests.unit.daemon.chain_world import (
    Training,
    World,
    beat,
    dataset,
    key,
    model,
    registration,
    replace,
    run_of,
    sign_block,
)


@pytest.fixture
def world():
    return Training()


def scheduled(world, run):
    """The rounds that have a schedule."""
    return [r for r in range(40) if SCHEDULES.get(world.view, run, r) is not None]


def kept(world, run):
    """The rounds of which state knows a version of group 1."""
    return [r for r in range(40) if VERSIONS.get(world.view, run, r, 1) is not None]


def test_the_first_rounds_are_scheduled_when_the_run_opens(world):
    run = world.open(rounds=9)
    assert scheduled(world, run) == [0, 1, 2]
    assert {s.account for s in world.schedule(run, 0).seats} == {
        key.account for key in world.keys
    }
    assert world.schedule(run, 0).epoch == world.height
    assert MODELS.get(world.view, world.model).run == run


def test_a_model_whose_updates_name_too_many_tiles_is_not_trained(world, monkeypatch):
    monkeypatch.setattr(run_rules, "MAX_TRAINED_TILES", 2)
    (error,) = world.errors(world.block(run_of(world.model, world.dataset)))
    assert "more than 2 tiles" in error


def test_a_short_run_has_no_more_schedules_than_rounds(world):
    assert scheduled(world, world.open(rounds=1)) == [0]


def test_a_round_closes_when_every_group_moved_and_opens_the_next_but_two(world):
    run = world.open(rounds=9)
    world.move(run, *range(world.groups - 1))
    assert RUNS.get(world.view, run).closed == 0
    assert scheduled(world, run) == [0, 1, 2]
    world.move(run, world.groups - 1)
    assert RUNS.get(world.view, run).closed == 1
    assert scheduled(world, run) == [0, 1, 2, 3]
    assert world.schedule(run, 3).epoch == world.height
    assert world.schedule(run, 2).epoch < world.height, "an open round keeps its lease"


def test_groups_run_ahead_and_rounds_close_in_one_go(world):
    run = world.open(rounds=9)
    for _ in range(3):
        world.move(run, *range(1, world.groups))
    record = RUNS.get(world.view, run)
    assert record.closed == 0 and record.counts == (6, 6, 6)
    world.move(run, 0)
    assert RUNS.get(world.view, run).closed == 1
    for _ in range(2):
        world.move(run, 0)
    record = RUNS.get(world.view, run)
    assert record.closed == 3 and record.counts == ()
    assert scheduled(world, run) == [0, 1, 2, 3, 4, 5]


def test_three_rounds_in_one_checkpoint(world):
    run = world.open(rounds=9)
    for _ in range(2):
        world.move(run, *range(1, world.groups))
    world.move(run, 0)
    world.move(run, *range(1, world.groups))
    assert RUNS.get(world.view, run).closed == 1
    world.move(run, 0)
    assert RUNS.get(world.view, run).closed == 2


def test_the_last_round_finishes_the_run_and_frees_the_model(world):
    run = world.open(rounds=2)
    world.move(run)
    (error,) = world.errors(world.block(run_of(world.model, world.dataset)))
    assert "has an open run" in error
    world.move(run)
    record = RUNS.get(world.view, run)
    assert record.finished and record.closed == 2
    assert MODELS.get(world.view, world.model).run is None
    again = world.open()
    assert MODELS.get(world.view, world.model).run == again
    assert "no such open run" in world.errors(world.update(run, 1, rank=0))[0]
    world.move(again, 1)
    assert world.group(1).rounds == 1


def test_what_is_far_behind_is_forgotten(world, monkeypatch):
    monkeypatch.setattr(run_rules, "VERSIONS_KEPT", 3)
    run = world.open(rounds=8)
    for _ in range(6):
        world.move(run)
    assert kept(world, run) == [3, 4, 5]
    assert scheduled(world, run) == [3, 4, 5, 6, 7]


def test_who_is_live_is_read_when_the_schedule_is_written():
    world = Training(nodes=4)
    held = bitmap(set(range(world.groups)), world.groups)
    liveness = world.genesis.parameters.liveness_span_ms
    beats = [world.block(beat(world.model, held), key) for key in world.keys[:3]]
    world.checkpoint(*beats, step_ms=liveness)
    world.checkpoint(step_ms=1)
    run = world.open()
    accounts = {seat.account for seat in world.schedule(run, 0).seats}
    assert accounts == {key.account for key in world.keys[:3]}


def test_a_beacon_never_draws_among_those_who_came_with_or_after_it():
    """Candidates of beacon(n) were registered before checkpoint n (DEC-A7)."""
    newcomer, seated = key("newcomer"), []
    for later in range(3):
        world = Training()
        held = bitmap(set(range(world.groups)), world.groups)
        world.ordered(registration(newcomer), newcomer)
        registered = world.height
        world.ordered(beat(world.model, held), newcomer)
        for _ in range(later):
            world.checkpoint()
        run = world.open()
        used = world.height - 2  # whose beacon this schedule draws with
        accounts = {seat.account for seat in world.schedule(run, 0).seats}
        assert (newcomer.account in accounts) == (registered < used)
        seated.append(newcomer.account in accounts)
    assert seated == [False, True, True]


LIVENESS_MS = 10_000


def beats(world, *keys):
    """Heartbeats of these nodes, who hold everything."""
    held = bitmap(set(range(world.groups)), world.groups)
    return [world.block(beat(world.model, held), key) for key in keys]


def silence(world, *keys, steps=5):
    """Let three liveness spans pass in which only these nodes beat."""
    for _ in range(steps):
        world.checkpoint(*beats(world, *keys), step_ms=LIVENESS_MS * 3 // 5)


def test_a_schedule_without_anybody_is_written_anew_when_they_are_back(world):
    """The validators were away: time jumps, and heartbeats come a checkpoint too late."""
    run = world.open(rounds=9)
    world.move(run, *range(1, world.groups))
    world.checkpoint(world.update(run, 0), step_ms=60_000)
    empty = world.schedule(run, 3)
    assert empty.seats == ()
    for _ in range(2):
        for node in world.keys:  # one by one
            world.checkpoint(*beats(world, node))
        world.move(run)
    assert RUNS.get(world.view, run).closed == 3
    assert world.schedule(run, 3) == empty, "not before everybody could beat"
    silence(world, *world.keys)
    again = world.schedule(run, 3)
    assert len(again.seats) == 3 and again.epoch > empty.epoch
    for _ in range(6):
        world.checkpoint(*beats(world, *world.keys))
        world.move(run)
    assert RUNS.get(world.view, run).finished


def test_a_round_whose_every_rank_died_gets_others():
    world = Training(nodes=5)
    run = world.open(rounds=2)
    old = world.schedule(run, 0)
    dead = {seat.key for seat in ranks(old, 3)}
    alive = [key for key in world.keys if key.public not in dead]
    late = world.update(run, 3)
    silence(world, *alive)
    new = world.schedule(run, 0)
    assert new.epoch > old.epoch
    assert {seat.key for seat in new.seats} == {key.public for key in alive}
    assert "lease epoch" in world.errors(late)[0], "the old lease is over"
    assert world.errors(world.update(run, 3, learners=0)) == [None]


def test_one_rank_alive_is_enough_to_keep_a_schedule():
    world = Training(nodes=5)
    run = world.open(rounds=2)
    old = world.schedule(run, 0)
    last = [
        world.author_of(seat.key)
        for g in range(world.groups)
        for seat in ranks(old, g)[2:]
    ]
    silence(world, *set(last))
    assert world.schedule(run, 0) == old
    assert RUNS.get(world.view, run).stuck_ms == 0


def test_where_nobody_is_alive_no_schedule_is_written(world):
    run = world.open(rounds=2)
    old = world.schedule(run, 0)
    silence(world)
    assert world.schedule(run, 0) == old
    assert RUNS.get(world.view, run).stuck_ms == 0


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(rounds=0), "1 to 1,000,000 rounds"),
        (dict(inner_steps=0), "needs inner steps"),
        (dict(batch=0), "needs inner steps"),
        (dict(sequence=1), "needs inner steps"),
        (dict(sequence=65), "longer than the model's context"),
        (dict(held_out_ppm=20_000), "another share than its datasets"),
        (dict(quorum_ppm=1_000_001), "a share"),
        (dict(outer_momentum_ppm=1_000_000), "momentum"),
        (dict(feedback_ppm=1_000_001), "error feedback"),
        (dict(beta1_ppm=1_000_000), "betas"),
        (dict(beta2_ppm=1_000_000), "betas"),
        (dict(delta_clip_ppm=1), "1 to 1000 times"),
        (dict(rotation=1), "not in this version"),
        (dict(first_checkpoint=9), "in this version"),
        (dict(rounds_ahead=0), "1 to 8 rounds"),
        (dict(rounds_ahead=9), "1 to 8 rounds"),
        (dict(inner_rate=(RateStep(1, 5),)), "begin at round 0"),
        (dict(inner_rate=(RateStep(0, 5), RateStep(0, 4))), "ascend"),
        (
            dict(codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.NONE, 0),)),
            "codec NONE",
        ),
        (
            dict(codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.LR4, 0),)),
            "LR4 has no setting 0",
        ),
        (
            dict(codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.LR4, 256),)),
            "LR4 has no setting 256",
        ),
        (
            dict(codecs=(CodecChoice(TensorClass.VECTOR, 0, Codec.DENSE, 1),)),
            "DENSE has no setting 1",
        ),
        (dict(datasets=(bytes(32),)), "unknown dataset"),
        (dict(model=bytes(32)), "unknown model"),
    ],
)
def test_a_run_with_impossible_numbers_opens_nothing(world, change, why):
    payload = replace(run_of(world.model, world.dataset), **change)
    (error,) = world.errors(world.block(payload))
    assert why in error
    assert MODELS.get(world.view, world.model).run is None


def test_a_model_without_all_its_weights_is_not_trained():
    world = World()
    made = world.ordered(model())
    data = world.ordered(dataset())
    (error,) = world.errors(world.block(run_of(made.id, data.id)))
    assert "first weights are not complete" in error


def test_a_validator_adopts_a_closed_adoptable_round(world):
    run = world.open(rounds=4, adopt_every=2)
    world.move(run)
    heads = world.group(1).tiles
    for why, adoption, author in (
        ("not up for adoption", world.adoption(run, 0), world.keys[0]),
        ("not up for adoption", world.adoption(run, 1), world.keys[0]),
        ("unknown run", world.adoption(bytes(32), 0), world.keys[0]),
        ("only a validator", world.adoption(run, 0), world.keys[1]),
    ):
        assert why in world.errors(world.block(adoption, author))[0]
    world.move(run)
    lie = world.adoption(run, 1, heads_root=bytes(32))
    assert "names other heads" in world.errors(world.block(lie))[0]
    adopted = world.adoption(run, 1)
    assert world.errors(world.block(adopted)) == [None]
    record = MODELS.get(world.view, world.model)
    assert (record.adopted_run, record.adopted_round) == (run, 2)
    assert record.heads_root == adopted.heads_root
    group = world.group(1)
    assert group.adopted == group.tiles != heads
    assert group.adopted_head == group.head
    world.move(run)
    after = world.group(1)
    assert after.adopted == group.tiles != after.tiles


def test_adoption_never_goes_back(world):
    run = world.open(rounds=9, adopt_every=1)
    for _ in range(3):
        world.move(run)
    early, late = world.adoption(run, 0), world.adoption(run, 2)
    assert world.errors(world.block(late)) == [None]
    heads = world.group(1).adopted
    for again in (early, late):
        (error,) = world.errors(world.block(again))
        assert "or a later one is adopted" in error
    assert world.group(1).adopted == heads


def test_an_old_run_does_not_take_the_heads_back(world):
    old = world.open(rounds=2)
    world.move(old)
    world.move(old)
    last = world.adoption(old, 1)
    new = world.open(rounds=2, adopt_every=1)
    world.move(new)
    assert world.errors(world.block(world.adoption(new, 0))) == [None]
    heads = world.group(1).adopted
    (error,) = world.errors(world.block(last))
    assert "later run" in error
    assert world.group(1).adopted == heads


def test_a_second_run_is_adopted_from_its_first_round_on(world):
    old = world.open(rounds=3)
    for _ in range(3):
        world.move(old)
    assert world.errors(world.block(world.adoption(old, 2))) == [None]
    new = world.open(rounds=2, adopt_every=1)
    world.move(new)
    assert world.errors(world.block(world.adoption(new, 0))) == [None]
    record = MODELS.get(world.view, world.model)
    assert (record.adopted_run, record.adopted_round) == (new, 1)


def test_an_adoption_of_forgotten_rounds_changes_nothing(world, monkeypatch):
    monkeypatch.setattr(run_rules, "VERSIONS_KEPT", 2)
    run = world.open(rounds=9, adopt_every=1)
    world.move(run)
    first = world.adoption(run, 0)
    for _ in range(3):
        world.move(run)
    (error,) = world.errors(world.block(first))
    assert "no longer held" in error


def test_the_genesis_stands_in_for_a_model_without_replication():
    world = World()
    made = world.ordered(model(replication=0))
    wanted = world.genesis.parameters.replication
    assert MODELS.get(world.view, made.id).model.replication == wanted


def test_blocks_of_a_run_without_a_chain_of_parents_are_signed_blocks_too(world):
    """A signed block made by hand executes like one from the world's own maker."""
    payload = run_of(world.model, world.dataset)
    block = sign_block(world.genesis, world.keys[2], payload, sequence=99)
    assert world.errors(block) == [None]


IDLE_MS = 5_000


@pytest.fixture
def crowded(monkeypatch):
    """A network with two places for runs and three models."""
    monkeypatch.setattr(places, "MAX_OPEN_RUNS", 2)
    return Training(settings=(Setting("run_idle_span_ms", IDLE_MS),))


def opened(world):
    return {record.id for record in open_runs(world.view)}


def test_a_stranger_opens_no_run(world):
    block = world.block(run_of(world.model, world.dataset), key("stranger"))
    assert world.errors(block) == ["only a registered node opens a run"]


def test_a_run_that_stands_still_makes_room_when_every_place_is_taken(crowded):
    world = crowded
    second, third = (world.grow(name=name)[0] for name in ("second", "third"))
    still, moving = world.open(model=second), world.open()
    newcomer = run_of(third, world.dataset)
    (error,) = world.errors(world.block(newcomer))
    assert error == "2 runs are open, and none stands still"
    world.checkpoint(step_ms=IDLE_MS - 1_000)
    world.move(moving, 0)
    world.checkpoint(step_ms=1_000)
    new = world.ordered(newcomer).id
    assert opened(world) == {moving, new}
    assert RUNS.get(world.view, still).finished
    assert MODELS.get(world.view, second).run is None
    assert MODELS.get(world.view, third).run == new
    again = run_of(second, world.dataset)
    (error,) = world.errors(world.block(again))
    assert error == "2 runs are open, and none stands still", "both moved lately"


def test_a_finished_run_gives_its_place_back(crowded):
    run = crowded.open(rounds=1)
    assert opened(crowded) == {run}
    crowded.move(run)
    assert list(OPEN_RUNS.scan(crowded.view)) == []


def test_one_open_run_a_checkpoint_is_searched_for_stuck_rounds(world, monkeypatch):
    runs = sorted([world.open(), world.open(model=world.grow(name="second")[0])])
    searched = []

    def stuck(view, record, liveness_ms):
        searched.append(record.id)
        return []

    monkeypatch.setattr(run_rules, "stuck_rounds", stuck)
    for _ in range(4):
        world.checkpoint()
    assert len(searched) == 4 and searched[:2] == searched[2:]
    assert sorted(searched[:2]) == runs


@pytest.mark.parametrize("every", [0, 1, 3])
def test_the_newest_round_to_adopt_is_found_without_looking_at_all(every):
    run = run_of(b"m" * 32, b"d" * 32, rounds=7, adopt_every=every)
    for closed in range(8):
        due = [one for one in range(closed) if run_rules.is_adoptable(run, one)]
        assert run_rules.newest_adoptable(run, closed) == (due[-1] if due else None)
