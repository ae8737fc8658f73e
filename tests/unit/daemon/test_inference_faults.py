"""Weights of strangers that overflow: one sentence on every path."""

import numpy as np
import pytest
import trio

from blyan_tile.model.sampling import Sampling
from blyand.errors import Unavailable
from blyand.rules.net.path import Route
from tests.unit.daemon.inference_world import Net, Node, World, prompt, running


def overflowing(*names):
    """A world in which the parameters of these names are finite, but huge."""
    world = World()
    world.adopt_parameters(
        {
            name: made * np.float32(1e38 if name.endswith(names) else 1)
            for name, made in world.parameters.items()
        }
    )
    return world


HEAD, EXPERTS = ("head.weight", "final_norm.weight"), ("down.weight", "up.weight")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "route, names",
    [
        (Route.LOCAL, EXPERTS),
        (Route.LOCAL, HEAD),
        (Route.EXPERTS, HEAD),
        (Route.SPANS, HEAD),
    ],
)
def test_what_is_no_number_is_no_answer(route, names, temperature):
    world, net = overflowing(*names), Net()
    a = Node(world, net, "a", world.all_experts() if route is Route.LOCAL else set())
    b = Node(world, net, "b", frozenset(range(len(world.layout.groups))))

    async def run():
        async with running(a, b):
            sampling = Sampling(temperature=temperature)
            with pytest.raises(Unavailable, match="not finite"):
                await a.generate(prompt(9), 4, route=route, sampling=sampling)
            assert a.room.left == a.room.budget_bytes

    trio.run(run)
