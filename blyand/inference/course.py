"""The course of a sequence: its stages in order, made of a plan, and their memory.

A prompt of several chunks flows: while a chunk is in one stage, the next chunk is in the
stage before (DEC-S4), so that spans at different peers work at the same time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import trio
from torch import Tensor

from blyan_proto.errors import ProtocolError
from blyan_tile.model.cache import KeyValueCache, cache_bytes
from blyan_tile.model.transformer import PREFILL_TOKENS
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.inference.call import most_rows
from blyand.inference.passes import Pass
from blyand.inference.paths import Paths
from blyand.inference.pins import Pins
from blyand.inference.prefixes import Prefixes
from blyand.inference.remote import RemoteSpan, Spans
from blyand.inference.room import Room
from blyand.inference.runs import Choose, Runs
from blyand.inference.scatter import Scatter
from blyand.inference.stages import ExpertStage, LocalStage, Stage, choose_rows
from blyand.inference.trunks import Trunks
from blyand.inference.usage import Usage
from blyand.inference.versions import Versions
from blyand.rules.net.path import Leg, Route, Way

HERE = LocalStage, ExpertStage  # take ids, and choose on logits


@dataclass(frozen=True)
class Parts:
    """What every sequence of this node shares."""

    pins: Pins
    trunks: Trunks
    versions: Versions
    scatter: Scatter
    runs: Runs
    room: Room
    lane: Threads
    paths: Paths
    spans: Spans
    prefixes: Prefixes
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class _Chunk:
    x: Tensor  # (T,) ids, or (T, d) hidden states
    position: int
    from_row: int  # first row whose logits are wanted; T: none
    choose: Choose
    chosen: tuple[Any, ...] = ()


_Step = Callable[[_Chunk], Awaitable[_Chunk]]


class Course:
    """The stages of one sequence. A context manager: at the end their memory is free."""

    def __init__(
        self,
        parts: Parts,
        run: Pass,
        capacity: int,
        route: Route = Route.AUTO,
    ) -> None:
        """Plan, and claim memory for `capacity` tokens. NoRoute, Busy."""
        self._parts = parts
        self._run = run
        self._capacity = capacity
        self._route = route
        numerics = run.numerics
        self._numerics = parts.scatter.numerics if numerics is None else numerics
        self._avoid: set[str] = set()  # peers that failed this sequence
        with ExitStack() as self._kept:
            legs = parts.paths.legs(run.heads, route)
            self._stages = self._made(legs)
            self._kept = self._kept.pop_all()

    @property
    def cache(self) -> KeyValueCache | None:
        """The keys and values, where those of every layer are here."""
        is_here = all(isinstance(stage, HERE) for stage in self._stages)
        return self._run.cache if is_here else None

    def close(self) -> None:
        """Free the memory, here and at peers."""
        self._kept.close()

    async def feed(
        self, ids: Tensor, position: int, choose: Choose, from_row: int
    ) -> list[Any]:
        """Run ids (T,) from `position` on; return choose(row, logits) from `from_row` on.

        `choose` runs in the lane. Unavailable and its kinds, LimitExceeded; the caches
        are then good for nothing but the same position again.
        """
        size = min(PREFILL_TOKENS, most_rows(self._run.heads.architecture.width))
        chunks = [
            _Chunk(
                ids[start : start + size],
                position + start,
                max(0, from_row - start),
                partial(_choose_at, choose, start),
            )
            for start in range(0, len(ids), size)
        ]
        steps = self._steps()
        if len(chunks) == 1 or not any(isinstance(s, RemoteSpan) for s in self._stages):
            done = [await _in_turn(steps, chunk) for chunk in chunks]
        else:
            done = await flow(steps, chunks)
        return [made for chunk in done for made in chunk.chosen]

    def _steps(self) -> list[_Step]:
        *before, last = self._stages
        steps: list[_Step] = [partial(self._pass, stage) for stage in before]
        if not isinstance(self._stages[0], HERE):
            steps = [self._embed, *steps]
        return [*steps, partial(self._finish, last)]

    async def _embed(self, chunk: _Chunk) -> _Chunk:
        x = await self._parts.lane.run(_embedded, self._run, chunk.x)  # (T, d)
        return _with(chunk, x)

    async def _pass(self, stage: Stage, chunk: _Chunk) -> _Chunk:
        began_s = trio.current_time()
        x = await stage.run(chunk.x, chunk.position)  # (T, d)
        self._note(stage, chunk, began_s)
        return _with(chunk, x)

    async def _finish(self, last: Stage, chunk: _Chunk) -> _Chunk:
        wanted = max(0, len(chunk.x) - chunk.from_row)
        if isinstance(last, HERE):
            began_s = trio.current_time()
            chosen = await last.choose(
                chunk.x, chunk.position, chunk.choose, chunk.from_row
            )
            self._note(last, chunk, began_s)
            return _with(chunk, chunk.x, chosen)
        if not isinstance(last, RemoteSpan):
            x = (await last.run(chunk.x, chunk.position))[chunk.from_row :]
        else:
            x = await last.run(chunk.x, chunk.position, wanted)  # (wanted, d)
        if not wanted:
            return _with(chunk, x)
        choose = partial(_choose_at, chunk.choose, chunk.from_row)
        chosen = await self._parts.lane.run(choose_rows, self._run.trunk, x, choose, 0)
        return _with(chunk, x, chosen)

    def _note(self, stage: Stage, chunk: _Chunk, began_s: float) -> None:
        paths, seconds = self._parts.paths, trio.current_time() - began_s
        if len(chunk.x) > 1:
            return
        if isinstance(stage, LocalStage):
            paths.computed(stage.end - stage.first, seconds)
        elif isinstance(stage, ExpertStage):
            paths.scattered(stage.end - stage.first, seconds)

    def _made(self, legs: Sequence[Leg]) -> list[Stage]:
        """Return the stages of `legs`; their memory is claimed until the end. Busy."""
        parts, run = self._parts, self._run
        legs = _merged(legs)
        shape = run.heads.architecture
        here = sum(leg.end - leg.first for leg in legs if leg.way is not Way.SPAN)
        away = sum(1 for leg in legs if leg.way is Way.SPAN)
        size = cache_bytes(shape, self._capacity, here)
        size += away * self._capacity * shape.width * self._numerics.element_bytes
        self._kept.enter_context(parts.room.take(size))
        stages: list[Stage] = []
        for leg in legs:
            if leg.way is Way.SPAN:
                span = RemoteSpan(
                    parts.spans,
                    run,
                    leg.peer,
                    leg.first,
                    leg.end,
                    self._capacity,
                    self._numerics,
                    self._take_over,
                )
                self._kept.callback(span.close)
                stages.append(span)
                continue
            experts = ExpertStage(parts.scatter, parts.lane, run, leg.first, leg.end)
            if leg.way is Way.LOCAL:
                stages.append(LocalStage(parts.runs, run, parts.scatter.me, experts))
            else:
                stages.append(experts)
        return stages

    def _take_over(self, peer: str, first: int, end: int) -> list[Stage]:
        """Return stages in place of a peer's span, that peer avoided from now on."""
        self._avoid.add(peer)
        legs = self._parts.paths.legs(
            self._run.heads, self._route, self._avoid, first, end
        )
        return self._made(legs)


