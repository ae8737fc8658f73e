"""The payer's steps: check a quote and reserve its money; sign for what was delivered."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.amounts import bly
from blyan_proto.block.ledger import (
    Capture,
    DeliveryStatement,
    Quote,
    Reserve,
)
from blyan_proto.errors import BadSignature
from blyan_proto.genesis import Genesis
from blyan_proto.signing import Purpose, SigningKey, check_signature
from blyand.ledger.sessions import Sessions
from blyand.rules.economy.book import amount
from blyand.rules.economy.once import first_of
from blyand.rules.economy.rotation import may_sign
from blyand.rules.economy.session import (
    Failure,
    Refused,
    SessionState,
    check_delivery,
    failure_of,
)
from blyand.store.sessions import Session, Side

LIFE_MS = 3_600_000  # of a reserve, unless the network allows less


class Payer:
    """Pays for services by quotes."""

    def __init__(self, sessions: Sessions, key: SigningKey, genesis: Genesis) -> None:
        self._sessions = sessions
        self._hands = sessions.hands
        self._key = key
        self._genesis = genesis

    async def authorize(self, quote: Quote, fee_micro: int) -> Session:
        """Reserve what a quote asks for; return the session, finally authorised.

        The same quote again gives the same session. Refused, TooSlow.
        """
        id = quote.statement.id
        async with self._sessions.turn(id):
            self._check(quote)
            session = await self._sessions.begin(quote, Side.PAYER)
            if session.state is SessionState.PENDING:
                session = await self._sessions.move(session, SessionState.QUOTED)
            if session.state is SessionState.QUOTED and session.intent is None:
                session = await self._reserve(session, fee_micro)
            if session.state is SessionState.QUOTED:
                session = await self.finish_reserve(session)
        _complain(session)
        return session

    def _check(self, quote: Quote) -> None:
        statement = quote.statement
        if statement.payer != self._hands.account:
            raise Refused(Failure.ABUSE, "the quote is for another account")
        try:
            check_signature(
                Purpose.QUOTE, self._genesis.id, statement, quote.key, quote.signature
            )
        except BadSignature as error:
            raise Refused(Failure.ABUSE, "the quote is not signed") from error
        if not may_sign(self._hands.view(), statement.payee, quote.key):
            raise Refused(Failure.ABUSE, "the quote is signed by another account")

    async def _reserve(self, session: Session, fee_micro: int) -> Session:
        """Write down that the money is to be reserved, if that can be."""
        statement, now_ms = session.quote.statement, self._hands.chain_ms
        if now_ms > statement.until_ms:
            text = "the quote expired before it was authorised; ask for a new one"
            return await self._sessions.fail(session, Failure.TTL_EXPIRED, text)
        has = amount(self._hands.view(), self._hands.account)
        if statement.amount_micro + fee_micro > has:
            text = f"this account has {bly(has)}, less than the quote and its fee"
            return await self._sessions.fail(session, Failure.INSUFFICIENT, text)
        life_ms = min(LIFE_MS, self._genesis.setting("escrow_span_ms"))
        payload = Reserve(
            version=1,
            to=statement.payee,
            amount_micro=statement.amount_micro,
            fee_micro=fee_micro,
            quote=session.id,
            quoted_until_ms=statement.until_ms,
            expires_ms=now_ms + life_ms,
            key=session.id,
        )
        return await self._sessions.intend(session, payload)

    async def finish_reserve(self, session: Session) -> Session:
        """Have the reserve that is written down made and final."""
        session, error = await self._sessions.enact(session)
        assert session.intent is not None and session.intent.block is not None
        block = session.intent.block
        if error is not None and error.startswith("repeat:"):
            now_ms = self._hands.chain_ms
            first = first_of(
                self._hands.view(), self._hands.account, session.id, now_ms
            )
            if first is not None:
                block, error = first.block, None
        if error is not None:
            return await self._sessions.fail(session, failure_of(error), error)
        session = await self._sessions.authorized(session, block)
        return await self._sessions.settle(session)

    async def accept(
        self, id: bytes, measured: DeliveryStatement
    ) -> tuple[Session, Capture]:
        """Sign for what was delivered; the receipt goes to the payee.

        `measured.reserve` is filled in here. The same delivery again gives the same
        receipt; another one is refused: a reserve is paid out once.
        """
        async with self._sessions.turn(id):
            session = self._sessions.find(id)
            if session.side is not Side.PAYER:
                raise Refused(Failure.ABUSE, "only the payer accepts a delivery")
            if session.reserve is None:
                raise Refused(Failure.INTERNAL, "nothing is reserved for it yet")
            statement = replace(measured, reserve=session.reserve)
            if session.receipt is not None:
                if session.receipt.statement != statement:
                    text = "another delivery of this session was signed before"
                    raise Refused(Failure.DUPLICATE, text)
                return session, session.receipt
            if session.state is not SessionState.AUTHORIZED:
                name = session.state.name.lower()
                raise Refused(Failure.INTERNAL, f"the session is {name}")
            check_delivery(session.quote.statement, statement)
            signature = self._key.sign(Purpose.DELIVERY, self._genesis.id, statement)
            receipt = Capture(1, statement, self._key.public, signature)
            session = await self._sessions.note(session, receipt=receipt)
            return session, receipt


def _complain(session: Session) -> None:
    """Raise Refused for a session that came to nothing."""
    if session.state is SessionState.FAILED and session.failure is not None:
        raise Refused(session.failure, session.reason)
