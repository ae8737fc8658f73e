"""What of the tokens that learners could learn from ends in accepted deltas."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.sim.training import Training
from tests.sim.training_node import TrainNode

TRUNK = 1  # a group that everybody trains
ROUND_S = 5.0  # that all inner steps take
RESTART_S = 3.0  # a daemon's


@dataclass(frozen=True)
class Yield:
    """What came of a while of training, in virtual time."""

    rounds: int
    tokens: int  # in accepted deltas
    seconds: float
    by_learner: dict[str, int]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


async def measured(
    home: Path,
    seconds: float,
    kill_every_s: float | None = None,
    slow: dict[int, float] | None = None,
    count: int = 8,
    seed: int = 1,
    **changed: int,
) -> Yield:
    """Train on `count` nodes for a while; `slow` are the factors of slower ones."""
    net = Training(home, seed, count=count, validators=4)
    for index, node in enumerate(net.nodes):
        node.trainer.pace_s = ROUND_S * (slow or {}).get(index, 1.0)
    async with net.running():
        run = await net.begin(10_000, inner_steps=20, grace_ms=2_000, **changed)
        await net.closes(run, 2)
        first = net.nodes[0].closed(run)
        began = trio.current_time()
        with trio.move_on_after(seconds):
            if kill_every_s is None:
                await trio.sleep_forever()
            await _kill(net, kill_every_s, random.Random(seed))
        took = trio.current_time() - began
        await trio.sleep(2.0)  # for all to hear of the last checkpoint
        return _yield(net, first, took)


async def _kill(net: Training, every_s: float, draw: random.Random) -> None:
    while True:
        at = draw.uniform(0.0, every_s - RESTART_S)
        await trio.sleep(at)
        index = draw.randrange(len(net.nodes))
        victim = net.nodes[index]
        pace_s = victim.trainer.pace_s
        victim.stop()
        await trio.sleep(RESTART_S)
        back = net.nodes[index] = victim.again()
        back.trainer.pace_s = pace_s
        await net.start(back)
        await trio.sleep(every_s - RESTART_S - at)


def _yield(net: Training, first: int, seconds: float) -> Yield:
    names = {node.key.account: node.name for node in net.nodes}
    seer: TrainNode = max(net.nodes, key=lambda n: n.machine.clock.height)
    by_learner: dict[str, int] = dict.fromkeys(names.values(), 0)
    made = net.updates(seer, TRUNK)[first:]
    for block in made:
        for part in block.content.contributions:
            by_learner[names[part.learner]] += part.tokens
    return Yield(len(made), sum(by_learner.values()), seconds, by_learner)
