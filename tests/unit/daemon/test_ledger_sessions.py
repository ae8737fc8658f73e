"""Quote, authorize, accept, capture, credit, reverse: as people do it, and killed anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from blyan_proto.block.ledger import (
    Capture,
    DeliveryStatement,
    Release,
    Reserve,
    Reverse,
)
from blyan_proto.codec import decode, encode
from blyand.errors import Busy, NotHere
from blyand.ledger import sessions as sessions_module
from blyand.ledger.payments import chain_key
from blyand.ledger.sessions import is_live
from blyand.ledger.tally import PERIODS_MS, tally
from blyand.rules.economy.book import Purse
from blyand.rules.economy.session import (
    FOLLOWS,
    Failure,
    Illegal,
    Refused,
    SessionState,
    due_micro,
    follow,
)
from blyand.store.sessions import Session
from tests.unit.daemon.ledger_node import Chain, Killed, Node

STATES = list(SessionState)


@pytest.fixture
def two():
    chain = Chain()
    payer, payee, _ = chain.world.keys
    return chain, Node(chain, payer), Node(chain, payee)


def measured(tokens=10, amount=200):
    return DeliveryStatement(1, bytes(32), None, (), tokens, 5, 900_000, amount)


async def quoted(two, tokens=10, amount=200, life_ms=5_000):
    _, payer, payee = two
    session = await payee.payee.quote(payer.key.account, tokens, amount, life_ms)
    return session.quote


async def authorized(two, **more):
    quote = await quoted(two, **more)
    await two[1].payer.authorize(quote, 0)
    await two[2].settle()
    return quote.statement.id, quote


def money(chain):
    return [chain.world.has(key) for key in chain.world.keys[:2]]


def held(chain):
    return chain.world.has(chain.world.keys[0], Purse.HELD)


def refusal(failure):
    return pytest.raises(Refused, match="") if failure is None else _Refusal(failure)


class _Refusal:
    """Expects Refused of one kind."""

    def __init__(self, failure):
        self.failure = failure

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert kind is Refused, error
        assert error.failure is self.failure, error
        self.text = str(error)
        return True


@pytest.mark.parametrize("next_", STATES, ids=lambda state: state.name)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_the_full_transition_matrix_LEDGER_03(state, next_):
    if next_ in FOLLOWS[state]:
        assert follow(state, next_) is next_
    else:
        with pytest.raises(Illegal, match=f"a {state.name.lower()} payment"):
            follow(state, next_)


def test_from_every_state_a_payment_can_end():
    for state in STATES:
        reached, todo = {state}, [state]
        while todo:
            for after in FOLLOWS[todo.pop()]:
                if after not in reached:
                    reached.add(after)
                    todo.append(after)
        assert reached & {SessionState.FAILED, SessionState.REVERSED}


def test_the_happy_path_and_back_LEDGER_04(two):
    chain, payer, payee = two

    async def main():
        id, quote = await authorized(two)
        assert payer.session(id).state is SessionState.AUTHORIZED
        assert payee.session(id).state is SessionState.AUTHORIZED
        assert held(chain) == 200
        _, receipt = await payer.payer.accept(id, measured(amount=190))
        done = await payee.payee.capture(decode(Capture, encode(receipt), 9_999))
        assert done.state is SessionState.CREDITED and done.failure is None
        await payer.settle()
        assert money(chain) == [810, 1_190]
        part = await payee.payee.reverse(id, 40, "")
        assert (part.state, part.reversed_micro) == (SessionState.CREDITED, 40)
        await payer.settle()
        assert payer.session(id).reversed_micro == 40
        whole = await payee.payee.reverse(id, None, "")
        assert whole.state is SessionState.REVERSED
        await payer.settle()
        assert payer.session(id).state is SessionState.REVERSED  # it was away meanwhile
        assert money(chain) == [1_000, 1_000] and held(chain) == 0
        assert await payee.payee.reverse(id, None, "") == whole
        with pytest.raises(Refused, match="cannot be given back"):
            await payee.payee.reverse(id, 5, "")

    trio.run(main)


def test_the_payer_hears_of_a_reversal(two):
    chain, payer, payee = two

    async def main():
        id, _ = await authorized(two)
        _, receipt = await payer.payer.accept(id, measured())
        await payee.payee.capture(receipt)
        async with trio.open_nursery() as nursery:
            await nursery.start(payer.ledger.run)
            await trio.testing.wait_all_tasks_blocked()
            await payee.payee.reverse(id, None, "")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert payer.session(id).state is SessionState.REVERSED

    trio.run(main)


def test_an_expired_quote_is_refused_with_a_sentence_LEDGER_11(two):
    chain, payer, payee = two

    async def main():
        quote = await quoted(two, life_ms=1_000)
        chain.tick(1_001)
        with _Refusal(Failure.TTL_EXPIRED) as refused:
            await payer.payer.authorize(quote, 0)
        assert "ask for a new one" in refused.text
        with _Refusal(Failure.TTL_EXPIRED):  # and again: the same result
            await payer.payer.authorize(quote, 0)
        await payee.settle()
        assert payee.session(quote.statement.id).failure is Failure.TTL_EXPIRED
        assert money(chain) == [1_000, 1_000] and not chain.count(Reserve)

    trio.run(main)


def test_a_quote_that_expires_while_its_reserve_is_under_way_LEDGER_11(two):
    chain, payer, _ = two

    async def main():
        quote = await quoted(two, life_ms=200)  # the next checkpoint is 250 ms away
        with _Refusal(Failure.TTL_EXPIRED):
            await payer.payer.authorize(quote, 0)
        assert money(chain) == [1_000, 1_000]

    trio.run(main)


@pytest.mark.parametrize("tokens, fits", [(1_100, True), (900, True), (1_101, False)])
def test_a_tenth_more_or_less_is_the_limit_LEDGER_12(two, tokens, fits):
    chain, payer, payee = two

    async def main():
        id, _ = await authorized(two, tokens=1_000)
        if fits:
            _, receipt = await payer.payer.accept(id, measured(tokens))
            await payee.payee.capture(receipt)
            assert money(chain) == [800, 1_200]
            return
        with _Refusal(Failure.TOKEN_MISMATCH) as refused:
            await payer.payer.accept(id, measured(tokens))
        assert "ask for a new quote" in refused.text
        # A payer that signs all the same: the payee's node refuses and releases.
        _, good = await payer.payer.accept(id, measured(1_000))
        wrong = payer.ledger.payer._key
        statement = replace(good.statement, tokens=tokens)
        receipt = chain.world.capture(wrong, statement)
        with _Refusal(Failure.TOKEN_MISMATCH):
            await payee.payee.capture(receipt)
        assert payee.session(id).failure is Failure.TOKEN_MISMATCH
        assert money(chain) == [1_000, 1_000] and held(chain) == 0

    trio.run(main)


@pytest.mark.parametrize("amount, fee, fits", [(1_000, 0, True), (1_000, 1, False)])
def test_a_payer_cannot_overdraw_LEDGER_13(two, amount, fee, fits):
    chain, payer, _ = two

    async def main():
        quote = await quoted(two, amount=amount)
        if fits:
            await payer.payer.authorize(quote, fee)
            assert money(chain)[0] == 0
        else:
            with _Refusal(Failure.INSUFFICIENT) as refused:
                await payer.payer.authorize(quote, fee)
            assert "has 0.001 BLY" in refused.text

    trio.run(main)


def test_duplicates_have_the_one_result_LEDGER_14(two):
    """During and after: whoever authorises or captures again gets what there is."""
    chain, payer, payee = two

    async def main():
        quote = await quoted(two)
        results = []

        async def authorize():
            results.append(await payer.payer.authorize(quote, 0))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(authorize)
        results.append(await payer.payer.authorize(quote, 0))
        assert len(set(results)) == 1
        id = quote.statement.id
        receipts = [(await payer.payer.accept(id, measured()))[1] for _ in range(3)]
        assert len(set(receipts)) == 1
        with _Refusal(Failure.DUPLICATE):
            await payer.payer.accept(id, measured(amount=199))
        captured = []

        async def capture():
            captured.append(await payee.payee.capture(receipts[0]))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(capture)
        captured.append(await payee.payee.capture(receipts[0]))
        assert len(set(captured)) == 1
        assert chain.count(Reserve) == chain.count(Capture) == 1
        assert money(chain) == [800, 1_200]

    trio.run(main)


@pytest.mark.parametrize("count, funded", [(5, 3), (100, 40)])
def test_parallel_sessions_are_isolated_LEDGER_06_15(count, funded):
    chain = Chain()
    payer, payee, _ = chain.world.keys
    two = chain, Node(chain, payer), Node(chain, payee)
    amount = 1_000 // funded

    async def main():
        outcomes = []

        async def one():
            quote = await quoted(two, amount=amount, life_ms=60_000)
            try:
                outcomes.append((await two[1].payer.authorize(quote, 0)).state.name)
            except Refused as error:
                outcomes.append(error.failure.name)

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(one)
        assert outcomes.count("AUTHORIZED") == funded
        assert outcomes.count("INSUFFICIENT") == count - funded
        assert held(chain) == funded * amount

    trio.run(main)


def test_a_service_that_fails_is_rolled_back_LEDGER_16(two):
    chain, _, payee = two

    async def main():
        id, _ = await authorized(two)

        async def service(session):
            raise NotHere("no expert is here")

        with pytest.raises(NotHere):
            await payee.payee.serve(id, service, 5.0)
        session = payee.session(id)
        assert session.failure is Failure.INFERENCE_FAILED
        assert money(chain) == [1_000, 1_000] and held(chain) == 0
        with pytest.raises(Refused, match="is failed, not authorized"):
            await payee.payee.serve(id, service, 5.0)

    trio.run(main)


def test_a_bug_in_the_service_is_rolled_back_and_seen_LEDGER_08(two):
    chain, _, payee = two

    async def main():
        id, _ = await authorized(two)

        async def service(session):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await payee.payee.serve(id, service, 5.0)
        assert payee.session(id).failure is Failure.INTERNAL
        assert money(chain) == [1_000, 1_000]

    trio.run(main)


def test_a_service_that_takes_too_long_is_ended_LEDGER_17(two):
    chain, _, payee = two
    ended = []

    async def main():
        id, _ = await authorized(two)

        async def service(session):
            try:
                await trio.sleep_forever()
            finally:
                ended.append(True)

        with _Refusal(Failure.TIMEOUT):
            await payee.payee.serve(id, service, 30.0)
        assert ended and payee.session(id).failure is Failure.TIMEOUT
        assert money(chain) == [1_000, 1_000] and held(chain) == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.1))


def test_a_cancelled_service_is_rolled_back_behind_a_shield_LEDGER_08(two):
    chain, _, payee = two

    async def main():
        id, _ = await authorized(two)

        async def service(session):
            scope.cancel()
            await trio.sleep_forever()

        with trio.CancelScope() as scope:
            await payee.payee.serve(id, service, 30.0)
        assert scope.cancelled_caught
        assert payee.session(id).failure is Failure.INTERNAL
        assert money(chain) == [1_000, 1_000] and held(chain) == 0

    trio.run(main)


def test_a_service_that_is_given_is_paid(two):
    chain, payer, payee = two

    async def main():
        id, _ = await authorized(two)

        async def service(session):
            assert session.state is SessionState.AUTHORIZED
            return (await payer.payer.accept(id, measured()))[1]

        done = await payee.payee.serve(id, service, 5.0)
        assert done.state is SessionState.CREDITED
        assert money(chain) == [800, 1_200]

    trio.run(main)


def test_what_nobody_delivers_goes_back_by_itself_LEDGER_09(two):
    """A hold that expires is released, also while both nodes are down."""
    chain, payer, payee = two

    async def main():
        id, _ = await authorized(two)
        payer.open(), payee.open()
        chain.tick(70_000)
        chain.tick()
        assert money(chain) == [1_000, 1_000] and held(chain) == 0
        for node in (payer, payee):
            await node.settle()
            assert node.session(id).failure is Failure.TIMEOUT
            assert "went back" in node.session(id).reason

    trio.run(main)


def test_false_quotes_and_receipts_are_abuse_LEDGER_10(two):
    chain, payer, payee = two

    async def main():
        quote = await quoted(two)
        other = chain.world.keys[2]
        forged = replace(quote, statement=replace(quote.statement, amount_micro=1))
        for bad in (
            forged,
            replace(quote, key=other.public),
            replace(quote, statement=replace(quote.statement, payer=other.account)),
        ):
            with _Refusal(Failure.ABUSE):
                await payer.payer.authorize(bad, 0)
        with _Refusal(Failure.ABUSE):
            await payee.payee.quote(payee.key.account, 1, 1, 1_000)
        id, _ = await authorized(two)
        _, receipt = await payer.payer.accept(id, measured())
        stolen = replace(receipt, payer_key=other.public)
        changed = replace(receipt, statement=replace(receipt.statement, tokens=9))
        for bad in (stolen, changed):
            with _Refusal(Failure.ABUSE):
                await payee.payee.capture(bad)
        with _Refusal(Failure.ABUSE):
            await payer.payee.capture(receipt)
        with _Refusal(Failure.ABUSE):
            await payee.payer.accept(id, measured())
        await payee.payee.capture(receipt)

    trio.run(main)


def flow_steps():
    """Return how many steps each side of the whole flow has."""
    chain = Chain()
    payer, payee, _ = chain.world.keys
    two = chain, Node(chain, payer), Node(chain, payee)
    trio.run(whole, two)
    return two[1].steps, two[2].steps


async def whole(two):
    """The whole flow, on nodes that may be killed; whoever is, is started again."""
    chain, payer, payee = two
    quote = await survive(payee, lambda: quoted(two, life_ms=50_000))
    id = quote.statement.id
    await survive(payer, lambda: payer.payer.authorize(quote, 7))
    chain.tick()
    _, receipt = await survive(payer, lambda: payer.payer.accept(id, measured()))
    await survive(payee, lambda: payee.payee.capture(receipt))
    for node in (payer, payee):
        try:
            await node.settle()
        except BaseExceptionGroup as group:
            assert group.split(Killed)[1] is None
            node.open()
            await node.settle()
    return id


async def survive(node, action):
    try:
        return await action()
    except Killed:
        node.open()
        await node.settle()
        return await action()


PAYER_STEPS, PAYEE_STEPS = flow_steps()


@pytest.mark.parametrize(
    "side, step",
    [(1, n) for n in range(PAYER_STEPS)] + [(2, n) for n in range(PAYEE_STEPS)],
)
def test_a_kill_at_any_step_completes_exactly_once_LEDGER_18(two, side, step):
    chain = two[0]
    two[side].left = step

    async def main():
        id = await whole(two)
        assert chain.count(Reserve) == 1 and chain.count(Capture) == 1
        assert chain.world.has(chain.world.keys[1]) == 1_200
        assert chain.world.has(chain.world.keys[0]) == 800 - 7
        for node in two[1:]:
            assert node.session(id).state is SessionState.CREDITED
            assert node.session(id).intent is None

    trio.run(main)


@pytest.mark.parametrize("step", range(8))
def test_a_kill_while_giving_back_gives_back_once_LEDGER_18(two, step):
    chain, payer, payee = two

    async def main():
        for part in (60, None):
            id, _ = await authorized(two)
            _, receipt = await payer.payer.accept(id, measured())
            await payee.payee.capture(receipt)
            before = chain.count(Reverse)
            payee.left = step
            await survive(payee, lambda: payee.payee.reverse(id, part, "one"))
            payee.left = None
            assert chain.count(Reverse) == before + 1
            assert payee.session(id).reversed_micro == (part or 200)
        id, _ = await authorized(two)
        payee.left = step
        with trio.CancelScope():
            try:
                await payee.payee.reverse(id, None, "", Failure.INFERENCE_FAILED)
            except Killed:
                payee.open()
                await payee.settle()
                if payee.session(id).state is SessionState.AUTHORIZED:
                    await payee.payee.reverse(id, None, "", Failure.INFERENCE_FAILED)
        assert payee.session(id).failure is Failure.INFERENCE_FAILED
        assert chain.count(Release) == 1 and held(chain) == 0

    trio.run(main)


def test_payments_happen_once_for_each_key_LEDGER_02(two):
    chain, payer, _ = two
    pay, key = payer.ledger.payments.pay, chain.world.keys[1]

    async def main():
        payload = chain.world.pay(key, 10, key=chain_key("a"))
        first = await pay(payload, "ledger.send")
        payer.open()
        again = await payer.ledger.payments.pay(payload, "ledger.send")
        assert again.block == first.block and again.repeated and not first.repeated
        with _Refusal(Failure.DUPLICATE):
            await payer.ledger.payments.pay(
                chain.world.pay(key, 11, key=chain_key("a")), "ledger.send"
            )
        plain = chain.world.pay(key, 10)
        assert (await pay(plain, "ledger.send")).block != (
            await pay(plain, "ledger.send")
        ).block
        assert money(chain) == [970, 1_030]

    trio.run(main)


def test_a_key_that_another_node_of_the_account_used_is_found_on_chain(two):
    chain, payer, _ = two
    twin = Node(chain, payer.key)

    async def main():
        payload = chain.world.pay(chain.world.keys[1], 10, key=chain_key("a"))
        first = await payer.ledger.payments.pay(payload, "ledger.send")
        second = await twin.ledger.payments.pay(payload, "ledger.send")
        assert second.repeated and second.block == first.block
        other = chain.world.pay(chain.world.keys[1], 12, key=chain_key("a"))
        twin.database = type(twin.database)()
        twin.open()
        with _Refusal(Failure.DUPLICATE):
            await twin.ledger.payments.pay(other, "ledger.send")
        assert money(chain) == [990, 1_010]

    trio.run(main)


@pytest.mark.parametrize("step", range(9))
def test_a_kill_while_paying_pays_once_LEDGER_18(two, step):
    chain, payer, _ = two
    payload = chain.world.pay(chain.world.keys[1], 10, key=chain_key("a"))
    payer.left = step

    async def main():
        pay = lambda: payer.ledger.payments.pay(payload, "ledger.send")  # noqa: E731
        try:
            await pay()
        except Killed:
            payer.open()
            await pay()
        assert money(chain) == [990, 1_010]

    trio.run(main)


def test_old_keys_are_forgotten_here_and_known_to_the_chain(two):
    """After 30 days of our clock; the chain forgets after a span of its own."""
    chain, payer, _ = two
    name = chain_key("a")
    payload = chain.world.pay(chain.world.keys[1], 10, key=name)

    async def main():
        await payer.ledger.payments.pay(payload, "ledger.send")
        store = payer.ledger.sessions._store
        await payer.settle()
        assert store.keyed(name) is not None
        payer.clock.advance(32 * 86_400_000)
        payer.open()
        await payer.settle()
        assert store.keyed(name) is None
        again = await payer.ledger.payments.pay(payload, "ledger.send")
        assert again.repeated and money(chain) == [990, 1_010]

    trio.run(main)


def test_a_payment_that_failed_may_be_tried_again_with_its_key(two):
    chain, payer, _ = two
    payload = chain.world.pay(chain.world.keys[1], 1_500, key=chain_key("a"))

    async def main():
        with _Refusal(Failure.INSUFFICIENT):
            await payer.ledger.payments.pay(payload, "ledger.send")
        rich = chain.world.keys[2]
        chain.pending.append(chain.world.block(chain.world.pay(payer.key, 900), rich))
        chain.tick()
        await payer.ledger.payments.pay(payload, "ledger.send")
        assert money(chain) == [400, 2_500]

    trio.run(main)


@pytest.mark.parametrize("step", range(1, PAYER_STEPS))
def test_what_a_caller_gave_up_is_gone_on_with(two, step):
    """Whoever hangs up in the middle of a step has it finished all the same."""
    chain, payer, payee = two

    async def main():
        quote = await quoted(two, life_ms=50_000)
        id = quote.statement.id
        async with trio.open_nursery() as nursery:
            await nursery.start(payer.ledger.run)
            with trio.CancelScope() as scope:
                payer.hang_up(step, scope)
                await payer.payer.authorize(quote, 0)
            payer.left = None
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                chain.tick()
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        if payer.session(id).state in (SessionState.PENDING, SessionState.QUOTED):
            assert payer.session(id).intent is None and not chain.count(Reserve)
        else:
            assert payer.session(id).state is SessionState.AUTHORIZED
            assert chain.count(Reserve) == 1 and held(chain) == 200

    trio.run(main)


def test_the_number_of_sessions_is_bounded(two, monkeypatch):
    chain, payer, payee = two
    monkeypatch.setattr(sessions_module, "MAX_LIVE", 3)
    monkeypatch.setattr(sessions_module, "MAX_KEPT", 4)

    async def main():
        quotes = [await quoted(two, life_ms=1_000) for _ in range(3)]
        with pytest.raises(Busy):
            await quoted(two)
        chain.tick(1_001)
        await payee.settle()
        assert payee.ledger.sessions.live == 0
        for _ in range(3):
            await quoted(two)
        chain.tick()
        await payee.settle()
        kept = payee.ledger.sessions.all()
        assert len(kept) == 4 and sum(map(is_live, kept)) == 3
        payee.open()
        assert len(payee.ledger.sessions.all()) == 4
        payee.clock.advance(31 * 86_400_000)
        chain.tick()
        await payee.settle()
        assert len(payee.ledger.sessions.all()) == 3
        with pytest.raises(Refused, match="no such session"):
            payee.session(quotes[0].statement.id)

    trio.run(main)


@pytest.mark.parametrize(
    "tokens, due", [(1_000, 100), (999, 99), (0, 0), (2_000, 100), (10, 1)]
)
def test_what_is_due_follows_the_tokens(two, tokens, due):
    async def main():
        quote = await quoted(two, tokens=1_000, amount=100)
        assert due_micro(quote.statement, tokens) == due

    trio.run(main)


def test_payments_are_counted_by_period_LEDGER_19_20(two):
    chain, payer, payee = two

    async def main():
        id, _ = await authorized(two)
        _, receipt = await payer.payer.accept(id, measured())
        payee.clock.advance(5)
        await payee.payee.capture(receipt)
        payee.clock.advance(3_600_000)
        late = await quoted(two, life_ms=1_000)
        chain.tick(1_001)
        await payee.settle()
        assert payee.session(late.statement.id).failure is Failure.TTL_EXPIRED
        now_ms = payee.clock.now_ms()
        seen = payee.ledger.sessions.all()
        hour = tally(seen, PERIODS_MS["1h"], now_ms)
        day = tally(seen, PERIODS_MS["24h"], now_ms)
        assert (hour.credited, hour.failed) == (0, 1)
        assert (day.credited, day.failed) == (1, 1)
        assert day.failures[Failure.TTL_EXPIRED] == 1
        assert day.share_ppm(day.credited) == 500_000
        assert sum(part.credited for part in day.parts) == 1
        assert sum(part.failed for part in hour.parts) == 1
        assert hour.parts[-1].failed == 1

    trio.run(main)


def test_a_session_survives_its_bytes(two):
    async def main():
        id, _ = await authorized(two)
        for session in (two[1].session(id), two[2].session(id)):
            assert decode(Session, encode(session), 99_999) == session

    trio.run(main)
