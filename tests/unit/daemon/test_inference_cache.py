"""Experts that are ready: the budget, what is in use, one load, what nobody used."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import trio

from blyan_proto.protocols.expert import Numerics
from blyan_proto.rpc import expert as spec
from blyan_tile.recipe import Recipe
from blyan_tile.stream import expert_bytes
from blyand.errors import NotHere
from blyand.inference.experts import IDLE_S, Experts
from blyand.metrics import Metrics
from blyand.rpc import cache
from blyand.rpc.bind import Answers

from .inference_world import MODEL, TINY, Net, Node, World, prompt, running

SIZE = 3 * TINY.width * TINY.expert_width * 4  # bytes of one expert in float32


class Stand:
    """A cache over the blobs of a small model."""

    def __init__(self, budget, now_s=lambda: 0.0):
        self.world, self.metrics = World(), Metrics()
        self.experts = Experts(
            self.world.blobs, budget, self.metrics, recipe=Recipe.INT4, now_s=now_s
        )
        self.heads = Node(self.world, Net(), "a", frozenset()).pins.newest(MODEL)

    def get(self, expert, numerics=Numerics.REFERENCE):
        heads = self.heads
        group = heads.expert(0, expert)
        root, tiles = heads.roots[group.index], heads.tiles[group.index]
        return self.experts.get(heads.layout, group, root, tiles, numerics)

    def counts(self):
        counted = self.metrics.snapshot()
        assert counted["expert_resident_bytes"] == self.experts.resident_bytes
        assert self.experts.resident_bytes <= self.experts.budget_bytes
        counts = self.experts.counts()
        assert counted["expert_hits"] == counts.hits
        return counts.hits, counts.misses, counts.evictions, counts.streamed


def test_the_least_recently_used_goes_first():
    stand = Stand(2 * SIZE)
    for expert in (0, 1, 0, 2, 0):
        stand.get(expert)
    assert stand.counts() == (2, 3, 1, 0)
    assert [one.name for one in stand.experts.residents()] == [
        "layer0.expert2",
        "layer0.expert0",
    ]
    assert [one.hits for one in stand.experts.residents()] == [0, 2]


def test_what_is_in_use_stays_and_the_rest_is_streamed():
    stand = Stand(2 * SIZE)
    first = stand.get(0)
    stand.get(1), stand.get(2)  # together: 1 is in use, too
    assert stand.counts() == (0, 3, 0, 1)
    stand.get(2)
    assert [one.name for one in stand.experts.residents()] == [
        "layer0.expert0",  # older, but in use
        "layer0.expert2",
    ]
    stand = Stand(2 * SIZE)
    first, second = stand.get(0), stand.get(1)
    assert stand.get(0) is first
    third = stand.get(2)
    assert stand.counts() == (1, 3, 0, 1)
    x = torch.randn(3, TINY.width)
    made = third(x)
    assert all(one.in_use for one in stand.experts.residents())
    del first
    assert torch.equal(stand.get(2)(x), made)  # now there is room
    assert stand.counts() == (1, 4, 1, 1)
    del second
    assert not any(one.in_use for one in stand.experts.residents())


def test_a_recipe_is_a_copy_of_its_own_size():
    stand = Stand(8 * SIZE)
    group = stand.heads.expert(0, 0)
    total = 0
    for recipe in Recipe:
        assert stand.get(0, Numerics(recipe)).recipe is recipe
        total += expert_bytes(group, recipe)
        assert stand.experts.resident_bytes == total
    assert expert_bytes(group, Recipe.F32) == SIZE
    assert stand.counts() == (0, 4, 0, 0)


def test_what_nobody_used_for_an_hour_goes_but_not_what_is_in_use():
    now = [0.0]
    stand = Stand(8 * SIZE, now_s=lambda: now[0])
    kept = stand.get(0)
    stand.get(1)
    now[0] = 60.0
    stand.get(2)
    now[0] = IDLE_S + 1
    stand.experts.evict_idle()
    left = stand.experts.residents()
    assert [(one.name, one.in_use, one.idle_s) for one in left] == [
        ("layer0.expert0", True, IDLE_S + 1),
        ("layer0.expert2", False, IDLE_S - 59),
    ]
    assert kept(torch.zeros(1, TINY.width)).shape == (1, TINY.width)
    stand.get(1)  # its blobs are still here
    assert stand.counts() == (0, 4, 1, 0)


def test_two_callers_one_load_and_others_do_not_wait():
    stand = Stand(8 * SIZE)
    blobs, go = stand.world.blobs, threading.Event()
    slow = stand.heads.tiles[stand.heads.expert(0, 0).index][0]
    opened = blobs.open_array

    def waiting(root):
        if root == slow:
            assert go.wait(10)
        return opened(root)

    blobs.open_array = waiting
    with ThreadPoolExecutor(3) as threads:
        first, second = (threads.submit(stand.get, 0) for _ in range(2))
        assert stand.get(1)(torch.zeros(1, TINY.width)) is not None  # meanwhile
        go.set()
        assert first.result(10) is second.result(10)
    assert stand.counts() == (1, 2, 0, 0)


def test_a_load_that_fails_is_told_to_all_and_leaves_nothing():
    stand = Stand(8 * SIZE)
    group = stand.heads.expert(0, 0)
    wrong = stand.world.blobs.put(np.zeros((2, 2), np.float32))
    for budget in (8 * SIZE, 0):
        stand.experts.budget_bytes = budget
        with pytest.raises(NotHere):
            stand.experts.get(stand.heads.layout, group, b"r" * 32, (wrong,) * 3)
        assert stand.experts.residents() == [] and not stand.experts.resident_bytes


def test_the_cache_is_told_over_rpc():
    stand, answers = Stand(2 * SIZE), Answers({"expert.cache": spec.cache})
    cache.bind(answers, stand.experts)
    stand.get(0)
    held = stand.get(1, Numerics.INT8)
    stand.get(0)

    async def main():
        return await answers["expert.cache"](spec.GetCache())

    told = trio.run(main)
    assert (told.budget_bytes, told.resident_bytes) == (
        2 * SIZE,
        stand.experts.resident_bytes,
    )
    assert (told.hits, told.misses, told.evictions, told.streamed) == (1, 2, 0, 0)
    assert [(one.name, one.recipe, one.hits, one.in_use) for one in told.experts] == [
        ("layer0.expert0", "f32", 1, False),
        ("layer0.expert1", "int8", 0, True),
    ]
    assert held.recipe is Recipe.INT8


def test_thousands_of_switches_leave_the_books_straight():
    stand = Stand(int(2.5 * SIZE))
    for turn in range(800):
        stand.get(turn % 4, Numerics(turn % 3))
    hits, misses, evictions, streamed = stand.counts()
    residents = stand.experts.residents()
    assert hits + misses == 800 and not streamed
    assert misses == evictions + len(residents)
    assert sum(one.bytes for one in residents) == stand.experts.resident_bytes


@pytest.mark.parametrize("budget", [0, SIZE, 3 * SIZE])
def test_an_answer_is_the_same_however_little_fits(budget):
    world = World()
    node = Node(world, Net(), "a", world.all_experts())
    node.experts.budget_bytes = budget

    async def main():
        async with running(node):
            tokens, _ = await node.generate(prompt(20), 12)
        assert tokens == world.locally(prompt(20), 12)

    trio.run(main)
    counts = node.metrics.snapshot()
    assert counts["expert_streamed"] if not budget else counts["expert_evictions"]
    assert counts["expert_resident_bytes"] <= budget


def test_a_request_gets_weights_as_exact_as_it_asks_for():
    world, net = World(), Net()
    here, there = world.expert_groups("layer0.expert0"), world.all_experts()
    whole = Node(world, Net(), "whole", there)
    asker, holder = Node(world, net, "asker", here), Node(world, net, "holder", there)
    for node in (whole, asker, holder):
        node.experts.recipe = Recipe.INT8

    def recipes(node):
        return {one.recipe for one in node.experts.residents()}

    async def main():
        async with running(whole, asker, holder):
            tokens, _ = await whole.generate(prompt(20), 8)
            assert tokens == world.locally(prompt(20), 8)
            assert recipes(whole) == {Recipe.F32}  # as the node is configured
            await whole.generate(prompt(20), 2, numerics=Numerics.INT4)
            assert recipes(whole) == {Recipe.F32, Recipe.INT8}
            await asker.generate(prompt(20), 2, numerics=Numerics.INT8)
            assert recipes(asker) == {Recipe.INT8} and Recipe.INT8 in recipes(holder)
            await asker.generate(prompt(20), 2, numerics=Numerics.BF16)
            assert Recipe.BF16 in recipes(asker) & recipes(holder)

    trio.run(main)
