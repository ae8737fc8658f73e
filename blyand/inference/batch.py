"""Expert computations of all requests, local and foreign, gathered into lane calls.

Strategy. While one lane call computes, further work waits; the next call takes all of
it, grouped by expert, our own first and every peer in turn. A row's result does not
depend on its batch-mates, not even on how many there are (DEC-S1, S2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import trio
from torch import Tensor

from blyan_proto.protocols.expert import Numerics
from blyan_tile.layout import Group, Layout
from blyan_tile.model.linear import BLOCK_ROWS
from blyan_tile.slice import WHOLE, Slice
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.inference.experts import Experts, InUse
from blyand.inference.versions import Tiles
from blyand.rules.net.fair import EVALUATION, OWN, FairQueue

CALL_ROWS = 512  # of one lane call, unless a single work has more: then others' turn
SMOOTHING = 0.2  # weight of the newest sample of a row's time
MAX_WAITING_ROWS = 65_536  # overflow: own work waits, a peer's is refused before


@dataclass(frozen=True)
class Work:
    """Some rows through one version of an expert."""

    layout: Layout
    group: Group
    root: bytes
    tiles: Tiles
    x: np.ndarray  # (n, d) float32, the activations of the call
    rows: np.ndarray  # (m,) int64, those for this expert
    numerics: Numerics = Numerics.REFERENCE
    piece: Slice = WHOLE


@dataclass
class _Order:
    work: Work
    owner: str
    done: trio.Event = field(default_factory=trio.Event)
    result: np.ndarray | Unavailable | None = None  # (m, d) float32
    dropped: bool = False  # nobody waits any more


class Batcher:
    """Computes works; `run` is the service behind it."""

    def __init__(
        self,
        experts: Experts,
        lane: Threads,
        aside: Threads | None = None,
        call_rows: int = CALL_ROWS,
        max_waiting_rows: int = MAX_WAITING_ROWS,
    ) -> None:
        """`aside`: the lane of calls in which nothing belongs to an answer; None: `lane`."""
        self._experts = experts
        self._lane, self._aside = lane, aside or lane
        self._call_rows = call_rows
        self._room = trio.Event()  # replaced each time some room was made
        self._max_waiting_rows = max_waiting_rows
        self._waiting: FairQueue[_Order] = FairQueue()
        self._row_s = 0.0  # smoothed time of a row in the lane
        self._arrived = trio.Event()

    @property
    def waiting_s(self) -> float:
        """How long what waits now will take."""
        return self._waiting.size * self._row_s

    async def compute(
        self, works: Sequence[Work], owner: str = OWN
    ) -> list[np.ndarray | Unavailable]:
        """Return each work's output rows (m, d), or why it could not be computed.

        `owner`: the peer that asks; what nobody waits for any more is not computed.
        """
        orders = [_Order(work, owner) for work in works]
        try:
            for order in orders:
                await self._queue(order)
            for order in orders:
                await order.done.wait()
        finally:
            for order in orders:
                order.dropped = True
        return [order.result for order in orders if order.result is not None]

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Compute what is queued, until cancelled."""
        task_status.started()
        while True:
            if not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            batch = self._take()
            later = [order for order in batch if order.owner == EVALUATION]
            now = [order for order in batch if order.owner != EVALUATION]
            for orders, lane in ((now, self._lane), (later, self._aside)):
                if orders:
                    await self._call(orders, lane)

    async def _call(self, batch: list[_Order], lane: Threads) -> None:
        began_s = trio.current_time()
        results = await lane.run(self._compute, [order.work for order in batch])
        self._note(batch, trio.current_time() - began_s)
        for order, result in zip(batch, results):
            order.result = result
            order.done.set()

    async def _queue(self, order: _Order) -> None:
        while self._waiting and self._waiting.size > self._max_waiting_rows:
            await self._room.wait()
        self._waiting.put(order.owner, len(order.work.rows), order)
        self._arrived.set()

    def _take(self) -> list[_Order]:
        """Take orders in turn up to a call's rows; what was given up is left out."""
        batch = self._waiting.take(self._call_rows)
        self._room.set()
        self._room = trio.Event()
        return [order for order in batch if not order.dropped]

    def _note(self, batch: list[_Order], seconds: float) -> None:
        row_s = seconds / sum(len(order.work.rows) for order in batch)
        self._row_s += SMOOTHING * (row_s - self._row_s)

    def _compute(self, works: list[Work]) -> list[np.ndarray | Unavailable]:
        """Run in the lane."""
        alike: dict[tuple[bytes, Numerics, Slice], list[int]] = {}
        for index, work in enumerate(works):
            key = (work.root, work.numerics, work.piece)
            alike.setdefault(key, []).append(index)
        results: dict[int, np.ndarray | Unavailable] = {}
        for indices in alike.values():
            same = [works[index] for index in indices]
            results |= zip(indices, self._through(same))
        return [results[index] for index in range(len(works))]

    def _through(self, works: list[Work]) -> list[np.ndarray | Unavailable]:
        first = works[0]
        try:
            expert = self._experts.get(
                first.layout,
                first.group,
                first.root,
                first.tiles,
                first.numerics,
                first.piece,
            )
        except Unavailable as error:
            return [error for _ in works]
        x = np.concatenate([work.x[work.rows] for work in works])  # (sum of m, d)
        with torch.no_grad():
            device = self._experts.device
            output = forward_rows(expert, torch.from_numpy(x).to(device))
            whole = output.cpu().numpy()  # (sum of m, d)
        ends = np.cumsum([len(work.rows) for work in works])
        return list(np.split(whole, ends[:-1]))


def forward_rows(expert: InUse, x: Tensor) -> Tensor:
    """Return expert(x), (n, d), in blocks whose inner states stay in the cache."""
    return torch.cat([expert(block) for block in torch.split(x, BLOCK_ROWS)])
