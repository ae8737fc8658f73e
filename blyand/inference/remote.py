"""A span at a peer as a stage of a path, which outlives that peer (DEC-S3).

Strategy. Keys and values are at the peer, so what went in is kept here, as it travelled.
When the peer dies, is busy, or no longer serves the version, the layers are planned
again without it, all that went in is run once more through whoever computes them now, in
chunks, and the answer goes on where it was. Whoever takes over has its own failures.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import trio
from torch import Tensor

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import Numerics
from blyan_proto.protocols.span import (
    DEADLINE_S,
    MAX_ACTIVATION_BYTES,
    MAX_ROWS,
    Open,
    Step,
)
from blyan_tile.activations import is_finite, read_rows, write_rows
from blyand.compute import Threads
from blyand.errors import (
    Busy,
    NotFinite,
    NotHere,
    StaleVersion,
    TooSlow,
    Unavailable,
    WrongAnswer,
)
from blyand.inference.editions import name_of
from blyand.inference.passes import Pass
from blyand.inference.paths import Paths
from blyand.inference.stages import Stage

STEP_S = 4.0  # deadline of a step, at least
STEP_TIMES = 16  # what it ought to take, on top
END_S = 5.0  # deadline of a word that nobody waits for
MAX_ENDS = 256  # such words that wait; above it the session ends by itself, idle
SMALL_BYTES = 1 << 16  # rows up to here are written on the loop: some microseconds


class Opener(Protocol):
    """Sessions at peers: blyand.protocols.span.Client."""

    async def open(self, peer: str, request: Open, deadline_s: float) -> int: ...

    async def step(
        self, peer: str, request: Step, row_bytes: int, deadline_s: float
    ) -> bytes: ...

    async def end(self, peer: str, session: bytes, deadline_s: float) -> None: ...


class Spans:
    """What all sequences share that have spans at peers; `run` is the service behind it."""

    def __init__(self, client: Opener, paths: Paths, lane: Threads) -> None:
        """`lane` reads and writes large steps; it is not that in which they compute."""
        self.client = client
        self.paths = paths
        self.lane = lane
        self._put, self._ends = trio.open_memory_channel[tuple[str, bytes]](MAX_ENDS)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Tell peers which sessions are over, until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            async for peer, session in self._ends:
                nursery.start_soon(self._end, peer, session)

    def end_soon(self, peer: str, session: bytes) -> None:
        """Have a session ended, without waiting for it."""
        self.paths.ended(peer)
        try:
            self._put.send_nowait((peer, session))
        except trio.WouldBlock:
            pass  # the server ends what is idle

    async def _end(self, peer: str, session: bytes) -> None:
        try:
            await self.client.end(peer, session, END_S)
        except Unavailable:
            pass  # gone, or it ends by itself


# (peer that is to be avoided from now on, first, end) -> stages, planned anew
Takeover = Callable[[str, int, int], Sequence[Stage]]


@dataclass
class Inputs:
    """What went into a span, as it travelled: rows one after the other, from 0 on."""

    row_bytes: int
    raw: bytearray = field(default_factory=bytearray)

    @property
    def tokens(self) -> int:
        return len(self.raw) // self.row_bytes

    def put(self, position: int, raw: bytes) -> None:
        """Replace everything from `position` on."""
        del self.raw[position * self.row_bytes :]
        self.raw += raw

    def rows(self, first: int, end: int) -> bytes:
        return bytes(self.raw[first * self.row_bytes : end * self.row_bytes])


class RemoteSpan:
    """Layers of one sequence at one peer, or at who took over. Close it at the end."""

    def __init__(
        self,
        spans: Spans,
        run: Pass,
        peer: str,
        first: int,
        end: int,
        capacity: int,
        numerics: Numerics,
        take_over: Takeover,
    ) -> None:
        """`capacity` in tokens."""
        self.first, self.end = first, end
        self.peer = peer
        self._spans = spans
        self._run = run
        self._capacity = capacity
        self._numerics = numerics
        self._take_over = take_over
        self._width = run.heads.architecture.width
        self._row_bytes = numerics.element_bytes * self._width
        self._most_rows = min(MAX_ROWS, MAX_ACTIVATION_BYTES // self._row_bytes)
        self._inputs = Inputs(self._row_bytes)
        self._session: bytes | None = None  # at the peer
        self._is_open = False
        self._others: Sequence[Stage] | None = None  # in its place
        self._known = 0  # tokens that the peer, or the others, have

    async def run(self, x: Tensor, position: int, tail: int | None = None) -> Tensor:
        """Return the last `tail` hidden states (tail, d), by default all.

        x (T, d) float32, T at most 256. Unavailable when nobody could take over;
        StaleVersion when newer versions are final.
        """
        wanted = len(x) if tail is None else tail
        raw = await self._written(x)
        if self._others is None:
            self._inputs.put(position, raw)
            try:
                try:
                    return await self._at_peer(position, wanted)
                except NotHere as error:
                    if not self._is_open:
                        raise
                    self._is_open = False  # the stream broke, or we were long silent
                    self._count(error)
                    return await self._at_peer(position, wanted)
            except Unavailable as error:
                self._lose(error)
        return await self._at_others(x, position, wanted)

    def close(self) -> None:
        """The sequence is over: have the peer forget it."""
        if self._session is not None:
            self._spans.end_soon(self.peer, self._session)
            self._session = None
        for stage in self._others or ():
            if isinstance(stage, RemoteSpan):
                stage.close()

    async def _at_peer(self, position: int, wanted: int) -> Tensor:
        if not self._is_open:
            await self._open()
        self._known = min(self._known, position)
        while self._known < position:  # what an earlier failure left out
            await self._step(self._known, min(self._known + self._most_rows, position))
        end = self._inputs.tokens
        hidden: list[Tensor] = []
        while self._known < end:
            last = min(self._known + self._most_rows, end)
            skipped = max(0, end - wanted - self._known)
            hidden.append(await self._step(self._known, last, skipped))
        return torch.cat(hidden) if len(hidden) > 1 else hidden[0]

    async def _open(self) -> None:
        heads, spans = self._run.heads, self._spans
        if self._session is None:
            self._session = secrets.token_bytes(16)
            spans.paths.opened(self.peer)
        request = Open(
            session=self._session,
            model=heads.model,
            numerics=self._numerics,
            first=self.first,
            end=self.end,
            versions=name_of(heads, self.first, self.end),
            capacity=self._capacity,
        )
        has = await spans.client.open(self.peer, request, self._deadline_s(STEP_S))
        self._known = min(self._known, has)
        self._is_open = True

    async def _step(self, first: int, end: int, skipped: int | None = None) -> Tensor:
        """Have rows first, …, end - 1 computed; return those after `skipped`, if any."""
        assert self._session is not None
        spans, layers = self._spans, self.end - self.first
        rows = end - first
        tail = 0 if skipped is None else max(0, rows - skipped)
        request = Step(self._session, first, tail, self._inputs.rows(first, end))
        ought_s = spans.paths.step_s(self.peer, layers, rows)
        deadline_s = self._deadline_s(STEP_S + STEP_TIMES * ought_s)
        began_s = trio.current_time()
        raw = await spans.client.step(self.peer, request, self._row_bytes, deadline_s)
        seconds = trio.current_time() - began_s
        hidden = await self._read(raw) if tail else torch.empty(0, self._width)
        spans.paths.answered(self.peer, layers, seconds, rows)
        self._run.tally.calls[self.peer] += 1
        self._known = end
        return hidden

    def _lose(self, error: Unavailable) -> None:
        """Give the peer up and plan its layers anew."""
        spans, run = self._spans, self._run
        if self._session is not None:
            spans.end_soon(self.peer, self._session)
            self._session = None
        if isinstance(error, StaleVersion):
            if run.is_stale():
                raise error  # the whole sequence begins again
        elif not isinstance(error, Busy):
            spans.paths.failed(self.peer)
        if trio.current_time() >= run.deadline_s:
            raise error
        self._count(error)
        self._known = 0
        self._others = self._take_over(self.peer, self.first, self.end)

    def _count(self, error: Unavailable) -> None:
        """Count a call that is made again."""
        tally = self._run.tally
        tally.retries += 1
        tally.failed[self.peer] += 1
        tally.wrong[self.peer] += isinstance(error, WrongAnswer)

    async def _at_others(self, x: Tensor, position: int, wanted: int) -> Tensor:
        """Run the rows, and before them what the others do not have yet."""
        assert self._others is not None
        while self._known < position:
            end = min(self._known + self._most_rows, position)
            rows = await self._read(self._inputs.rows(self._known, end))
            await self._through(rows, self._known)
            self._known = end
        self._inputs.raw.clear()  # they can go on by themselves from here
        hidden = await self._through(x, position)
        self._known = position + len(x)
        return hidden[len(hidden) - wanted :]

    async def _through(self, x: Tensor, position: int) -> Tensor:
        for stage in self._others or ():
            x = await stage.run(x, position)
        return x

    async def _written(self, x: Tensor) -> bytes:
        """Return rows (T, d) as they travel. Unavailable when one is not finite."""
        rows, numerics = x.detach().cpu().numpy(), self._numerics
        if not is_finite(rows, numerics):
            raise Unavailable(
                f"layer {self.first} would get numbers that are not finite"
            )
        if rows.nbytes <= SMALL_BYTES:
            return write_rows(rows, numerics)
        return await self._spans.lane.run(write_rows, rows, numerics)

    async def _read(self, raw: bytes) -> Tensor:
        """Return rows (T, d). NotFinite."""
        try:
            if len(raw) <= SMALL_BYTES:
                return _tensor(read_rows(raw, self._width, self._numerics))
            return _tensor(
                await self._spans.lane.run(read_rows, raw, self._width, self._numerics)
            )
        except DecodeError as error:
            raise NotFinite(f"{self.peer} answered badly: {error}") from error

    def _deadline_s(self, patience_s: float) -> float:
        """Return how long to wait for an answer. TooSlow when the request is over."""
        left_s = self._run.deadline_s - trio.current_time()
        if left_s <= 0:
            raise TooSlow("the request's time is over")
        return float(min(patience_s, DEADLINE_S, left_s))


def _tensor(rows: np.ndarray) -> Tensor:
    return torch.tensor(rows)  # a copy: an answer's bytes are read-only
