"""The payments that this node takes part in: kept, moved on by what the chain says.

Strategy. A step is written down before it is acted on, and the state that it leads to
only once it is final. After a kill every step that was written down is taken again; the
chain lets it have its effect once. Rows: docs/store-schema.md. LEDGER-03, 04, 18
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio

from blyan_proto.block.ledger import Capture, Quote, Release, Reserve, Reverse
from blyan_proto.block.payload import KINDS, decode_payload, encode_payload, kind_of
from blyand.errors import Busy, TooSlow
from blyand.events import Broadcast, CheckpointFinalised
from blyand.ledger.payments import Hands
from blyand.rules.economy.escrow import ESCROWS, Escrow
from blyand.rules.economy.session import (
    ENDED,
    Failure,
    Illegal,
    Refused,
    SessionState,
    follow,
    path,
)
from blyand.rules.view import View
from blyand.store.sessions import Intent, Session, SessionStore, Side

logger = logging.getLogger(__name__)

MAX_LIVE = 4_096  # sessions that are not over
MAX_KEPT = 65_536  # sessions altogether; above it the oldest that are over go
DAY_MS = 86_400_000
KEPT_MS = 30 * DAY_MS  # a session that is over, or a key, is kept so long, our clock
RESUME_S = 2.0  # between two tries to go on with what a kill left behind

# The kinds of blocks that are about reserves.
TOLD = {
    kind.code
    for kind in KINDS.values()
    if kind.payload in (Reserve, Capture, Release, Reverse)
}

Resume = Callable[[Session], Any]


class Sessions:
    """The sessions of this node, in memory and on disk."""

    def __init__(self, hands: Hands, store: SessionStore, events: Broadcast) -> None:
        self.hands = hands
        self._store = store
        self._events = events
        self._keys_forgotten_ms = 0
        self._locks: dict[bytes, trio.Lock] = {}
        self._by_id: OrderedDict[bytes, Session] = OrderedDict()
        self._live: set[bytes] = set()
        self._unfinished: set[bytes] = set()  # with a step that is written down
        self._resuming: set[bytes] = set()
        self._go_on: Callable[[bytes], None] = lambda id: None  # until it runs
        self._by_reserve: dict[bytes, bytes] = {}
        for session in sorted(store.all(), key=lambda one: one.moved_ms):
            self._remember(session)

    def find(self, id: bytes) -> Session:
        """Return a session. Refused when there is none."""
        found = self._by_id.get(id)
        if found is None:
            raise Refused(Failure.INTERNAL, "there is no such session on this node")
        return found

    def of_reserve(self, reserve: bytes) -> bytes:
        """Return the session that a reserve belongs to. Refused when there is none."""
        escrow = ESCROWS.get(self.hands.view(), reserve)
        id = self._by_reserve.get(reserve) or (escrow and escrow.quote)
        if not id:
            raise Refused(Failure.INTERNAL, "no quote of this node has that reserve")
        return id

    def all(self) -> list[Session]:
        """Return all sessions, the one that moved last first."""
        return list(reversed(self._by_id.values()))

    @property
    def live(self) -> int:
        """How many sessions are not over."""
        return len(self._live)

    @asynccontextmanager
    async def turn(self, id: bytes) -> AsyncIterator[None]:
        """One at a time for each session: a call, or what the chain says."""
        lock = self._locks.setdefault(id, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(id, None)

    async def begin(self, quote: Quote, side: Side) -> Session:
        """Write a new session down. Busy when too many are under way."""
        known = self._by_id.get(quote.statement.id)
        if known is not None:
            return known
        if self.live >= MAX_LIVE:
            raise Busy(f"{MAX_LIVE} payments are under way here; wait for some to end")
        now_ms = self.hands.clock.now_ms()
        made = Session(
            id=quote.statement.id,
            side=side,
            state=SessionState.PENDING,
            quote=quote,
            reserve=None,
            receipt=None,
            reversed_micro=0,
            failure=None,
            reason="",
            intent=None,
            times_ms=(now_ms,) + (0,) * 6,
        )
        await self._save(made)
        return made

    async def move(
        self, session: Session, state: SessionState, **changed: Any
    ) -> Session:
        """Take a session to its next state, durable on return. Illegal."""
        follow(session.state, state)
        times = list(session.times_ms)
        times[state] = max(self.hands.clock.now_ms(), session.moved_ms)
        moved = replace(session, state=state, times_ms=tuple(times), **changed)
        await self._save(moved)
        return moved

    async def fail(self, session: Session, failure: Failure, reason: str) -> Session:
        """End a session in which nothing was paid."""
        return await self.move(
            session,
            SessionState.FAILED,
            failure=failure,
            reason=reason[:200],
            intent=None,
        )

    async def note(self, session: Session, **changed: Any) -> Session:
        """Change what is known of a session besides its state, durable on return."""
        noted = replace(session, **changed)
        await self._save(noted)
        return noted

    async def intend(self, session: Session, payload: Any, **changed: Any) -> Session:
        """Write down which block is to be made next, durable on return."""
        intent = Intent(kind_of(payload).code, encode_payload(payload), None)
        return await self.note(session, intent=intent, **changed)

    async def enact(self, session: Session) -> tuple[Session, str | None]:
        """Have the intended block made and final; return why it had no effect, if so.

        TooSlow when no checkpoint took it yet: it is gone on with.
        """
        intent = session.intent
        assert intent is not None
        hands, block = self.hands, intent.block
        if block is not None and not hands.is_pending(block):
            if await hands.lane.run(hands.outcome, block) is None:
                block = None  # it expired unordered
        if block is None:
            made = await hands.make(decode_payload(intent.kind, intent.payload))
            block = made.id
            session = replace(session, intent=replace(intent, block=block))
            await self._save(session)
        return session, await hands.wait(block)

    def escrow(self, session: Session) -> Escrow | None:
        """Return what the chain says of a session's reserve."""
        if session.reserve is None:
            return None
        return ESCROWS.get(self.hands.view(), session.reserve)

    async def settle(self, session: Session) -> Session:
        """Take a session as far as the chain is with its reserve."""
        escrow = self.escrow(session)
        for state in path(session.state, escrow):
            changed: dict[str, Any] = {"intent": None}
            if state is SessionState.FAILED:
                if escrow is None and await self._took_effect(session):
                    return await self.move(session, SessionState.CREDITED, intent=None)
                changed["failure"] = session.failure or Failure.TIMEOUT
                changed["reason"] = session.reason or (
                    "nothing was captured in time; the money went back"
                    if escrow is not None
                    else "the chain forgot its reserve while this node was away"
                )
            if escrow is not None:
                changed["reversed_micro"] = escrow.reversed_micro
            session = await self.move(session, state, **changed)
        given_back = escrow.reversed_micro if escrow is not None else 0
        if given_back > session.reversed_micro:  # a part: that is no other state
            session = await self.note(session, reversed_micro=given_back)
        return session

    async def _took_effect(self, session: Session) -> bool:
        """True when our capture was ordered, however long ago, and had its effect."""
        intent = session.intent
        if session.state is not SessionState.CAPTURED or intent is None:
            return False
        if intent.block is None:
            return False
        outcome = await self.hands.lane.run(self.hands.outcome, intent.block)
        return outcome is not None and not outcome.code

    async def run(
        self,
        resume: Resume,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Follow the checkpoints, and go on with what a kill or a caller left behind.

        `resume` is an async function that takes the step a session has written down.
        """
        async with trio.open_nursery() as nursery:
            self._go_on = functools.partial(nursery.start_soon, self._resume, resume)
            with self._events.subscribe(CheckpointFinalised, capacity=64) as facts:
                task_status.started()
                await self._catch_up()
                dropped = 0
                async for fact in facts:
                    await self._heard(fact)
                    if facts.dropped > dropped:
                        dropped = facts.dropped
                        await self._catch_up()

    async def _resume(self, resume: Resume, id: bytes) -> None:
        try:
            async with self.turn(id):
                await resume(self.find(id))
        except TooSlow:
            await trio.sleep(RESUME_S)  # then the next checkpoint tries again
        except (Refused, Illegal) as error:
            logger.info("session %s: %s", id.hex()[:16], error)
        finally:
            self._resuming.discard(id)

    async def _catch_up(self) -> None:
        """See what became of reserves of which no checkpoint told us: we were away."""
        view = self.hands.view()
        quoted = {
            session.id
            for session in self._by_id.values()
            if session.side is Side.PAYEE and session.state is SessionState.QUOTED
        }
        if quoted:
            reserves = await self.hands.lane.run(_reserves_of, view, quoted)
            for id, reserve in reserves.items():
                async with self.turn(id):
                    await self.authorized(self.find(id), reserve)
        for session in self.all():
            if session.reserve is not None and session.state not in ENDED:
                if session.intent is None and self.escrow(session) is not None:
                    async with self.turn(session.id):
                        await self.settle(self.find(session.id))
        await self._sweep()

    async def _heard(self, fact: CheckpointFinalised) -> None:
        """Move the sessions that a checkpoint's blocks, or its time, are about."""
        touched = set()
        for block in fact.blocks if self._by_id else ():
            if block.header.kind not in TOLD:
                continue  # its payload need not be decoded
            content = block.content
            if isinstance(content, Reserve) and content.quote in self._by_id:
                touched.add(content.quote)
            elif isinstance(content, Capture):
                touched.add(self._by_reserve.get(content.statement.reserve))
            elif isinstance(content, (Release, Reverse)):
                touched.add(self._by_reserve.get(content.reserve))
        for id in touched:
            if id is not None and id in self._by_id:
                await self._look(id, fact.blocks)
        await self._sweep()

    async def _look(self, id: bytes, blocks: Any) -> None:
        async with self.turn(id):
            session = self.find(id)
            if session.side is Side.PAYEE and session.state is SessionState.QUOTED:
                for block in blocks:
                    content = block.content if block.header.kind in TOLD else None
                    if isinstance(content, Reserve) and content.quote == id:
                        session = await self.authorized(session, block.id)
            if session.intent is None:  # else whoever acts on it settles it
                await self.settle(session)

    async def authorized(self, session: Session, reserve: bytes) -> Session:
        """Note that a payer reserved what a quote asks for, if it did."""
        escrow = ESCROWS.get(self.hands.view(), reserve)
        statement = session.quote.statement
        if (
            session.state is not SessionState.QUOTED
            or escrow is None
            or (escrow.quote, escrow.payer) != (session.id, statement.payer)
            or escrow.payee != statement.payee
            or escrow.reserved_micro < statement.amount_micro
        ):
            return session
        state = SessionState.AUTHORIZED
        return await self.move(session, state, reserve=reserve, intent=None)

    async def _sweep(self) -> None:
        """End what time has ended, and forget what is long over."""
        chain_ms = self.hands.chain_ms
        for id in list(self._live | self._unfinished):
            session = self._by_id.get(id)
            if session is None or self.turn_taken(id):
                continue
            if session.intent is not None:  # whoever began it was killed or gave up
                if id not in self._resuming:
                    self._resuming.add(id)
                    self._go_on(id)
            else:
                async with self.turn(id):
                    await self._end_in_time(self.find(id), chain_ms)
        await self._forget()

    async def _forget(self) -> None:
        old: list[bytes] = []
        before_ms = self.hands.clock.now_ms() - KEPT_MS
        if before_ms - self._keys_forgotten_ms > DAY_MS:
            self._keys_forgotten_ms = before_ms
            await self.hands.lane.run(self._store.forget_keys, before_ms)
        for session in self._by_id.values():
            surplus = len(self._by_id) - len(old) - MAX_KEPT
            if session.moved_ms >= before_ms and surplus <= 0:
                break
            if session.id not in self._live | self._unfinished:
                old.append(session.id)
        if old:
            await self.hands.lane.run(self._store.remove, old)
        for id in old:
            gone = self._by_id.pop(id)
            if gone.reserve is not None:
                self._by_reserve.pop(gone.reserve, None)

    def turn_taken(self, id: bytes) -> bool:
        """True while a call works on a session."""
        lock = self._locks.get(id)
        return lock is not None and lock.locked()

    async def _end_in_time(self, session: Session, chain_ms: int) -> None:
        if session.state in (SessionState.PENDING, SessionState.QUOTED):
            if chain_ms > session.quote.statement.until_ms:
                text = "the quote expired before it was authorised; ask for a new one"
                await self.fail(session, Failure.TTL_EXPIRED, text)
        elif session.intent is None:
            await self.settle(session)

    async def _save(self, session: Session) -> None:
        await self.hands.lane.run(self._store.put, session)
        self._remember(session)

    def _remember(self, session: Session) -> None:
        self._by_id[session.id] = session
        self._by_id.move_to_end(session.id)
        for ids, belongs in (
            (self._live, is_live(session)),
            (self._unfinished, session.intent is not None),
        ):
            ids.add(session.id) if belongs else ids.discard(session.id)
        if session.reserve is not None:
            self._by_reserve[session.reserve] = session.id


def is_live(session: Session) -> bool:
    """True until a session has come to an end; a credited one may still be reversed."""
    return session.state not in ENDED and session.state is not SessionState.CREDITED


def _reserves_of(view: View, quotes: set[bytes]) -> dict[bytes, bytes]:
    """Return quote -> reserve, of those that some payer reserved for. Blocking."""
    found = {}
    for escrow in ESCROWS.scan(view):
        if escrow.quote is not None and escrow.quote in quotes:
            found[escrow.quote] = escrow.id
    return found
