"""Rounds of training on three nodes: all end with the same roots, whatever fails."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import Cosignature, Snapshot, TileRoots, TileUpdate
from blyan_proto.constants import FORMAT_VERSION, PPM
from blyan_proto.protocols.delta import Verdict
from blyand.rules.model.election import ranks
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.records import NODES, SCHEDULES
from blyand.training.membership import Listing
from tests.sim.network import until
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode

TRUNK = 1  # a group that everybody holds


def learners(net: Training, group: int) -> list[set[str]]:
    """Return, round by round, whose deltas are in a group's finalised updates."""
    names = {node.key.account: node.name for node in net.wire.nodes.values()}
    return [
        {names[part.learner] for part in block.content.contributions}
        for block in net.updates(net.nodes[0], group)
    ]


def first_rank(net: Training, run: bytes, round: int, group: int) -> TrainNode:
    schedule = SCHEDULES.get(net.nodes[0].machine.view, run, round)
    assert schedule is not None
    seat = ranks(schedule, group)[0]
    return next(node for node in net.nodes if node.key.account == seat.account)


def who_can_go_on(net: Training, run: bytes) -> tuple[TrainNode, TrainNode]:
    """Return two nodes that are ranks of the trunk in round 0, without the first."""
    schedule = SCHEDULES.get(net.nodes[0].machine.view, run, 0)
    assert schedule is not None
    ranked = {seat.account for seat in ranks(schedule, TRUNK)}
    one, other, *_ = (n for n in net.nodes[1:] if n.key.account in ranked)
    return one, other


def handing_in_twice(node: TrainNode) -> list[Verdict]:
    """Let a node send each bundle once more; return the later answers, as they come."""
    later: list[Verdict] = []

    async def twice(peer, bundle):
        receipt = await node.push(peer, bundle)
        again = await node.push(peer, bundle)
        later.extend(verdict.verdict for verdict in again.verdicts)
        return receipt

    delivery = node.learner._delivery
    delivery._reach = replace(delivery._reach, push=twice)
    return later


def test_runs_close_and_everybody_holds_the_same(tmp_path):
    """Though gossip loses messages; and a second run goes on from the first."""

    async def main() -> None:
        net = Training(tmp_path, loss=0.1)
        answers = handing_in_twice(net.nodes[1])
        async with net.running():
            for rounds in (3, 1):
                run = await net.begin(
                    rounds, adopt_every=2, snapshot_every=2, delta_clip_ppm=3 * PPM
                )
                await net.closes(run, rounds)
                await until(
                    lambda: all(n.adopted_run(net.model) == run for n in net.nodes)
                )
            await net.settles()
            net.check()
            assert all(node.adopted(net.model) == 1 for node in net.nodes)
            settings = net.nodes[0].run_record(run).run
            for index, group in enumerate(net.nodes[1].heads(net.model)):
                assert group.rounds == 1 and group.run == run and group.median
                *_, last = net.updates(net.nodes[0], index)
                clips = [part.clip_ppm for part in last.content.contributions]
                assert min(clips) < max(clips) == PPM
                roots = [tile.weights for tile in group.tiles]
                assert net.recomputed(net.nodes[1], settings, index) == roots
            assert learners(net, TRUNK) == [{node.name for node in net.nodes}] * 4
            assert answers and Verdict.TAKEN not in answers
            assert not any(node.primary._open for node in net.nodes)
            assert net.nodes[1].learner.status == "no run is open"

    simulate(main)


def test_a_primary_that_dies_before_it_publishes_is_passed_over(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 2)
        async with net.running():
            run = await net.begin(3)
            victim = next(
                first_rank(net, run, 1, group.index)
                for group in net.layout.groups
                if first_rank(net, run, 1, group.index) is not net.nodes[0]
            )
            dying = trio.Event()

            async def never(payload, **more) -> Block:
                if isinstance(payload, TileUpdate) and payload.round == 1:
                    dying.set()
                    await trio.sleep_forever()
                return await victim.author.make(payload, **more)

            victim.make = never
            await dying.wait()
            victim.stop()
            others = [node for node in net.nodes if node is not victim]
            await net.closes(run, 3, *others)
            made = net.updates(others[0], TRUNK)
            assert victim.key.account not in {b.header.account for b in made[1:]}
            back = victim.again()
            net.nodes = [*others, back]
            await net.start(back)
            await net.closes(run, 3)
            await net.settles()
            net.check()

    simulate(main)


