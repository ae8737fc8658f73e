"""What moved is written down with its checkpoint; the audit finds what does not add up."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from blyan_proto.codec import encode
from blyand.compute import Threads
from blyand.events import Broadcast, CheckpointFinalised
from blyand.ledger.auditor import DAY_MS, Auditor
from blyand.metrics import Metrics
from blyand.rules.chain.execute import begin
from blyand.rules.economy.audit import Audit
from blyand.rules.economy.book import BALANCES, ISSUE, Balance, Purse
from blyand.rules.posting import Posting
from blyand.rules.view import Overlay
from blyand.store.memory import MemoryStore
from blyand.store.schema import META_STATED, u64
from blyand.store.statements import (
    AT_END,
    LINES,
    Audited,
    Place,
    Statements,
    rows_of,
)
from tests.unit.daemon.chain_world import key
from tests.unit.daemon.ledger_world import LedgerWorld


class Books:
    """A world whose checkpoints are written down."""

    def __init__(self):
        self.world = LedgerWorld()
        self.database = MemoryStore()
        self.statements = Statements(self.database)
        self.alarms = {}
        self.events = Broadcast()
        self.metrics = Metrics()
        self.auditor = Auditor(
            lambda: self.world.view.freeze(),
            self.statements,
            self.events,
            Threads("test", 1),
            self.metrics,
            self.alarms.__setitem__,
        )
        self.note(0, [], begin(self.world.genesis).postings)

    def note(self, height, outcomes, ending):
        self.database.write_batch(rows_of(height, outcomes, ending), sync=True)

    def order(self, *blocks, step_ms=250):
        outcomes = self.world.checkpoint(*blocks, step_ms=step_ms)
        moved = [(o.block, o.postings) for o in outcomes]
        self.note(self.world.height, moved, self.world.ended)
        fact = CheckpointFinalised(
            SimpleNamespace(checkpoint=SimpleNamespace(time_ms=self.world.time_ms)), b""
        )
        self.events.publish(fact)
        return outcomes

    def pay(self, micro, fee=0):
        one, two, _ = self.world.keys
        self.order(self.world.block(self.world.pay(two, micro, fee), one))

    def audit(self):
        seen = []

        async def report(purses):
            seen.append(purses)

        found = trio.run(self.auditor.audit, report)
        assert seen[-1] == found.purses
        return found

    def drift(self, account, micro, purse=Purse.FREE):
        """Change a purse as no rule does."""
        overlay = Overlay(self.world.view)
        balance = Balance(account, purse, micro)
        BALANCES.put(overlay, balance, account, bytes([purse]))
        self.world.view.apply(overlay.changes)


@pytest.fixture
def books():
    return Books()


def test_the_books_are_right_LEDGER_05(books):
    books.pay(10, fee=250)
    reserve = books.world.block(
        books.world.reserve(books.world.keys[2], 40), books.world.keys[1]
    )
    books.order(reserve)
    books.order(step_ms=40_000)
    first = books.audit()
    assert first.sound and first.since == 0
    assert first.sum_micro == first.supply_micro == 3_000 - 2
    assert books.statements.audited() == Audited(
        books.world.height, books.world.time_ms
    )
    books.pay(20)
    second = books.audit()
    assert second.sound and second.since == first.height
    third = books.audit()  # nothing moved since
    assert third.sound and third.purses == second.purses


@pytest.mark.parametrize("audited_before", [False, True])
@pytest.mark.parametrize("micro", [0, 989, 991, 5_000])
def test_a_drift_is_found_with_its_account_LEDGER_05(
    books, caplog, audited_before, micro
):
    victim = books.world.keys[0].account
    books.pay(10)
    if audited_before:
        assert books.audit().sound
    (
        books.drift(victim, micro)
        if micro
        else books.world.view.apply({b"balance/" + victim + bytes([Purse.FREE]): None})
    )
    with caplog.at_level(logging.ERROR):
        found = books.audit()
    assert not found.sound
    (drift,) = found.drifts
    assert (drift.account, drift.purse) == (victim, Purse.FREE)
    assert (drift.holds_micro, drift.should_micro) == (micro, 990)
    assert "BROKEN" in caplog.text and victim.hex() in caplog.text
    assert victim.hex() in books.alarms[books.world.height]
    assert not books.audit().sound  # a wrong finding is no baseline


def test_two_drifts_that_cancel_out_are_found_too(books):
    one, two, _ = books.world.keys
    books.drift(one.account, 900)
    books.drift(two.account, 1_100)
    found = books.audit()
    assert found.sum_micro == found.supply_micro
    assert {d.account for d in found.drifts} == {one.account, two.account}


def test_a_movement_that_is_not_stated_is_found(books):
    one, two, _ = books.world.keys
    books.audit()
    books.world.ordered(books.world.pay(two, 5), one)  # written down nowhere
    found = books.audit()
    assert {d.account for d in found.drifts} == {one.account, two.account}


@pytest.mark.parametrize("audited_before", [False, True])
def test_after_a_state_from_elsewhere_the_comparison_begins_anew(books, audited_before):
    """As `Restore.finish` leaves it: old statements, a gap, a state after it."""
    books.pay(10)
    if audited_before:
        assert books.audit().sound
    one, two, _ = books.world.keys
    books.world.ordered(books.world.pay(two, 5), one)  # executed by others only
    here = u64(books.world.height)
    books.database.write_batch([(META_STATED, here)], sync=True)
    first = books.audit()
    assert first.sound and first.since is None
    books.pay(10)
    assert books.audit().since == first.height
    books.drift(one.account, 1)
    assert not books.audit().sound


def test_forgotten_statements_begin_with_the_genesis_again(books):
    books.pay(10)
    books.audit()
    books.statements.forget()
    assert books.statements.whole_since() is None
    assert books.statements.oldest() is None and not list(books.statements.baseline())


def test_the_audit_comes_daily_by_chain_time_HZ_45(books):
    audits = books.metrics.counter("blyan_ledger_audits")

    async def main():
        async with trio.open_nursery() as nursery:
            await nursery.start(books.auditor.run)
            for step_ms, made in (
                (250, 1),
                (250, 1),
                (DAY_MS - 251, 1),
                (1, 2),
                (DAY_MS, 3),
            ):
                books.order(step_ms=step_ms)
                while audits.value != made:
                    await trio.sleep(0.001)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not books.alarms


def test_statements_are_read_by_account_and_place(books):
    one, two, three = books.world.keys
    for micro in (1, 2, 3):
        books.pay(micro)
    books.order(books.world.block(books.world.pay(three, 9), two))
    found = books.statements.of(one.account, None, 10)
    assert [place.height for place, _ in found] == [3, 2, 1, 0]
    page = books.statements.of(one.account, None, 2)
    rest = books.statements.of(one.account, page[-1][0], 10)
    assert page + rest == found
    assert books.statements.of(key("nobody").account, None, 10) == []
    entry = books.statements.at(4, 0)
    assert [line.micro for line in entry.lines] == [-9, 9]
    assert books.statements.at(4, 1) is None


def test_a_long_end_of_a_checkpoint_is_cut_into_entries():
    database = MemoryStore()
    statements = Statements(database)
    accounts = [bytes([n % 251]) * 20 for n in range(600)]
    postings = [Posting(a, Purse.FREE, n, "reward") for n, a in enumerate(accounts)]
    database.write_batch(rows_of(7, [], postings), sync=True)
    told = [entry for _, entry in statements.since(6, 7)]
    assert [len(entry.lines) for entry in told] == [LINES, LINES, 600 - 2 * LINES]
    assert sum(statements.moved(6, 7).values()) == sum(range(600))
    assert statements.at(7, AT_END + 2) is not None


def test_old_statements_are_pruned_from_the_oldest_on(books):
    for micro in (1, 2, 3):
        books.pay(micro)
    assert books.statements.prune(2) == 2
    assert books.statements.oldest() == 2
    one = books.world.keys[0].account
    assert [place for place, _ in books.statements.of(one, None, 9)] == [
        Place(3, 0),
        Place(2, 0),
    ]


def test_what_is_older_than_wanted_is_dropped_after_an_audit(books):
    times = {0: books.world.time_ms}
    auditor = Auditor(
        lambda: books.world.view.freeze(),
        books.statements,
        books.events,
        Threads("test", 1),
        books.metrics,
        books.alarms.__setitem__,
        times.get,
        keep_days=2,
    )

    async def main():
        async with trio.open_nursery() as nursery:
            await nursery.start(auditor.run)
            for day in range(5):
                one, two, _ = books.world.keys
                payment = books.world.block(books.world.pay(two, 1), one)
                times[books.world.height + 1] = books.world.time_ms + DAY_MS
                books.order(payment, step_ms=DAY_MS)
                while books.statements.audited() != Audited(
                    books.world.height, books.world.time_ms
                ):
                    await trio.sleep(0.001)
            while books.statements.oldest() != 3:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not books.alarms


PURSES = st.dictionaries(
    st.tuples(st.sampled_from([b"a" * 20, b"b" * 20, b"c" * 20]), st.integers(0, 2)),
    st.integers(1, 100),
)


@given(before=PURSES, now=PURSES, at_once=st.integers(1, 4))
def test_an_audit_names_exactly_the_purses_that_differ(before, now, at_once):
    moved = {
        place: now.get(place, 0) - before.get(place, 0)
        for place in before.keys() | now.keys()
    }
    audit = Audit(iter(sorted(now.items())), iter(sorted(before.items())), dict(moved))
    while audit.step(at_once):
        pass
    assert not audit.drifts and audit.sum_micro == sum(now.values())
    assert {**before, **audit.changed} == {**before, **now} | {
        place: 0 for place in before.keys() - now.keys()
    }
    wrong = Audit(iter(sorted(now.items())), iter(sorted(before.items())), {})
    while wrong.step(at_once):
        pass
    assert {(d.account, d.purse) for d in wrong.drifts} == {
        place for place, micro in moved.items() if micro
    }


def test_what_the_zero_account_is_posted_is_no_purse(books):
    entry = books.statements.at(0, AT_END)
    assert sum(line.micro for line in entry.lines) == 0
    assert {line.account for line in entry.lines} >= {ISSUE}
    assert len(encode(entry)) < 1_000