async def flow(
    steps: Sequence[Callable[[Any], Awaitable[Any]]], items: Sequence[Any]
) -> list[Any]:
    """Return the items after all steps: one item in a step at a time, in order.

    Every step works at the same time as the others. Ends with the first failure.
    """
    failures: list[Unavailable | ProtocolError] = []
    done: list[Any] = []
    async with trio.open_nursery() as nursery:

        async def work(
            step: Callable[[Any], Awaitable[Any]],
            source: trio.MemoryReceiveChannel[Any],
            sink: trio.MemorySendChannel[Any],
        ) -> None:
            try:
                async with sink:
                    async for item in source:
                        await sink.send(await step(item))
            except (Unavailable, ProtocolError) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        put, source = trio.open_memory_channel[Any](len(items))
        for item in items:
            put.send_nowait(item)
        put.close()
        for step in steps:
            sink, after = trio.open_memory_channel[Any](0)
            nursery.start_soon(work, step, source, sink)
            source = after
        async for item in source:
            done.append(item)
    if failures:
        raise failures[0]
    return done


async def _in_turn(steps: Sequence[_Step], chunk: _Chunk) -> _Chunk:
    for step in steps:
        chunk = await step(chunk)
    return chunk


def _with(chunk: _Chunk, x: Tensor, chosen: Sequence[Any] = ()) -> _Chunk:
    return _Chunk(x, chunk.position, chunk.from_row, chunk.choose, tuple(chosen))


def _choose_at(choose: Choose, start: int, row: int, logits: Any) -> Any:
    return choose(start + row, logits)


@torch.no_grad()
def _embedded(run: Pass, ids: Tensor) -> Tensor:
    return run.trunk.embed(ids.to(run.trunk.device))


def _merged(legs: Sequence[Leg]) -> list[Leg]:
    """Return the legs with neighbours that are computed with experts in one."""
    merged: list[Leg] = []
    for leg in legs:
        if merged and leg.way is merged[-1].way is Way.EXPERTS:
            merged[-1] = Leg(merged[-1].first, leg.end, leg.way)
        else:
            merged.append(leg)
    return merged
