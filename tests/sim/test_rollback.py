"""Everybody applied the first rank's update, and a checkpoint orders the second's."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.model import Cosignature, TileUpdate
from blyan_proto.signing import Purpose
from blyan_proto.types import Role
from blyand.rules.model.election import contributors, ranks
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.model.update import contribution_weights
from blyand.rules.records import NODES, SCHEDULES
from blyand.training import tiles
from blyand.training.delivery import Delivery
from tests.sim.network import until
from tests.sim.test_rounds import TRUNK, learners
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode


def ranked(net: Training, run: bytes, round: int) -> list[TrainNode]:
    schedule = SCHEDULES.get(net.nodes[0].machine.view, run, round)
    assert schedule is not None
    nodes = {node.key.account: node for node in net.nodes}
    return [nodes[seat.account] for seat in ranks(schedule, TRUNK)]


def second_choice(
    update: TileUpdate, author: TrainNode, other: TrainNode
) -> TileUpdate:
    """Return what the second rank makes of all deltas but the last, signed by two."""
    run = author.run_record(update.run).run
    model = require_model(author.machine.view, update.model)
    group = layout_for(model.model).groups[update.group]
    listed = update.contributions[:-1]
    weights = contribution_weights([part.tokens for part in listed])
    parts = tuple(replace(p, weight_ppm=w) for p, w in zip(listed, weights))
    end = sum(part.bytes for part in parts)
    raw = author.blobs.open_array(update.blob)[:end].tobytes()
    fields = {name: getattr(update, name) for name in update.__dataclass_fields__}
    fields |= {"rank": 1, "contributions": parts, "blob": author.blobs.put_bytes(raw)}
    mute = (Cosignature(author.key.public, bytes(64)),)
    draft = TileUpdate(**{**fields, "cosignatures": mute})
    deltas = tiles.parts_of(author.blobs, draft, group, run)
    fields["result"] = tiles.advance(author.blobs, group, update.base, deltas, run)
    claim = TileUpdate(**{**fields, "cosignatures": mute}).claim
    fields["cosignatures"] = tuple(
        Cosignature(
            node.key.public,
            node.key.sign(Purpose.TILE_UPDATE, author.genesis.id, claim),
        )
        for node in (author, other)
    )
    return TileUpdate(**fields)


def watched(node: TrainNode) -> list[str]:
    """Note every delta that is handed in for another base than it was trained on."""
    trained, wrong = {}, list[str]()
    learn, bundle = node.trainer.learn, Delivery._bundle

    def learning(job, report):
        result = learn(job, report)
        trained[id(result)] = (result, job)
        return result

    def bundling(turn, result, groups):
        made = bundle(node.learner._delivery, turn, result, groups)
        for delta in made.deltas:
            _, job = trained[id(result)]
            files = next(one.tiles for one in job.base if one.group == delta.group)
            named = tuple(str(node.blobs.path(root)) for root in delta.base)
            if named != files or job.round != delta.round:
                wrong.append(f"{node.name} round {delta.round} group {delta.group}")
        return made

    node.trainer.learn, node.learner._delivery._bundle = learning, bundling
    return wrong


def bases_of(node: TrainNode, round: int) -> set[tuple[str, ...]]:
    """Return the versions of the trunk at which a node trained a round."""
    return {
        files.tiles
        for job in node.trainer.jobs
        for files in job.base
        if (job.round, files.group) == (round, TRUNK)
    }


def test_all_go_back_to_what_the_checkpoint_chose_and_hold_the_same_bytes(tmp_path):
    """While they train the next round on what they took first: it is trained anew."""

    async def main() -> None:
        net = Training(tmp_path, 1)
        wrong = [watched(node) for node in net.nodes]
        for node in net.nodes:
            node.trainer.pace_s = 3.0
        async with net.running():
            run = await net.begin(3)
            first, second, third = ranked(net, run, 0)
            taken: list[Block] = []

            async def make(payload, **more) -> Block:
                block = await first.author.make(payload, **more)
                if isinstance(payload, TileUpdate):
                    if (payload.group, payload.round) == (TRUNK, 0):
                        net.nodes[0].not_ordered.add(block.id)
                        taken.append(block)
                return block

            first.make = make

            def has_it(node: TrainNode) -> bool:
                head = node.holder.head(net.model, TRUNK)
                return bool(taken) and head is not None and head.block == taken[0].id

            await until(lambda: all(map(has_it, net.nodes)))
            await until(lambda: all(bases_of(n, 1) for n in net.nodes))
            update = taken[0].content
            later = second_choice(update, second, third)
            assert later.result != update.result
            for waiting in second.pool.of(second.key.public):
                second.author.abandon(waiting.id)  # they wait for `first`'s
            chosen = await second.author.make(later, subject="", meta_ref=net.model)
            await net.closes(run, 3)
            await net.settles()
            net.check()
            assert net.updates(net.nodes[0], TRUNK)[0].id == chosen.id
            assert all(TRUNK in node.rolled_back() for node in net.nodes)
            settings = net.nodes[0].run_record(run).run
            roots = [tile.weights for tile in third.heads(net.model)[TRUNK].tiles]
            assert net.recomputed(third, settings, TRUNK) == roots
            for node in net.nodes:
                assert len(bases_of(node, 1)) == 2, "trained at both versions"
            assert wrong == [[], [], []]

    simulate(main)


def test_who_does_not_learn_is_not_waited_for(tmp_path):
    """The genesis says that it learns; it says otherwise."""

    async def main() -> None:
        net = Training(tmp_path, 2)
        idle = net.nodes[2]
        idle.roles = int(Role.SERVE)
        async with net.running():
            view = net.nodes[0].machine.view
            await until(
                lambda: NODES.get(view, idle.key.account).roles == int(Role.SERVE)
            )
            run = await net.begin(2, grace_ms=100_000, deadline_ms=100_000)
            await net.closes(run, 2, timeout_s=30.0)
            net.check()
            schedule = SCHEDULES.get(view, run, 0)
            seats = contributors(schedule, TRUNK, Role.LEARN)
            assert idle.key.account not in {seat.account for seat in seats}
            assert not any(idle.name in names for names in learners(net, TRUNK))

    simulate(main)
