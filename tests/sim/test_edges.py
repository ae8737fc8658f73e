"""Two regions: what is far crosses once, and an edge that fails costs nobody its delta."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from blyan_proto.block.model import TileUpdate
from blyan_proto.protocols.delta import Receipt, Verdict
from blyan_proto.protocols.edge import Addressed
from blyan_proto.types import Role
from blyand.protocols.delta import signed_receipt
from blyand.rpc.fates import Kept, explained, known_of
from blyand.rpc.reports import names_of
from blyand.rules.model.election import contributors, ranks, seat_of
from blyand.rules.records import SCHEDULES
from tests.long import long
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode

ROUNDS = 2
Handed = defaultdict[bytes, list[Addressed]]  # by the digest of the manifest
Forward = Callable[[Sequence[Addressed]], Awaitable[list[Receipt | None]]]


def two_regions(home: Path) -> Training:
    net = Training(home, 1, count=4)
    for index, node in enumerate(net.nodes):
        net.wire.regions[node.name] = "ab"[index % 2]
    return net


def left_out(net: Training, run: bytes, rounds: int = ROUNDS) -> list[tuple[int, int]]:
    """Return (round, group) of the updates that lack a living learner's delta."""
    reader, found = net.nodes[0], []
    alive = {n.key.account for n in net.nodes if n.name not in net.wire.down}
    for index in range(len(net.layout.groups)):
        for block in net.updates(reader, index):
            update: TileUpdate = block.content
            schedule = SCHEDULES.get(reader.machine.view, run, update.round)
            assert schedule is not None
            seats = contributors(schedule, index, Role.LEARN)
            listed = {part.learner for part in update.contributions}
            lacking = {seat.account for seat in seats} & alive - listed
            if lacking and update.round < rounds:
                found.append((update.round, index))
    return found


def test_far_deltas_cross_once_and_receipts_come_back(tmp_path):
    async def main() -> None:
        net = two_regions(tmp_path)
        handed: Handed = defaultdict(list)
        parcels: list[int] = []
        for node in net.nodes:
            _note(node, handed, parcels)
        async with net.running():
            net.wire.carried.clear()
            run = await net.begin(ROUNDS)
            await net.closes(run, ROUNDS)
            await net.settles()
            net.check()
            assert left_out(net, run) == []
        assert len(handed) > len(parcels), "what goes to one primary goes together"
        crossed = _far_bytes(net, run)
        assert crossed <= net.wire.carried[True] < 2.4 * crossed, net.wire.carried
        _receipts_are_the_primaries(net, run, handed)

    simulate(main)


def _note(node: TrainNode, handed: Handed, parcels: list[int]) -> None:
    """Note what this node's edge is given, and how many parcels it makes of it."""
    forward, hand_on = node.carrier.forward, node.carrier.edge._push

    async def noting(far: Sequence[Addressed]) -> list[Receipt | None]:
        for one in far:
            handed[one.bundle.manifest.digest].append(one)
        return await forward(far)

    async def counting(to, parcel):
        parcels.append(len(parcel.bundles))
        return await hand_on(to, parcel)

    node.carrier.forward, node.carrier.edge._push = noting, counting


def _far_bytes(net: Training, run: bytes) -> int:
    """Return the bytes of deltas that have to cross: each to the other region, once."""
    reader, total = net.nodes[0], 0
    for index in range(len(net.layout.groups)):
        held_in = {
            net.wire.regions[n.name]
            for n in net.nodes
            if index in n.holder.held(net.model)
        }
        if len(held_in) > 1:
            for block in net.updates(reader, index):
                total += sum(part.bytes for part in block.content.contributions)
    return total


def _receipts_are_the_primaries(net: Training, run: bytes, handed: Handed) -> None:
    """Each learner keeps, for what it gave an edge, what the primary itself signed."""
    kept = set()
    for node in net.nodes:
        for round in range(ROUNDS):
            schedule = SCHEDULES.get(node.machine.view, run, round)
            assert schedule is not None
            for one in node.rounds.receipts_of(run, round):
                asked = handed.get(one.manifest.digest, ())
                seats = [seat_of(schedule, each.to) for each in asked]
                if one.receipt.signer in [seat.key for seat in seats if seat]:
                    kept.add(one.manifest.digest)
    assert kept == handed.keys()


def silent(node: TrainNode) -> Forward:
    async def forward(far: Sequence[Addressed]) -> list[Receipt | None]:
        await trio.sleep_forever()
        raise AssertionError

    return forward


