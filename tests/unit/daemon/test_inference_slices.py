"""Experts that are too large for a peer: each computes a slice, the asker adds them up."""

from __future__ import annotations

import pytest
import trio

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import ExpertRows, Forward, Numerics
from blyand.errors import NoRoute
from blyand.inference.serve import check_call

from .inference_world import MODEL, TINY, Net, Node, World, prompt, running

SIZE = 3 * TINY.width * TINY.expert_width * 4  # bytes of one expert in float32


def a_net(budget, count=3, slice_bytes=SIZE // 3):
    """Return (world, net, asker without experts, holders of all)."""
    world, net = World(), Net()
    holders = [Node(world, net, f"h{i}", world.all_experts()) for i in range(count)]
    for node in holders:
        node.experts.budget_bytes = budget
    asker = Node(world, net, "asker", frozenset())
    asker.scatter.slice_bytes = slice_bytes
    return world, net, asker, holders


def test_an_answer_from_slices_is_the_same():
    world, net, asker, holders = a_net(budget=8 * SIZE // 3)

    async def main():
        async with running(asker, *holders):
            tokens, result = await asker.generate(prompt(20), 12)
            assert tokens == world.locally(prompt(20), 12)
        assert len({peer for _, peer, _ in net.calls[:3]}) == 3
        assert {(call.slice, call.slices) for _, _, call in net.calls} == {
            (0, 3),
            (1, 3),
            (2, 3),
        }

    trio.run(main)
    # There is room for a third of each of the 8 experts.
    for node in holders:
        ready = node.experts.residents()
        assert ready and not node.experts.counts().streamed
        assert {one.name[-4:] for one in ready} <= {"#0/3", "#1/3", "#2/3"}
        assert node.experts.resident_bytes <= 8 * SIZE // 3


def test_experts_at_hand_are_not_cut():
    world, net, asker, holders = a_net(budget=8 * SIZE)
    asker.held = world.expert_groups("layer0.expert0", "layer1.expert1")

    async def main():
        async with running(asker, *holders):
            tokens, _ = await asker.generate(prompt(20), 8)
            assert tokens == world.locally(prompt(20), 8)

    trio.run(main)
    names = {one.name for one in asker.experts.residents()}
    assert names == {"layer0.expert0", "layer1.expert1"}


@pytest.mark.parametrize("after", [1, 9, 30])
def test_a_holder_of_a_slice_goes_and_another_takes_its_place(after):
    world, net, asker, holders = a_net(budget=8 * SIZE)
    again = a_net(budget=8 * SIZE)

    async def main():
        async with running(again[2], *again[3]):
            whole, _ = await again[2].generate(prompt(20), 10)
        async with running(asker, *holders):

            def kill(made):
                if len(net.calls) > after:
                    net.nodes.pop("h1", None)

            tokens, _ = await asker.generate(prompt(20), 10, kill)
        assert tokens == whole and "h1" not in net.nodes

    trio.run(main)


def test_a_slice_that_nobody_computes_is_named():
    world, net, asker, _ = a_net(budget=SIZE, count=0)
    asker.scatter.patience_s = 0.05

    async def main():
        async with running(asker):
            with pytest.raises(NoRoute, match=r"layer0\.expert\d#\d/3"):
                await asker.generate(prompt(5), 2)

    trio.run(main)


def test_slices_that_cannot_be_are_refused():
    world = World()
    rows = (ExpertRows(3, bytes(32), b"\0\0"),)

    def call(index, count):
        states = bytes(4 * TINY.width)
        return Forward(
            MODEL, Numerics.REFERENCE, TINY.width, rows, states, index, count
        )

    check_call(call(47, TINY.expert_width), world.layout, TINY.width)
    with pytest.raises(DecodeError, match="49 slices of layer0.expert0"):
        check_call(call(0, TINY.expert_width + 1), world.layout, TINY.width)
    with pytest.raises(ValueError):
        call(3, 3)
