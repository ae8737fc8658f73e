"""Payments for services, step by step: the second half of the noun `ledger`."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    ACCOUNT_INVALID,
    DELIVERY_MISMATCH,
    FUNDS_SHORT,
    KEY_CONFLICT,
    PAYMENT_REFUSED,
    QUOTE_EXPIRED,
    QUOTE_INVALID,
    SESSION_UNKNOWN,
)
from blyan_proto.rpc.spec import Address, Hex, Id, Method, arg, declare, record

KEY_HELP = "names the call: the same call again with the same key has the same result"
SESSION_HELP = "id of the session: of its quote, hex"
ERRORS = (
    ACCOUNT_INVALID,
    PAYMENT_REFUSED,
    KEY_CONFLICT,
    FUNDS_SHORT,
    QUOTE_INVALID,
    QUOTE_EXPIRED,
    SESSION_UNKNOWN,
    DELIVERY_MISMATCH,
)
STATES = tuple("pending quoted authorized captured credited failed reversed".split())
FAILURES = tuple(
    "ttl_expired token_mismatch insufficient duplicate timeout inference_failed abuse "
    "internal".split()
)


@record
class Session:
    """A payment for a service, as this node knows it."""

    session: Id = arg("its id: of the quote")
    side: str = arg("what this node is in it", choices=("payer", "payee"))
    state: str = arg("how far it is", choices=STATES)
    payer: Address = arg("account that pays")
    payee: Address = arg("account that is paid")
    tokens: int = arg("tokens that the price is for")
    amount_micro: int = arg("price: the most that will be paid, micro-BLY")
    until_ms: int = arg("chain time until which it may be authorised")
    reserve: Id | None = arg("block that locked the money")
    paid_micro: int = arg("what the payer signed for, micro-BLY; 0 before")
    reversed_micro: int = arg("what was given back of it, micro-BLY")
    failure: str | None = arg("of what kind its failure is")
    reason: str = arg("why it failed; empty otherwise")
    began_ms: int = arg("when this node heard of it, Unix milliseconds")
    moved_ms: int = arg("when its newest state came, Unix milliseconds")


@record
class Quoted:
    """A session and its signed quote."""

    session: Session = arg("the session")
    quote: Hex = arg("the signed quote, for the payer")


@record
class Accepted:
    """A session and the payer's signature for what was delivered."""

    session: Session = arg("the session")
    receipt: Hex = arg("the signed receipt, for the payee")


@record
class MakeQuote:
    """Offer a service to a payer at a price that holds for a while."""

    payer: str = arg("account that is to pay", positional=True)
    tokens: int = arg("tokens that the price is for", low=0, high=2**32 - 1)
    amount_micro: int | None = arg(
        "price; default: tokens at the network's price of a token",
        default=None,
        low=1,
        high=2**63,
    )
    span_s: int = arg("how long it holds, chain time", default=300, low=1, high=86_400)
    model: Id | None = arg("model that will serve", default=None)


quote = declare(Method("ledger.quote", MakeQuote, Quoted, errors=ERRORS))


@record
class Authorize:
    """Reserve what a quote asks for, and wait until that is final.

    The same quote again has the same result.
    """

    quote: Hex = arg("the signed quote, as the payee gave it", positional=True)
    fee_micro: int = arg("fee of the reserve", default=0, low=0, high=2**63)


authorize = declare(Method("ledger.authorize", Authorize, Session, errors=ERRORS))


@record
class Accept:
    """Sign for what was delivered; the receipt lets the payee capture it."""

    session: Id = arg(SESSION_HELP, positional=True)
    tokens: int = arg("tokens that came", low=0, high=2**32 - 1)
    amount_micro: int | None = arg(
        "what to pay; default: the price of these tokens", default=None, low=1
    )
    groups: list[int] = arg("groups that worked, ascending", default=(), high=256)
    calls: list[int] = arg("calls of each of these groups", default=(), high=256)
    response_ms: int = arg("mean time of a call", default=0, low=0, high=2**32 - 1)
    quality_ppm: int = arg("how good it was", default=0, low=0, high=1_000_000)


accept = declare(Method("ledger.accept", Accept, Accepted, errors=ERRORS))


@record
class TakeCapture:
    """Take what a payer signed for, and wait until it is credited, finally.

    The same receipt again has the same result. A delivery more than 10 % off the quote
    is refused, and the payer's money released.
    """

    receipt: Hex = arg("the signed receipt, as the payer gave it", positional=True)


capture = declare(Method("ledger.capture", TakeCapture, Session, errors=ERRORS))


@record
class Credit:
    """Wait until a captured payment is credited, finally."""

    session: Id = arg(SESSION_HELP, positional=True)


credit = declare(Method("ledger.credit", Credit, Session, errors=ERRORS))


@record
class GiveBack:
    """Give back: a whole reserve before it is captured, or some of what was credited."""

    session: Id = arg(SESSION_HELP, positional=True)
    amount_micro: int | None = arg(
        "of a credited payment; default: all of it", default=None, low=1, high=2**63
    )
    key: str = arg(KEY_HELP, default="")
    failure: str | None = arg(
        "why the service was not given", default=None, choices=FAILURES
    )


reverse = declare(Method("ledger.reverse", GiveBack, Session, errors=ERRORS))


@record
class ListSessions:
    """List the payments for services that this node takes part in, the newest first."""

    state: str | None = arg("only those in this state", default=None, choices=STATES)
    limit: int = arg("most sessions to list", default=20, low=1, high=1000)


@record
class Sessions:
    """Payments for services."""

    live: int = arg("sessions under way")
    sessions: list[Session] = arg("the newest first")


sessions = declare(Method("ledger.sessions", ListSessions, Sessions))


@record
class GetMetrics:
    """Tell how payments went of late: success, delays, reasons of failure."""

    period: str = arg("how far to look back", default="1h", choices=("1h", "24h", "7d"))


@record
class FailureCount:
    """How often payments failed for one kind of reason."""

    failure: str = arg("the kind of reason", choices=FAILURES)
    count: int = arg("sessions that failed for it")


@record
class Target:
    """What a value should be, and whether it is."""

    target: str = arg("what is wanted")
    value: float = arg("what is: a share, or milliseconds")
    met: bool = arg("it is as wanted; also while nothing was counted")


@record
class Part:
    """One twelfth of the period."""

    began_ms: int = arg("its begin, Unix milliseconds")
    credited: int = arg("payments credited in it")
    failed: int = arg("payments failed in it")


@record
class Metrics:
    """How payments went."""

    period: str = arg("the period counted")
    healthy: bool = arg("all targets are met")
    credited: int = arg("payments that were credited")
    reversed: int = arg("payments given back")
    failed: int = arg("payments that came to nothing")
    success_ppm: int = arg("credited, of those that ended")
    authorize_ms: int = arg("median time from quote to final reserve")
    authorize_p95_ms: int = arg("95 % take at most this")
    credit_ms: int = arg("median time from receipt to final credit")
    credit_p95_ms: int = arg("95 % take at most this")
    failures: list[FailureCount] = arg("by kind of reason")
    targets: list[Target] = arg("what they should be")
    parts: list[Part] = arg("the period in twelfths, the oldest first")


metrics = declare(Method("ledger.metrics", GetMetrics, Metrics))
