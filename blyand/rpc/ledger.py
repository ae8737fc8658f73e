"""Answers about money: balances, transfers, stakes, statements, audits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from blyan_proto.block.economy import Transfer
from blyan_proto.block.ledger import Stake
from blyan_proto.rpc import ledger as spec
from blyan_proto.rpc.errors import (
    DELIVERY_MISMATCH,
    FUNDS_SHORT,
    INVALID_PARAMS,
    KEY_CONFLICT,
    PAYMENT_REFUSED,
    QUOTE_EXPIRED,
    ErrorCode,
    RpcError,
)
from blyan_proto.rpc.parts import Progress
from blyan_proto.types import TEXT_BYTES
from blyand.chain.machine import Machine
from blyand.compute import Threads
from blyand.ledger.auditor import Auditor
from blyand.ledger.payments import Payments, chain_key
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.explain import Books, explained
from blyand.rules.economy.book import Purse, amount
from blyand.rules.economy.session import Failure, Refused
from blyand.rules.economy.stake import priority
from blyand.rules.view import View
from blyand.store.statements import AT_END, Entry, Place, Statements

T = TypeVar("T")

CODES = {
    Failure.TTL_EXPIRED: QUOTE_EXPIRED,
    Failure.TOKEN_MISMATCH: DELIVERY_MISMATCH,
    Failure.INSUFFICIENT: FUNDS_SHORT,
    Failure.DUPLICATE: KEY_CONFLICT,
}


def bind(
    answers: Answers,
    *,
    account: bytes,
    machine: Machine,
    payments: Payments,
    auditor: Auditor,
    statements: Statements,
    books: Books,
    lane: Threads,
) -> None:
    """Bind the methods of ledger.* that are about this node's money and statements."""
    least_fee = machine.genesis.setting("transfer_fee_micro")

    @answers(spec.balance)
    async def balance(params: spec.GetBalance) -> spec.Balance:
        whose = account_called(params.account, account)
        return balance_of(machine.view, whose, machine.clock.height)

    @answers(spec.send)
    async def send(params: spec.Send) -> spec.Sent:
        if len(params.memo.encode()) > TEXT_BYTES:
            text = f"ledger.send: memo: at most {TEXT_BYTES} bytes"
            raise RpcError(INVALID_PARAMS, text)
        fee = least_fee if params.fee_micro is None else params.fee_micro
        payload = Transfer(
            version=1,
            to=account_called(params.to, account),
            amount_micro=params.amount_micro,
            fee_micro=fee,
            memo=params.memo,
            key=chain_key(params.key),
        )
        paid = await told(payments.pay(payload, "ledger.send"))
        return spec.Sent(
            block=paid.block,
            repeated=paid.repeated,
            fee_micro=fee,
            free_micro=amount(machine.view, account),
        )

    @answers(spec.stake)
    async def stake(params: spec.PutStake) -> spec.Balance:
        if bool(params.lock_micro) == bool(params.unlock_micro):
            text = "ledger.stake: give either lock_micro or unlock_micro"
            raise RpcError(INVALID_PARAMS, text)
        key = chain_key(params.key)
        payload = Stake(1, params.lock_micro, params.unlock_micro, key)
        await told(payments.pay(payload, "ledger.stake"))
        return balance_of(machine.view, account, machine.clock.height)

    @answers(spec.history)
    async def history(params: spec.GetHistory) -> spec.History:
        whose = account_called(params.account, account)
        before = _place(params.before)
        return await lane.run(
            history_of, statements, books, whose, before, params.limit
        )

    @answers(spec.explain)
    async def explain(params: spec.Explain) -> spec.Explained:
        return await lane.run(explained, books, params.transaction)

    @answers(spec.audit)
    async def audit(params: spec.AuditLedger, emit: Emit) -> spec.Audited:
        async def report(purses: int) -> None:
            await emit(Progress("adding up", purses, None, "purses"))

        found = await auditor.audit(report)
        return spec.Audited(
            sound=found.sound,
            height=found.height,
            since=found.since,
            purses=found.purses,
            sum_micro=found.sum_micro,
            supply_micro=found.supply_micro,
            problems=[
                spec.AuditProblem(
                    account=drift.account,
                    purse=purse_name(drift.purse),
                    holds_micro=drift.holds_micro,
                    should_micro=drift.should_micro,
                )
                for drift in found.drifts
            ],
        )


async def told(answer: Awaitable[T]) -> T:
    """Return what was awaited; what was refused becomes an error of the interface."""
    try:
        return await answer
    except Refused as error:
        code: ErrorCode = CODES.get(error.failure, PAYMENT_REFUSED)
        raise RpcError(code, str(error)) from error


def balance_of(view: View, account: bytes, height: int) -> spec.Balance:
    """Return an account's purses as declared."""
    purses = {purse: amount(view, account, purse) for purse in Purse}
    return spec.Balance(
        account=account,
        free_micro=purses[Purse.FREE],
        held_micro=purses[Purse.HELD],
        bond_micro=purses[Purse.BOND],
        unbonding_micro=purses[Purse.UNBONDING],
        unclaimed_micro=purses[Purse.UNCLAIMED],
        staked_micro=purses[Purse.STAKED],
        unstaking_micro=purses[Purse.UNSTAKING],
        total_micro=sum(purses.values()),
        priority=priority(view, account),
        height=height,
    )


def purse_name(purse: int) -> str:
    """Return a purse's name in lower case."""
    return Purse(purse).name.lower()


def history_of(
    statements: Statements,
    books: Books,
    account: bytes,
    before: Place | None,
    limit: int,
) -> spec.History:
    """Return a page of an account's movements. Blocking."""
    lines: list[spec.HistoryLine] = []
    found = statements.of(account, before, limit)
    for place, entry in found:
        lines += _lines(account, place, entry, books.time_of)
    full = len(found) == limit
    return spec.History(
        account=account,
        lines=lines,
        next=f"{found[-1][0].height}.{found[-1][0].position}" if full else "",
        since=max(statements.whole_since() or 0, statements.oldest() or 0),
    )


def _lines(
    account: bytes, place: Place, entry: Entry, time_of: Callable[[int], int | None]
) -> list[spec.HistoryLine]:
    """Return an account's lines of an entry; the two sides of a movement are neighbours."""
    return [
        spec.HistoryLine(
            height=place.height,
            time_ms=time_of(place.height),
            block=entry.block,
            why=line.why,
            purse=purse_name(line.purse),
            change_micro=line.micro,
            other=entry.lines[number ^ 1].account,
        )
        for number, line in enumerate(entry.lines)
        if line.account == account
    ]


def _place(text: str) -> Place | None:
    if not text:
        return None
    height, dot, position = text.partition(".")
    if not (dot and height.isdecimal() and position.isdecimal()):
        raise RpcError(
            INVALID_PARAMS, f"ledger.history: before: {text[:40]!r} is no place"
        )
    if int(height) >= 2**63 or int(position) >= 2 * AT_END:
        raise RpcError(INVALID_PARAMS, "ledger.history: before: there is no such place")
    return Place(int(height), int(position))
