"""What peers may ask of our experts: malformed calls, versions, limits, isolation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.model import Dtype
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_proto.protocols.expert import ExpertRows, Forward, Numerics
from blyan_tile.model.expert import Expert
from blyand.errors import Busy, NotHere, StaleVersion
from blyand.inference import serve, versions
from blyand.inference.batch import Batcher, forward_rows
from blyand.inference.versions import Versions
from blyand.inference.weights import load_group
from blyand.rules.records import GROUPS
from tests.unit.daemon.inference_world import MODEL, TINY, Net, Node, World, running

WIDTH = TINY.width


def rows(*numbers):
    return np.array(numbers, "<u2").tobytes()


def a_call(node, *names, count=3, places=(0, 2), **changes):
    heads = node.pins.newest(MODEL)
    groups = [node.world.layout.group_named(name).index for name in names]
    x = np.random.default_rng(3).standard_normal((count, WIDTH), np.float32)
    call = Forward(
        model=MODEL,
        numerics=Numerics.REFERENCE,
        width=WIDTH,
        experts=tuple(ExpertRows(g, heads.roots[g], rows(*places)) for g in groups),
        activations=x.astype("<f4").tobytes(),
    )
    return replace(call, **changes)


def a_node(**limits):
    world = World()
    return Node(world, Net(), "a", world.all_experts(), **limits)


def test_outputs_are_those_of_the_expert():
    async def main():
        node = a_node()
        call = a_call(node, "layer1.expert0", "layer1.expert3")
        x = torch.frombuffer(bytearray(call.activations), dtype=torch.float32)
        x = x.view(-1, WIDTH)[[0, 2]]
        async with running(node):
            answers = await node.server.answer("peer", call)
        names = ("layer1.expert0", "layer1.expert3")
        for name, raw in zip(names, answers.outputs):
            expert = Expert(
                *(
                    torch.from_numpy(node.world.parameters[f"{name}.{part}.weight"])
                    for part in ("gate", "up", "down")
                )
            )
            assert raw == expert(x).numpy().tobytes()
        assert node.metrics.snapshot()["expert_rows_served"] == 4

    trio.run(main)


def test_malformed_calls_are_the_senders_fault():
    node = a_node()
    good = a_call(node, "layer0.expert0", "layer0.expert1")
    one = good.experts[0]

    def check(**changes):
        return serve.check_call(replace(good, **changes), node.world.layout, WIDTH)

    assert [group for group, _, _ in check()] == [e.group for e in good.experts]
    assert len(check(experts=good.experts[::-1])) == 2
    trunk = node.world.layout.group_named("layer0.trunk").index
    other = node.world.layout.group_named("layer1.expert0").index
    for wrong in (
        dict(width=WIDTH + 1),
        dict(width=0),
        dict(activations=good.activations[:-1]),
        dict(activations=good.activations[:4]),
        dict(experts=(replace(one, group=999),)),
        dict(experts=(replace(one, group=trunk),)),
        dict(experts=(one, one)),
        dict(experts=(one, replace(one, group=other))),
        dict(experts=(replace(one, rows=rows(0, 3)),)),
        dict(experts=(replace(one, rows=rows(1, 1)),)),
        dict(experts=(replace(one, rows=rows(2, 1)),)),
    ):
        with pytest.raises(DecodeError):
            check(**wrong)
    with pytest.raises(ValueError):
        replace(one, rows=b"\0\0\0")
    with pytest.raises(LimitExceeded):
        check(activations=bytes(4 * WIDTH * 4097))

    async def main():
        with pytest.raises(ProtocolError):
            await node.server.answer("peer", replace(good, width=7))

    trio.run(main)


def test_an_answer_larger_than_a_message_is_refused():
    world = World(replace(TINY, width=2048))
    everything = rows(*range(2000))
    experts = tuple(
        ExpertRows(group.index, b"\0" * 32, everything)
        for group in world.layout.expert_groups[:2]
    )
    x = bytes(4 * 2048 * 2000)
    call = Forward(MODEL, Numerics.REFERENCE, 2048, experts, x)
    with pytest.raises(LimitExceeded):
        serve.check_call(call, world.layout, 2048)


def test_versions_absent_stale_and_busy():
    async def main():
        node = a_node(max_requests=2)
        call = a_call(node, "layer0.expert0")
        with pytest.raises(NotHere):
            await node.server.answer("peer", replace(call, model=b"\2" * 32))
        wrong = replace(call.experts[0], root=b"\3" * 32)
        with pytest.raises(StaleVersion):
            await node.server.answer("peer", replace(call, experts=(wrong,)))
        node.held = frozenset()
        node.finalised()
        with pytest.raises(NotHere):
            await node.server.answer("peer", call)
        node.held = node.world.all_experts()
        node.finalised()
        async with trio.open_nursery() as nursery:  # nothing computes yet
            for _ in range(2):
                nursery.start_soon(node.server.answer, "peer", call)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy):
                await node.server.answer("peer", call)
            await nursery.start(run_until_served, node, nursery)
        assert is_free(node)

    async def run_until_served(node, nursery, task_status):
        async with running(node):
            task_status.started()
            while node.metrics.snapshot()["expert_calls_served"] < 2:
                await trio.testing.wait_all_tasks_blocked(0.001)

    def is_free(node):
        return not node.server._requests and node.server._bytes == 0

    trio.run(main)


def test_a_missing_blob_refuses_its_call_only():
    async def main():
        node = a_node()
        lost = a_call(node, "layer0.expert0")
        tiles = node.versions.find(MODEL, lost.experts[0].group, lost.experts[0].root)
        del node.world.blobs.arrays[tiles[0]]
        async with running(node):
            with pytest.raises(NotHere):
                await node.server.answer("peer", lost)
            assert await node.server.answer("peer", a_call(node, "layer0.expert1"))

    trio.run(main)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_a_row_does_not_see_its_batch_mates(before, after, seed):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return torch.from_numpy(random.standard_normal(shape, np.float32))

    expert = Expert(normal(48, 32), normal(48, 32), normal(32, 48))
    row, mates = normal(1, 32), normal(before + after, 32)
    mates[random.integers(before + after)] *= 1000
    batch = torch.cat([mates[:before], row, mates[before:]])
    assert torch.equal(forward_rows(expert, batch)[before], expert(row)[0])


def test_calls_that_wait_together_are_computed_together():
    async def main():
        node = a_node()
        calls = [
            a_call(node, "layer0.expert0", count=n + 1, places=(n,)) for n in range(9)
        ]
        alone, together = [], []
        async with running(node):
            for call in calls:
                alone.append(await node.server.answer("peer", call))
        batches = []
        compute = node.batcher._compute
        node.batcher._compute = lambda works: batches.append(works) or compute(works)

        async def one(call):
            together.append((call, await node.server.answer("peer", call)))

        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(one, call)
            await trio.testing.wait_all_tasks_blocked()
            async with running(node):
                while len(together) < len(calls):
                    await trio.testing.wait_all_tasks_blocked(0.001)
        assert [len(works) for works in batches] == [9]
        for call, answer in together:
            assert answer.outputs == alone[calls.index(call)].outputs

    trio.run(main)


def test_given_up_work_is_not_computed():
    async def main():
        node = a_node()
        with trio.move_on_after(0):
            await node.server.answer("peer", a_call(node, "layer0.expert0"))
        async with running(node):
            await node.server.answer("peer", a_call(node, "layer0.expert1"))
        assert node.metrics.snapshot()["expert_misses"] == 1

    trio.run(main)


def test_own_work_waits_where_the_queue_is_full():
    async def main():
        node = a_node()
        node.batcher = Batcher(node.experts, node.lane, max_waiting_rows=1)
        node.server._batcher = node.batcher
        calls = [a_call(node, "layer0.expert0") for _ in range(3)]
        async with running(node), trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(node.server.answer, "peer", call)
        assert node.metrics.snapshot()["expert_calls_served"] == 3

    trio.run(main)


def test_the_last_adopted_versions_and_recent_heads_are_served():
    now = [0.0]
    world = World()
    group = world.layout.expert_groups[0].index
    served = Versions(lambda: now[0])
    roots = []

    def tiles():
        return tuple(t.weights for t in GROUPS.get(world.view, MODEL, group).adopted)

    for seed in range(1, 14):
        world.adopt(seed)
        served.update(GROUPS.scan(world.view, MODEL), frozenset([group]), MODEL)
        roots.append(served.offer(MODEL, group, tiles()))
    for root in roots[-versions.TRAINED_SERVED :]:
        served.find(MODEL, group, root)
    for root in roots[: -versions.TRAINED_SERVED]:
        with pytest.raises(StaleVersion):
            served.find(MODEL, group, root)
    with pytest.raises(NotHere):
        served.find(MODEL, group + 1, roots[-1])
    # A version in use keeps its place a while.
    in_use = roots[-versions.TRAINED_SERVED]
    served.find(MODEL, group, in_use)
    world.adopt(99)
    served.update(GROUPS.scan(world.view, MODEL), frozenset([group]), MODEL)
    kept = served.find(MODEL, group, in_use)
    assert set(kept) <= served.tiles_in_use()
    now[0] += versions.LINGER_IDLE_S + 1
    assert not set(kept) & served.tiles_in_use()
    with pytest.raises(StaleVersion):
        served.find(MODEL, group, in_use)
    with served.pinned([(in_use, kept)]):
        with served.pinned([(in_use, kept)]):
            pass
        assert served.find(MODEL, group, in_use) == kept
        assert set(kept) <= served.tiles_in_use()
    served.update(GROUPS.scan(world.view, MODEL), frozenset(), MODEL)
    assert not served.tiles_in_use()


def test_one_tile_is_not_copied_and_many_are_joined():
    world = World(replace(TINY, layers=1, experts=2, expert_width=40_000))
    group = world.layout.expert_groups[0]
    assert len(group.tiles) > 3
    heads = Node(world, Net(), "a", frozenset()).pins.newest(MODEL)
    device = torch.device("cpu")
    for name in (group.name, "layer0.router"):
        group = world.layout.group_named(name)
        tiles = heads.tiles[group.index]
        made = load_group(world.blobs, world.layout, group, tiles, device)
        for parameter, tensor in made.items():
            assert np.array_equal(tensor.numpy(), world.parameters[parameter])
    array = world.blobs.open_array(tiles[0])
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    with pytest.raises(NotHere):
        load_group(world.blobs, world.layout, group, tiles * 2, device)
    other = world.blobs.put(np.zeros((3, 3), np.float32))
    with pytest.raises(NotHere):
        load_group(world.blobs, world.layout, group, [other], device)
    half = world.blobs.put(array.astype(np.float16))
    assert world.blobs.outline(half).dtype is Dtype.F16
    (widened,) = load_group(world.blobs, world.layout, group, [half], device).values()
    assert widened.dtype is torch.float32
