"""Reserved money ends exactly once, whoever tries what, in whatever order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blyan_proto.block.economy import KeyRotation, RotationStatement
from blyan_proto.block.ledger import Reserve
from blyan_proto.signing import Purpose
from blyand.rules.economy import pools
from blyand.rules.economy.book import BALANCES, Purse
from blyand.rules.economy.due import DUES, SLOTS, WHEEL
from blyand.rules.economy.escrow import ESCROWS, Status
from tests.unit.daemon.chain_world import key
from tests.unit.daemon.ledger_world import SPANS, LedgerWorld


@pytest.fixture
def world():
    return LedgerWorld()


def test_the_happy_path_LEDGER_04(world):
    payer, payee, _ = world.keys
    reserve = world.ordered(world.reserve(payee, 300), payer).id
    assert world.has(payer) == 700 and world.has(payer, Purse.HELD) == 300
    world.ordered(world.capture(payer, world.delivery(reserve, 250)), payee)
    assert (world.has(payer), world.has(payer, Purse.HELD)) == (750, 0)
    assert world.has(payee) == 1_250
    assert world.escrow(reserve).status is Status.CAPTURED
    world.ordered(world.reverse(reserve, 50), payee)
    world.ordered(world.reverse(reserve, 200), payee)
    assert world.escrow(reserve).status is Status.REVERSED
    assert (world.has(payer), world.has(payee)) == (1_000, 1_000)


def test_a_reserve_needs_what_it_locks_LEDGER_13(world):
    payer, payee, _ = world.keys
    assert "less than it reserves" in world.refused(world.reserve(payee, 1_001), payer)
    assert "less" in world.refused(world.reserve(payee, 1_000, fee_micro=1), payer)
    world.ordered(world.reserve(payee, 1_000), payer)
    assert "less than it sends" in world.refused(world.pay(payee, 1), payer)


@pytest.mark.parametrize("count, funded", [(5, 3), (100, 37)])
def test_parallel_reserves_never_overdraw_LEDGER_06_15(count, funded):
    world = LedgerWorld()
    payer, payee, _ = world.keys
    each = 1_000 // funded
    blocks = [world.block(world.reserve(payee, each), payer) for _ in range(count)]
    errors = world.errors(*blocks)
    assert errors.count(None) == funded
    assert world.is_balanced() and world.has(payer) == 1_000 - funded * each


@pytest.mark.parametrize(
    "changed, why",
    [
        (dict(amount_micro=0), "nothing is reserved"),
        (dict(to=pools.TREASURY), "for a pool"),
        (dict(to=bytes(20)), "for a pool"),
        (dict(to=key(0).account), "for itself"),
        (dict(expires_ms=0), "expired before it was made"),
        (dict(expires_ms=2**63), "longer than this network allows"),
        (dict(quoted_until_ms=1), "the quote expired"),
    ],
)
def test_a_reserve_that_is_refused_says_why(world, changed, why):
    payer, payee, _ = world.keys
    payload = replace(world.reserve(payee, 5), **changed)
    assert why in world.refused(payload, payer)


def test_a_quote_holds_until_it_is_authorised_LEDGER_11(world):
    """HZ-93: the last instant counts, one later does not; afterwards its time may pass."""
    payer, payee, _ = world.keys
    now = world.time_ms
    late = world.reserve(payee, 5, quoted_until_ms=now + 249)
    assert "the quote expired" in world.refused(late, payer)
    last = world.reserve(payee, 5, quoted_until_ms=world.time_ms + 250)
    reserve = world.ordered(last, payer).id
    world.wait(10_000)
    world.ordered(world.capture(payer, world.delivery(reserve, 5)), payee)


def test_only_the_payee_captures_what_the_payer_signed(world):
    payer, payee, other = world.keys
    reserve = world.ordered(world.reserve(payee, 300), payer).id
    good = world.capture(payer, world.delivery(reserve, 300))
    more = world.capture(payer, world.delivery(reserve, 301))
    none = world.capture(payer, world.delivery(reserve, 0))
    by_other = world.capture(other, good.statement)
    forged = replace(good, payer_key=other.public, signature=by_other.signature)
    changed = replace(good, statement=world.delivery(reserve, 299))
    wrong = payer.sign(Purpose.QUOTE, world.genesis.id, good.statement)
    junk = replace(good, payer_key=b"\xff" * 33)
    unknown = world.capture(payer, world.delivery(bytes(32), 5))
    for payload, author, why in (
        (good, other, "only its payee"),
        (good, payer, "only its payee"),
        (more, payee, "more is captured"),
        (none, payee, "nothing is captured"),
        (forged, payee, "not the payer's"),
        (junk, payee, "not the payer's"),
        (changed, payee, "did not sign"),
        (replace(good, signature=wrong), payee, "did not sign"),
        (unknown, payee, "no such reserve"),
        (world.release(reserve), other, "only its payee"),
        (world.release(reserve), payer, "only its payee"),
        (world.reverse(reserve, 1), payee, "it is open"),
    ):
        assert why in world.refused(payload, author)
    world.ordered(good, payee)


LEGAL = {
    (Status.OPEN, "capture"),
    (Status.OPEN, "release"),
    (Status.CAPTURED, "reverse"),
}


@pytest.mark.parametrize("action", ["capture", "release", "reverse"])
@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_the_transition_matrix_on_chain_LEDGER_03(world, status, action):
    payer, payee, _ = world.keys
    reserve = world.ordered(world.reserve(payee, 30), payer).id
    actions = {
        "capture": world.capture(payer, world.delivery(reserve, 30)),
        "release": world.release(reserve),
        "reverse": world.reverse(reserve, 30),
    }
    before = {
        Status.CAPTURED: ["capture"],
        Status.REVERSED: ["capture", "reverse"],
        Status.RELEASED: ["release"],
    }
    for step in before.get(status, []):
        world.ordered(actions[step], payee)
    if status is Status.EXPIRED:
        world.wait(30_000)
    assert world.escrow(reserve).status is status
    (error,) = world.errors(world.block(actions[action], payee))
    if (status, action) in LEGAL:
        assert error is None
    else:
        assert status.name.lower() in error
        assert world.escrow(reserve).status is status


def test_what_is_not_captured_in_time_goes_back_by_itself(world):
    payer, payee, _ = world.keys
    reserve = world.ordered(world.reserve(payee, 300), payer).id
    world.wait(world.escrow(reserve).expires_ms - world.time_ms - 1)
    world.wait(1)
    assert world.escrow(reserve).status is Status.EXPIRED
    assert (world.has(payer), world.has(payer, Purse.HELD)) == (1_000, 0)
    late = world.capture(payer, world.delivery(reserve, 300))
    assert "expired already" in world.refused(late, payee)


def test_an_expired_reserve_is_not_captured_before_the_wheel_came_by(world):
    payer, payee, _ = world.keys
    reserve = world.ordered(world.reserve(payee, 300), payer).id
    (error,) = world.errors(
        world.block(world.capture(payer, world.delivery(reserve, 300)), payee),
        step_ms=30_000,
    )
    assert error == "the reserve has expired"
    assert world.has(payer) == 1_000


def test_closed_reserves_leave_state(world):
    payer, payee, _ = world.keys
    ids = [world.ordered(world.reserve(payee, 9), payer).id for _ in range(3)]
    world.ordered(world.capture(payer, world.delivery(ids[0], 4)), payee)
    world.ordered(world.release(ids[1]), payee)
    world.wait(40_000)
    world.wait(SPANS["reversal_span_ms"])
    assert "no such reserve" in world.refused(world.reverse(ids[0], 1), payee)
    world.wait(SPANS["escrow_span_ms"])
    for table in (ESCROWS, DUES, SLOTS, WHEEL):
        assert not list(table.scan(world.view))
    assert world.is_balanced()


def test_a_late_capture_can_still_be_reversed_after_the_expiry(world):
    payer, payee, _ = world.keys
    reserve = world.ordered(world.reserve(payee, 500), payer).id
    world.wait(29_000)
    world.ordered(world.capture(payer, world.delivery(reserve, 500)), payee)
    world.wait(5_000)
    world.wait(1_000)
    world.ordered(world.reverse(reserve, 500), payee)


def test_after_a_rotation_the_new_key_signs_for_deliveries(world):
    payer, payee, _ = world.keys
    reserve = world.ordered(world.reserve(payee, 500), payer).id
    new = key("payer's new key")
    statement = RotationStatement(1, payer.account, new.public)
    proof = new.sign(Purpose.KEY_ROTATION, world.genesis.id, statement)
    world.ordered(KeyRotation(1, new.public, proof), payer)
    delivery = world.delivery(reserve, 500)
    old = world.capture(payer, delivery)
    assert "not the payer's" in world.refused(old, payee)
    world.ordered(world.capture(new, delivery), payee)


def test_a_payee_that_spent_it_cannot_reverse(world):
    payer, payee, other = world.keys
    reserve = world.ordered(world.reserve(payee, 500), payer).id
    world.ordered(world.capture(payer, world.delivery(reserve, 500)), payee)
    assert "more is given back" in world.refused(world.reverse(reserve, 501), payee)
    assert "nothing is given" in world.refused(world.reverse(reserve, 0), payee)
    world.ordered(world.pay(other, 1_400), payee)
    assert "less than that free" in world.refused(world.reverse(reserve, 101), payee)
    world.ordered(world.reverse(reserve, 100), payee)
    left_ms = world.escrow(reserve).ends_ms - world.time_ms
    late = world.block(world.reverse(reserve, 1), payee)
    assert "time to give it back is over" in world.errors(late, step_ms=left_ms)[0]


def test_four_nodes_have_one_state_after_1000_transactions_LEDGER_21():
    """Blocks come in any order to each; what they give is the same, to the last byte."""
    worlds = [LedgerWorld() for _ in range(4)]
    first, source = worlds[0], random.Random(21)
    ids = [bytes(32)]
    for _ in range(20):
        blocks = []
        for _ in range(50):
            who, to = source.choice(first.keys), source.choice(first.keys)
            micro, id = source.choice([0, 1, 90, 2_000]), source.choice(ids)
            payload = source.choice(
                [
                    first.pay(
                        to, micro, source.choice([0, 3]), source.choice([b"", b"k"])
                    ),
                    first.reserve(to, micro, expires_ms=first.time_ms + 3_000),
                    first.capture(to, first.delivery(id, micro)),
                    first.release(id),
                    first.reverse(id, micro),
                    first.stake(lock=micro + 1),
                    first.stake(unlock=micro + 1),
                ]
            )
            blocks.append(first.block(payload, who))
        outcomes = first.checkpoint(*blocks)
        took = [b for b, o in zip(blocks, outcomes) if o.error is None]
        ids += [b.id for b in took if isinstance(b.content, Reserve)]
        for world in worlds[1:]:
            source.shuffle(blocks)
            world.checkpoint(*blocks)
        assert len({world.view.root for world in worlds}) == 1
        assert all(world.is_balanced() for world in worlds)
    assert len(ids) > 20


class Market(RuleBasedStateMachine):
    """Three people who do whatever they like with reserves, right or wrong."""

    people = st.integers(0, 2)
    some = st.sampled_from([0, 1, 7, 400, 1_000, 2**64 - 1])
    which = st.integers(0, 8)

    def __init__(self):
        super().__init__()
        self.world = LedgerWorld()
        self.ids = []
        self.ended = {}  # reserve -> how it left HELD

    def act(self, payload, author):
        author = self.world.keys[author]
        block = self.world.block(payload, author)
        (outcome,) = self.world.checkpoint(block)
        assert sum(posting.micro for posting in outcome.postings) == 0
        assert outcome.error is None or not outcome.postings
        return block, outcome.error

    def id(self, which):
        return self.ids[which % len(self.ids)] if self.ids else bytes(32)

    @rule(who=people, to=people, micro=some, life=st.sampled_from([1, 2_000, 30_000]))
    def reserve(self, who, to, micro, life):
        expires_ms = self.world.time_ms + life
        to = self.world.keys[to]
        payload = self.world.reserve(to, micro, expires_ms=expires_ms)
        block, error = self.act(payload, who)
        if error is None:
            self.ids.append(block.id)

    @rule(who=people, which=which, micro=some, signer=people)
    def capture(self, who, which, micro, signer):
        statement = self.world.delivery(self.id(which), micro)
        payload = self.world.capture(self.world.keys[signer], statement)
        self.close(self.act(payload, who)[1], which, "captured")

    @rule(who=people, which=which)
    def release(self, who, which):
        payload = self.world.release(self.id(which))
        self.close(self.act(payload, who)[1], which, "released")

    def close(self, error, which, how):
        if error is None:
            assert self.id(which) not in self.ended, "a reserve ended twice"
            self.ended[self.id(which)] = how

    @rule(who=people, which=which, micro=some)
    def reverse(self, who, which, micro):
        _, error = self.act(self.world.reverse(self.id(which), micro), who)
        assert error or self.ended[self.id(which)] == "captured"

    @rule(who=people, to=people, micro=some, fee=st.sampled_from([0, 1, 150]))
    def pay(self, who, to, micro, fee):
        self.act(self.world.pay(self.world.keys[to], micro, fee), who)

    @rule(span=st.sampled_from([1, 1_000, 15_000, 70_000]))
    def wait(self, span):
        self.world.wait(span)

    @invariant()
    def money_is_conserved(self):
        assert self.world.is_balanced()

    @invariant()
    def what_is_held_is_what_is_open(self):
        open_ = [e for e in ESCROWS.scan(self.world.view) if e.status is Status.OPEN]
        for person in self.world.keys:
            mine = sum(e.reserved_micro for e in open_ if e.payer == person.account)
            assert self.world.has(person, Purse.HELD) == mine
        assert not any(e.id in self.ended for e in open_)

    @invariant()
    def no_purse_is_empty_or_negative(self):
        assert all(b.micro > 0 for b in BALANCES.scan(self.world.view))


TestMarket = Market.TestCase
TestMarket.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
