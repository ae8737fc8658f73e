"""Both sides of this node's payments in one place, and what a kill left to be done."""

from __future__ import annotations

import trio

from blyan_proto.block.ledger import Capture, Release, Reserve
from blyan_proto.block.payload import KINDS
from blyan_proto.genesis import Genesis
from blyan_proto.signing import SigningKey
from blyand.events import Broadcast
from blyand.ledger.payee import Payee
from blyand.ledger.payer import Payer
from blyand.ledger.payments import Hands, Payments
from blyand.ledger.sessions import Sessions
from blyand.rules.economy.session import SessionState
from blyand.store.sessions import Session, SessionStore


class Ledger:
    """What this node does with money."""

    def __init__(
        self,
        hands: Hands,
        key: SigningKey,
        genesis: Genesis,
        store: SessionStore,
        events: Broadcast,
    ) -> None:
        self.payments = Payments(hands, store)
        self.sessions = Sessions(hands, store, events)
        self.payer = Payer(self.sessions, key, genesis)
        self.payee = Payee(self.sessions, key, genesis)

    async def resume(self, session: Session) -> None:
        """Take the step that a session has written down. Refused, TooSlow."""
        if session.intent is None:
            return
        payload = KINDS[session.intent.kind].payload
        if payload is Reserve:
            await self.payer.finish_reserve(session)
        elif payload is Capture:
            if session.state is SessionState.AUTHORIZED:
                session = await self.sessions.move(session, SessionState.CAPTURED)
            await self.payee.finish_capture(session)
        elif payload is Release:
            await self.payee.finish_release(session)
        else:
            await self.payee.finish_reverse(session)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Go on with what was begun, then follow the chain."""
        await self.sessions.run(self.resume, task_status=task_status)
