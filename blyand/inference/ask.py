"""One part of a layer asked of one peer, and of a second one when the first is late.

Strategy. A call that is not answered by the peer's 90th percentile goes to a second
holder, too; the first answer is taken and the other call cancelled, on the wire as
well. That costs at most a twentieth of all calls (DEC-S3). What a peer did is noted in
`Routes`; answers are offered to `Opinions`, which compares some of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import trio

from blyan_proto.protocols.expert import DEADLINE_S, Forward, Outputs
from blyand.compute import Threads
from blyand.errors import Unavailable, WrongAnswer
from blyand.inference.call import read_outputs
from blyand.inference.late import Lateness
from blyand.inference.opinions import Opinions
from blyand.inference.routes import Routes

R = TypeVar("R")

INLINE_BYTES = 128 * 1024  # of activations converted on the loop: some 50 microseconds


class Forwarder(Protocol):
    """Calls peers: blyand.protocols.expert.Client."""

    async def forward(self, peer: str, call: Forward, deadline_s: float) -> Outputs: ...


@dataclass
class Tally:
    """What one request cost."""

    calls: Counter[str] = field(default_factory=Counter)  # answered, by peer
    failed: Counter[str] = field(default_factory=Counter)  # not answered, by peer
    wrong: Counter[str] = field(default_factory=Counter)  # of these: wrong answers
    retries: int = 0  # calls sent again to another peer
    hedges: int = 0  # calls sent to a second peer because the first was late
    repinned: int = 0  # times it began again at a newer checkpoint
    visits: Counter[tuple[int, int]] | None = (
        None  # (layer, expert) -> tokens, if wanted
    )


@dataclass(frozen=True)
class Asked:
    """A call, and what else is known of it."""

    call: Forward
    others: Callable[[], Sequence[str]]  # who else may answer all of it, best first
    alone: bool  # there is nobody else
    deadline_s: float  # trio time at which the request ends
    tally: Tally

    @property
    def tokens(self) -> int:
        row_bytes = self.call.numerics.element_bytes * self.call.width
        return len(self.call.activations) // row_bytes

    @property
    def roots(self) -> list[bytes]:
        return [wanted.root for wanted in self.call.experts]


class _Race:
    """A call that is late, and the second one that may overtake it."""

    def __init__(self) -> None:
        self.first, self.second = trio.CancelScope(), trio.CancelScope()
        self.has_second = False
        self.settled = trio.Event()  # the second one is over
        self.made: list[np.ndarray] | None = None  # its answer


class Asker:
    """Asks peers, and remembers how it went; `run` is the service behind it."""

    def __init__(
        self, client: Forwarder, routes: Routes, opinions: Opinions, lane: Threads
    ) -> None:
        self._client = client
        self._routes = routes
        self._opinions = opinions
        self._lane = lane
        self._late = Lateness()

    async def convert(self, size: int, fn: Callable[..., R], *args: Any) -> R:
        """Return fn(*args), which copies `size` bytes: in the lane if that is much."""
        return await self._lane.run(fn, *args) if size > INLINE_BYTES else fn(*args)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Notice late calls, until cancelled."""
        await self._late.run(task_status=task_status)

    async def ask(self, peer: str, asked: Asked) -> list[np.ndarray]:
        """Return each expert's rows (m, d) float32, of `peer` or of who stepped in.

        Unavailable and its kinds, the first peer's, when nobody that was asked answered.
        """
        after_s = self._routes.hedge_after_s(peer, asked.tokens)
        self._routes.hedges.count()
        if after_s is None:
            return await self._one(peer, asked)
        race, failure = _Race(), None
        watch = self._late.watch(
            trio.current_time() + after_s, lambda: self._hedge(race, asked)
        )
        try:
            with race.first:
                try:
                    return await self._one(peer, asked)
                except Unavailable as error:
                    failure = error
            if race.has_second:
                await race.settled.wait()
            if race.made is not None:
                return race.made
            assert failure is not None  # else the second would have answered
            raise failure
        finally:
            self._late.forget(watch)
            race.second.cancel()

    def _hedge(self, race: _Race, asked: Asked) -> None:
        """The first call is late: ask somebody else, too, if that may be paid for."""
        second = self._second(asked)
        if second is not None and self._late.start(self._step_in, race, second, asked):
            asked.tally.hedges += 1
            race.has_second = True

    async def _step_in(self, race: _Race, peer: str, asked: Asked) -> None:
        with race.second:
            try:
                race.made = await self._one(peer, asked)
                race.first.cancel()
            except Unavailable:
                pass  # noted; the first one may still answer
        race.settled.set()

    def _second(self, asked: Asked) -> str | None:
        """Return whom else to ask, if that may be paid for."""
        for peer in asked.others():
            if self._routes.may_hedge(peer):
                return peer if self._routes.hedges.take() else None
        return None

    async def _one(self, peer: str, asked: Asked) -> list[np.ndarray]:
        routes, began_s = self._routes, trio.current_time()
        limit_s = min(
            routes.deadline_s(peer, asked.tokens, asked.alone),
            DEADLINE_S,
            asked.deadline_s - began_s,
        )
        routes.began(peer)
        try:
            answer = await self._client.forward(peer, asked.call, max(0.0, limit_s))
            size = sum(map(len, answer.outputs))
            made = await self.convert(size, read_outputs, answer, asked.call)
        except Unavailable as error:
            routes.failed(peer, error, asked.roots)
            asked.tally.failed[peer] += 1
            asked.tally.wrong[peer] += isinstance(error, WrongAnswer)
            raise
        except trio.Cancelled:
            routes.outrun(peer, trio.current_time() - began_s, asked.tokens)
            raise
        finally:
            routes.ended(peer)
        seconds = trio.current_time() - began_s
        routes.answered(peer, seconds, asked.tokens, answer.waiting_ms)
        asked.tally.calls[peer] += 1
        self._opinions.offer(peer, asked.call, made, asked.others)
        return made
