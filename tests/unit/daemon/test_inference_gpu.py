"""Experts on an accelerator: staged through pinned memory, and gone when evicted."""

from __future__ import annotations

import pytest
import torch

from blyan_proto.protocols.expert import Numerics
from blyan_tile.recipe import Recipe
from blyand.inference.experts import Experts
from blyand.inference.staging import Staging
from blyand.metrics import Metrics

from .inference_world import MODEL, TINY, Net, Node, World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator is here"),
]

SIZE = 3 * TINY.width * TINY.expert_width * 4  # bytes of one expert in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(3, 5), (700, 33)])
def test_staged_is_equal(dtype, shape):
    staging = Staging(torch.device("cuda"), buffer_bytes=4096)
    for turn in range(3):
        tensor = (100 * torch.randn(shape)).to(dtype)
        assert torch.equal(staging(tensor).cpu(), tensor)
    assert torch.equal(staging(tensor[:, 1:3]).cpu(), tensor[:, 1:3])


def test_evicted_memory_comes_back():
    world = World()
    heads = Node(world, Net(), "a", frozenset()).pins.newest(MODEL)
    experts = Experts(world.blobs, 2 * SIZE, Metrics(), "cuda", Recipe.F32)
    x = torch.randn(5, TINY.width)

    def used(turn):
        group = heads.expert(turn % 2, turn % 4)
        at = group.index
        one = experts.get(heads.layout, group, heads.roots[at], heads.tiles[at])
        return one(x.cuda()).cpu()

    first = [used(turn) for turn in range(4)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for turn in range(1000):
        assert torch.equal(used(turn), first[turn % 4])
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + SIZE
    assert experts.resident_bytes <= experts.budget_bytes


@pytest.mark.parametrize("numerics", Numerics)
def test_recipes_agree_with_the_processor(numerics):
    world = World()
    heads = Node(world, Net(), "a", frozenset()).pins.newest(MODEL)
    group = heads.expert(0, 0)
    at, x, made = group.index, torch.randn(9, TINY.width), []
    for device in ("cpu", "cuda"):
        recipe = Recipe(numerics)
        experts = Experts(world.blobs, 1 << 20, Metrics(), device, recipe)
        one = experts.get(
            heads.layout, group, heads.roots[at], heads.tiles[at], numerics
        )
        made.append(one(x.to(device)).cpu())
    assert (made[0] - made[1]).norm() <= 0.01 * made[0].norm()
