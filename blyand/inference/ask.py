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


class Asker:
    """Asks peers, and remembers how it went."""

    def __init__(
        self, client: Forwarder, routes: Routes, opinions: Opinions, lane: Threads
    ) -> None:
        self._client = client
        self._routes = routes
        self._opinions = opinions
        self._lane = lane

    async def convert(self, size: int, fn: Callable[..., R], *args: Any) -> R:
        """Return fn(*args), which copies `size` bytes: in the lane if that is much."""
        return await self._lane.run(fn, *args) if size > INLINE_BYTES else fn(*args)

    async def ask(self, peer: str, asked: Asked) -> list[np.ndarray]:
        """Return each expert's rows (m, d) float32, of `peer` or of who stepped in.

        Unavailable and its kinds, the first peer's, when nobody that was asked answered.
        """
        after_s = self._routes.hedge_after_s(peer, asked.tokens)
        self._routes.hedges.count()
        if after_s is None:
            return await self._one(peer, asked)
        race = _Race()
        async with trio.open_nursery() as nursery:
            race.scope = nursery.cancel_scope
            nursery.start_soon(race.run, self._one, peer, asked)
            with trio.move_on_after(after_s):
                await race.settled.wait()
            if not race.settled.is_set():
                second = self._second(asked)
                if second is not None:
                    asked.tally.hedges += 1
                    race.running += 1
                    nursery.start_soon(race.run, self._one, second, asked)
        if race.made is None:
            assert race.error is not None
            raise race.error
        return race.made

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


class _Race:
    """Calls of which the first answer is taken."""

    def __init__(self) -> None:
        self.settled = trio.Event()  # answered, or nobody runs any more
        self.running = 1
        self.made: list[np.ndarray] | None = None
        self.error: Unavailable | None = None
        self.scope: trio.CancelScope

    async def run(
        self, one: Callable[[str, Asked], Any], peer: str, asked: Asked
    ) -> None:
        try:
            made = await one(peer, asked)
        except Unavailable as error:
            self.error = self.error or error
            self.running -= 1
            if not self.running:
                self.settled.set()
            return
        if self.made is None:
            self.made = made
        self.settled.set()
        self.scope.cancel()
