"""Everything that goes wrong, at once, drawn from a seed: the weather of a training run.

Calls and gossip are lost all the time; nodes die and come back, sometimes without their
blobs, the next primary among them; the network splits; newcomers join. At most a third
of the validators is away at once, or nothing would ever be final.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable

import trio

from blyand.rules.model.election import ranks
from blyand.rules.records import SCHEDULES
from tests.sim.network import until
from tests.sim.training import Training
from tests.sim.training_node import TrainNode

LOSS = 0.3
CALM_S = 6.0, 20.0  # between two things that go wrong
AWAY_S = 1.0, 12.0  # a node that was killed
SPLIT_S = 2.0, 8.0
POORER = 0.15  # of those killed lose their blobs
TOLD_S = 30.0  # of virtual time


class Storm:
    """What befalls a network while it trains."""

    def __init__(self, net: Training, seed: int, most: int, validators: int) -> None:
        self._net = net
        self._random = random.Random(f"storm {seed}")
        self._most = most  # nodes
        self._safe = validators - (validators - 1) // 3  # validators that stay up
        self.happened: Counter[str] = Counter()
        self._left = 0  # nodes that are away and will come back
        self._over = False

    async def rage(self, run: bytes, rounds: int) -> None:
        """Let things go wrong until `rounds` of a run are final; then heal all."""
        wire = self._net.wire
        wire.loss = wire.broken = LOSS
        async with trio.open_nursery() as nursery:
            while self.closed(run) < rounds:
                await trio.sleep(self._random.uniform(*CALM_S))
                await self._strike(run, nursery)
            self._over = True
        wire.loss = wire.broken = 0.0

    def closed(self, run: bytes) -> int:
        """Return how many rounds are final on the node that is furthest."""
        return max(node.closed(run) for node in self._up())

    def _up(self) -> list[TrainNode]:
        down = self._net.wire.down
        return [node for node in self._net.nodes if node.name not in down]

    async def _strike(self, run: bytes, nursery: trio.Nursery) -> None:
        what = self._random.choice(("learner", "learner", "primary", "split", "join"))
        if what == "split" and not self._net.wire.side:
            nursery.start_soon(self._split)
        elif what == "join" and len(self._net.nodes) < self._most:
            late = self._net.newcomer()
            self._net.nodes.append(late)
            await self._net.start(late)
        else:
            victim = self._primary(run) if what == "primary" else self._anybody()
            if victim is None:
                return
            nursery.start_soon(self._kill, victim)
        self.happened[what] += 1

    def _anybody(self) -> TrainNode | None:
        spared = self._spared()
        able = [node for node in self._up() if node.name not in spared]
        return self._random.choice(able) if able else None

    def _spared(self) -> set[str]:
        """Return the validators, if no other one of them may be away."""
        names = {node.name for node in self._net.nodes if node.is_validator}
        up = {node.name for node in self._up()} & names
        return names if len(up) <= self._safe else set()

    def _primary(self, run: bytes) -> TrainNode | None:
        """Return the first rank of some group in the round that is open."""
        spared = self._spared()
        seer = max(self._up(), key=lambda node: node.closed(run))
        schedule = SCHEDULES.get(seer.machine.view, run, seer.closed(run))
        group = self._random.choice(self._net.layout.groups).index
        seats = ranks(schedule, group) if schedule else ()
        for node in self._up():
            if seats and node.key.account == seats[0].account:
                return None if node.name in spared else node
        return None

    async def _kill(self, victim: TrainNode) -> None:
        victim.stop()
        await trio.sleep(self._random.uniform(*AWAY_S))
        if self._random.random() < POORER:
            self.happened["lost blobs"] += 1
            victim.blobs.close()
            shutil.rmtree(victim.home / "blobs")
        back = victim.again()
        nodes = self._net.nodes
        nodes[nodes.index(victim)] = back
        await self._net.start(back)

    async def _split(self) -> None:
        wire = self._net.wire
        for node in self._net.nodes:
            wire.side[node.name] = self._random.randrange(2)
        await trio.sleep(self._random.uniform(*SPLIT_S))
        wire.side.clear()


async def weather(
    net: Training,
    seed: int,
    rounds: int,
    most: int,
    validators: int,
    say: Callable[[int, Storm], None] = lambda closed, storm: None,
) -> Storm:
    """Train through a storm; check that all nodes hold what the blocks alone give.

    `say` is told from time to time how many rounds are closed.
    """
    storm = Storm(net, seed, most, validators)
    async with net.running():
        run = await net.begin(rounds, deadline_ms=3_000, snapshot_every=5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell, storm, run, say)
            await storm.rage(run, rounds)
            nursery.cancel_scope.cancel()
        await net.closes(run, rounds)
        await net.settles()
        # whoever is a checkpoint behind lacks what was ordered last, as a snapshot
        await until(lambda: len({node.root for node in net.nodes}) == 1)
        net.check()
        reader = net.nodes[-1]
        settings = reader.run_record(run).run
        for index, head in enumerate(reader.heads(net.model)):
            assert head.rounds == rounds
            if net.has_deltas(reader, index):  # a long storm takes some from everybody
                assert net.replayed(reader, settings, index) == head.tiles
                storm.happened["groups replayed"] += 1
    return storm


async def _tell(storm: Storm, run: bytes, say: Callable[[int, Storm], None]) -> None:
    while True:
        await trio.sleep(TOLD_S)
        say(storm.closed(run), storm)