def test_what_a_split_made_gives_way_to_what_a_checkpoint_chose(tmp_path):
    """Ranks of a group publish on both sides; one side has the validator.

    On the other, two ranks have to be together. Experts are held on both.
    """

    async def main() -> None:
        net = Training(tmp_path, 8, count=4)
        net.payload = replace(net.payload, replication=3)
        for node in net.nodes:
            node.trainer.pace_s = 1.0  # the split comes before the first update
        async with net.running():
            run = await net.begin(4, deadline_ms=3_000)
            one, other = who_can_go_on(net, run)
            near = [node for node in net.nodes if node not in (one, other)]
            net.wire.side |= {one.name: 1, other.name: 1}
            moves = len(one.moves)
            await until(lambda: len(one.moves) > moves)
            await net.closes(run, 2, *near)
            net.wire.side.clear()
            await net.closes(run, 4)
            await net.settles()
            net.check()
            gone = one.rolled_back() & other.rolled_back()
            assert gone, "no head was given up"
            settings = net.nodes[0].run_record(run).run
            for index in gone:
                roots = [tile.weights for tile in one.heads(net.model)[index].tiles]
                assert net.recomputed(one, settings, index) == roots

    simulate(main)


def test_a_slow_learner_is_left_out_and_joins_a_later_round(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 3)
        slow = net.nodes[2]
        slow.trainer.pace_s = 8.0
        async with net.running():
            run = await net.begin(3)
            await until(lambda: slow.trainer.given_up > 0)
            slow.trainer.pace_s = 0.2
            await net.closes(run, 3)
            await net.settles()
            net.check()
            with_slow = [slow.name in names for names in learners(net, TRUNK)]
            assert not with_slow[0] and with_slow[-1]

    simulate(main)


def test_who_was_off_replays_and_who_lost_its_blobs_fetches_a_snapshot(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 4)
        first, poor, away = net.nodes
        async with net.running():
            run = await net.begin(4, snapshot_every=2)
            away.stop()
            await net.closes(run, 2, first, poor)
            back = net.nodes[2] = away.again()
            await net.start(back)
            await net.closes(run, 2)
            await net.settles()
            known = {
                root
                for group in back.heads(net.model)
                for block in net.updates(back, group.group)
                for tile in block.content.result
                for root in (tile.weights, tile.momentum)
            }
            assert back.wanted.got and not back.wanted.got & known, "only deltas"
            poor.stop()
            poor.blobs.close()
            shutil.rmtree(poor.home / "blobs")
            rich = net.nodes[1] = poor.again()
            await net.start(rich)
            await net.closes(run, 4)
            await net.settles()
            net.check()

            def named() -> Any:
                snapshot = rich.heads(net.model)[TRUNK].snapshot
                return first.blocks.get(snapshot).content

            # Who has the turn names a snapshot after the checkpoint of its round.
            await until(lambda: getattr(named(), "round", None) == 3)
            roots = [tile.weights for tile in named().result]
            await until(
                lambda: all(n.blobs.is_durable(r) for n in net.nodes for r in roots)
            )

    simulate(main)


def test_a_newcomer_takes_its_share_and_learns(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 6)
        for node in net.nodes:
            node.trainer.pace_s = 3.0  # a round takes as long as joining
        async with net.running():
            run = await net.begin(4)
            late = net.newcomer()
            await net.start(late)
            net.nodes.append(late)
            await net.closes(run, 4)
            await net.settles()
            net.check()
            assert NODES.get(net.nodes[0].machine.view, late.key.account) is not None
            assert any(late.name in names for names in learners(net, TRUNK))
            # Once the run is over, groups go to those that placement names.
            await until(lambda: all(net.holds_its_share(node) for node in net.nodes))

    simulate(main)


def lying(net: Training, liar: TrainNode, round: int) -> None:
    """Let a node publish one update of the trunk with a result that nobody gets."""
    form = liar.primary._form

    def formed(key, collecting, place):
        honest = form(key, collecting, place)
        if key[1] != round or key[2] != TRUNK:
            return honest
        false = tuple(TileRoots(bytes(32), tile.momentum) for tile in honest.result)
        made = Listing(honest.contributions, b"", honest.median)
        return liar.primary._signed(key, place, made, false, honest.blob)

    liar.primary._form = formed


def believing(node: TrainNode) -> None:
    """Let a node cosign what it is shown, without a look at it."""

    async def believed(update, network) -> Any:
        record = require_model(node.machine.view, update.model)
        return layout_for(record.model).groups[update.group]

    node.holder.recompute = believed


