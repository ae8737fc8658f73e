"""One state from several peers at once, chunk by chunk, each held against its hash.

A chunk is taken from one peer from its start to its end, so that a false one has one to
blame. Who lies is blamed and asked no more; who is silent or busy rests while others go
on; a chunk that somebody did not finish is taken from another from its start. So is one
that comes too slowly for others that have nothing to do, each time with more patience:
parts without an end must not stop a node from joining.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from blyan_proto.errors import BadProof, ProtocolError
from blyan_proto.state import CHUNKS, StatePart
from blyand.compute import Threads
from blyand.errors import Busy, DiskFull, NotHere, TooSlow, Unavailable

logger = logging.getLogger(__name__)

MAX_DONORS = 8
STREAMS = 2  # of one donor: one travels while the other is written
BUSY_S = 1.0  # until a busy donor is asked again; each time in a row twice as long
SILENT_S = 60.0  # until one that fell silent is
LATE_S = 30.0  # for one chunk, while others could give it; each time twice as long
LOOK_S = 1.0


class Arriving(Protocol):
    """Where a state is put together: store.restore.Restore. Blocking."""

    def missing(self) -> tuple[int, ...]: ...

    def after(self, chunk: int) -> bytes | None: ...

    def put(self, part: StatePart) -> bool: ...

    def drop(self, chunk: int) -> None: ...


class Giving(Protocol):
    """Asks a peer for a part."""

    async def part(
        self, peer: str, checkpoint: bytes, chunk: int, after: bytes | None
    ) -> StatePart: ...


@dataclass(frozen=True)
class _Coming:
    """A chunk under way."""

    since_s: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Gathering:
    """A state under way. `run` may be called once."""

    def __init__(
        self,
        checkpoint: bytes,
        arriving: Arriving,
        giving: Giving,
        lane: Threads,
        blame: Callable[[str, Exception], None],
    ) -> None:
        self._checkpoint, self._arriving = checkpoint, arriving
        self._giving, self._lane, self._blame = giving, lane, blame
        self._missing = list(arriving.missing())
        self._begun = {c for c in self._missing if arriving.after(c) is not None}
        self._under_way: dict[int, _Coming] = {}
        self._patience: dict[int, float] = {}  # chunk -> for whoever gives it next
        self._running: dict[str, int] = {}  # donor -> streams
        self._resting: dict[str, tuple[float, float]] = {}  # donor -> until, how long
        self._turn = trio.Lock()  # one part is written at a time
        self._changed = trio.Event()
        self._ending: Unavailable | None = None
        self.out: dict[str, str] = {}  # who is asked no more, and why
        self.bytes = 0  # keys and values that came
        self.gave: dict[str, int] = {}  # whole chunks by donor

    @property
    def done(self) -> int:
        """How many chunks are here and good."""
        return CHUNKS - len(self._missing)

    @property
    def donors(self) -> list[str]:
        """Who is being asked."""
        return list(self._running)

    async def run(self, providers: Callable[[], Iterable[str]]) -> Unavailable | None:
        """Take chunks from whoever `providers` names, until all are here.

        Returns why it ended before: NotHere when nobody is left who gives that state,
        DiskFull.
        """
        async with trio.open_nursery() as nursery:
            while self._missing and self._ending is None:
                able = [peer for peer in providers() if peer not in self.out]
                now = trio.current_time()
                for peer in able:
                    self._start(nursery, peer, now)
                self._hurry(able, now)
                if not self._running and not any(self._is_back_soon(p) for p in able):
                    self._ending = NotHere("nobody gives that state any more")
                    break
                with trio.move_on_after(LOOK_S):
                    await self._changed.wait()
            nursery.cancel_scope.cancel()
        return self._ending

    def _is_back_soon(self, peer: str) -> bool:
        return self._resting.get(peer, (0.0, 0.0))[1] < SILENT_S

    def _start(self, nursery: trio.Nursery, peer: str, now: float) -> None:
        if peer not in self._running and len(self._running) >= MAX_DONORS:
            return
        if self._resting.get(peer, (0.0, 0.0))[0] > now:
            return
        while self._running.get(peer, 0) < STREAMS and self._next() is not None:
            self._running[peer] = self._running.get(peer, 0) + 1
            nursery.start_soon(self._take, peer, self._claim())

    def _hurry(self, able: Iterable[str], now: float) -> None:
        """Take late chunks from who gives them, when others have nothing to do."""
        idle = {
            peer
            for peer in able
            if not self._running.get(peer)
            and self._resting.get(peer, (0.0, 0.0))[0] <= now
        }
        for chunk, coming in self._under_way.items() if idle else ():
            patience_s = self._patience.setdefault(chunk, LATE_S)
            if now - coming.since_s > patience_s:
                self._patience[chunk] = 2 * patience_s
                coming.scope.cancel()

    def _next(self) -> int | None:
        return next((c for c in self._missing if c not in self._under_way), None)

    def _claim(self) -> int:
        chunk = self._next()
        assert chunk is not None
        self._under_way[chunk] = _Coming(trio.current_time())
        return chunk

    async def _take(self, peer: str, chunk: int) -> None:
        """Take chunks of one donor, `chunk` first, until there is no need or no use."""
        try:
            while True:
                coming = self._under_way[chunk]
                try:
                    with coming.scope:
                        await self._take_chunk(peer, chunk)
                finally:
                    del self._under_way[chunk]
                if coming.scope.cancelled_caught:
                    raise TooSlow("a chunk that does not end")
                self._resting.pop(peer, None)
                self.gave[peer] = self.gave.get(peer, 0) + 1
                self._notify()
                if self._next() is None:
                    return
                chunk = self._claim()
        except BadProof as error:
            if peer not in self.out:
                logger.warning("%s gives a false state: %s", peer, error)
                self._blame(peer, error)
            self.out[peer] = str(error)
        except ProtocolError as error:  # blamed where it came in
            self.out[peer] = str(error)
        except DiskFull as error:  # no donor can help with that
            self._ending = error
        except Busy:
            self._rest(peer, BUSY_S)
        except TooSlow:
            logger.info("%s is too slow in giving a state", peer)
            self._rest(peer, SILENT_S)
        except Unavailable as error:  # absent, pruned, or gone
            self.out[peer] = str(error)
        finally:
            self._running[peer] -= 1
            if not self._running[peer]:
                del self._running[peer]
            self._notify()

    async def _take_chunk(self, peer: str, chunk: int) -> None:
        if chunk in self._begun:  # by another donor
            await self._write(self._arriving.drop, chunk)
        self._begun.add(chunk)
        after: bytes | None = None
        while True:
            part = await self._giving.part(peer, self._checkpoint, chunk, after)
            whole = await self._write(self._put, part)
            if whole:
                self._missing.remove(chunk)
                return
            following = self._arriving.after(chunk)
            if following == after:
                raise BadProof("a part that leads nowhere")
            after = following

    def _put(self, part: StatePart) -> bool:
        whole = self._arriving.put(part)
        self.bytes += sum(len(pair.key) + len(pair.value) for pair in part.pairs)
        return whole

    async def _write(self, write: Callable[..., bool | None], what: object) -> bool:
        async with self._turn:
            return bool(await self._lane.run(write, what))

    def _rest(self, peer: str, span_s: float) -> None:
        last_s = self._resting.get(peer, (0.0, 0.0))[1]
        span_s = max(span_s, min(2 * last_s, SILENT_S))
        self._resting[peer] = trio.current_time() + span_s, span_s

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
