"""How many ranks must have signed an update: two, where two are alive (DEC-A5)."""

from __future__ import annotations

from blyan_proto.types import bitmap
from blyand.rules.model.election import ranks
from blyand.rules.model.signatures import PATIENCE, has_enough
from blyand.rules.records import VERSIONS
from tests.unit.daemon.chain_world import Training, beat

LIVENESS_MS = 10_000
ALIVE = "another rank of the group is alive"


def beating(world, *keys):
    """Let these nodes say that they live."""
    held = bitmap(set(range(world.groups)), world.groups)
    blocks = [world.block(beat(world.model, held), key) for key in keys]
    assert world.errors(*blocks, step_ms=LIVENESS_MS // 2) == [None] * len(blocks)


def test_one_signature_is_not_enough_while_another_rank_lives():
    world = Training()
    run = world.open()
    block = world.update(run, 3, signatures=1)
    assert not has_enough(world.view, block, LIVENESS_MS)
    (error,) = world.errors(block)
    assert ALIVE in error
    both = world.update(run, 3)
    assert has_enough(world.view, both, LIVENESS_MS)
    assert world.errors(both) == [None]
    version = VERSIONS.get(world.view, run, 0, 3)
    signed = [cosignature.signer for cosignature in both.content.cosignatures]
    assert list(version.signers) == [world.author_of(k).account for k in signed]
    assert not version.is_single
    assert (version.parent, version.base) == (both.content.parent, both.content.base)


def test_a_node_alone_signs_alone_and_the_version_says_so():
    world = Training(nodes=1)
    run = world.open()
    block = world.update(run, 3, learners=1)
    assert len(block.content.cosignatures) == 1
    assert has_enough(world.view, block, LIVENESS_MS)
    assert world.errors(block) == [None]
    assert VERSIONS.get(world.view, run, 0, 3).is_single


def test_who_is_silent_for_the_liveness_span_is_not_waited_for():
    world = Training()
    run = world.open()
    author = world.author_of(ranks(world.schedule(run, 0), 3)[0].key)
    beating(world, author)
    block = world.update(run, 3, signatures=1)
    assert not has_enough(world.view, block, LIVENESS_MS), "they may be back"
    beating(world, author)
    beating(world, author)
    assert has_enough(world.view, block, LIVENESS_MS)
    assert world.errors(block) == [None]
    assert VERSIONS.get(world.view, run, 0, 3).is_single


def test_who_lives_and_never_signs_does_not_stop_the_run():
    world = Training(nodes=2)
    run = world.open(deadline_ms=10_000)
    while world.time_ms - world.schedule(run, 0).opened_ms <= PATIENCE * 10_000:
        block = world.update(run, 3, signatures=1)
        assert not has_enough(world.view, block, LIVENESS_MS)
        beating(world, *world.keys)
    assert has_enough(world.view, block, LIVENESS_MS)
    assert world.errors(world.update(run, 3, signatures=1)) == [None]
    later = world.update(run, 3, signatures=1)
    assert not has_enough(world.view, later, LIVENESS_MS), "the wait begins anew"


def test_one_signature_counts_on_the_final_head_only():
    world = Training()
    run = world.open()
    first = world.update(run, 3)
    head = world.group(3)
    after = world.draft(
        run, 3, signatures=1, round=1, parent=first.id, base=first.content.result
    )
    author = world.author_of(after.cosignatures[0].signer)
    for _ in range(3):
        beating(world, author)
    block = world.block(after, author)
    assert world.group(3) == head
    assert not has_enough(world.view, block, LIVENESS_MS)
    assert world.errors(first) == [None]


def test_what_came_too_late_is_ordered_and_changes_nothing():
    """Else all that its author made later would wait for it."""
    world = Training()
    run = world.open()
    late = world.update(run, 3, signatures=1)
    assert not has_enough(world.view, late, LIVENESS_MS)
    assert world.errors(world.update(run, 3)) == [None]
    moved = world.group(3)
    assert has_enough(world.view, late, LIVENESS_MS)
    assert world.errors(late) != [None] and world.group(3) == moved
