"""Many answers at once: what they share, and that none of them notices."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import pytest
import trio

from blyan_tile.model.cache import cache_bytes
from blyand.errors import Busy, TooSlow
from blyand.inference.chooser import Wanted
from blyand.inference.generate import Generation, Result
from tests.unit.daemon.inference_world import (
    MODEL,
    TINY,
    Inline,
    Net,
    Node,
    World,
    prompt,
    running,
)


def whole(world, **limits):
    return Node(world, Net(), "whole", world.all_experts(), **limits)


def test_answers_together_are_the_answers_alone():
    async def main():
        world = World(replace(TINY, context=700))
        node = whole(world)
        asked = [prompt(length, seed=length) for length in (3, 600, 40, 1, 90, 17)]
        expected = [world.locally(one, 20) for one in asked]
        got = {}

        async def one(index):
            await trio.sleep(0.002 * index)  # so that they are of different age
            got[index], _ = await node.generate(asked[index], 20)

        async with running(node), trio.open_nursery() as nursery:
            for index in range(len(asked)):
                nursery.start_soon(one, index)
        assert [got[index] for index in range(len(asked))] == expected
        counts = node.metrics.snapshot()
        assert counts["inference_step_sequences"] > counts["inference_steps"]
        assert counts["inference_step_rows"] == sum(map(len, asked)) + 19 * len(asked)
        assert node.room.left == node.room.budget_bytes

    trio.run(main)


def test_a_long_prompt_lets_the_others_go_on():
    async def main():
        world = World(replace(TINY, context=2048))
        node = whole(world, lane=Inline("x", 1))
        order = []

        async with running(node), trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: node.generate(
                    prompt(3), 60, on_token=lambda _: order.append("a")
                )
            )
            while len(order) < 5:
                await trio.lowlevel.checkpoint()
            await node.generate(prompt(1000), 1, on_token=lambda _: order.append("b"))
            while_read = order[5:].index("b")
            nursery.cancel_scope.cancel()
        assert while_read >= 1000 // 64 - 1  # a token for each piece of the prompt

    trio.run(main)


def test_what_does_not_fit_is_refused_at_once():
    async def main():
        world = World()
        room = 50 * cache_bytes(TINY, 40, TINY.layers)
        node = whole(world, cache_bytes=room)
        generation = Generation(node.parts, max_sessions=1000)
        outcomes = {"made": 0, "refused": 0}

        async def one(seed):
            wanted = Wanted(MODEL, tuple(prompt(30, seed)), 10)
            try:
                async with aclosing(generation.run(wanted, Result())) as made:
                    async for _ in made:
                        pass
                outcomes["made"] += 1
            except Busy:
                outcomes["refused"] += 1

        async with running(node), trio.open_nursery() as nursery:
            for seed in range(1000):
                nursery.start_soon(one, seed)
        assert outcomes == {"made": 50, "refused": 950}
        assert node.metrics.snapshot()["inference_cache_refused"] == 950
        assert node.room.left == room and not generation.under_way

    trio.run(main)


def test_who_leaves_frees_everything_and_disturbs_nobody():
    async def main():
        world = World()
        node = whole(world)
        expected = world.locally(prompt(9), 60)
        got = []

        async def stays():
            tokens, _ = await node.generate(prompt(9), 60)
            got.extend(tokens)

        async with running(node):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stays)
                for seed in range(12):
                    with trio.move_on_after(0.003):
                        await node.generate(prompt(20, seed), 60)
            assert got == expected
            assert node.room.left == node.room.budget_bytes
            assert not node.runs._waiting and not node.versions._pinned

    trio.run(main)


def test_a_deadline_ends_an_answer():
    async def main():
        world = World()
        node = whole(world)  # whose service does not run
        with pytest.raises(TooSlow, match="in time"):
            deadline_s = trio.current_time() + 0.05
            await node.generate(prompt(9), 5, deadline_s=deadline_s)
        assert node.room.left == node.room.budget_bytes

    trio.run(main)
