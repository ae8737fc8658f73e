"""A payment for a service, step by step, as one of its two sides sees it (LEDGER-03).

    PENDING -> QUOTED -> AUTHORIZED -> CAPTURED -> CREDITED -> REVERSED
       |          |          |  \\          |
       +----------+----------+---\\---------+--> FAILED
                                  +--> REVERSED

On chain there are only the reserve and what ends it; this is what a node knows besides.
"""

from __future__ import annotations

import enum

from blyan_proto.block.ledger import DeliveryStatement, QuoteStatement
from blyand.rules.economy.escrow import Escrow, Status
from blyand.rules.economy.price import is_as_quoted


class SessionState(enum.IntEnum):
    """How far a payment is."""

    PENDING = 0  # a quote is being made, or checked
    QUOTED = 1  # a signed quote is there
    AUTHORIZED = 2  # the payer's money is reserved, finally
    CAPTURED = 3  # delivered and signed for; the payee claims its due
    CREDITED = 4  # the payee has it, finally
    FAILED = 5  # nothing was paid
    REVERSED = 6  # given back


class Failure(enum.IntEnum):
    """Why a payment came to nothing (LEDGER-10)."""

    TTL_EXPIRED = 0  # the quote was authorised too late
    TOKEN_MISMATCH = 1  # more than a tenth off what was quoted
    INSUFFICIENT = 2  # the payer has not got it
    DUPLICATE = 3  # its key names another payment
    TIMEOUT = 4  # the service, or its receipt, took too long
    INFERENCE_FAILED = 5  # the service could not be given
    ABUSE = 6  # a signature or a claim that is not what it says
    INTERNAL = 7  # none of these


class Refused(Exception):
    """A step that is not taken: why, and of what kind that is."""

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure


FOLLOWS: dict[SessionState, frozenset[SessionState]] = {
    SessionState.PENDING: frozenset({SessionState.QUOTED, SessionState.FAILED}),
    SessionState.QUOTED: frozenset({SessionState.AUTHORIZED, SessionState.FAILED}),
    SessionState.AUTHORIZED: frozenset(
        {SessionState.CAPTURED, SessionState.FAILED, SessionState.REVERSED}
    ),
    SessionState.CAPTURED: frozenset({SessionState.CREDITED, SessionState.FAILED}),
    SessionState.CREDITED: frozenset({SessionState.REVERSED}),
    SessionState.FAILED: frozenset(),
    SessionState.REVERSED: frozenset(),
}
ENDED = frozenset({SessionState.FAILED, SessionState.REVERSED})


class Illegal(Exception):
    """A transition that is not in `FOLLOWS`."""


def follow(state: SessionState, next: SessionState) -> SessionState:
    """Return `next`. Illegal when it may not follow `state`."""
    if next not in FOLLOWS[state]:
        raise Illegal(f"a {state.name.lower()} payment cannot be {next.name.lower()}")
    return next


def path(state: SessionState, escrow: Escrow | None) -> tuple[SessionState, ...]:
    """Return the states that a session passes now, from what the chain says of its reserve.

    Empty: nothing new. A reserve that is gone from state expired long ago.
    """
    if state is SessionState.CREDITED:
        reversed_ = escrow is not None and escrow.status is Status.REVERSED
        return (SessionState.REVERSED,) if reversed_ else ()
    if state not in (SessionState.AUTHORIZED, SessionState.CAPTURED):
        return ()
    if escrow is None or escrow.status is Status.EXPIRED:
        return (SessionState.FAILED,)
    if escrow.status is Status.OPEN:
        return ()
    if escrow.status is Status.RELEASED:
        ends = state is SessionState.CAPTURED
        return (SessionState.FAILED if ends else SessionState.REVERSED,)
    first = () if state is SessionState.CAPTURED else (SessionState.CAPTURED,)
    paid = (*first, SessionState.CREDITED)
    return paid if escrow.status is Status.CAPTURED else (*paid, SessionState.REVERSED)


def due_micro(quote: QuoteStatement, tokens: int) -> int:
    """Return what so many tokens cost by a quote, at most its amount; rounded down."""
    if not quote.tokens:
        return quote.amount_micro
    return min(quote.amount_micro, quote.amount_micro * tokens // quote.tokens)


def check_delivery(quote: QuoteStatement, delivery: DeliveryStatement) -> None:
    """Raise Refused when a delivery is not what was quoted (LEDGER-12, TOKEN-10)."""
    if not is_as_quoted(delivery.tokens, quote.tokens):
        raise Refused(
            Failure.TOKEN_MISMATCH,
            f"{delivery.tokens} tokens are more than 10 % off the {quote.tokens} quoted: "
            "ask for a new quote",
        )
    if delivery.amount_micro > quote.amount_micro:
        raise Refused(Failure.TOKEN_MISMATCH, "it costs more than was quoted")


def failure_of(error: str) -> Failure:
    """Return the kind of a reason for which the chain made a step a no-op."""
    for words, failure in (
        ("owns less", Failure.INSUFFICIENT),
        ("quote expired", Failure.TTL_EXPIRED),
        ("conflict:", Failure.DUPLICATE),
        ("expired", Failure.TIMEOUT),
        ("did not sign", Failure.ABUSE),
        ("not the payer's", Failure.ABUSE),
    ):
        if words in error:
            return failure
    return Failure.INTERNAL
