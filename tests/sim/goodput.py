"""What of the tokens that learners could learn from ends in accepted deltas."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from blyan_proto.block.sending import chosen
from blyan_proto.protocols.delta import Bundle, Receipt, Verdict
from blyand.training.keeping import Push
from tests.sim.links import Links
from tests.sim.training import Training
from tests.sim.training_node import TrainNode

TRUNK = 1  # a group that everybody trains
STEPS = 20  # inner steps of a round
ROUND_S = 5.0  # that all of them take
FULL_RATE = STEPS * 64 / ROUND_S  # tokens a second of a learner that never waits
RESTART_S = 3.0  # a daemon's
BUNDLE_BYTES = 1_450  # of deltas that one of these learners sends in a round
EVEN = ("matrix=LR4:4", "embedding=LR4:1")  # no group is much larger than another
DEMO_BYTES = 175_000  # that one of the demo model does


@dataclass(frozen=True)
class Yield:
    """What came of a while of training, in virtual time."""

    rounds: int
    tokens: int  # in accepted deltas
    seconds: float
    by_learner: dict[str, int]
    carried: int = 0  # bytes of bundles and blobs
    late: int = 0  # tokens that were too late by one round: handed in, or given up

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def utilisation(self) -> float:
        """What part of the time learners spent in inner steps that count."""
        return self.rate / (len(self.by_learner) * FULL_RATE)


async def measured(
    home: Path,
    seconds: float,
    kill_every_s: float | None = None,
    slow: dict[int, float] | None = None,
    count: int = 8,
    seed: int = 1,
    mbit_s: float | None = None,
    unsteady: float = 0.0,
    steps: int = STEPS,
    **changed: Any,
) -> Yield:
    """Train on `count` nodes for a while; `slow` are the factors of slower ones.

    With `mbit_s` what travels takes as long as the demo model's would, at that rate each
    way, and 25 ms. `unsteady`: a round takes each learner up to so much more, or less.
    """
    net = Training(home, seed, count=count, validators=4)
    if mbit_s is not None:
        net.wire.links = Links(mbit_s * 125_000 * BUNDLE_BYTES / DEMO_BYTES, 0.025)
        changed["codecs"] = chosen(EVEN, ())
    late: list[int] = []
    for index, node in enumerate(net.nodes):
        pace = (slow or {}).get(index, 1.0)
        node.trainer.pace_s = ROUND_S * steps / STEPS * pace
        node.trainer.unsteady = unsteady
        node.push = _counting(node.push, late)  # type: ignore[method-assign]
    async with net.running():
        run = await net.begin(10_000, inner_steps=steps, grace_ms=2_000, **changed)
        await net.closes(run, 2)
        first = net.nodes[0].closed(run)
        began = trio.current_time()
        late.clear()
        cut = _cut_off(net)
        with trio.move_on_after(seconds):
            if kill_every_s is None:
                await trio.sleep_forever()
            await _kill(net, kill_every_s, random.Random(seed))
        took = trio.current_time() - began
        missed = sum(late) + _cut_off(net) - cut
        await trio.sleep(2.0)  # for all to hear of the last checkpoint
        return _yield(net, first, took, missed)


def _counting(push: Push, late: list[int]) -> Push:
    """Return `push` that notes the tokens of deltas that came when a round was over."""

    async def pushed(peer: str, bundle: Bundle) -> Receipt:
        receipt = await push(peer, bundle)
        closed = {v.group for v in receipt.verdicts if v.verdict is Verdict.CLOSED}
        late.extend(
            delta.tokens
            for delta in bundle.deltas
            if delta.group == TRUNK and TRUNK in closed
        )
        return receipt

    return pushed


def _cut_off(net: Training) -> int:
    """Return the tokens of steps whose round was over before the last of them."""
    return sum(node.trainer.cut_off for node in net.nodes)


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


def _yield(net: Training, first: int, seconds: float, late: int) -> Yield:
    names = {node.key.account: node.name for node in net.nodes}
    seer: TrainNode = max(net.nodes, key=lambda n: n.machine.clock.height)
    by_learner: dict[str, int] = dict.fromkeys(names.values(), 0)
    made = net.updates(seer, TRUNK)[first:]
    for block in made:
        for part in block.content.contributions:
            by_learner[names[part.learner]] += part.tokens
    carried = net.wire.links.carried if net.wire.links else 0
    tokens = sum(by_learner.values())
    return Yield(len(made), tokens, seconds, by_learner, carried, late)
