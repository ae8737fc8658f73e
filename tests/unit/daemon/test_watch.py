"""Offences that a node sees in the blocks that reach it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import trio
import trio.testing

from blyan_proto.block.economy import Offence
from blyan_proto.block.model import Cosignature
from blyan_proto.codec import encode
from blyan_proto.signing import Purpose
from blyand.events import BlockStored, Broadcast
from blyand.guard import watch as guard
from blyand.guard.evidence import Reporter
from blyand.guard.watch import Watch
from blyand.rules.trust.slashing import SLASHES
from tests.unit.daemon.chain_world import beat, key, sign_block
from tests.unit.daemon.validators_world import Validating
from tests.vectors import make_proto as made

ONE, OTHER = bytes([1]) * 32, bytes([2]) * 32


class Scene:
    """A registered node that watches a network of validators."""

    def __init__(self):
        self.world = Validating()
        self.made = []
        self.blocks = {}
        self.events = Broadcast()
        self.watch = Watch(
            self.world.genesis.id,
            lambda: self.world.view,
            Reporter(
                self.world.genesis.id,
                lambda: self.world.view,
                self._make,
                random.Random(1),
            ),
            self.blocks.get,
            self.events,
        )

    async def _make(self, evidence):
        self.made.append(evidence)
        self.world.checkpoint(self.world.block(evidence, self.world.keys[2]))

    def report(self):
        """Let what was seen become blocks; return who was slashed for what."""

        async def main():
            with trio.move_on_after(60):
                await self.watch._reporter.run()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        slashes = SLASHES.scan(self.world.view)
        return [(slash.offender, slash.offence) for slash in slashes]

    def update(self, *signers, **changed):
        """An update with the claims of these ranks, at a lease that state can judge."""
        height = self.world.height
        update = replace(made.UPDATE, lease_epoch=height, **changed)
        network = self.world.genesis.id
        return replace(
            update,
            cosignatures=tuple(
                Cosignature(
                    one.public, one.sign(Purpose.TILE_UPDATE, network, update.claim)
                )
                for one in signers
            ),
        )


def test_two_claims_of_one_lease_are_reported_of_every_rank_that_signed_both():
    scene = Scene()
    one, two, three = (scene.world.keys[n] for n in (0, 1, 2))
    first = scene.update(one, two)
    scene.watch.claimed(first)
    scene.watch.claimed(first)
    scene.watch.claimed(scene.update(three, parent=ONE))
    assert scene.report() == []
    scene.watch.claimed(scene.update(two, parent=OTHER))
    assert scene.report() == [(two.account, Offence.DOUBLE_HEAD)]
    scene.watch.claimed(scene.update(two, parent=ONE))
    assert len(scene.report()) == 1, "state has it"


def test_a_claim_that_somebody_made_up_does_not_hide_two_true_ones():
    scene = Scene()
    one, other = scene.world.keys[1], scene.world.keys[2]
    forged = scene.update(other, parent=OTHER)
    (by_other,) = forged.cosignatures
    in_its_name = Cosignature(one.public, by_other.signature)
    scene.watch.claimed(replace(forged, cosignatures=(in_its_name,)))
    scene.watch.claimed(scene.update(one))
    assert scene.report() == []
    scene.watch.claimed(scene.update(one, parent=ONE))
    assert scene.report() == [(one.account, Offence.DOUBLE_HEAD)]


def test_another_round_of_a_lease_is_no_second_head():
    scene = Scene()
    one = scene.world.keys[1]
    scene.watch.claimed(scene.update(one))
    scene.watch.claimed(scene.update(one, parent=ONE, round=made.UPDATE.round + 1))
    assert scene.report() == []


def test_what_ranks_signed_is_remembered_within_a_bound(monkeypatch):
    monkeypatch.setattr(guard, "CLAIMS", 3)
    scene = Scene()
    one = scene.world.keys[1]
    for round in range(9):
        scene.watch.claimed(scene.update(one, round=round))
    assert len(scene.watch._claims) == 3
    scene.watch.claimed(scene.update(one, round=8, parent=ONE))
    assert scene.report() == [(one.account, Offence.DOUBLE_HEAD)]


def test_stored_updates_are_looked_at():
    scene = Scene()
    one = scene.world.keys[1]
    first, second = scene.update(one), scene.update(one, parent=ONE)

    async def main():
        async with trio.open_nursery() as nursery:
            await nursery.start(scene.watch.run)
            for payload in (beat(), first, second):
                scene.events.publish(BlockStored(scene.world.block(payload, one)))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert scene.report() == [(one.account, Offence.DOUBLE_HEAD)]


def lying(scene, how):
    world, one = scene.world, scene.world.keys[1]
    if how == "payload":
        return sign_block(world.genesis, one, beat(), payload_bytes=1)
    parent = sign_block(world.genesis, one, beat())
    scene.blocks[parent.id] = parent
    fields = dict(parents=(parent.id,), height=parent.header.height + 7)
    return sign_block(world.genesis, one, beat(load=1), sequence=2, **fields)


@pytest.mark.parametrize("how", ["payload", "height"])
def test_a_refused_block_that_lies_is_reported(how):
    scene = Scene()
    bad = lying(scene, how)
    for _ in range(3):
        scene.watch.refused(bad)
    assert scene.report() == [(scene.world.keys[1].account, Offence.INVALID_BLOCK)]
    assert len(scene.made) == 1


def test_what_somebody_else_made_of_a_block_is_not_its_authors_fault():
    scene = Scene()
    world, one = scene.world, scene.world.keys[1]
    good = sign_block(world.genesis, one, beat())
    bad = lying(scene, "payload")
    for block in (
        replace(good, payload=encode(beat(load=3))),  # another payload
        replace(bad, signature=good.signature),  # the author did not sign this
        sign_block(world.genesis, key("nobody"), beat(), payload_bytes=1),
        sign_block(world.genesis, one, beat(), time_ms=1),  # refused, yet no lie
    ):
        scene.watch.refused(block)
    assert scene.report() == [] and scene.made == []
