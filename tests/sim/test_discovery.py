"""A network that finds itself: seeds die, nodes come and go, strangers tell lies."""

from __future__ import annotations

from random import Random

import trio
import trio.testing

from blyan_proto.protocols.hello import Address
from blyand.net.address import neighbourhood
from blyand.net.dialer import WANTED_PEERS
from blyand.protocols.hello import Introduction
from tests.sim.peers import Node, World, peer_of


def simulate(act) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await act(World(nursery))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def places(nodes: list[Node]) -> set[str]:
    return {neighbourhood(node.text) for node in nodes}


def has_enough(world: World, node: Node) -> bool:
    """Enough outbound peers of distinct places, or almost nobody is left to dial.

    One dial may be under way, to somebody who is not there.
    """
    honest = [one for one in node.outbound if one.text[5] != "7"]
    others = {n.peer_id for n in world.live(30) if n is not node and n.text[5] != "7"}
    unmet = others - node.links.keys()
    return len(places(honest)) >= WANTED_PEERS - 1 or len(unmet) <= len(others) // 8


async def grown(world: World, count: int) -> tuple[Node, list[Node]]:
    """A seed and nodes that know only it, after two minutes."""
    seed = world.join(1)
    nodes = [world.join(number, seed) for number in range(2, count)]
    await trio.sleep(120)
    return seed, nodes


def test_the_seed_dies_and_nobody_minds():
    async def act(world: World) -> None:
        seed, nodes = await grown(world, 20)
        for node in nodes:
            assert has_enough(world, node)
        seed.kill()
        await trio.sleep(1)
        assert world.is_connected(world.live())
        # A node restarts: nobody but its book can help it.
        again = nodes[7]
        anchors = set(again.book.anchors)
        assert len(anchors) == 2
        again.kill()
        await trio.sleep(5)
        world.start(again)
        await trio.sleep(10)
        assert has_enough(world, again)
        assert anchors <= set(again.links)
        # A newcomer is given the address of one ordinary node.
        newcomer = world.join(99, nodes[3])
        await trio.sleep(15)
        assert len(newcomer.outbound) >= WANTED_PEERS
        assert len(places(newcomer.outbound)) >= WANTED_PEERS
        assert world.is_connected(world.live())

    simulate(act)


def test_all_nodes_restart_without_the_seed():
    async def act(world: World) -> None:
        seed, nodes = await grown(world, 14)
        for node in [seed, *nodes]:
            node.kill()
        await trio.sleep(60)
        for node in nodes:
            world.start(node)
        await trio.sleep(60)
        assert world.is_connected(world.live())
        assert all(len(node.links) >= WANTED_PEERS for node in nodes)

    simulate(act)


def test_churn_leaves_the_graph_connected():
    async def act(world: World) -> None:
        seed, nodes = await grown(world, 24)
        seed.kill()
        random, number = Random(5), 100
        for step in range(40):
            await trio.sleep(5)
            live = world.live(at_least_s=30)
            random.choice(live).kill()
            if step % 3:
                through = random.choice(world.live(at_least_s=30))
                world.join(number, through)
                number += 1
            else:
                down = [n for n in nodes if not n.is_up]
                if down:
                    world.start(random.choice(down))
            assert world.is_connected(world.live(at_least_s=30)), step
        await trio.sleep(120)
        settled = world.live(at_least_s=120)
        assert len(settled) > 12
        assert all(has_enough(world, node) for node in settled)
        dials = sum(n.dials for n in settled)
        await trio.sleep(300)  # nothing to do: nobody dials without need
        assert sum(n.dials for n in settled) - dials < 20 * len(settled)

    simulate(act)


def test_a_crowd_of_strangers_does_not_surround_a_node():
    async def act(world: World) -> None:
        seed, nodes = await grown(world, 20)
        victim = nodes[0]
        before = set(victim.book.peers())
        liars = []
        for number in range(200, 240):
            place = f"7.{number % 2}.1.{number - 199}"
            liars.append(Node(world, number, place, (victim.address,)))
        for liar in liars:
            world.add(liar)
        await trio.sleep(20)

        def lies(liar: Node, turn: int) -> Introduction:
            here = range(32 * turn, 32 * turn + 32)
            told = (
                Address(peer_of(1000 + n), (f"/ip4/{20 + n % 9}.{n % 250}.2.2/tcp/1",))
                for n in here
            )
            return Introduction(liar.greeting, tuple(told))

        for turn in range(30):
            for liar in liars[:4]:
                victim.meeting.met(liar.peer_id, lies(liar, turn))
            await trio.sleep(1)
        assert before <= set(victim.book.peers())
        assert has_enough(world, victim)
        # It starts again, knowing all the lies.
        victim.kill()
        await trio.sleep(3)
        world.start(victim)
        await trio.sleep(120)
        assert has_enough(world, victim)

    simulate(act)
