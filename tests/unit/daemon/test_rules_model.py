"""A model is born once, with whole first weights from its creator."""

from __future__ import annotations

import pytest

from blyan_proto.block.model import Dtype, Placement, Weights
from blyan_tile.layout import group_root
from blyand.rules.model.heads import Which, pin
from blyand.rules.model.model import heads_root, layout_for
from blyand.rules.records import GROUPS, MODELS
from tests.unit.daemon.chain_world import (
    ARCHITECTURE,
    Training,
    World,
    model,
    replace,
    roots,
)


@pytest.fixture
def world():
    return World()


def weights(world, id, group, /, **changed):
    tiles = len(layout_for(model()).groups[group].tiles)
    made = Weights(1, id, group, roots(("first", group), tiles))
    return world.block(replace(made, **changed))


def test_weights_make_the_model_whole_one_group_after_the_other(world):
    made = world.ordered(model())
    record = MODELS.get(world.view, made.id)
    assert (record.groups, record.weights, record.heads_root) == (7, 0, None)
    assert pin(world.view, made.id, Which.ADOPTED) is None
    blocks = [weights(world, made.id, group) for group in range(7)]
    assert world.errors(*blocks[:6]) == [None] * 6
    assert MODELS.get(world.view, made.id).heads_root is None
    assert world.errors(blocks[6]) == [None]
    record = MODELS.get(world.view, made.id)
    groups = list(GROUPS.scan(world.view, made.id))
    assert [g.group for g in groups] == list(range(7))
    assert record.heads_root == heads_root([g.tiles for g in groups])
    assert record.adopted_height == world.height
    pinned = pin(world.view, made.id, Which.ADOPTED)
    assert pinned.root(3) == group_root([t.weights for t in groups[3].tiles])


def test_weights_that_do_not_fit_change_nothing(world):
    made = world.ordered(model())
    stranger = Weights(1, made.id, 0, roots("x", 2))
    cases = [
        (weights(world, made.id, 3, group=7), "no group 7"),
        (weights(world, made.id, 3, tiles=roots("x", 9)), "another number of tiles"),
        (weights(world, bytes(32), 3), "unknown model"),
        (world.block(stranger, world.keys[1]), "only the model's creator"),
    ]
    for block, why in cases:
        assert why in world.errors(block)[0]
    assert world.errors(weights(world, made.id, 3)) == [None]
    again = weights(world, made.id, 3, tiles=roots("again", 3))
    assert "first weights already" in world.errors(again)[0]
    assert MODELS.get(world.view, made.id).weights == 1


@pytest.mark.parametrize(
    "changed, why",
    [
        (dict(dtype=Dtype.I8), "stored as floats"),
        (dict(tokenizer="other"), "a tokenizer is bytes or"),
        (dict(tokenizer="AB" * 32), "a tokenizer is bytes or"),
        (dict(architecture=replace(ARCHITECTURE, experts_per_token=5)), "more experts"),
        (dict(architecture=replace(ARCHITECTURE, layers=0)), "impossible"),
        (dict(architecture=replace(ARCHITECTURE, experts=65_535)), "impossible"),
        (dict(architecture=replace(ARCHITECTURE, vocabulary=2**32 - 1)), "impossible"),
    ],
)
def test_an_impossible_model_is_not_born(world, changed, why):
    block = world.block(model(**changed))
    assert why in world.errors(block)[0]
    assert MODELS.get(world.view, block.id) is None


@pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16, Dtype.BF16])
def test_a_model_may_be_stored_in_half_precision(world, dtype):
    block = world.block(model(dtype=dtype))
    assert world.errors(block) == [None]
    assert MODELS.get(world.view, block.id).model.dtype is dtype


def test_only_the_creator_changes_the_placement(world):
    made = world.ordered(model())
    change = Placement(1, made.id, 3, 0)
    assert "only the" in world.errors(world.block(change, world.keys[1]))[0]
    assert "limit" in world.errors(world.block(replace(change, expert_limit=1)))[0]
    assert (
        "unknown model"
        in world.errors(world.block(replace(change, model=bytes(32))))[0]
    )
    assert world.errors(world.block(change)) == [None]
    assert MODELS.get(world.view, made.id).model.replication == 3
    world.ordered(replace(change, replication=0))
    assert MODELS.get(world.view, made.id).model.replication == 2, "the genesis's"


def test_a_request_pins_trained_or_adopted_heads():
    world = Training()
    run = world.open()
    world.move(run, 3)
    trained = pin(world.view, world.model, Which.TRAINED)
    adopted = pin(world.view, world.model, Which.ADOPTED)
    assert trained.tiles[3] == world.group(3).tiles != adopted.tiles[3]
    assert trained.tiles[2] == adopted.tiles[2]