def withholding(node: TrainNode) -> Forward:
    async def forward(far: Sequence[Addressed]) -> list[Receipt | None]:
        return [None] * len(far)

    return forward


def forging(node: TrainNode) -> Forward:
    """It says itself what the primary would say."""

    async def forward(far: Sequence[Addressed]) -> list[Receipt | None]:
        network = node.genesis.id
        return [
            signed_receipt(node.key, network, one.bundle.manifest, ()) for one in far
        ]

    return forward


def altering(node: TrainNode) -> Forward:
    """It passes on deltas of other tokens under the learner's signature."""
    honest = node.carrier.forward

    async def forward(far: Sequence[Addressed]) -> list[Receipt | None]:
        broken = []
        for one in far:
            first, *rest = one.bundle.deltas
            deltas = (replace(first, tokens=first.tokens + 1), *rest)
            broken.append(replace(one, bundle=replace(one.bundle, deltas=deltas)))
        return await honest(broken)

    return forward


LIES = [
    silent,
    altering,
    pytest.param(withholding, marks=long),
    pytest.param(forging, marks=long),
]


@pytest.mark.parametrize("lie", LIES)
def test_an_edge_that_fails_costs_nobody_its_delta(tmp_path, lie):
    async def main() -> None:
        net = two_regions(tmp_path)
        asked: list[int] = []
        for node in net.nodes:
            bad = lie(node)

            async def forward(far: Sequence[Addressed], bad=bad):
                asked.append(len(far))
                return await bad(far)

            node.carrier.forward = forward
        async with net.running():
            run = await net.begin(ROUNDS)
            await net.closes(run, ROUNDS)
            await net.settles()
            net.check()
            assert asked, "edges were asked"
            assert left_out(net, run) == []

    simulate(main)


def test_an_edge_that_dies_with_deltas_in_its_hands(tmp_path):
    async def main() -> None:
        net = two_regions(tmp_path)
        dead: list[TrainNode] = []

        def dying(node: TrainNode) -> Forward:
            honest = node.carrier.forward

            async def forward(far: Sequence[Addressed]) -> list[Receipt | None]:
                if dead or node is net.nodes[0]:  # the validator
                    return await honest(far)
                dead.append(node)
                node.stop()
                await trio.sleep_forever()
                raise AssertionError

            return forward

        for node in net.nodes:
            node.carrier.forward = dying(node)
        async with net.running():
            run = await net.begin(ROUNDS)
            await net.closes(run, ROUNDS, net.nodes[0])
            up = [n for n in net.nodes if n not in dead]
            assert len(up) == 3
            await net.settles(*up)
            net.check(*up)
            # later rounds may go on without who waits for another rank of this one
            assert left_out(net, run, rounds=1) == []

    simulate(main)


def test_who_was_left_out_shows_the_receipt(tmp_path):
    """A rank that takes a delta by an edge, and leaves it out, has signed that it had it."""

    async def main() -> None:
        net = two_regions(tmp_path)
        victim = net.nodes[1]
        handed: Handed = defaultdict(list)
        for node in net.nodes:
            _note(node, handed, [])
            _leave_out(node, victim.key.account)
        async with net.running():
            run = await net.begin(1)
            await net.closes(run, 1)
            record = victim.run_record(run)
            known = known_of(
                victim.machine.view,
                Kept(victim.blocks, victim.rounds),
                record,
                0,
                victim.key.account,
                victim.key.account,
            )
            names = names_of(victim.machine.view, record)
            shown = explained(known, names, record, 0, victim.key.public)
            schedule = SCHEDULES.get(victim.machine.view, run, 0)
            assert schedule is not None
            by_edge = {
                entry.group
                for ones in handed.values()
                for one in ones
                if one.bundle.manifest.learner == victim.key.account
                for entry in one.bundle.manifest.entries
            }
            assert by_edge
            fates = {fate.group: fate for fate in shown.fates}
            for group in by_edge:
                fate = fates[names.group(group)]
                assert fate.fate == "left out" and "it was taken" in fate.why
                leader = ranks(schedule, group)[0]
                assert any(b.primary_key == leader.key for b in shown.bundles)

    simulate(main)


def _leave_out(node: TrainNode, victim: bytes) -> None:
    keep = node.primary._keep

    def keeping(manifest, index, place, taken):
        if manifest.learner != victim:
            return keep(manifest, index, place, taken)
        return Verdict.TAKEN

    node.primary._keep = keeping
