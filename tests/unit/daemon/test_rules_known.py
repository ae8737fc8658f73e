"""What a node that began with a state knows of blocks that it never saw."""

from __future__ import annotations

from blyan_proto.types import Chain
from blyand.rules.chain.known import Known, tip_place
from tests.unit.daemon.chain_world import Training, World, beat


def test_tips_heads_and_what_blocks_name_are_known_others_are_not():
    world = Training()
    run = world.open()
    world.move(run)
    group = world.group(0)
    known = Known()
    for id in (world.model, world.dataset, run, group.head, group.snapshot):
        assert known.has(world.view, 1, id)
    old, new = world.ordered(beat()), world.ordered(beat())
    assert tip_place(world.view, new.id) == (Chain.LEDGER, new.header.height)
    assert not known.has(world.view, 1, new.id), "the disk knows it"
    assert known.has(world.view, 2, new.id), "a state of later shows it"
    assert not known.has(world.view, 2, old.id)
    assert tip_place(world.view, old.id) is None


def test_strangers_ids_cost_no_scan_each(monkeypatch):
    world, known = Training(), Known()
    assert not known.has(world.view, 1, bytes(32))
    monkeypatch.setattr(world.view, "scan", None)
    assert not known.has(world.view, 1, b"1" * 32)


def test_a_block_that_is_ordered_twice_takes_effect_once():
    """A node without the blocks below its state cannot see it; execution does."""
    world = World()
    once = world.ordered(beat())
    world.ordered(beat())
    kept = (b"node/", b"used/", b"balance/", b"supply/")

    def of_accounts() -> dict[bytes, bytes]:
        pairs = world.view.scan(b"")
        return {key: value for key, value in pairs if key.startswith(kept)}

    before = of_accounts()
    (error,) = world.errors(once)
    assert error is not None and "spent" in error
    assert of_accounts() == before
