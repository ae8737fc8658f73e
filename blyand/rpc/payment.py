"""Answers about payments for services: quote, authorize, accept, capture, credit, reverse."""

from __future__ import annotations

from blyan_proto.block.ledger import (
    Capture,
    DeliveryStatement,
    Quote,
    Usage,
)
from blyan_proto.codec import decode, encode
from blyan_proto.constants import MAX_PAYLOAD_BYTES
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.rpc import payment as spec
from blyan_proto.rpc.errors import (
    INVALID_PARAMS,
    QUOTE_INVALID,
    SESSION_UNKNOWN,
    RpcError,
)
from blyand.clock import Clock
from blyand.ledger.book import Ledger
from blyand.ledger.tally import PERIODS_MS, Tally, tally
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers
from blyand.rpc.ledger import told
from blyand.rules.economy.price import micro_of_tokens
from blyand.rules.economy.session import Failure, Refused, SessionState, due_micro
from blyand.store.sessions import Session

SUCCESS_PPM, EXPIRED_PPM, P95_MS = 950_000, 50_000, 500  # LEDGER-19


def bind(
    answers: Answers,
    *,
    account: bytes,
    genesis: Genesis,
    ledger: Ledger,
    clock: Clock,
) -> None:
    """Bind the methods of ledger.* that are about payments for services."""
    sessions = ledger.sessions
    price = genesis.setting("token_price_micro")

    def found(id: bytes) -> Session:
        try:
            return sessions.find(id)
        except Refused as error:
            text = f"session {id.hex()} is not on this node; see `blyanctl ledger sessions`"
            raise RpcError(SESSION_UNKNOWN, text) from error

    @answers(spec.quote)
    async def quote(params: spec.MakeQuote) -> spec.Quoted:
        amount = params.amount_micro
        if amount is None:
            amount = micro_of_tokens(params.tokens, price)
        if not amount:
            text = "ledger.quote: amount_micro: these tokens cost nothing; give a price"
            raise RpcError(INVALID_PARAMS, text)
        made = await told(
            ledger.payee.quote(
                account_called(params.payer, account),
                params.tokens,
                amount,
                params.span_s * 1000,
                params.model,
            )
        )
        return spec.Quoted(session=session_of(made), quote=encode(made.quote))

    @answers(spec.authorize)
    async def authorize(params: spec.Authorize) -> spec.Session:
        try:
            quote = decode(Quote, params.quote, MAX_PAYLOAD_BYTES)
        except ProtocolError as error:
            raise RpcError(QUOTE_INVALID, f"that is not a quote: {error}") from error
        return session_of(await told(ledger.payer.authorize(quote, params.fee_micro)))

    @answers(spec.accept)
    async def accept(params: spec.Accept) -> spec.Accepted:
        session = found(params.session)
        amount = params.amount_micro
        if amount is None:
            amount = due_micro(session.quote.statement, params.tokens)
        if len(params.groups) != len(params.calls):
            text = "ledger.accept: give as many calls as groups"
            raise RpcError(INVALID_PARAMS, text)
        try:
            measured = DeliveryStatement(
                version=1,
                reserve=bytes(32),
                model=session.quote.statement.model,
                usage=tuple(
                    Usage(group, calls)
                    for group, calls in zip(params.groups, params.calls)
                ),
                tokens=params.tokens,
                response_ms=params.response_ms,
                quality_ppm=params.quality_ppm,
                amount_micro=amount,
            )
            encode(measured)
        except (ValueError, ProtocolError) as error:
            raise RpcError(INVALID_PARAMS, f"ledger.accept: {error}") from error
        session, receipt = await told(ledger.payer.accept(params.session, measured))
        return spec.Accepted(session=session_of(session), receipt=encode(receipt))

    @answers(spec.capture)
    async def capture(params: spec.TakeCapture) -> spec.Session:
        try:
            receipt = decode(Capture, params.receipt, MAX_PAYLOAD_BYTES)
        except ProtocolError as error:
            raise RpcError(QUOTE_INVALID, f"that is no receipt: {error}") from error
        return session_of(await told(ledger.payee.capture(receipt)))

    @answers(spec.credit)
    async def credit(params: spec.Credit) -> spec.Session:
        session = found(params.session)
        if session.state is SessionState.CAPTURED and session.receipt is not None:
            return session_of(await told(ledger.payee.capture(session.receipt)))
        return session_of(session)

    @answers(spec.reverse)
    async def reverse(params: spec.GiveBack) -> spec.Session:
        found(params.session)
        failure = Failure[params.failure.upper()] if params.failure else None
        return session_of(
            await told(
                ledger.payee.reverse(
                    params.session, params.amount_micro, params.key, failure
                )
            )
        )

    @answers(spec.sessions)
    async def listed(params: spec.ListSessions) -> spec.Sessions:
        wanted = SessionState[params.state.upper()] if params.state else None
        chosen = [one for one in sessions.all() if wanted in (None, one.state)]
        return spec.Sessions(
            live=sessions.live,
            sessions=[session_of(one) for one in chosen[: params.limit]],
        )

    @answers(spec.metrics)
    async def metrics(params: spec.GetMetrics) -> spec.Metrics:
        period_ms = PERIODS_MS[params.period]
        return metrics_of(
            params.period, tally(sessions.all(), period_ms, clock.now_ms())
        )


def session_of(session: Session) -> spec.Session:
    """Return a session as declared."""
    statement = session.quote.statement
    receipt = session.receipt
    return spec.Session(
        session=session.id,
        side=session.side.name.lower(),
        state=session.state.name.lower(),
        payer=statement.payer,
        payee=statement.payee,
        tokens=statement.tokens,
        amount_micro=statement.amount_micro,
        until_ms=statement.until_ms,
        reserve=session.reserve,
        paid_micro=receipt.statement.amount_micro if receipt else 0,
        reversed_micro=session.reversed_micro,
        failure=session.failure.name.lower() if session.failure is not None else None,
        reason=session.reason,
        began_ms=session.times_ms[SessionState.PENDING],
        moved_ms=session.moved_ms,
    )


def metrics_of(period: str, seen: Tally) -> spec.Metrics:
    """Return what was counted, held against the targets (LEDGER-19)."""
    expired = seen.failures[Failure.TTL_EXPIRED]
    p95 = max(seen.authorize_ms[1], seen.credit_ms[1])
    success, stale = seen.share_ppm(seen.credited), seen.share_ppm(expired)
    targets = [
        spec.Target(
            target="success above 95 %",
            value=success / 1e6,
            met=not seen.ended or success > SUCCESS_PPM,
        ),
        spec.Target(
            target="expired quotes below 5 %",
            value=stale / 1e6,
            met=stale < EXPIRED_PPM,
        ),
        spec.Target(
            target="95 % of steps within 500 ms",
            value=float(p95),
            met=p95 <= P95_MS,
        ),
    ]
    return spec.Metrics(
        period=period,
        healthy=all(target.met for target in targets),
        credited=seen.credited,
        reversed=seen.reversed,
        failed=seen.failed,
        success_ppm=success,
        authorize_ms=seen.authorize_ms[0],
        authorize_p95_ms=seen.authorize_ms[1],
        credit_ms=seen.credit_ms[0],
        credit_p95_ms=seen.credit_ms[1],
        failures=[
            spec.FailureCount(failure=kind.name.lower(), count=count)
            for kind, count in seen.failures.items()
        ],
        targets=targets,
        parts=[
            spec.Part(
                began_ms=part.began_ms, credited=part.credited, failed=part.failed
            )
            for part in seen.parts
        ],
    )
