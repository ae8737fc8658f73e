"""Nodes that pay each other over one chain in memory, and can be killed at any step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from blyan_proto.signing import SigningKey
from blyand.clock import ManualClock
from blyand.events import Broadcast, CheckpointFinalised
from blyand.ledger.book import Ledger
from blyand.ledger.payments import Hands
from blyand.store.memory import MemoryStore
from blyand.store.schema import Outcome
from blyand.store.sessions import SessionStore
from tests.unit.daemon.ledger_world import LedgerWorld


class Killed(BaseException):
    """The process ends here."""


class Chain:
    """One chain; a checkpoint takes whatever is pending."""

    def __init__(self, **settings: int) -> None:
        self.world = LedgerWorld(3, **settings)
        self.pending: list[Any] = []
        self.outcomes: dict[bytes, Outcome] = {}
        self.nodes: list[Node] = []
        self.made: list[Any] = []  # every block that took effect

    def tick(self, step_ms: int = 250) -> None:
        """Make a checkpoint and tell everybody."""
        blocks, self.pending = self.pending, []
        errors = self.world.errors(*blocks, step_ms=step_ms)
        for place, (block, error) in enumerate(zip(blocks, errors)):
            outcome = Outcome(self.world.height, place, int(bool(error)), error or "")
            self.outcomes[block.id] = outcome
            if not error:
                self.made.append(block)
        assert self.world.is_balanced()
        checkpoint = SimpleNamespace(time_ms=self.world.time_ms)
        final: Any = SimpleNamespace(checkpoint=checkpoint)
        fact = CheckpointFinalised(final, b"", tuple(blocks))
        for node in self.nodes:
            node.events.publish(fact)

    def count(self, kind: type) -> int:
        """Return how many payloads of a type took effect."""
        return sum(isinstance(block.content, kind) for block in self.made)


class Lane:
    """A lane without threads, that a kill can hit before and after it writes."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def run(self, work: Any, *arguments: Any) -> Any:
        writes = getattr(work, "__name__", "") in ("put", "put_keyed")
        if writes:
            self.node.step()
        await trio.lowlevel.checkpoint()
        result = work(*arguments)
        if writes:
            self.node.step()
        return result


class Node:
    """One side of payments: its ledger over a store that outlives it."""

    def __init__(self, chain: Chain, key: SigningKey) -> None:
        self.chain, self.key = chain, key
        self.database = MemoryStore()
        self.clock = ManualClock(1_000_000)
        self.left: int | None = None  # steps until it is killed
        self.steps = 0
        self.open()
        chain.nodes.append(self)

    def open(self) -> None:
        """Start, as after a kill."""
        self.left = None
        self._scope: trio.CancelScope | None = None
        self.events = Broadcast()
        hands = Hands(
            account=self.key.account,
            view=lambda: self.chain.world.view,
            make=self.make,
            wait=self.wait,
            outcome=self.chain.outcomes.get,
            is_pending=lambda id: any(id == b.id for b in self.chain.pending),
            clock=self.clock,
            lane=Lane(self),  # type: ignore[arg-type]
        )
        store = SessionStore(self.database)
        genesis = self.chain.world.genesis
        self.ledger = Ledger(hands, self.key, genesis, store, self.events)
        self.payer, self.payee = self.ledger.payer, self.ledger.payee

    def step(self) -> None:
        self.steps += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                if self._scope is None:
                    raise Killed
                self._scope.cancel()

    def hang_up(self, step: int, scope: trio.CancelScope) -> None:
        """Let whoever calls give up at a step, instead of a kill."""
        self.left, self._scope = step, scope

    async def make(self, payload: Any) -> Any:
        self.step()
        block = self.chain.world.block(payload, self.key)
        self.chain.pending.append(block)
        self.step()
        return block

    async def wait(self, block: bytes) -> str | None:
        self.step()
        while block not in self.chain.outcomes:
            await trio.lowlevel.checkpoint()
            if self.chain.pending:  # empty ones would only let time pass
                self.chain.tick()
        outcome = self.chain.outcomes[block]
        self.step()
        return outcome.text if outcome.code else None

    def session(self, id: bytes) -> Any:
        return self.ledger.sessions.find(id)

    async def settle(self) -> None:
        """Run the service until what is intended is done and heard."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.ledger.run)
            await self.quiet()
            nursery.cancel_scope.cancel()

    async def quiet(self) -> None:
        """Let everything that can go on do so."""
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
            if not any(one.intent for one in self.ledger.sessions.all()):
                break
            self.chain.tick()
        await trio.testing.wait_all_tasks_blocked()
