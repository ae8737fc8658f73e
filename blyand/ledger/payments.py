"""Payments of this node: made once for each key, whatever happens meanwhile (LEDGER-02).

Strategy. A payment with a key is written down before its block is made. The same call
again finds it there and waits for the same block, or makes the block again: the chain
knows the key, too, and lets only one of them take effect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.payload import encode_payload, kind_of
from blyan_proto.digest import Domain, digest
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.rules.economy.once import first_of
from blyand.rules.economy.session import Failure, Refused, failure_of
from blyand.rules.records import CLOCK
from blyand.rules.view import View
from blyand.store.schema import Outcome
from blyand.store.sessions import Intent, Keyed, SessionStore


@dataclass(frozen=True)
class Hands:
    """What the ledger needs of the rest of the node."""

    account: bytes
    view: Callable[[], View]
    make: Callable[[Any], Awaitable[Block]]  # author, store, announce
    wait: Callable[[bytes], Awaitable[str | None]]  # until final: None, or why not
    outcome: Callable[[bytes], Outcome | None]  # None: no checkpoint ordered it
    is_pending: Callable[[bytes], bool]
    clock: Clock
    lane: Threads

    @property
    def chain_ms(self) -> int:
        """The chain time of the newest checkpoint."""
        clock = CLOCK.get(self.view())
        assert clock is not None
        return clock.time_ms


@dataclass(frozen=True)
class Paid:
    """A payment that took effect."""

    block: bytes
    repeated: bool  # an earlier call with the same key made it


def chain_key(key: str) -> bytes:
    """Return what names a key of a call on the chain, 32 bytes; b"" for none."""
    return digest(Domain.ONCE, b"call", key.encode()) if key else b""


class Payments:
    """Makes transfers and stakes, and waits until they are final."""

    def __init__(self, hands: Hands, store: SessionStore) -> None:
        self._hands = hands
        self._store = store
        self._turn = trio.Lock()

    async def pay(self, payload: Any, method: str) -> Paid:
        """Make a payment and wait until it is final; `payload.key` names it, or is b"".

        Refused when the chain or the key says no; TooSlow when no checkpoint took it
        yet, and then the same call again goes on with it.
        """
        block, repeated = await self._made(payload, method)
        error = await self._hands.wait(block)
        if error is None:
            return Paid(block, repeated)
        if payload.key:
            account, now_ms = self._hands.account, self._hands.chain_ms
            first = first_of(self._hands.view(), account, payload.key, now_ms)
            if first is not None and error.startswith("repeat:"):
                return Paid(first.block, True)
        raise Refused(failure_of(error), f"the payment has no effect: {error}")

    async def _made(self, payload: Any, method: str) -> tuple[bytes, bool]:
        """Return the block of a payment, and whether an earlier call made it."""
        if not payload.key:
            return (await self._hands.make(payload)).id, False
        kind, raw = kind_of(payload).code, encode_payload(payload)
        body = digest(Domain.ONCE, method.encode(), raw)
        run = self._hands.lane.run
        async with self._turn:
            known = await run(self._store.keyed, payload.key)
            if known is not None and known.body != body:
                raise Refused(
                    Failure.DUPLICATE,
                    "the key names another call that was made before; take a new key",
                )
            block = known.intent.block if known and known.intent else None
            if block is not None and not await self._is_spent(block):
                return block, True
            # A key without a block is what a kill left behind: it goes on here.
            intent = Intent(kind, raw, None)
            noted = Keyed(method, body, intent, None, self._hands.clock.now_ms())
            await run(self._store.put_keyed, payload.key, noted)
            made = await self._hands.make(payload)
            noted = replace(noted, intent=replace(intent, block=made.id))
            await run(self._store.put_keyed, payload.key, noted)
            return made.id, known is not None

    async def _is_spent(self, block: bytes) -> bool:
        """True for a block that had no effect, or that no checkpoint can take any more."""
        outcome = await self._hands.lane.run(self._hands.outcome, block)
        if outcome is None:
            return not self._hands.is_pending(block)
        return bool(outcome.code)
