"""Money: balances, transfers, stakes, statements, audits; and payments for services."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    ACCOUNT_INVALID,
    FUNDS_SHORT,
    KEY_CONFLICT,
    PAYMENT_REFUSED,
    TRANSACTION_UNKNOWN,
)
from blyan_proto.rpc.parts import Progress
from blyan_proto.rpc.payment import (
    KEY_HELP,
    accept,
    authorize,
    capture,
    credit,
    metrics,
    quote,
    reverse,
    sessions,
)
from blyan_proto.rpc.spec import Address, Hex, Id, Key, Method, arg, declare, record

__all__ = [
    "accept",
    "authorize",
    "capture",
    "credit",
    "metrics",
    "quote",
    "reverse",
    "sessions",
]

ACCOUNT_HELP = "account in hex, name of a pool, or me"


@record
class GetBalance:
    """Tell what an account owns, purse by purse."""

    account: str = arg(ACCOUNT_HELP, default="me", positional=True)


@record
class Balance:
    """What an account owns, micro-BLY."""

    account: Address = arg("the account")
    free_micro: int = arg("can be spent")
    held_micro: int = arg("reserved for services that were ordered")
    bond_micro: int = arg("locked for a role; may be slashed")
    unbonding_micro: int = arg("on its way from there; may be slashed")
    unclaimed_micro: int = arg("rewards that are not paid out yet; may be slashed")
    staked_micro: int = arg("locked for priority")
    unstaking_micro: int = arg("on its way from there")
    total_micro: int = arg("all of that")
    priority: int = arg("weight in queues that its stake gives")
    height: int = arg("checkpoint that this is after")


balance = declare(
    Method("ledger.balance", GetBalance, Balance, errors=(ACCOUNT_INVALID,))
)


@record
class Send:
    """Send money from this node's account, and wait until that is final."""

    to: str = arg(ACCOUNT_HELP, positional=True)
    amount_micro: int = arg("how much", low=1, high=2**63, positional=True)
    fee_micro: int | None = arg(
        "fee; default: the least that the network takes", default=None, low=0
    )
    memo: str = arg("public text for the receiver, at most 512 bytes", default="")
    key: str = arg(KEY_HELP, default="")


@record
class Sent:
    """A payment that is final."""

    block: Id = arg("the transaction: the block that made it")
    repeated: bool = arg("an earlier call with this key made it")
    fee_micro: int = arg("the fee that was offered")
    free_micro: int = arg("what this node's account can still spend")


send = declare(
    Method(
        "ledger.send",
        Send,
        Sent,
        errors=(ACCOUNT_INVALID, PAYMENT_REFUSED, KEY_CONFLICT, FUNDS_SHORT),
    )
)


@record
class PutStake:
    """Lock money for priority in queues, or begin to unlock some; wait until final."""

    lock_micro: int = arg("how much to lock", default=0, low=0, high=2**63)
    unlock_micro: int = arg("how much to unlock", default=0, low=0, high=2**63)
    key: str = arg(KEY_HELP, default="")


stake = declare(
    Method(
        "ledger.stake",
        PutStake,
        Balance,
        errors=(PAYMENT_REFUSED, KEY_CONFLICT, FUNDS_SHORT),
    )
)


@record
class GetHistory:
    """List what moved on an account, the newest first."""

    account: str = arg(ACCOUNT_HELP, default="me", positional=True)
    limit: int = arg(
        "movements to list; all lines of one transaction count as one",
        default=20,
        low=1,
        high=1000,
    )
    before: str = arg("begin behind this place: `next` of a page", default="")


@record
class HistoryLine:
    """One movement."""

    height: int = arg("checkpoint that made it final; 0: the genesis")
    time_ms: int | None = arg("its chain time")
    block: Id | None = arg("the transaction; null: the checkpoint's end")
    why: str = arg("what it was for")
    purse: str = arg("purse of this account")
    change_micro: int = arg("what came, or went if negative")
    other: Address = arg("the other account; zeros: issued or burnt")


@record
class History:
    """A page of movements."""

    account: Address = arg("the account")
    lines: list[HistoryLine] = arg("the newest first")
    next: str = arg("where the next page begins; empty: this was the last")
    since: int = arg("checkpoint from which on movements are known here")


history = declare(
    Method("ledger.history", GetHistory, History, errors=(ACCOUNT_INVALID,))
)


@record
class Explain:
    """Tell all about a transaction: who signed it, where it stands, what it moved, why."""

    transaction: str = arg(
        "block id, hex; or a checkpoint's height: what its end did", positional=True
    )


@record
class ExplainedLine:
    """One side of a movement."""

    account: Address = arg("whose purse; zeros: issued or burnt")
    name: str = arg("name of a pool; empty for others")
    purse: str = arg("which purse")
    change_micro: int = arg("what came, or went if negative")
    why: str = arg("what it was for")


@record
class Input:
    """A number or name that a formula reads."""

    name: str = arg("its name")
    value: str = arg("its value")


@record
class Explained:
    """A transaction."""

    block: Id | None = arg("the block; null: a checkpoint's end")
    kind: str = arg("what it says")
    account: Address | None = arg("who signed it")
    author: Key | None = arg("the key that signed it")
    signature: Hex | None = arg("that signature")
    sequence: int | None = arg("its place among the account's blocks")
    made_ms: int | None = arg("when it was signed, by the author's clock")
    checkpoint: int | None = arg("height that made it final; null: pending")
    position: int | None = arg("its place in the checkpoint's order")
    time_ms: int | None = arg("chain time of that checkpoint")
    outcome: str = arg("took effect, pending, or why it had no effect")
    formula: str = arg("how the amounts follow from the inputs")
    inputs: list[Input] = arg("what the formula reads")
    postings: list[ExplainedLine] = arg("what moved; adds up to nothing")
    pruned: bool = arg("what moved, or the payload, is no longer kept here")


explain = declare(
    Method("ledger.explain", Explain, Explained, errors=(TRANSACTION_UNKNOWN,))
)


@record
class AuditLedger:
    """Add up every purse; hold it against the supply and against all that moved."""


@record
class AuditProblem:
    """A purse that does not hold what it should."""

    account: Address = arg("the account")
    purse: str = arg("which purse")
    holds_micro: int = arg("what state says")
    should_micro: int = arg("what the movements add up to")


@record
class Audited:
    """What an audit found."""

    sound: bool = arg("everything is where it should be")
    height: int = arg("checkpoint whose state was audited")
    since: int | None = arg("compared with the movements since; null: not compared")
    purses: int = arg("purses added up")
    sum_micro: int = arg("what they hold")
    supply_micro: int = arg("what was issued and not burnt")
    problems: list[AuditProblem] = arg("purses that are wrong; at most 1000")


audit = declare(
    Method("ledger.audit", AuditLedger, Audited, streams=Progress, deadline_s=None)
)
