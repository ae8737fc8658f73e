"""Sessions of peers over runs of layers that are all here. docs/protocols/span.md

Strategy. A session is a cache of keys and values in our memory, so it is promised before
it is used: in bytes by the room that our own sequences use too, and to each peer no more
than its share. Its steps are computed one after the other, each together with whatever
else passes the same layers (`runs`). A step takes back what stood from its position on,
then appends; so a step sent twice, or a guess taken back, needs no further word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import torch
import trio
from torch import Tensor

from blyan_proto.block.model import Model
from blyan_proto.errors import DecodeError, LimitExceeded, UnexpectedMessage
from blyan_proto.protocols.span import (
    IDLE_S,
    LIFE_S,
    MAX_ROWS,
    MAX_WAITING,
    End,
    Ended,
    Open,
    Opened,
    Step,
    Stepped,
)
from blyan_tile.activations import is_finite, read_rows, write_rows
from blyan_tile.model.cache import KeyValueCache, cache_bytes
from blyan_tile.model.visits import Visits
from blyand.compute import Threads
from blyand.errors import Busy, NotHere, Unavailable
from blyand.inference.editions import Editions, groups_between
from blyand.inference.pins import Heads
from blyand.inference.room import Room
from blyand.inference.runs import Run, Runs
from blyand.inference.session import NOTED_ROWS
from blyand.inference.usage import Usage
from blyand.inference.versions import Versions
from blyand.metrics import Metrics

MAX_SESSIONS = 64  # of all peers; above it BUSY
MAX_BYTES = 256 << 20  # hidden states of all steps under way; above it BUSY
SHARE = 4  # one peer may hold one part in so many of the sessions and of the room
SWEEP_S = 2.0
GONE_S = 10.0  # a peer without a connection for longer has no sessions
SMALL_BYTES = 1 << 16  # rows up to here are checked on the loop: some microseconds


@dataclass(eq=False)
class _Session:
    peer: str
    opened: Open
    heads: Heads
    cache: KeyValueCache
    size: int  # bytes promised
    began_s: float
    used_s: float
    kept: ExitStack  # what keeps its versions
    turn: trio.Lock = field(default_factory=trio.Lock)
    moved: trio.Event = field(default_factory=trio.Event)  # replaced by each step
    steps: set[trio.CancelScope] = field(default_factory=set)  # under way
    gone_s: float | None = None  # since when its peer has no connection

    def groups(self) -> list[int]:
        """Return the indices of all groups of its layers."""
        return groups_between(self.heads.layout, self.opened.first, self.opened.end)


class SpanServer:
    """Answers peers' requests. `answer` is what the protocol's server calls."""

    def __init__(
        self,
        model: Callable[[bytes], Model | None],
        editions: Editions,
        versions: Versions,
        runs: Runs,
        room: Room,
        lane: Threads,
        is_connected: Callable[[str], bool],
        metrics: Metrics,
        device: str = "cpu",
        max_sessions: int = MAX_SESSIONS,
        usage: Usage | None = None,
    ) -> None:
        """`lane` reads and writes large steps; it is not that in which they compute."""
        self._model = model
        self._editions = editions
        self._versions = versions
        self._runs = runs
        self._room = room
        self._lane = lane
        self._is_connected = is_connected
        self._device = torch.device(device)
        self._max_sessions = max_sessions
        self._usage = usage or Usage()
        self._sessions: dict[tuple[str, bytes], _Session] = {}
        self._bytes: Counter[str] = Counter()  # promised, by peer
        self._stepping = 0  # bytes of hidden states that came and are under way
        self._opened = metrics.counter("span_sessions_opened")
        self._live = metrics.gauge("span_sessions")
        self._steps = metrics.counter("span_steps_served")
        self._rows = metrics.counter("span_rows_served")
        self._refused = metrics.counter("span_calls_refused")

    async def answer(
        self, peer: str, request: Open | Step | End
    ) -> Opened | Stepped | Ended:
        """Return the reply to one request.

        ProtocolError when it breaks a rule; NotHere for a model, layer or session that
        is not here, StaleVersion for other versions (DEC-B8), Busy without room.
        """
        try:
            if isinstance(request, Open):
                return self._open(peer, request)
            if isinstance(request, Step):
                with self._counted(len(request.activations)):
                    return await self._step(peer, request)
        except Unavailable:
            self._refused.add()
            raise
        return self._end(peer, request)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """End sessions that nobody uses, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """End the sessions that were idle too long, and those of peers that are gone.

        Those that lived for long enough keep no version any more.
        """
        now_s = trio.current_time()
        for session in list(self._sessions.values()):
            if now_s - session.began_s > LIFE_S:
                session.kept.close()  # without a step nobody else would
            if self._is_connected(session.peer):
                session.gone_s = None
            elif session.gone_s is None:
                session.gone_s = now_s
            is_gone = session.gone_s is not None and now_s - session.gone_s >= GONE_S
            is_idle = not session.steps and now_s - session.used_s > IDLE_S
            if is_gone or is_idle:
                self._close(session)

    def _open(self, peer: str, request: Open) -> Opened:
        there = self._sessions.get((peer, request.session))
        if there is not None:
            if there.opened != request:
                raise UnexpectedMessage("a session is opened again as another one")
            there.used_s = trio.current_time()
            return Opened(there.cache.tokens)
        model = self._model(request.model)
        if model is None:
            raise NotHere(f"model {request.model.hex()[:16]} is not known here")
        shape = model.architecture
        if request.end > shape.layers:
            raise DecodeError(f"layer {request.end - 1} of {shape.layers}")
        if request.capacity > shape.context:
            raise LimitExceeded(
                f"{request.capacity} tokens, the model's context is {shape.context}"
            )
        heads = self._editions.find(request)
        layers = request.end - request.first
        size = cache_bytes(shape, request.capacity, layers)
        self._admit(peer, size)
        with ExitStack() as kept:
            groups = groups_between(heads.layout, request.first, request.end)
            tiles = [
                self._versions.find(heads.model, g, heads.roots[g]) for g in groups
            ]
            roots = [heads.roots[group] for group in groups]
            kept.enter_context(self._versions.pinned(zip(roots, tiles)))
            self._room.claim(size)
            cache = KeyValueCache(
                shape, request.capacity, self._device, request.first, request.end
            )
            cache.visits = Visits()
            now_s = trio.current_time()
            self._sessions[peer, request.session] = _Session(
                peer, request, heads, cache, size, now_s, now_s, kept.pop_all()
            )
        self._bytes[peer] += size
        self._opened.add()
        self._live.set(len(self._sessions))
        return Opened(0)

    def _admit(self, peer: str, size: int) -> None:
        """Raise Busy above what all, or this peer, may hold."""
        count = sum(1 for other, _ in self._sessions if other == peer)
        if len(self._sessions) >= self._max_sessions:
            raise Busy(f"{len(self._sessions)} sessions are open")
        if count >= max(1, self._max_sessions // SHARE):
            raise Busy(f"{count} sessions of this peer are open")
        if self._bytes[peer] + size > self._room.budget_bytes // SHARE:
            raise Busy(
                f"{(self._bytes[peer] + size) >> 20} MiB of keys and values for one "
                f"peer, its share is {self._room.budget_bytes // SHARE >> 20}"
            )

    @contextmanager
    def _counted(self, size: int) -> Iterator[None]:
        """Bound what all steps under way take together. Busy."""
        if self._stepping and self._stepping + size > MAX_BYTES:
            raise Busy(f"{self._stepping >> 20} MiB of steps are under way")
        self._stepping += size
        try:
            yield
        finally:
            self._stepping -= size

    async def _step(self, peer: str, request: Step) -> Stepped:
        session = self._sessions.get((peer, request.session))
        if session is None:
            raise NotHere("there is no such session")
        x = await self._read(session, request)
        if self._sessions.get((peer, request.session)) is not session:
            raise NotHere("the session ended")  # while the step was read
        if len(session.steps) >= MAX_WAITING:
            raise Busy(f"{len(session.steps)} steps of the session are under way")
        numerics = session.opened.numerics
        with trio.CancelScope() as scope:
            session.steps.add(scope)
            try:
                async with _turn(session, request.position):
                    hidden = await self._compute(session, request.position, x)
                    session.used_s = trio.current_time()
                    self._note_visits(session, NOTED_ROWS)
            finally:
                session.steps.discard(scope)
            tail = hidden[len(hidden) - request.tail :].cpu().numpy()  # (tail, d)
            if not is_finite(tail, numerics):
                raise Unavailable("the layers gave numbers that are not finite")
            self._steps.add()
            self._rows.add(len(x))
            if tail.nbytes <= SMALL_BYTES:
                return Stepped(write_rows(tail, numerics))
            return Stepped(await self._lane.run(write_rows, tail, numerics))
        raise NotHere("the session ended")

    async def _read(self, session: _Session, request: Step) -> Tensor:
        """Return the rows (T, d) of a step that fits its session. ProtocolError."""
        width = session.heads.architecture.width
        numerics = session.opened.numerics
        rows = len(request.activations) // (numerics.element_bytes * width)
        if rows > MAX_ROWS:
            raise LimitExceeded(f"{rows} rows, at most {MAX_ROWS}")
        if request.tail > rows:
            raise DecodeError(f"{request.tail} rows back of {rows}")
        if request.position + rows > session.opened.capacity:
            raise LimitExceeded(
                f"{request.position + rows} tokens, the session was opened for "
                f"{session.opened.capacity}"
            )
        raw = request.activations
        if len(raw) <= SMALL_BYTES:
            return _tensor(read_rows(raw, width, numerics))
        return _tensor(await self._lane.run(read_rows, raw, width, numerics))

    async def _compute(self, session: _Session, position: int, x: Tensor) -> Tensor:
        self._check_life(session)
        cache, opened = session.cache, session.opened
        try:
            cache.rewind(position)
        except LimitExceeded as error:  # a sliding window has passed over it
            self._close(session)
            raise NotHere(f"the session is over: {error}") from error
        try:
            return await self._runs.run(
                Run(session.heads, opened.first, opened.end, cache, x, opened.numerics)
            )
        except BaseException:
            cache.rewind(position)  # layers that went ahead of the others
            raise

    def _check_life(self, session: _Session) -> None:
        """Let versions go that were kept for long enough; StaleVersion if they are gone."""
        if trio.current_time() - session.began_s <= LIFE_S:
            return
        session.kept.close()
        try:
            for group in session.groups():
                root = session.heads.roots[group]
                self._versions.find(session.heads.model, group, root)
        except Unavailable:
            self._close(session)
            raise

    def _end(self, peer: str, request: End) -> Ended:
        session = self._sessions.get((peer, request.session))
        if session is None:
            return Ended(0)
        tokens = session.cache.tokens
        self._close(session)
        return Ended(tokens)

    def _note_visits(self, session: _Session, at_least: int = 1) -> None:
        visits, heads = session.cache.visits, session.heads
        if visits is not None and visits.rows >= at_least:
            self._usage.note(heads.model, heads.architecture, visits.take())

    def _close(self, session: _Session) -> None:
        self._note_visits(session)
        del self._sessions[session.peer, session.opened.session]
        for scope in session.steps:
            scope.cancel()
        session.kept.close()
        self._room.release(session.size)
        self._bytes[session.peer] -= session.size
        if not self._bytes[session.peer]:
            del self._bytes[session.peer]
        self._live.set(len(self._sessions))


@asynccontextmanager
async def _turn(session: _Session, position: int) -> AsyncIterator[None]:
    """Wait until the session has all tokens before `position`, and nobody computes."""
    while True:
        async with session.turn:
            if position <= session.cache.tokens:
                try:
                    yield
                finally:
                    session.moved.set()
                    session.moved = trio.Event()
                return
        await session.moved.wait()


def _tensor(rows: object) -> Tensor:
    return torch.tensor(rows)  # a copy: an answer's bytes are read-only
