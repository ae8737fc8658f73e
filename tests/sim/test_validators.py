"""Several validators with the daemon's own voter: loss, partitions, crashes, a traitor."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from blyan_proto.block.economy import Heartbeat
from blyan_proto.checkpoint import Vote, VoteStage
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.signing import Purpose
from blyan_proto.validators import Validator, Validators, ValidatorSet
from blyand.chain.audit import check_checkpoint
from blyand.finality.beacon import chain_of
from blyand.finality.standing import standing_of
from blyand.rules.chain import execute as execution
from blyand.rules.chain import validators
from tests.sim.network import SimNode, make_network, until
from tests.sim.validating import SimMesh


def run(main) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


class Life:
    """Nodes that run, each until it is killed."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}

    async def start(self, node: SimNode, *, votes: bool | None = None) -> None:
        node.wire.down.discard(node.name)
        await self._nursery.start(self._live, node, votes)

    async def _live(self, node, votes, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as scope:
            self._scopes[node.name] = scope
            await node.run(votes=votes, task_status=task_status)

    async def kill(self, node: SimNode) -> None:
        """End a node at once, with whatever was under way."""
        node.wire.down.add(node.name)
        self._scopes[node.name].cancel()
        await trio.sleep(0)


@asynccontextmanager
async def alive(*nodes: SimNode):
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        for node in nodes:
            await life.start(node)
        yield life
        nursery.cancel_scope.cancel()


def beat(load: int) -> Heartbeat:
    return Heartbeat(FORMAT_VERSION, None, b"", load)


def agree(*nodes: SimNode) -> bool:
    """Same height, nothing pending, one state."""
    return (
        len({node.machine.last_id for node in nodes}) == 1
        and len({node.root for node in nodes}) == 1
        and not any(len(node.pool) for node in nodes)
    )


def trouble(node: SimNode) -> str | None:
    machine = node.machine
    return standing_of(node.voter, machine.view, machine.clock.height + 1).trouble


def one_chain(nodes: list[SimNode], wire) -> None:
    """No two checkpoints of one height anywhere, and none that was never voted for."""
    top = min(node.machine.clock.height for node in nodes)
    for height in range(1, top + 1):
        found = {node.checkpoints.at(height).checkpoint.id for node in nodes}
        assert len(found) == 1, f"two checkpoints of height {height}"
    twice = {height for height, ids in wire.shown.items() if len(ids) > 1}
    assert not twice, f"two checkpoints of heights {sorted(twice)}"


def nobody_voted_twice(wire, *, but: SimNode | None = None) -> None:
    twice = {place for place, values in wire.said.items() if len(values) > 1}
    assert not [p for p in twice if but is None or p[0] != but.key.public]


@pytest.mark.parametrize("seed", range(3))
def test_four_validators_and_a_follower_agree(tmp_path, seed):
    async def main():
        _, nodes, wire = make_network(5, seed, tmp_path, loss=0.1 * seed, validators=4)
        async with alive(*nodes):
            await until(lambda: all(node.voter.now for node in nodes[:4]))
            for turn in range(12):
                await nodes[turn % 5].author.make(beat(turn))
                await trio.sleep(0.5)
            await until(lambda: agree(*nodes) and nodes[0].machine.clock.height >= 5)
        one_chain(nodes, wire)
        nobody_voted_twice(wire)
        finals = nodes[4].checkpoints.range(1, 100)
        assert all(len(final.votes) >= 3 for final in finals)
        assert len({final.checkpoint.proposer for final in finals}) > 1
        assert not any(node.accused or node.blamed for node in nodes)

    run(main)


def test_a_minority_halts_and_goes_on_when_the_network_heals(tmp_path):
    async def main():
        _, nodes, wire = make_network(7, 4, tmp_path, validators=7)
        few = nodes[:3]
        async with alive(*nodes):
            await nodes[0].author.make(beat(0))
            await until(lambda: agree(*nodes) and nodes[0].machine.clock.height >= 1)
            wire.side.update({node.name: 1 for node in few})
            heights = [node.machine.clock.height for node in nodes]
            for turn in range(3):
                for node in (nodes[0], nodes[6]):
                    await node.author.make(beat(1 + turn))
                await trio.sleep(3)
            await trio.sleep(60)
            assert [n.machine.clock.height for n in nodes] == heights, "neither side"
            for node in nodes:
                weight = 3 if node in few else 4
                assert trouble(node) == (
                    f"no quorum: votes of {weight} of 7 weight at height "
                    f"{heights[0] + 1} round 0"
                )
            wire.side.clear()
            await until(lambda: agree(*nodes), 120)
            assert nodes[0].machine.clock.height > heights[0]
            assert not any(map(trouble, nodes))
        one_chain(nodes, wire)

    run(main)


@pytest.mark.parametrize("seed", range(2))
def test_any_are_killed_at_any_time_and_start_again(tmp_path, seed):
    async def main():
        _, nodes, wire = make_network(4, seed, tmp_path, loss=0.05, validators=4)
        source = wire.random
        async with alive(*nodes) as life:
            await until(lambda: all(node.voter.now for node in nodes))
            for turn in range(20):
                victim = source.randrange(4)
                await nodes[(victim + 1) % 4].author.make(beat(turn))
                await trio.sleep(source.uniform(0, 0.4))
                await life.kill(nodes[victim])
                await trio.sleep(source.uniform(0, 2))
                nodes[victim] = nodes[victim].reborn()
                await life.start(nodes[victim])
            await until(lambda: agree(*nodes), 300)
            assert nodes[0].machine.clock.height >= 5
        one_chain(nodes, wire)
        nobody_voted_twice(wire)
        assert not any(node.accused for node in nodes)

    run(main)


def test_all_are_cut_off_between_precommit_and_decision(tmp_path):
    """Nobody decided, all are locked: what they stored lets them go on (DEC-A9)."""

    async def main():
        _, nodes, wire = make_network(4, 3, tmp_path, validators=4)
        async with alive(*nodes) as life:
            for node in nodes:
                node.mesh.is_mute = lambda message: (
                    isinstance(message, Vote)
                    and message.statement.stage is VoteStage.PRECOMMIT
                )
            await nodes[0].author.make(beat(0))
            await until(lambda: all(node.locks.at(1) for node in nodes))
            for node in nodes:
                await life.kill(node)
            assert all(node.machine.clock.height == 0 for node in nodes)
            locked = {node.locks.at(1).checkpoint.id for node in nodes}
            nodes[:] = [node.reborn() for node in nodes]
            for node in nodes:
                await life.start(node)
            await until(lambda: agree(*nodes))
        one_chain(nodes, wire)
        nobody_voted_twice(wire)
        assert nodes[0].checkpoints.at(1).checkpoint.id in locked

    run(main)


@pytest.mark.parametrize("keep_store", [True, False])
def test_a_validator_without_memory_leaves_two_heights_out(tmp_path, keep_store):
    async def main():
        _, nodes, wire = make_network(4, 6, tmp_path, validators=4)
        async with alive(*nodes) as life:
            for turn in range(6):
                await nodes[0].author.make(beat(turn))
                await trio.sleep(0.5)
            await until(lambda: agree(*nodes))
            await life.kill(nodes[2])
            nodes[2] = nodes[2].reborn(keep_store=keep_store, keep_intents=False)
            nodes[2].is_lost = keep_store  # else it looks like a new one
            mine = nodes[2].key.public
            before = {place for place in wire.said if place[0] == mine}
            await life.start(nodes[2])
            await until(lambda: nodes[2].intents.vote_floor > 0)
            height = nodes[2].machine.clock.height
            assert height and nodes[2].intents.vote_floor == height + 3
            for turn in range(6):
                await nodes[1].author.make(beat(turn))
                await trio.sleep(1)
            await until(lambda: agree(*nodes))
        after = {place for place in wire.said if place[0] == mine} - before
        assert after and min(place[1] for place in after) >= height + 3
        one_chain(nodes, wire)
        nobody_voted_twice(wire)

    run(main)


def test_of_two_with_one_key_one_stops(tmp_path):
    """A copied home: it is told what its key said without it, and falls silent."""

    async def main():
        genesis, nodes, wire = make_network(4, 8, tmp_path, validators=4)
        copy = SimNode("copy", genesis, nodes[3].key, wire, tmp_path / "copy")
        wire.nodes["copy"] = copy
        async with alive(*nodes, copy):
            await until(lambda: not copy.voter.is_learning)
            for turn in range(8):
                await nodes[turn % 3].author.make(beat(1 + turn))
                await trio.sleep(1)
                for node in nodes[:3]:  # their streams lead to the other one
                    for vote in said_by(nodes[3], node):
                        await copy.voter.hear(node.name, vote)
            await until(lambda: agree(*nodes))
            assert "another process signs" in copy.voter.memory.why_silent
            assert trouble(copy) == copy.voter.memory.why_silent
        one_chain(nodes, wire)

    run(main)


def said_by(signer: SimNode, node: SimNode) -> list[Vote]:
    """What a node has of a signer's precommits for its newest checkpoint."""
    before = node.voter.before
    heard = before.agreement.precommits() if before is not None else ()
    return [vote for vote in heard if vote.voter == signer.key.public]


class Traitor(SimMesh):
    """Votes one thing to some and another to others."""

    def tell(self, peer, message):
        if isinstance(message, Vote) and hash(peer) % 2:
            lie = replace(message.statement, checkpoint=bytes(32))
            key, network = self._node.key, self._node.genesis.id
            signed = key.sign(Purpose.CHECKPOINT_VOTE, network, lie)
            message = Vote(lie, key.public, signed)
        super().tell(peer, message)


def test_a_traitor_is_named_and_stops_nobody(tmp_path):
    async def main():
        _, nodes, wire = make_network(4, 9, tmp_path, loss=0.05, validators=4)
        traitor = nodes[1]
        traitor.mesh = Traitor(traitor)
        async with alive(*nodes):
            for turn in range(10):
                await nodes[0].author.make(beat(turn))
                await trio.sleep(1)
            await until(lambda: agree(*nodes))
        one_chain(nodes, wire)
        nobody_voted_twice(wire, but=traitor)
        accused = {
            first.voter for n in nodes if n is not traitor for first, _ in n.accused
        }
        assert accused == {traitor.key.public}

    run(main)


def test_a_set_that_changes_is_followed_and_can_be_audited(tmp_path, monkeypatch):
    """Node 4 comes in and node 0 goes, two checkpoints after a block at height 4 said so."""
    genesis, nodes, wire = make_network(6, 2, tmp_path, validators=4)
    keys = [node.key for node in nodes[1:5]]
    members = tuple(Validator(key.public, 2, chain_of(key.secret).tail) for key in keys)

    def change(view, moment) -> None:
        if moment.height == 4:
            validators.appoint(view, Validators(members))

    monkeypatch.setattr(execution, "ENDINGS", (*execution.ENDINGS, change))
    late = nodes.pop()

    async def main():
        async with trio.open_nursery() as nursery:
            life = Life(nursery)
            for node in nodes:
                await life.start(node, votes=True)
            for turn in range(24):
                await nodes[turn % 5].author.make(beat(turn))
                await trio.sleep(0.6)
            await until(lambda: agree(*nodes) and nodes[0].machine.clock.height >= 10)
            await life.start(late)  # it learns the new set while it catches up
            await until(lambda: agree(*nodes, late))
            nursery.cancel_scope.cancel()

    run(main)
    one_chain([*nodes, late], wire)
    nobody_voted_twice(wire)
    finals = late.checkpoints.range(1, 100)
    new = ValidatorSet(members)
    for final in finals:
        voters = {vote.voter for vote in final.votes}
        is_new = final.checkpoint.height >= 6
        allowed = new if is_new else genesis.founders
        assert final.checkpoint.validators_root == allowed.root
        assert all(map(allowed.weight_of, voters))
        height = final.checkpoint.height
        assert (
            check_checkpoint(late.blocks, late.checkpoints, late.sets, genesis, height)
            is None
        )
    proposers = {f.checkpoint.proposer for f in finals if f.checkpoint.height >= 6}
    assert nodes[4].key.public in proposers and nodes[0].key.public not in proposers
    assert not any(node.blamed for node in [*nodes, late])
