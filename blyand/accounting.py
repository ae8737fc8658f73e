"""What a node does with money, built from its stores and its chain; and its answers."""

from __future__ import annotations

from dataclasses import dataclass

from blyand.foundation import Base
from blyand.ledger.auditor import Auditor
from blyand.ledger.book import Ledger
from blyand.ledger.payments import Hands
from blyand.replica import Replica
from blyand.rpc import ledger as ledger_answers
from blyand.rpc import payment as payment_answers
from blyand.rpc import supply as supply_answers
from blyand.rpc.bind import Answers
from blyand.rpc.explain import Books
from blyand.rpc.ordering import Ordering
from blyand.store.sessions import SessionStore

KEPT_DAYS = 400  # of chain time, of statements; for ever with the role archive


KEPT_DAYS = 400  # of chain time, of statements; for ever with the role archive


@dataclass(frozen=True)
class Accounting:
    """The money of one node."""

    ledger: Ledger
    auditor: Auditor
    books: Books


def build_accounting(base: Base, replica: Replica) -> Accounting:
    """Return what works with money; `daemon` runs its services."""
    stores = base.stores
    ordering = Ordering(replica.machine, stores.blocks, base.events)
    hands = Hands(
        account=base.key.account,
        view=lambda: replica.view,
        make=replica.author.make,
        wait=ordering.wait,
        outcome=ordering.outcome,
        is_pending=replica.pool.__contains__,
        clock=base.clock,
        lane=base.disk_lane,
    )
    sessions = SessionStore(stores.database)
    books = Books(
        stores.blocks, stores.checkpoints, stores.statements, base.genesis.time_ms
    )
    return Accounting(
        ledger=Ledger(hands, base.key, base.genesis, sessions, base.events),
        auditor=Auditor(
            stores.state.freeze,
            stores.statements,
            base.events,
            base.disk_lane,
            base.metrics,
            base.alarms.__setitem__,
            books.time_of,
            0 if "archive" in base.config.node.roles else KEPT_DAYS,
        ),
        books=books,
    )


def bind_accounting(
    answers: Answers, base: Base, replica: Replica, accounting: Accounting
) -> None:
    """Bind ledger.* and supply.*."""
    ledger_answers.bind(
        answers,
        account=base.key.account,
        machine=replica.machine,
        payments=accounting.ledger.payments,
        auditor=accounting.auditor,
        statements=base.stores.statements,
        books=accounting.books,
        lane=base.disk_lane,
    )
    payment_answers.bind(
        answers,
        account=base.key.account,
        genesis=base.genesis,
        ledger=accounting.ledger,
        clock=base.clock,
    )
    supply_answers.bind(answers, machine=replica.machine)
