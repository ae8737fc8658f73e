"""The payee's steps: quote, serve, capture what was signed for, give back."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio

from blyan_proto.block.ledger import (
    Capture,
    Quote,
    QuoteStatement,
    Release,
    Reverse,
)
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import BadSignature
from blyan_proto.genesis import Genesis
from blyan_proto.signing import Purpose, SigningKey, check_signature
from blyand.errors import Unavailable
from blyand.ledger.sessions import Sessions
from blyand.ledger.undo import Undo
from blyand.rules.economy.escrow import ESCROWS, Escrow, Status
from blyand.rules.economy.rotation import may_sign
from blyand.rules.economy.session import (
    Failure,
    Refused,
    SessionState,
    check_delivery,
    failure_of,
)
from blyand.store.sessions import Session, Side

AHEAD_S = 5.0  # how long a reserve may be unknown here that a receipt names

Service = Callable[[Session], Awaitable[Capture]]  # gives the service; the receipt


class Payee:
    """Is paid for services."""

    def __init__(self, sessions: Sessions, key: SigningKey, genesis: Genesis) -> None:
        self._sessions = sessions
        self._hands = sessions.hands
        self._key = key
        self._genesis = genesis

    async def quote(
        self,
        payer: bytes,
        tokens: int,
        amount_micro: int,
        life_ms: int,
        model: bytes | None = None,
    ) -> Session:
        """Offer a service at a price that holds for `life_ms` of chain time. Busy."""
        now_ms = self._hands.chain_ms
        if payer == self._hands.account:
            raise Refused(Failure.ABUSE, "an account quotes nothing to itself")
        statement = QuoteStatement(
            version=1,
            payee=self._hands.account,
            payer=payer,
            model=model,
            tokens=tokens,
            amount_micro=amount_micro,
            made_ms=now_ms,
            until_ms=now_ms + life_ms,
            salt=os.urandom(32),
        )
        signature = self._key.sign(Purpose.QUOTE, self._genesis.id, statement)
        quote = Quote(statement, self._key.public, signature)
        async with self._sessions.turn(statement.id):
            session = await self._sessions.begin(quote, Side.PAYEE)
            return await self._sessions.move(session, SessionState.QUOTED)

    async def serve(self, id: bytes, service: Service, deadline_s: float) -> Session:
        """Give a service that was authorised and capture its due; if it fails, undo all.

        Whatever goes wrong, a cancellation included, the payer has its money back: the
        reserve is released, behind a shield (LEDGER-08, 16, 17).
        """
        session = self._sessions.find(id)
        if session.state is not SessionState.AUTHORIZED:
            name = session.state.name.lower()
            raise Refused(Failure.INTERNAL, f"the session is {name}, not authorized")
        async with Undo() as undo:
            failed = [Failure.INTERNAL]
            undo.on_failure(lambda: self._give_up(id, failed[0]))
            try:
                with trio.fail_after(deadline_s):
                    receipt = await service(session)
            except trio.TooSlowError as error:
                failed[0] = Failure.TIMEOUT
                text = f"the service took more than {deadline_s:g} s"
                raise Refused(Failure.TIMEOUT, text) from error
            except Unavailable:
                failed[0] = Failure.INFERENCE_FAILED
                raise
            try:
                return await self.capture(receipt)
            except Refused as error:
                failed[0] = error.failure
                raise

    async def _give_up(self, id: bytes, failure: Failure) -> None:
        session = self._sessions.find(id)
        if session.state is SessionState.AUTHORIZED and session.intent is None:
            await self.reverse(id, None, "", failure)

    async def capture(self, receipt: Capture) -> Session:
        """Take what a payer signed for; return the session, finally credited.

        The same receipt again gives the same session. A delivery more than a tenth off
        the quote is refused, and its reserve released. Refused, TooSlow.
        """
        statement = receipt.statement
        if ESCROWS.get(self._hands.view(), statement.reserve) is None:
            # The payer's node may be a checkpoint ahead of ours.
            with trio.move_on_after(AHEAD_S):
                await self._hands.wait(statement.reserve)
        id = self._sessions.of_reserve(statement.reserve)
        async with self._sessions.turn(id):
            session = self._sessions.find(id)
            if session.side is not Side.PAYEE:
                raise Refused(Failure.ABUSE, "only the payee captures")
            session = await self._sessions.authorized(session, statement.reserve)
            if session.receipt is not None and session.receipt.statement != statement:
                raise Refused(Failure.DUPLICATE, "another receipt was captured before")
            if session.state is SessionState.AUTHORIZED and session.intent is None:
                self._check(session, receipt)
                try:
                    check_delivery(session.quote.statement, statement)
                except Refused as error:
                    await self._release(session, error.failure, str(error))
                    raise
                session = await self._sessions.intend(session, receipt, receipt=receipt)
                session = await self._sessions.move(session, SessionState.CAPTURED)
            if session.state is SessionState.CAPTURED:
                session = await self.finish_capture(session)
        if session.state is SessionState.FAILED and session.failure is not None:
            raise Refused(session.failure, session.reason)
        return session

    def _check(self, session: Session, receipt: Capture) -> None:
        payer = session.quote.statement.payer
        if not may_sign(self._hands.view(), payer, receipt.payer_key):
            raise Refused(Failure.ABUSE, "the receipt is signed by another account")
        try:
            check_signature(
                Purpose.DELIVERY,
                self._genesis.id,
                receipt.statement,
                receipt.payer_key,
                receipt.signature,
            )
        except BadSignature as error:
            raise Refused(Failure.ABUSE, "the payer did not sign it") from error

    async def finish_capture(self, session: Session) -> Session:
        """Have the capture that is written down made and final; exactly once."""
        if not self._is(session, Status.CAPTURED, Status.REVERSED):
            session, error = await self._sessions.enact(session)
            if error is not None and not self._is(session, Status.CAPTURED):
                return await self._sessions.fail(session, failure_of(error), error)
        return await self._sessions.settle(session)

    async def reverse(
        self,
        id: bytes,
        amount_micro: int | None,
        key: str,
        failure: Failure | None = None,
    ) -> Session:
        """Give back: a whole reserve before it is captured, or some of what was credited.

        `key` lets the same call be made twice; without one, give back once. `failure`
        says why a service was not given. Refused, TooSlow.
        """
        async with self._sessions.turn(id):
            session = self._sessions.find(id)
            if session.side is not Side.PAYEE:
                raise Refused(Failure.ABUSE, "only the payee gives back")
            if session.state is SessionState.AUTHORIZED:
                return await self._release(session, failure, "")
            if session.state is SessionState.REVERSED and (key or not amount_micro):
                return session  # the same call again
            if session.state is not SessionState.CREDITED:
                state = session.state.name.lower()
                text = f"a {state} payment cannot be given back"
                raise Refused(Failure.INTERNAL, text)
            if session.intent is None:
                escrow = self._escrow(session)
                left = escrow.captured_micro - escrow.reversed_micro
                called = key or str(escrow.reversed_micro)
                name = digest(Domain.ONCE, b"reverse", id, called.encode())
                payload = Reverse(
                    1, escrow.id, left if amount_micro is None else amount_micro, name
                )
                session = await self._sessions.intend(session, payload)
            return await self.finish_reverse(session)

    async def finish_reverse(self, session: Session) -> Session:
        """Have the reversal that is written down made and final."""
        session, error = await self._sessions.enact(session)
        session = await self._sessions.note(session, intent=None)
        if error is not None and not error.startswith("repeat:"):
            raise Refused(failure_of(error), f"nothing was given back: {error}")
        escrow = self._escrow(session)
        session = await self._sessions.note(
            session, reversed_micro=escrow.reversed_micro
        )
        return await self._sessions.settle(session)

    async def _release(
        self, session: Session, failure: Failure | None, reason: str
    ) -> Session:
        if session.intent is None:
            assert session.reserve is not None
            payload = Release(1, session.reserve)
            session = await self._sessions.intend(
                session, payload, failure=failure, reason=reason[:200]
            )
        return await self.finish_release(session)

    async def finish_release(self, session: Session) -> Session:
        """Have the release that is written down made and final."""
        if self._is(session, Status.OPEN):
            session, error = await self._sessions.enact(session)
            if error is not None and self._is(session, Status.OPEN):
                raise Refused(failure_of(error), f"nothing was released: {error}")
        if session.failure is not None:
            text = session.reason or "the service was not given"
            return await self._sessions.fail(session, session.failure, text)
        return await self._sessions.settle(session)

    def _is(self, session: Session, *statuses: Status) -> bool:
        escrow = self._sessions.escrow(session)
        return escrow is not None and escrow.status in statuses

    def _escrow(self, session: Session) -> Escrow:
        escrow = self._sessions.escrow(session)
        if escrow is None:
            text = "its reserve ended so long ago that the chain forgot it"
            raise Refused(Failure.TIMEOUT, text)
        return escrow
