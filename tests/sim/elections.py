"""Many nodes that come and go, and the heads that their ranks publish: the rules alone.

A checkpoint a second. Live nodes beat; the live ranks of a group publish its next
update, the first one always, the others now and then, some under a lease of before.
Execution, the daemon's own, says which of them count.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.constants import RANKS
from blyan_proto.types import bitmap
from blyand.rules.model.election import ranks
from blyand.rules.model.schedule import next_round
from blyand.rules.records import SCHEDULES
from tests.unit.daemon.chain_world import Training, beat

STEP_MS = 1_000
BEAT_S = 3  # a third of the liveness span, as daemons do
AWAY_S = 15.0, 60.0  # a node that was killed
RACES = 0.2  # how often a rank publishes that the first one did not need
STALE = 0.05  # and how often one does so under the lease before

Place = tuple[int, int]  # group, round


class Network:
    """Nodes that all hold all groups, and one run."""

    def __init__(self, nodes: int, draw: random.Random, kill_every_s: float) -> None:
        self._world = Training(nodes)
        self._run = self._world.open(rounds=1_000_000)
        self._draw = draw
        self._kill_every_s = kill_every_s
        self._away: dict[bytes, float] = {}  # public key -> until when
        self._now_s = self._kill_s = 0.0
        self._open_s: dict[Place, float] = {}  # since when the round can be moved
        self.accepted: dict[tuple[int, int, int], int] = (
            {}
        )  # group, epoch, round -> rank
        self.doubles = 0
        self.takeovers_s: list[float] = []  # of heads that are not the first rank's
        self.leases = 0

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        epochs: dict[int, int] = {}
        for _ in range(int(seconds)):
            self._now_s += 1
            self._kill()
            self._checkpoint()
            self._count_leases(epochs)

    def _kill(self) -> None:
        self._away = {k: s for k, s in self._away.items() if s > self._now_s}
        while self._kill_every_s and self._kill_s <= self._now_s:
            self._kill_s += self._kill_every_s
            victim = self._draw.choice(self._world.keys).public
            self._away[victim] = self._now_s + self._draw.uniform(*AWAY_S)

    def _checkpoint(self) -> None:
        world = self._world
        held = bitmap(set(range(world.groups)), world.groups)
        beats = [
            world.block(beat(world.model, held), key)
            for index, key in enumerate(world.keys)
            if key.public not in self._away and (self._now_s + index) % BEAT_S == 0
        ]
        heads = [one for group in range(world.groups) for one in self._heads(group)]
        self._draw.shuffle(heads)
        errors = world.errors(*beats, *heads, step_ms=STEP_MS)[len(beats) :]
        counted: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for block, error in zip(heads, errors, strict=True):
            if error is None:
                update = block.content
                place = update.group, update.lease_epoch, update.round
                counted[place].append(update.rank)
        for place, found in counted.items():
            self.doubles += len(found) - 1 + (place in self.accepted)
            self.accepted[place] = found[0]
            since = self._open_s.pop((place[0], place[2]), self._now_s)
            if found[0]:
                self.takeovers_s.append(self._now_s - since)

    def _heads(self, group: int) -> list[Block]:
        """Return what the live ranks of a group publish now."""
        world = self._world
        round = next_round(world.group(group), self._run)
        schedule = SCHEDULES.get(world.view, self._run, round)
        if schedule is None:
            return []
        since = self._open_s.setdefault((group, round), self._now_s)
        live = [
            rank
            for rank, seat in enumerate(ranks(schedule, group))
            if seat.key not in self._away
        ]
        if live and live[0] and since == self._now_s:
            return []  # learners see that it is gone, and hand in again
        made = [self._update(group, rank) for rank in live[:1]]
        for rank in live[1:]:
            if self._draw.random() < RACES:
                made.append(self._update(group, rank))
        for rank in live:
            if self._draw.random() < STALE:
                made.append(self._update(group, rank, lease_epoch=schedule.epoch - 1))
        return made

    def _update(self, group: int, rank: int, **changed: int) -> Block:
        """Return an update that the author and one live rank signed."""
        world = self._world
        draft = world.draft(
            self._run, group, learners=0, rank=rank, signatures=RANKS, **changed
        )
        live = [one for one in draft.cosignatures if one.signer not in self._away]
        signed = replace(draft, cosignatures=tuple(live[:2]))
        return world.block(signed, world.author_of(live[0].signer))

    def _count_leases(self, epochs: dict[int, int]) -> None:
        """Count the rounds that got another lease."""
        for group in range(self._world.groups):
            round = next_round(self._world.group(group), self._run)
            schedule = SCHEDULES.get(self._world.view, self._run, round)
            if schedule is not None:
                self.leases += epochs.get(round, schedule.epoch) != schedule.epoch
                epochs[round] = schedule.epoch
