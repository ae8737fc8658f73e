"""Copies of hot experts: chosen within bounds, used at once, let go after an hour."""

from dataclasses import replace
from random import Random

import torch
import trio
import trio.testing

from blyand.compute import Threads
from blyand.inference.hardware import Hardware, Speed, read_speed
from blyand.inference.replication import IDLE_S, LEAST_TOKENS, Replication, Sight
from blyand.inference.usage import Usage
from blyand.metrics import Metrics
from blyand.rules.net.path import Route
from blyand.rules.records import MODELS
from tests.unit.daemon.inference_world import (
    MODEL,
    TINY,
    Net,
    Node,
    World,
    prompt,
    running,
)

ME = b"\7" * 20
MANY = replace(TINY, experts=16)


class Stand:
    """A node that holds no expert, its peer that holds all, and what it chooses."""

    def __init__(self, room_bytes=1 << 30, copies=99, now_s=lambda: 0.0):
        self.world, self.net = World(MANY), Net()
        self.shared = frozenset(g.index for g in self.world.layout.shared_groups)
        self.usage = Usage(now_s)
        self.node = Node(self.world, self.net, "a", self.shared)
        self.node.parts = replace(self.node.parts, usage=self.usage)
        everything = self.shared | self.world.all_experts()
        self.peer = Node(self.world, self.net, "b", everything)
        sight = Sight(
            view=lambda: self.world.view,
            held=lambda model: self.node.held,
            hosts=self.net.hosts("a"),
            room_bytes=lambda: room_bytes,
            disk_bytes=lambda: 1 << 40,
            most_experts=lambda size: copies,
        )
        self.replication = Replication(self.usage, sight, ME, Metrics(), Random(0))

    @property
    def chosen(self):
        return self.replication.chosen(self.world.record)

    async def look(self):
        """Choose, and hold what is chosen as a holder would."""
        await self.replication.look()
        self.node.held = self.shared | self.chosen
        self.node.finalised()

    def visit(self, layer, *tokens):
        chosen = torch.tensor(tokens, dtype=torch.int64)
        self.usage.note(MODEL, MANY, {layer: [chosen]})

    def names(self):
        return {self.world.layout.groups[group].name for group in self.chosen}


def test_a_hot_expert_gets_another_replica_and_calls_per_token_fall():
    stand = Stand()

    async def run():
        async with running(stand.node, stand.peer):
            asked = [0] * 90, 5  # one token again and again: its experts are hot
            before = None
            while stand.usage.of(MODEL) is None or (
                stand.usage.of(MODEL).tokens < LEAST_TOKENS
            ):
                before = await stand.node.generate(*asked, route=Route.EXPERTS)
            await stand.look()
            assert stand.chosen
            after = await stand.node.generate(*asked, route=Route.EXPERTS)
        assert after[0] == before[0] == stand.world.locally(*asked)
        return before[1].calls, after[1].calls

    before, after = trio.run(run)
    assert before["b"] == 2 * 5 and "a" not in before
    assert after["b"] < before["b"] and after["a"] > 0


def test_hot_ones_come_with_those_they_are_used_with():
    stand = Stand()
    rest = [[2, 3], [4, 5], [6, 7], [8, 9], [10, 11]] * 30
    stand.visit(0, *[[0, 12]] * 400, *rest)
    stand.visit(1, *[[1, 13]] * 60, *rest)
    trio.run(stand.look)
    assert stand.names() == {"layer0.expert0", "layer0.expert12"}


def test_little_use_an_open_run_and_no_room_add_nothing():
    few = Stand()
    few.visit(0, *[[0, 12]] * (LEAST_TOKENS - 1))
    trio.run(few.look)
    assert not few.chosen
    training = Stand()
    training.visit(0, *[[0, 12]] * 999)
    record = replace(training.world.record, run=b"\5" * 32)
    MODELS.put(training.world.view, record, MODEL)
    trio.run(training.look)
    assert not training.chosen
    size = 4 * training.world.layout.expert_groups[0].elements
    for limits, count in (
        (dict(copies=0), 0),
        (dict(copies=1), 1),
        (dict(room_bytes=size - 1), 0),
        (dict(room_bytes=2 * size - 1), 1),
        (dict(room_bytes=2 * size), 2),
    ):
        stand = Stand(**limits)
        stand.visit(0, *[[0, 12]] * 400, *[[2, 3], [4, 5]] * 50)
        trio.run(stand.look)
        trio.run(stand.look)  # and what is taken on counts
        assert len(stand.chosen) == count, limits


def test_what_nobody_used_for_an_hour_goes_and_what_peers_ask_for_stays():
    now_s = 0.0

    async def look(stand):
        nonlocal now_s
        now_s = trio.current_time()
        await stand.look()

    async def run(ask):
        nonlocal now_s
        now_s = trio.current_time()
        stand = Stand(now_s=lambda: now_s)
        stand.visit(0, *[[0, 12]] * 400, *[[2, 3], [4, 5]] * 50)
        await look(stand)
        assert stand.names() == {"layer0.expert0", "layer0.expert12"}
        await trio.sleep(IDLE_S - 1)
        await look(stand)
        assert len(stand.chosen) == 2
        if ask:
            group = stand.world.layout.group_named("layer0.expert12")
            stand.usage.serve(MODEL, MANY, group, 3)
        await trio.sleep(IDLE_S / 2)
        await look(stand)
        return stand.names()

    clock = trio.testing.MockClock(autojump_threshold=0.01)
    assert trio.run(run, False, clock=clock) == set()
    clock = trio.testing.MockClock(autojump_threshold=0.01)
    assert trio.run(run, True, clock=clock) == {"layer0.expert12"}


def test_a_generated_prompt_counts_like_an_answer():
    stand = Stand()

    async def run():
        async with running(stand.node, stand.peer):
            await stand.node.generate(prompt(40), 1, route=Route.EXPERTS)

    trio.run(run)
    assert stand.usage.of(MODEL).tokens == 40


def test_the_speed_is_measured_once_and_remembered():
    saved, calls = [], []

    class Counting(Threads):
        async def run(self, fn, *args):
            calls.append(fn)
            return await super().run(fn, *args)

    async def save(raw):
        saved.append(raw)

    async def run():
        first = await Hardware("cpu", Counting("t", 1), None, save).measure()
        assert first.tflops > 0 and first.read_gb_per_s > 0 and first.tier in (0, 1)
        assert not first.accelerator and first.copy_gb_per_s == 0
        count = len(calls)
        again = await Hardware("cpu", Counting("t", 1), saved[0], save).measure()
        assert again == first and len(calls) == count and len(saved) == 1
        other = saved[0].replace(b"torch", b"another")
        await Hardware("cpu", Counting("t", 1), other, save).measure()
        assert len(calls) > count and len(saved) == 2

    trio.run(run)


def test_a_damaged_speed_is_measured_again():
    for raw in (b"", b"{}", b"[]", b'{"device": 1}', b"\xff", b"null"):
        assert read_speed(raw) is None
    speed = Speed("x", True, 16 << 30, 65.0, 300.0, 15.75)
    assert speed.tier == 9 and speed.score == 141.15  # HZ-54
    assert speed.seconds(300 * 10**9, 1) == 1.0
