"""Fees, keys of payments, supply by the year, stakes, prices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blyan_proto.constants import MAX_CHECKPOINT_BLOCKS
from blyan_proto.genesis import Balance
from blyan_proto.types import Chain
from blyand.rules.chain.execute import begin
from blyand.rules.economy import book, fee, once, pools, price, stake, supply
from blyand.rules.economy.book import MAX_SUPPLY_MICRO, MICRO, Purse, amount
from blyand.rules.economy.due import DUES, MAX_STEPS, WHEEL, Due, Task, schedule, turn
from blyand.rules.records import USED
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay
from blyand.store.state import State
from tests.unit.daemon.chain_world import START_MS, genesis_of, key
from tests.unit.daemon.ledger_world import SPANS, LedgerWorld


@pytest.fixture
def world():
    return LedgerWorld()


def test_one_hundredth_of_a_fee_is_burnt_TOKEN_03(world):
    rich, poor, _ = world.keys
    world.ordered(world.pay(poor, 5, fee=500), rich)
    assert world.has(rich) == 495 and world.has(poor) == 1_005
    assert amount(world.view, pools.VALIDATORS) == 495
    assert book.supply(world.view).burnt_micro == 5
    assert world.is_balanced()


@pytest.mark.parametrize("fee", [0, 7, 100, 250])
def test_the_two_sides_of_a_movement_are_posted_as_neighbours(world, fee):
    rich, poor, _ = world.keys
    (outcome,) = world.checkpoint(world.block(world.pay(poor, 5, fee), rich))
    pairs = zip(outcome.postings[::2], outcome.postings[1::2], strict=True)
    assert all(one.micro == -other.micro != 0 for one, other in pairs)


@given(st.lists(st.integers(0, 10**6)))
def test_splitting_a_fee_burns_neither_less_nor_more(fees):
    paid = burnt = 0
    for one in fees:
        part = fee.burnt_of(paid, one)
        assert 0 <= part <= one
        paid, burnt = paid + one, burnt + part
    assert burnt == sum(fees) // 100


def test_who_owns_nothing_leaves_nothing_in_state(world):
    nobody = key("nobody")
    (error,) = world.errors(world.block(world.pay(world.keys[0], 0), nobody))
    assert error == "nothing is sent"
    assert USED.get(world.view, nobody.account, bytes([Chain.LEDGER])) is None


def test_a_network_may_ask_for_a_fee():
    world = LedgerWorld(transfer_fee_micro=3)
    one, two, _ = world.keys
    for payload in (world.pay(two, 1, 2), world.reserve(two, 1, fee_micro=2)):
        assert "below this network's 0.000003 BLY" in world.refused(payload, one)
    world.ordered(world.pay(two, 1, 3), one)
    world.ordered(world.reserve(two, 1, fee_micro=3), one)


def test_a_key_pays_once_LEDGER_02(world):
    rich, poor, _ = world.keys
    first = world.ordered(world.pay(poor, 10, key=b"a"), rich)
    again = world.refused(world.pay(poor, 10, key=b"a"), rich)
    assert again == f"repeat: block {first.id.hex()} did this"
    other = world.refused(world.pay(poor, 11, key=b"a"), rich)
    assert other == f"conflict: block {first.id.hex()} has this key"
    reserve = world.reserve(poor, 10, key=b"a")
    assert "conflict" in world.refused(reserve, rich)
    assert world.has(rich) == 990
    found = once.first_of(world.view, rich.account, b"a", world.time_ms)
    assert found.block == first.id


def test_keys_of_accounts_are_their_own_and_no_key_is_no_key(world):
    rich, poor, _ = world.keys
    for _ in range(2):
        world.ordered(world.pay(poor, 10), rich)
    world.ordered(world.pay(poor, 10, key=b"a"), rich)
    world.ordered(world.pay(rich, 10, key=b"a"), poor)


def test_a_webhook_that_comes_ten_times_pays_once_PAY_03(world):
    gateway, buyer, _ = world.keys
    event = b"evt_1PZ0" + bytes(8)
    blocks = [world.block(world.pay(buyer, 70, key=event), gateway) for _ in range(10)]
    assert world.errors(*blocks).count(None) == 1
    assert world.has(buyer) == 1_070


def test_a_payment_that_failed_may_be_tried_again_under_its_key(world):
    rich, poor, _ = world.keys
    assert "less" in world.refused(world.pay(poor, 1_001, key=b"a"), rich)
    world.ordered(world.pay(rich, 1, key=b"b"), poor)
    world.ordered(world.pay(poor, 1_001, key=b"a"), rich)


def test_a_key_is_forgotten_after_its_span_and_no_sooner(world):
    rich, poor, _ = world.keys
    world.ordered(world.pay(poor, 1, key=b"a"), rich)
    ends_ms = world.time_ms + SPANS["idempotency_span_ms"]
    repeat = world.block(world.pay(poor, 1, key=b"a"), rich)
    assert "repeat" in world.errors(repeat, step_ms=ends_ms - world.time_ms - 1)[0]
    # The second use is at the very end of the first; the wheel must leave it alone.
    again = world.block(world.pay(poor, 1, key=b"a"), rich)
    assert world.errors(again, step_ms=1) == [None]
    world.wait(1_000)
    assert "repeat" in world.refused(world.pay(poor, 1, key=b"a"), rich)
    world.wait(SPANS["idempotency_span_ms"])
    world.wait(1_000)
    assert not list(once.ONCE.scan(world.view)) and not list(DUES.scan(world.view))


def test_the_wheel_does_a_bounded_number_of_things_and_leaves_the_rest():
    view, done = Overlay(State()), []
    for n in range(MAX_STEPS + 100):
        schedule(view, 0, 5_000, Due(Task.KEY, n.to_bytes(2, "big"), 0))
    turn(view, 4_999, done.append)
    assert not done
    turn(view, 5_000, done.append)
    assert 0 < len(done) <= MAX_STEPS
    turn(view, 5_001, done.append)
    assert [int.from_bytes(due.key, "big") for due in done] == [*range(MAX_STEPS + 100)]
    assert not list(view.scan(b""))


def test_the_wheel_keeps_up_with_blocks_that_each_make_three_tasks():
    view, due = Overlay(State()), Due(Task.KEY, b"one", 0)
    for second in range(1, 4):
        now_ms = second * 1_000
        for _ in range(3 * MAX_CHECKPOINT_BLOCKS):
            schedule(view, now_ms - 1, now_ms, due)
        turn(view, now_ms, lambda due: None)
        assert WHEEL.get(view) is None, "nothing waits for the next checkpoint"


def test_a_task_may_schedule_another_even_for_now():
    view, done = Overlay(State()), []
    schedule(view, 0, 1_000, Due(Task.KEY, b"one", 0))

    def do(due):
        done.append(due.key)
        if due.key == b"one":
            schedule(view, 9_000, 500, Due(Task.KEY, b"two", 0))
            schedule(view, 9_000, 9_500, Due(Task.KEY, b"three", 0))

    turn(view, 9_000, do)
    turn(view, 10_000, do)
    assert done == [b"one", b"two", b"three"]


YEAR = supply.YEAR_MS


def overlay(*micro):
    keys = [key(n) for n in range(len(micro))]
    balances = tuple(Balance(k.account, m) for k, m in zip(keys, micro))
    view = State()
    view.apply(begin(genesis_of(keys, bytes(32), balances=balances)).changes)
    return Overlay(view), keys


def test_a_year_issues_a_tenth_of_what_circulates_TOKEN_02():
    view, (one,) = overlay(1_000_009)
    to = (one.account, Purse.UNCLAIMED)
    assert supply.room(view, START_MS) == 100_000
    supply.issue(view, to, 60_000, "reward", START_MS)
    with pytest.raises(Reject, match="only 0.04 BLY"):
        supply.issue(view, to, 40_001, "reward", START_MS + YEAR - 1)
    supply.issue(view, to, 40_000, "reward", START_MS + YEAR - 1)
    assert supply.room(view, START_MS + YEAR - 1) == 0
    assert supply.room(view, START_MS + YEAR) == 110_000
    year = supply.turn_year(view, START_MS + 5 * YEAR + 3)
    assert (year.number, year.began_ms) == (5, START_MS + 5 * YEAR)


def test_burning_does_not_raise_the_tenth():
    view, (one,) = overlay(1_000_000)
    to = (one.account, Purse.FREE)
    book.burn(view, to, 500_000, "fee burnt")
    assert supply.room(view, START_MS) == 100_000
    supply.issue(view, to, 100_000, "reward", START_MS)
    book.burn(view, to, 100_000, "fee burnt")
    assert supply.room(view, START_MS) == 0


def test_the_cap_holds_TOKEN_01():
    view, (one,) = overlay(MAX_SUPPLY_MICRO - 5)
    to = (one.account, Purse.FREE)
    assert supply.room(view, START_MS) == 5
    with pytest.raises(Reject, match="only 0.000005 BLY"):
        supply.issue(view, to, 6, "reward", START_MS)
    supply.issue(view, to, 5, "reward", START_MS)
    with pytest.raises(Reject, match="1,000,000,000"):
        book.mint(view, to, 1, "not even so")
    book.burn(view, to, 7, "fee burnt")
    assert supply.room(view, START_MS) == 7


def test_what_is_in_pools_does_not_circulate():
    view, (one,) = overlay(1_000_000)
    free = (one.account, Purse.FREE)
    book.move(view, free, (pools.REWARDS, Purse.FREE), 400_000, "given")
    assert supply.circulating(view) == 600_000
    assert supply.room(view, START_MS + YEAR) == 60_000


def test_a_new_year_opens_with_its_first_checkpoint(world):
    world.wait(YEAR - 1)
    assert supply.YEAR.get(world.view).number == 0
    world.wait(1)
    assert supply.YEAR.get(world.view).number == 1


def test_a_genesis_that_gives_nothing_is_refused_HZ_67():
    with pytest.raises(Reject, match="gives nobody anything"):
        begin(genesis_of([key(0)], bytes(32), balances=()))


def test_a_stake_is_locked_and_comes_free_with_a_delay_TOKEN_04(world):
    one, two, _ = world.keys
    world.ordered(world.stake(lock=900), one)
    assert "less than it sends" in world.refused(world.pay(two, 101), one)
    assert "owns less than it stakes" in world.refused(world.stake(lock=101), one)
    assert "less is staked" in world.refused(world.stake(unlock=901), one)
    world.ordered(world.stake(unlock=300), one)
    assert (world.has(one, Purse.STAKED), world.has(one)) == (600, 100)
    world.wait(SPANS["stake_delay_ms"] - 1)
    assert world.has(one) == 100
    world.wait(1_001)
    assert (world.has(one), world.has(one, Purse.UNSTAKING)) == (400, 0)
    assert world.is_balanced()


@pytest.mark.parametrize("bly, weight", [(0, 0), (1, 1), (2, 2), (4, 3), (1_000, 10)])
def test_a_stake_gives_priority(bly, weight):
    view, (one,) = overlay(10**10)
    free, staked = (one.account, Purse.FREE), (one.account, Purse.STAKED)
    book.move(view, free, staked, bly * MICRO, "stake")
    assert stake.priority(view, one.account) == weight


def test_a_dollar_is_a_thousand_TOKEN_05():
    assert price.micro_of_cents(100, 10_000_000) == 1_000 * MICRO
    assert price.micro_of_cents(1, 10_000_000) == 10 * MICRO


@pytest.mark.parametrize(
    "cents, due", [(9_999, 9_999), (10_000, 9_000), (99_999, 90_000), (100_000, 80_000)]
)
def test_whoever_buys_much_pays_less_TOKEN_06(cents, due):
    assert price.due_cents(cents) == due


@pytest.mark.parametrize(
    "tokens, fits", [(900, True), (899, False), (1_100, True), (1_101, False)]
)
def test_a_tenth_more_or_less_is_as_quoted_TOKEN_10(tokens, fits):
    assert price.is_as_quoted(tokens, 1_000) is fits
    assert price.is_as_quoted(0, 0) and not price.is_as_quoted(1, 0)


def test_only_the_genesis_and_the_rule_of_supply_issue_money():
    """Every other rule must go through `supply.issue`, which keeps the year's limit."""
    from pathlib import Path

    rules = Path(book.__file__).parents[1]
    callers = {
        path.name
        for path in rules.rglob("*.py")
        if "book.mint(" in path.read_text() or "import mint" in path.read_text()
    }
    assert callers == {"execute.py", "supply.py"}


@pytest.mark.parametrize("together", [True, False])
def test_of_a_double_spend_one_counts_and_nobody_is_punished(world, together):
    """DEC-A13: two blocks of one sequence, each spending all: whichever comes first."""
    rich, poor, other = world.keys
    spends = [
        world.block(world.pay(to, 1_000), rich, sequence=77) for to in (poor, other)
    ]
    if together:
        errors = world.errors(*spends)
    else:
        errors = [*world.errors(spends[1]), *world.errors(spends[0])]
    assert errors.count(None) == 1
    assert "sequence 77 is spent" in errors
    assert sorted(map(world.has, world.keys)) == [0, 1_000, 2_000]
    assert world.owns(rich.account) == 0 and world.is_balanced()


def test_a_block_is_executed_once_LEDGER_14(world):
    rich, poor, _ = world.keys
    block = world.block(world.pay(poor, 10), rich)
    assert world.errors(block) == [None]
    assert "is spent" in world.errors(block)[0]
    old = world.block(world.pay(poor, 10), rich, sequence=block.header.sequence - 1)
    assert "is spent" in world.errors(old)[0]
    assert world.has(poor) == 1_010
    assert replace(block) == block
