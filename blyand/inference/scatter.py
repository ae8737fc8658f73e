"""The experts of one layer, wherever they are: here, at peers, at other peers.

Strategy. Experts held here are computed here; the others are grouped into one call per
peer. A call that fails is sent again, for exactly its experts, to the next holders
(DEC-S3). When nobody is left it waits a little for holders to appear or recover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import trio

from blyan_proto.protocols.expert import DEADLINE_S, Forward
from blyand.errors import NoRoute, StaleVersion, Unavailable
from blyand.inference.batch import Batcher, Work
from blyand.inference.call import make_call, parted, read_outputs
from blyand.inference.pins import Heads
from blyand.inference.routes import Routes

PATIENCE_S = 10.0  # how long a layer waits for a holder of an expert
PAUSE_S = 0.1  # before holders are asked again; doubles
MAX_PAUSE_S = 1.0

Outputs = dict[int, tuple[np.ndarray, np.ndarray]]  # expert: rows (m,), output (m, d)


class Forwarder(Protocol):
    """Calls peers: blyand.protocols.expert.Client."""

    async def forward(
        self, peer: str, call: Forward, deadline_s: float
    ) -> tuple[bytes, ...]: ...


@dataclass
class Tally:
    """What one request cost."""

    calls: Counter[str] = field(default_factory=Counter)  # answered, by peer
    retries: int = 0  # calls sent again to another peer
    repinned: int = 0  # times it began again at a newer checkpoint


@dataclass(frozen=True)
class Layer:
    """What is asked of the experts of one layer."""

    heads: Heads
    index: int
    x: np.ndarray  # (n, d) float32, n at most call.most_rows(d)
    rows: dict[int, np.ndarray]  # expert: its rows (m,) of x, ascending
    tally: Tally
    deadline_s: float  # trio time at which the request ends
    is_stale: Callable[[], bool]  # newer versions than those of `heads` are final


class Scatter:
    """Finds and calls experts.

    `me` is our own peer id; `holders(model, group)` gives the peers that say they hold
    a group, `held(model)` the groups that are here.
    """

    def __init__(
        self,
        me: str,
        batcher: Batcher,
        client: Forwarder,
        routes: Routes,
        holders: Callable[[bytes, int], Iterable[str]],
        held: Callable[[bytes], frozenset[int]],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.me = me
        self.batcher = batcher
        self.client = client
        self.routes = routes
        self.holders = holders
        self.held = held
        self.patience_s = patience_s

    async def outputs(self, layer: Layer) -> Outputs:
        """Return the output rows of every expert of `layer.rows`.

        NoRoute, naming an expert, when nobody answered for it in time; StaleVersion
        when its version is no longer served and a newer one is final.
        """
        return await _Gathering(self, layer).run()


class _Gathering:
    """One layer of one request under way."""

    def __init__(self, scatter: Scatter, layer: Layer) -> None:
        self._scatter = scatter
        self._layer = layer
        self._done: Outputs = {}
        self._tried: dict[int, set[str]] = {expert: set() for expert in layer.rows}
        self._why: dict[int, Unavailable] = {}  # the last failure of each expert
        self._failure: Unavailable | None = None
        self._give_up_s = min(
            trio.current_time() + scatter.patience_s, layer.deadline_s
        )

    async def run(self) -> Outputs:
        layer = self._layer
        held = self._scatter.held(layer.heads.model)
        local = [e for e in layer.rows if self._group(e) in held]
        if len(local) == len(layer.rows):
            missing = await self._compute(local)  # the usual case on a large node
            if not missing:
                return self._done
            local = []
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._spread([e for e in layer.rows if e not in local + list(self._done)])
            if local:
                self._spread(await self._compute(local))
        if self._failure is not None:
            raise self._failure
        return self._done

    async def _compute(self, experts: Sequence[int]) -> list[int]:
        """Compute experts that are held here; return those that turned out not to be."""
        layer, heads = self._layer, self._layer.heads
        works = [
            Work(
                heads.layout,
                heads.expert(layer.index, expert),
                heads.roots[self._group(expert)],
                heads.tiles[self._group(expert)],
                layer.x,
                layer.rows[expert],
            )
            for expert in experts
        ]
        missing = []
        for expert, made in zip(experts, await self._scatter.batcher.compute(works)):
            if isinstance(made, Unavailable):
                self._why[expert] = made
                missing.append(expert)
            else:
                self._done[expert] = layer.rows[expert], made
        if len(missing) < len(experts):
            layer.tally.calls[self._scatter.me] += 1
        return missing

    def _spread(self, experts: Sequence[int], again: bool = False) -> None:
        """Start the calls for `experts`: each to its best holder not yet tried."""
        layer, scatter = self._layer, self._scatter
        by_peer: dict[str, list[int]] = {}
        lost: list[int] = []
        for expert in experts:
            holders = scatter.holders(layer.heads.model, self._group(expert))
            left = set(holders) - self._tried[expert] - {scatter.me}
            ranked = scatter.routes.ranked(left)
            if ranked:
                by_peer.setdefault(ranked[0], []).append(expert)
            else:
                lost.append(expert)
        for peer, mine in by_peer.items():
            for part in parted(mine, layer.rows, layer.x.shape[1]):
                layer.tally.retries += again
                self._nursery.start_soon(self._call, peer, part)
        if lost:
            self._nursery.start_soon(self._wait, lost)

    async def _call(self, peer: str, experts: list[int]) -> None:
        layer, routes = self._layer, self._scatter.routes
        call = make_call(layer.heads, layer.index, experts, layer.x, layer.rows)
        began_s = trio.current_time()
        left_s = layer.deadline_s - began_s
        patience_s = routes.deadline_s(peer, len(layer.x))
        deadline_s = max(0.0, min(patience_s, DEADLINE_S, left_s))
        routes.began(peer)
        try:
            raw = await self._scatter.client.forward(peer, call, deadline_s)
            outputs = read_outputs(raw, layer.x.shape[1])
        except Unavailable as error:
            if not isinstance(error, StaleVersion):
                routes.failed(peer)
            for expert in experts:
                self._tried[expert].add(peer)
                self._why[expert] = error
            self._spread(experts, again=True)
            return
        finally:
            routes.ended(peer)
        routes.answered(peer, trio.current_time() - began_s, len(layer.x))
        layer.tally.calls[peer] += 1
        for expert, output in zip(experts, outputs):
            self._done[expert] = layer.rows[expert], output

    async def _wait(self, experts: list[int]) -> None:
        """Nobody is left to ask: wait for somebody, or give up."""
        pause_s = PAUSE_S
        while not any(self._askable(expert) for expert in experts):
            why = self._why.get(experts[0])
            if isinstance(why, StaleVersion) and self._layer.is_stale():
                return self._fail(why)
            left_s = self._give_up_s - trio.current_time()
            if left_s <= 0:
                return self._fail(NoRoute(self._sentence(experts[0])))
            await trio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            for expert in experts:
                self._tried[expert].clear()  # who was busy or gone may be back
        self._spread(experts, again=True)

    def _askable(self, expert: int) -> bool:
        holders = self._scatter.holders(self._layer.heads.model, self._group(expert))
        return bool(set(holders) - self._tried[expert] - {self._scatter.me})

    def _fail(self, error: Unavailable) -> None:
        self._failure = self._failure or error
        self._nursery.cancel_scope.cancel()

    def _group(self, expert: int) -> int:
        return self._layer.heads.expert(self._layer.index, expert).index

    def _sentence(self, expert: int) -> str:
        name = self._layer.heads.expert(self._layer.index, expert).name
        why = self._why.get(expert)
        if why is None:
            return f"no peer that holds {name} is connected"
        return f"no peer that holds {name} answered; the last one: {why}"
