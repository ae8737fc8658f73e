"""The experts of one layer, wherever they are: here, at peers, at other peers.

Strategy. Experts held here are computed here. For the others, peers are chosen together,
so that few are called (rules/net/route.py), each once. A call that fails is sent again,
for exactly its experts, to other holders (DEC-S3). When nobody is left it waits a little
for holders to appear or recover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import trio

from blyan_proto.protocols.expert import MAX_SLICES, Numerics
from blyan_tile.recipe import Recipe
from blyan_tile.slice import WHOLE, Slice, slices, summed
from blyan_tile.stream import expert_bytes, hidden_units
from blyand.compute import Threads
from blyand.errors import NoRoute, StaleVersion, Unavailable
from blyand.inference.ask import Asked, Asker, Forwarder
from blyand.inference.ask import Tally as Tally  # a part of a layer's signature
from blyand.inference.batch import Batcher, Work
from blyand.inference.call import Overflow, Rows, make_call, parted
from blyand.inference.opinions import Opinions
from blyand.inference.pins import Heads
from blyand.inference.routes import Routes
from blyand.rules.net.fair import OWN
from blyand.rules.net.route import assign

PATIENCE_S = 10.0  # how long a layer waits for a holder of an expert
PAUSE_S = 0.1  # before holders are asked again; doubles
MAX_PAUSE_S = 1.0

Call = tuple[str, Rows]  # whom to ask for what
Outputs = dict[int, tuple[np.ndarray, np.ndarray]]  # expert: rows (m,), output (m, d)


@dataclass(frozen=True)
class Layer:
    """What is asked of the experts of one layer."""

    heads: Heads
    index: int
    x: np.ndarray  # (n, d) float32
    rows: dict[int, np.ndarray]  # expert: its rows (m,) of x, ascending
    tally: Tally
    deadline_s: float  # trio time at which the request ends
    is_stale: Callable[[], bool]  # newer versions than those of `heads` are final
    numerics: Numerics | None = None  # of calls to peers; None: the node's
    piece: Slice = WHOLE  # of every expert
    owner: str = OWN  # whose turn it takes among what is computed here


class Scatter:
    """Finds and calls experts; `run` is the service behind it.

    `me` is our own peer id; `holders(model, group)` gives the peers that say they hold
    a group, `held(model)` the groups that are here. `lane` is for what copies much.
    Experts above `slice_bytes` are asked for in slices; 0: never.
    """

    def __init__(
        self,
        me: str,
        batcher: Batcher,
        client: Forwarder,
        routes: Routes,
        holders: Callable[[bytes, int], Iterable[str]],
        held: Callable[[bytes], frozenset[int]],
        lane: Threads,
        numerics: Numerics = Numerics.REFERENCE,
        slice_bytes: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.me = me
        self.batcher = batcher
        self.routes = routes
        self.opinions = Opinions(client, routes, lane)
        self.asker = Asker(client, routes, self.opinions, lane)
        self.holders = holders
        self.held = held
        self.numerics = numerics
        self.slice_bytes = slice_bytes
        self.patience_s = patience_s

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Notice late calls and compare answers, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.asker.run)
            await nursery.start(self.opinions.run)
            task_status.started()

    async def outputs(self, layer: Layer) -> Outputs:
        """Return the output rows of every expert of `layer.rows`.

        NoRoute, naming an expert, when nobody answered for it in time; StaleVersion
        when its version is no longer served and a newer one is final; Overflow when the
        hidden states are no longer finite.
        """
        if not self.slice_bytes:
            return await _Gathering(self, layer).run()
        pieces = self._pieces(layer)
        held = self.held(layer.heads.model)
        here: dict[int, np.ndarray] = {}
        away: dict[int, np.ndarray] = {}
        for expert, rows in layer.rows.items():
            at_hand = layer.heads.expert(layer.index, expert).index in held
            (here if at_hand else away)[expert] = rows
        if len(pieces) == 1 or not away:
            return await _Gathering(self, layer).run()
        parts = [replace(layer, rows=away, piece=piece) for piece in pieces]
        made, *sliced = await self._together([replace(layer, rows=here), *parts])
        for expert, rows in away.items():
            made[expert] = rows, summed([part[expert][1] for part in sliced])
        return made

    def _pieces(self, layer: Layer) -> tuple[Slice, ...]:
        """Return the slices in which experts of this layer are asked for at peers."""
        group = layer.heads.expert(layer.index, next(iter(layer.rows)))
        size = expert_bytes(group, Recipe.F32)
        return slices(size, self.slice_bytes, min(MAX_SLICES, hidden_units(group)))

    async def _together(self, layers: Sequence[Layer]) -> list[Outputs]:
        """Return the outputs of all; when one fails, the others end, too."""
        made: dict[int, Outputs] = {}
        failed: list[Unavailable] = []

        async def one(index: int, layer: Layer) -> None:
            try:
                made[index] = await _Gathering(self, layer).run()
            except Unavailable as error:
                failed.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for index, layer in enumerate(layers):
                nursery.start_soon(one, index, layer)
        if failed:
            raise failed[0]
        return [made[index] for index in range(len(layers))]


class _Gathering:
    """One layer of one request under way."""

    def __init__(self, scatter: Scatter, layer: Layer) -> None:
        self._scatter = scatter
        self._layer = layer
        numerics = layer.numerics
        self._numerics = scatter.numerics if numerics is None else numerics
        self._done: Outputs = {}
        self._parts: dict[int, Outputs] = {}  # by first token, of experts at peers
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
        here = set(local) | set(self._done)
        away: Rows = {e: rows for e, rows in layer.rows.items() if e not in here}
        calls, lost = self._spread(away)
        if len(calls) == 1 and not local and not lost:
            if await self._try(*calls[0]):  # the usual case, without another task
                return self._done | self._joined()
            away, calls = calls[0][1], []
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if calls or lost:
                self._start(calls, lost)
            elif away:
                self._start(*self._spread(away), again=True)
            if local:
                missing = await self._compute(local)
                self._start(*self._spread({e: layer.rows[e] for e in missing}))
        if self._failure is not None:
            raise self._failure
        return self._done | self._joined()

    def _joined(self) -> Outputs:
        """Return the outputs of experts at peers, whole."""
        found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        for _, part in sorted(self._parts.items()):
            for expert, pair in part.items():
                found.setdefault(expert, []).append(pair)
        made: Outputs = {}
        for expert, pairs in found.items():
            rows, outputs = zip(*pairs)
            whole = pairs[0] if len(pairs) == 1 else None
            made[expert] = whole or (np.concatenate(rows), np.concatenate(outputs))
        return made

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
                self._numerics,
            )
            for expert in experts
        ]
        missing = []
        for expert, made in zip(
            experts, await self._scatter.batcher.compute(works, layer.owner)
        ):
            if isinstance(made, Unavailable):
                self._why[expert] = made
                missing.append(expert)
            else:
                self._done[expert] = layer.rows[expert], made
        if len(missing) < len(experts):
            layer.tally.calls[self._scatter.me] += 1
        return missing

    def _start(self, calls: list[Call], lost: Rows, again: bool = False) -> None:
        for peer, part in calls:
            self._layer.tally.retries += again
            self._nursery.start_soon(self._call, peer, part)
        if lost:
            self._nursery.start_soon(self._wait, lost)

    def _spread(self, rows: Rows) -> tuple[list[Call], Rows]:
        """Return the calls for `rows` to the peers that are best for them together.

        And the rows of the experts that nobody is left to ask for.
        """
        layer, scatter = self._layer, self._scatter
        wanted = {
            expert: [
                scatter.routes.holder(peer, len(rows[expert]), self._root(expert))
                for peer in self._askable(expert)
            ]
            for expert in rows
        }
        chosen = assign(wanted)
        asked = {expert for experts in chosen.values() for expert in experts}
        width = layer.x.shape[1]
        calls = [
            (peer, part)
            for peer, experts in chosen.items()
            for part in parted({e: rows[e] for e in experts}, width, self._numerics)
        ]
        return calls, {e: one for e, one in rows.items() if e not in asked}

    async def _call(self, peer: str, part: Rows) -> None:
        try:
            answered = await self._try(peer, part)
        except Overflow as error:
            return self._fail(error)
        if not answered:
            self._start(*self._spread(part), again=True)

    async def _try(self, peer: str, part: Rows) -> bool:
        """Ask one peer for a part; False if it has to be asked of another one.

        Overflow when the hidden states are not finite.
        """
        layer, asker = self._layer, self._scatter.asker
        call = await asker.convert(
            self._numerics.element_bytes * layer.x.size,
            make_call,
            layer.heads,
            layer.index,
            part,
            layer.x,
            self._numerics,
            layer.piece,
        )
        for expert in part:
            self._tried[expert].add(peer)
        alone = not self._able(part)
        asked = Asked(
            call, lambda: self._others(part), alone, layer.deadline_s, layer.tally
        )
        try:
            made = await asker.ask(peer, asked)
        except Unavailable as error:
            for expert in part:
                self._why[expert] = error
            return False
        first = min(int(rows[0]) for rows in part.values())
        outputs = {e: (part[e], output) for e, output in zip(sorted(part), made)}
        self._parts.setdefault(first, {}).update(outputs)
        return True

    def _others(self, part: Rows) -> list[str]:
        """Return the peers that could answer all of `part` and were not asked."""
        return self._scatter.routes.ranked(self._able(part))

    def _able(self, part: Rows) -> set[str]:
        return set.intersection(*(set(self._askable(expert)) for expert in part))

    async def _wait(self, rows: Rows) -> None:
        """Nobody is left to ask: wait for somebody, or give up."""
        pause_s, expert = PAUSE_S, next(iter(rows))
        while not any(self._askable(expert) for expert in rows):
            why = self._why.get(expert)
            if isinstance(why, StaleVersion) and self._layer.is_stale():
                return self._fail(why)
            left_s = self._give_up_s - trio.current_time()
            if left_s <= 0:
                return self._fail(NoRoute(self._sentence(expert)))
            await trio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            for one in rows:
                self._tried[one].clear()  # who was busy or gone may be back
        self._start(*self._spread(rows), again=True)

    def _askable(self, expert: int) -> list[str]:
        """Return the holders that were not tried, but for those that are left out.

        Slices begin with different holders, so that each needs room for few of them.
        """
        scatter = self._scatter
        tried = self._tried[expert] | {scatter.me}
        holders = scatter.holders(self._layer.heads.model, self._group(expert))
        able = [
            peer
            for peer in holders
            if peer not in tried and not scatter.routes.is_out(peer)
        ]
        piece = self._layer.piece
        if piece.count == 1 or self._tried[expert] or not able:
            return able
        return [sorted(able)[piece.index % len(able)]]

    def _fail(self, error: Unavailable) -> None:
        self._failure = self._failure or error
        self._nursery.cancel_scope.cancel()

    def _group(self, expert: int) -> int:
        return self._layer.heads.expert(self._layer.index, expert).index

    def _root(self, expert: int) -> bytes:
        return self._layer.heads.roots[self._group(expert)]

    def _sentence(self, expert: int) -> str:
        group = self._layer.heads.expert(self._layer.index, expert)
        name = self._layer.piece.name(group.name)
        why = self._why.get(expert)
        if why is None:
            see = "`blyanctl expert list` shows who holds what"
            return f"no peer that holds {name} is connected; {see}"
        return f"no peer that holds {name} answered; the last one: {why}"