def test_a_lie_gets_no_second_signature_and_is_not_published(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 1)
        async with net.running():
            run = await net.begin(2, deadline_ms=3_000)
            liar = first_rank(net, run, 1, TRUNK)
            lying(net, liar, 1)
            await net.closes(run, 2)
            await net.settles()
            net.check()
            made = net.updates(net.nodes[0], TRUNK)[1]
            assert made.content.rank > 0 and made.header.account != liar.key.account
            for node in net.nodes:
                known = (block.content for block in node.blocks_of(TileUpdate))
                assert not any(t.weights == bytes(32) for u in known for t in u.result)

    simulate(main)


def leaving_out(net: Training, author: TrainNode, round: int) -> set[bytes]:
    """Let no checkpoint order what a node says of the trunk's round; return the ids."""
    make = author.make

    async def made(payload, **more) -> Block:
        block = await make(payload, **more)
        if isinstance(payload, TileUpdate):
            if (payload.round, payload.group) == (round, TRUNK):
                net.nodes[0].not_ordered.add(block.id)
        return block

    author.make = made
    return net.nodes[0].not_ordered


@pytest.mark.parametrize("lies", [True, False])
def test_an_update_that_is_never_ordered_is_given_up(tmp_path, monkeypatch, lies):
    """A lie of two moves nobody else; the truth does until it is given up.

    In the last round, as every rank of a later one may have promised a head on it.
    """
    monkeypatch.setattr("blyand.training.waiting.PASSED_OVER", 4)

    async def main() -> None:
        net = Training(tmp_path, 1)
        async with net.running():
            run = await net.begin(2, deadline_ms=3_000)
            author = first_rank(net, run, 1, TRUNK)
            if lies:
                lying(net, author, 1)
                for node in net.nodes:
                    believing(node)
            left_out = leaving_out(net, author, 1)
            await net.closes(run, 2)
            await net.settles()
            net.check()
            (lost,) = left_out
            moved = {lost in {m.update for m in node.moves} for node in net.nodes}
            assert moved == {not lies}
            assert net.updates(net.nodes[0], TRUNK)[1].content.rank > 0
            if lies:
                return
            assert lost in author.pool, "it waits; nothing after it is to stand on it"
            head = net.nodes[0].heads(net.model)[TRUNK]
            later = Snapshot(FORMAT_VERSION, net.model, TRUNK, head.head, 1, head.tiles)
            made = await author.author.make(later, meta_ref=net.model)
            await until(lambda: net.nodes[0].blocks.outcome(made.id) is not None)
            assert net.nodes[0].blocks.outcome(made.id).code == 0

    simulate(main)


def test_an_ordered_update_without_effect_is_given_up(tmp_path, monkeypatch):
    """What holders took for good does nothing in its checkpoint: they go back."""

    async def main() -> None:
        net = Training(tmp_path, 1)
        for node in net.nodes:  # nobody checks it before it is ordered
            monkeypatch.setattr(node.holder, "_check_provisional", lambda *_: None)
        async with net.running():
            run = await net.begin(2, deadline_ms=3_000)
            first = first_rank(net, run, 1, TRUNK)

            async def wrongly(payload, **more) -> Block:
                if isinstance(payload, TileUpdate):
                    if (payload.round, payload.group) == (1, TRUNK):
                        good, other = payload.cosignatures
                        bad = Cosignature(other.signer, bytes(63) + b"\1")
                        payload = replace(payload, cosignatures=(good, bad))
                return await first.author.make(payload, **more)

            first.make = wrongly
            await net.closes(run, 2)
            await net.settles()
            net.check()
            assert net.updates(net.nodes[0], TRUNK)[1].content.rank > 0
            assert all(TRUNK in node.rolled_back() for node in net.nodes)

    simulate(main)


def test_training_stops_k_rounds_ahead_and_says_what_it_waits_for(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 9)
        first, others = net.nodes[0], net.nodes[1:]
        async with net.running():
            run = await net.begin(9)
            first.orders_updates = False
            await until(
                lambda: all("consensus status" in n.learner.status for n in others)
            )
            for node in others:
                ahead = node.run_record(run).closed + 3  # of those not closed, K + 1
                assert f"paused: round {ahead} opens" in node.learner.status
                head = node.holder.head(net.model, TRUNK)
                assert head is not None and head.rounds == ahead
            first.stop()
            back = net.nodes[0] = first.again()
            await net.start(back)
            await net.closes(run, 1)
            expert = next(
                group
                for group in net.layout.expert_groups
                if group.index not in back.holder.held(net.model)
            )
            for node in others:
                node.stop()
            await until(lambda: "paused" in back.learner.status)
            assert f"is a node that holds {expert.name} running?" in back.learner.status

    simulate(main)
