"""A decoder with every option of the supported families, spread over nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trio

from blyan_proto.block.model import BiasKind, QueryKeyNorm, RopeKind, RopeScaling
from blyan_tile.batches import held_out_windows
from blyan_tile.model.training import held_out_loss
from blyand.inference.evaluate import Evaluation
from blyand.rules.model.heads import Which
from tests.unit.daemon.inference_world import (
    MODEL,
    TINY,
    Net,
    Node,
    World,
    prompt,
    running,
)

ODD = replace(
    TINY,
    layers=4,
    kv_heads=1,
    head_width=24,
    normalise_top_k=False,
    query_key_norm=QueryKeyNorm.HEAD,
    clip_qkv_micro=1_000_000,
    attention_window=11,
    attention_bias=BiasKind.ALL,
    dense_layers=(0, 2),
    dense_width=40,
    shared_width=16,
    shared_gate=True,
    rope=RopeScaling(RopeKind.YARN, 3_000_000_000, 32, 10**9, 32 * 10**9),
)


def spread():
    """Node a has two experts of each layer that has any, b the others."""
    world, net = World(ODD), Net()
    mine = world.expert_groups(*(f"layer{i}.expert{j}" for i in (1, 3) for j in (0, 1)))
    a = Node(world, net, "a", mine)
    b = Node(world, net, "b", world.all_experts() - mine)
    return world, a, b


@pytest.mark.parametrize("length", [1, 61])
def test_layers_without_experts_are_computed_here(length):
    async def main():
        world, a, b = spread()
        whole = Node(world, Net(), "whole", world.all_experts())
        expected = world.locally(prompt(length), 20)
        async with running(a, b, whole):
            tokens, result = await a.generate(prompt(length), 20)
            assert tokens == expected
            assert result.calls["a"] and result.calls["b"] and not result.retries
            tokens, result = await whole.generate(prompt(length), 20)
            assert tokens == expected and set(result.calls) == {"whole"}

    trio.run(main)


def test_evaluation_measures_the_same_decoder():
    text = np.frombuffer(np.random.default_rng(0).bytes(33 * 16), np.uint8)

    async def main():
        world, a, b = spread()
        parameters = {k: torch.from_numpy(v) for k, v in world.parameters.items()}
        windows = torch.from_numpy(held_out_windows([text], 32))
        expected = held_out_loss(ODD, parameters, windows)
        async with running(a, b):
            heads = a.pins.newest(MODEL, Which.TRAINED)
            measured = await Evaluation(a.parts, a.lane).measure(
                heads, text, sequence=32
            )
        assert measured.loss == pytest.approx(expected, abs=1e-5)

    trio.run(main)
