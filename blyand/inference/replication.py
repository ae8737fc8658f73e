"""Copies of experts that this node takes on because it sees them used. GROUP-03, 07, 08

Strategy. Placement says what a node holds at least; this adds to it, as whole layers for
spans do, and takes back what it added. Now and then, each node at moments of its own, the
hottest experts of the last hour are looked at, with those that they are used together
with; what is lacking here is chosen within the tier, the memory and the disk of the node.
Whoever holds groups (training/holder.py) fetches what is chosen and keeps it up to date,
and lets go of what is not, once enough others hold it. While a run is open nothing is
added: its rounds are scheduled with the holders there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import trio

from blyan_tile.layout import Group, Layout
from blyand.inference.usage import WINDOW_S, Usage, Use
from blyand.metrics import Metrics
from blyand.rules.model.couse import Together, groups_of
from blyand.rules.model.demand import Room, additions, hottest, unused
from blyand.rules.model.model import layout_for
from blyand.rules.records import MODELS, ModelRecord
from blyand.rules.view import View

logger = logging.getLogger(__name__)

LEAST_TOKENS = 256  # of an hour: fewer say nothing about what is hot
IDLE_S = 3600.0  # nobody used it for so long: it goes
ELEMENT_BYTES = 4  # float32


@dataclass(frozen=True)
class Sight:
    """What a node sees around it, and what it may take on."""

    view: Callable[[], View]
    held: Callable[[bytes], frozenset[int]]  # groups here, by model
    hosts: Callable[[bytes], Mapping[str, frozenset[int]]]  # of connected peers
    room_bytes: Callable[[], int]  # for experts, those that are here included
    disk_bytes: Callable[[], int]  # left; blocking
    most_experts: Callable[[int], int]  # copies that its tier allows, by expert bytes


class Replication:
    """Chooses; `run` is the service. `chosen` is asked from the loop."""

    def __init__(
        self,
        usage: Usage,
        sight: Sight,
        account: bytes,
        metrics: Metrics,
        random: Random,
        enabled: bool = True,
    ) -> None:
        self._usage = usage
        self.sight = sight
        self._account = account
        self._random = random
        self._enabled = enabled
        self._chosen: dict[bytes, dict[int, float]] = {}  # model: group, since when
        self._count = metrics.gauge("expert_copies")

    def chosen(self, record: ModelRecord) -> frozenset[int]:
        """Return the groups that this node holds of its own will."""
        return frozenset(self._chosen.get(record.id, ()))

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look now and then, until cancelled."""
        task_status.started()
        if not self._enabled:
            await trio.sleep_forever()
        while True:
            await trio.sleep(self._random.uniform(0.5, 1.5) * WINDOW_S)
            await self.look()

    async def look(self) -> None:
        """Let go of what nobody used; choose what is hot and not here."""
        for record in list(MODELS.scan(self.sight.view())):
            if record.weights == record.groups:
                await self._look_at(record)
        self._count.set(sum(map(len, self._chosen.values())))

    async def _look_at(self, record: ModelRecord) -> None:
        layout = layout_for(record.model)
        use = await trio.to_thread.run_sync(self._usage.of, record.id)
        now_s = trio.current_time()
        kept = self._chosen.setdefault(record.id, {})
        used = by_group(layout, use.used) if use is not None else {}
        old = {group for group, since_s in kept.items() if now_s - since_s >= IDLE_S}
        for group in unused(used, old):
            logger.info("nobody uses %s; its copy goes", layout.groups[group].name)
            del kept[group]
        if use is None or use.tokens < LEAST_TOKENS or record.run is not None:
            return
        disk_bytes = await trio.to_thread.run_sync(self.sight.disk_bytes)
        room, holders = self._room(layout, disk_bytes), self._holders(record.id)
        held = self.sight.held(record.id) | kept.keys()
        draw = record.id + self._account
        new = await trio.to_thread.run_sync(
            additions_of, layout, use, held, holders, room, draw
        )
        for group in sorted(new):
            logger.info("%s is hot; it is copied here", layout.groups[group].name)
            kept[group] = now_s

    def _room(self, layout: Layout, disk_bytes: int) -> Room:
        sight = self.sight
        taken = 0
        for record in MODELS.scan(sight.view()):
            mine = sight.held(record.id) | self._chosen.get(record.id, {}).keys()
            groups = layout_for(record.model).groups
            taken += sum(
                size_of(groups[g]) for g in mine if groups[g].expert is not None
            )
        copies = sum(map(len, self._chosen.values()))
        size = size_of(layout.expert_groups[0])
        left = min(sight.room_bytes() - taken, disk_bytes)
        return Room(max(0, left), max(0, sight.most_experts(size) - copies))

    def _holders(self, model: bytes) -> dict[int, int]:
        counts: dict[int, int] = {}
        for held in self.sight.hosts(model).values():
            for group in held:
                counts[group] = counts.get(group, 0) + 1
        return counts


def size_of(group: Group) -> int:
    """Return the bytes of an expert as placement counts it, in float32."""
    return ELEMENT_BYTES * group.elements


def by_group(layout: Layout, counts: np.ndarray) -> dict[int, int]:
    """Return counts (L, E) of experts by their groups' indices."""
    return {
        group.index: int(counts[group.layer, group.expert])
        for group in layout.expert_groups
    }


def together_in(use: Use) -> dict[int, tuple[Together, ...]]:
    """Return the groups of experts that are used together, by layer. Blocking."""
    if use.pairs is None or use.pair_visits is None or use.pair_tokens is None:
        return {}
    return {
        layer: groups_of(
            use.pairs[layer].astype(np.float64),
            use.pair_visits[layer],
            float(use.pair_tokens[layer]),
        )
        for layer in range(use.architecture.layers)
        if use.pair_tokens[layer]
    }


def additions_of(
    layout: Layout,
    use: Use,
    held: frozenset[int],
    holders: Mapping[int, int],
    room: Room,
    draw: bytes,
) -> frozenset[int]:
    """Return the groups to copy here. Blocking."""
    heat = by_group(layout, use.visits)
    places = {(g.layer, g.expert): g.index for g in layout.expert_groups}
    mates: dict[int, list[int]] = {}
    for layer, groups in together_in(use).items():
        for one in groups:
            indices = [places[layer, expert] for expert in one.experts]
            mates |= {i: [j for j in indices if j != i] for i in indices}
    sizes = {group.index: size_of(group) for group in layout.expert_groups}
    hot = hottest(heat)
    return additions(hot, mates, held, heat, holders, sizes, room, draw)
