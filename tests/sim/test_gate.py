"""Runs with a gate on simulated nodes: drawn validators score, and only good heads pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from blyan_proto.block.gate import Gate
from blyan_proto.block.model import Adoption
from blyand.rules.model.gate import GATES, Stand
from tests.sim.network import until
from tests.sim.training import Training, simulate


def test_good_rounds_are_adopted_and_bad_ones_are_not(tmp_path: Path) -> None:
    """The only validator is drawn; from the second version on it measures worse ones."""
    net = Training(tmp_path)
    judged: list[bytes] = []

    def judge(root: bytes, windows: np.ndarray) -> Any:
        """Return a loss that falls once, and rises ever after."""
        if root not in judged:
            judged.append(root)
        assert windows.shape[1] == 33 and len(windows) >= 2
        place = judged.index(root)
        return windows[:, 0] * 1e-3 + (0.0 if place == 1 else 0.4)

    async def main() -> None:
        async with net.running():
            validator = net.nodes[0]
            validator.judged = judge
            run = await net.begin(
                rounds=3, adopt_every=1, gate=Gate(1, 16, 1645, 2_000)
            )
            await net.closes(run, 3)
            await until(lambda: GATES.get(validator.machine.view, run) is not None)

            def decided(node: Any) -> Any:
                return GATES.get(node.machine.view, run)

            await until(
                lambda: all(
                    found is not None and found.round == 2
                    for found in map(decided, net.nodes)
                )
            )
            last = decided(net.nodes[1])
            assert last.stand is Stand.FAILED and last.median == last.drawn[0]
            assert {node.adopted(net.model) for node in net.nodes} == {1}
            assert not validator.blocks_of(Adoption)
            net.check()

    simulate(main)
