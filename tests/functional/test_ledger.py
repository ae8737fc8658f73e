"""Money under load: three daemons, double spends, duplicates, expired quotes, kill -9.

Whatever is tried, on every node and at every checkpoint all purses together hold the
supply, and all nodes have the same states.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blyan_proto.rpc import errors
from blyan_proto.rpc.errors import RpcError
from blyanctl.client import NoAnswer, NoDaemon
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.long import long

pytestmark = pytest.mark.functional
BLY = 1_000_000
NODES = 3


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    with network(tmp_path_factory.mktemp("ledger") / "d", NODES) as made:
        yield made


def balance(node: Daemon, account: str = "me") -> dict[str, Any]:
    return node.call("ledger.balance", account=account)


def account(node: Daemon) -> str:
    whose: str = balance(node)["account"]
    return whose


def code_of(call: Callable[[], Any]) -> int:
    """Return the code that a call fails with, 0 for success."""
    try:
        call()
    except RpcError as error:
        return error.code
    return 0


def stay_level(nodes: list[Daemon]) -> int:
    """Wait until all nodes are at one checkpoint; return its height."""

    def level() -> int:
        tips = [node.call("chain.tips") for node in nodes]
        same = len({(t["finalised"], t["checkpoint"], t["pending"]) for t in tips}) == 1
        return tips[0]["finalised"] if same and not tips[0]["pending"] else 0

    height: int = wait_for(level, "all nodes at one checkpoint")
    return height


def agree(net: Network) -> None:
    """All nodes have the same states at every height, and sound books."""
    top = stay_level(net.nodes)
    for height in range(1, top + 1):
        roots = {
            node.call("chain.checkpoint", height=height)["state_root"]
            for node in net.nodes
        }
        assert len(roots) == 1, height
    supplies = set()
    for node in net.nodes:
        audit = node.call("ledger.audit")
        assert audit["sound"], audit
        assert audit["sum_micro"] == audit["supply_micro"]
        supplies.add(node.call("supply.show")["supply_micro"])
    assert len(supplies) == 1
    balanced(net[-1], top)


def balanced(node: Daemon, top: int) -> None:
    """At every checkpoint: what all purses hold, by what moved, is what was issued."""
    purses: Counter[tuple[str, str]] = Counter()
    for height in range(top + 1):
        blocks = []
        if height:
            blocks = node.call("chain.checkpoint", height=height)["blocks"]
        for transaction in [*blocks, str(height)]:
            told = node.call("ledger.explain", transaction=transaction)
            assert sum(line["change_micro"] for line in told["postings"]) == 0
            for line in told["postings"]:
                purses[line["account"], line["purse"]] += line["change_micro"]
        issued = -sum(v for (who, _), v in purses.items() if who == "00" * 20)
        held = {k: v for k, v in purses.items() if k[0] != "00" * 20}
        assert all(micro >= 0 for micro in held.values()), height
        assert sum(held.values()) == issued, height
    assert issued == node.call("supply.show")["supply_micro"]
    for who in {who for who, _ in held}:
        owns = balance(node, who)["total_micro"]
        assert owns == sum(v for (of, _), v in held.items() if of == who)


def test_a_payment_is_told_and_explained(net: Network):
    payer, payee = net[0], net[1]
    to = account(payee)
    before = balance(payer)["free_micro"], balance(payee)["free_micro"]
    sent = payer.call(
        "ledger.send", to=to, amount_micro=2 * BLY, fee_micro=1_000, memo="谢谢"
    )
    assert balance(payer)["free_micro"] == before[0] - 2 * BLY - 1_000
    stay_level(net.nodes)
    assert balance(payee)["free_micro"] == before[1] + 2 * BLY
    told = net[2].call("ledger.explain", transaction=sent["block"])
    assert (told["kind"], told["outcome"]) == ("transfer", "took effect")
    assert told["account"] == account(payer)
    assert {"name": "memo", "value": "谢谢"} in told["inputs"]
    assert "a hundredth" in told["formula"]
    changes = [(line["name"], line["change_micro"]) for line in told["postings"]]
    assert ("validators", 990) in changes and ("issue", 10) in changes
    page = payer.call("ledger.history", limit=1)
    assert page["lines"][0]["block"] == sent["block"] and page["next"]
    older = payer.call("ledger.history", limit=1, before=page["next"])
    assert older["lines"][-1]["why"] == "genesis" and not older["next"] or older["next"]
    assert code_of(lambda: payer.call("ledger.balance", account="nobody")) == (
        errors.ACCOUNT_INVALID.code
    )
    nothing = {"transaction": "00" * 32}
    assert code_of(lambda: payer.call("ledger.explain", **nothing)) == (
        errors.TRANSACTION_UNKNOWN.code
    )
    staked = payer.call("ledger.stake", lock_micro=4 * BLY)
    assert (staked["staked_micro"], staked["priority"]) == (4 * BLY, 3)
    leaving = payer.call("ledger.stake", unlock_micro=BLY)
    assert leaving["unstaking_micro"] == BLY


def test_funds_for_some_pay_exactly_some_LEDGER_15(net: Network):
    """A poor account is given money for three; five calls at once want to spend it."""
    rich, poor = net[0], net[2]
    to = account(rich)
    everything = balance(poor)["free_micro"]
    poor.call("ledger.send", to=to, amount_micro=everything - 300)
    with ThreadPoolExecutor(5) as pool:
        codes = list(
            pool.map(
                lambda n: code_of(
                    lambda: poor.call("ledger.send", to=to, amount_micro=100)
                ),
                range(5),
            )
        )
    assert sorted(codes) == [0, 0, 0] + [errors.FUNDS_SHORT.code] * 2
    assert balance(poor)["free_micro"] == 0
    stay_level(net.nodes)
    rich.call("ledger.send", to=account(poor), amount_micro=everything)


def service(payer: Daemon, payee: Daemon, amount: int = 1_000, **more: Any) -> Any:
    """Quote and authorise; return the session's id and its quote."""
    made = payee.call(
        "ledger.quote", payer=account(payer), tokens=100, amount_micro=amount, **more
    )
    return made["session"]["session"], made["quote"]


def test_a_service_is_paid_between_two_nodes_LEDGER_04(net: Network):
    payer, payee = net[0], net[1]
    before = balance(payer)["total_micro"]
    id, quote = service(payer, payee)
    done = payer.call("ledger.authorize", quote=quote)
    assert done["state"] == "authorized"
    assert balance(payer)["held_micro"] == 1_000
    short = code_of(lambda: payer.call("ledger.accept", session=id, tokens=89))
    assert short == errors.DELIVERY_MISMATCH.code
    usage = {"groups": [5, 6], "calls": [3, 4], "response_ms": 12}
    accepted = payer.call("ledger.accept", session=id, tokens=90, **usage)
    captured = payee.call("ledger.capture", receipt=accepted["receipt"])
    assert captured == payee.call("ledger.capture", receipt=accepted["receipt"])
    assert captured == payee.call("ledger.credit", session=id)
    assert (captured["state"], captured["paid_micro"]) == ("credited", 900)
    wait_for(
        lambda: payer.call("ledger.sessions")["sessions"][0]["state"] == "credited",
        "the payer hears of it",
    )
    assert balance(payer)["total_micro"] == before - 900
    back = payee.call("ledger.reverse", session=id, key="refund")
    assert (back["state"], back["reversed_micro"]) == ("reversed", 900)
    stay_level(net.nodes)
    assert balance(payer)["total_micro"] == before
    metrics = payee.call("ledger.metrics", period="24h")
    assert metrics["credited"] >= 1 and metrics["success_ppm"] > 0
    unknown = code_of(lambda: payee.call("ledger.credit", session="ab" * 32))
    assert unknown == errors.SESSION_UNKNOWN.code
    junk = code_of(lambda: payer.call("ledger.authorize", quote="00"))
    assert junk == errors.QUOTE_INVALID.code


@long
def test_a_kill_between_the_steps_completes_them_once_LEDGER_18(net: Network):
    """kill -9 right after the payee was told to capture, at different moments."""
    payer, payee = net[0], net[2]
    for delay_s in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        id, quote = service(payer, payee)
        payer.call("ledger.authorize", quote=quote)
        receipt = payer.call("ledger.accept", session=id, tokens=100)["receipt"]
        before = balance(payer)["held_micro"], balance(payer)["free_micro"]

        def capture() -> None:
            try:
                payee.call("ledger.capture", receipt=receipt)
            except (NoDaemon, NoAnswer, RpcError):
                pass  # it was killed meanwhile

        caller = threading.Thread(target=capture)
        caller.start()
        time.sleep(delay_s)
        payee.kill()
        caller.join()
        payee.start()
        done = payee.call("ledger.capture", receipt=receipt)
        assert done["state"] == "credited"
        stay_level(net.nodes)
        assert balance(payer)["held_micro"] == before[0] - 1_000
        assert balance(payer)["free_micro"] == before[1]


class Load:
    """People who pay each other as fast as they can, some of them wrongly."""

    def __init__(self, net: Network, seconds: float) -> None:
        self.net, self.until = net, time.monotonic() + seconds
        self.accounts = [account(node) for node in net.nodes]
        self.results: Counter[str] = Counter()
        self.lock = threading.Lock()

    def run(self, *more: Callable[[], None]) -> None:
        acts = [self.sends, self.repeats, self.serves, self.audits, *more]
        with ThreadPoolExecutor(len(acts) + 2) as pool:
            jobs = [pool.submit(act) for act in [*acts, self.sends, self.serves]]
            for job in jobs:
                job.result()

    def note(self, what: str, call: Callable[[], Any]) -> Any:
        """Call, and count what came of it; None where it failed."""
        try:
            result = call()
        except RpcError as error:
            result, what = None, f"{what} {error.code}"
        except (NoDaemon, NoAnswer):
            result, what = None, f"{what} killed"
        with self.lock:
            self.results[what] += 1
        return result

    def sends(self) -> None:
        source = random.Random(threading.get_ident())
        while time.monotonic() < self.until:
            node = source.choice(self.net.nodes)
            amount = source.choice([1, 999, BLY, 10**15])  # the last: nobody has it
            to, fee = source.choice(self.accounts), source.choice([0, 7, 150])
            call = dict(to=to, amount_micro=amount, fee_micro=fee)
            self.note("send", lambda: node.call("ledger.send", **call))

    def repeats(self) -> None:
        """The same payment by several calls at once: one pays."""
        count = 0
        while time.monotonic() < self.until:
            node, count = self.net[0], count + 1
            call = dict(to=self.accounts[1], amount_micro=5, key=f"repeat {count}")
            with ThreadPoolExecutor(3) as pool:
                told = [
                    pool.submit(
                        self.note, "repeat", lambda: node.call("ledger.send", **call)
                    )
                    for _ in range(3)
                ]
            blocks = {job.result()["block"] for job in told if job.result()}
            assert len(blocks) <= 1
            other = dict(call, amount_micro=6)
            self.note("conflict", lambda: node.call("ledger.send", **other))

    def serves(self) -> None:
        source = random.Random(threading.get_ident())
        while time.monotonic() < self.until:
            payer, payee = self.net[0], self.net[1]
            span_s = source.choice([1, 300])
            made = self.note("quote", lambda: service(payer, payee, span_s=span_s))
            if made is None:
                continue
            id, quote = made
            if span_s == 1 and source.random() < 0.5:
                time.sleep(1.5)
            for _ in range(source.choice([1, 2])):
                done = self.note(
                    "authorize", lambda: payer.call("ledger.authorize", quote=quote)
                )
            if done is None or source.random() < 0.3:
                continue  # it expires by itself
            accepted = self.note(
                "accept", lambda: payer.call("ledger.accept", session=id, tokens=95)
            )
            if accepted:
                receipt = accepted["receipt"]
                self.note(
                    "capture", lambda: payee.call("ledger.capture", receipt=receipt)
                )

    def audits(self) -> None:
        while time.monotonic() < self.until:
            for node in self.net.nodes:
                audit = self.note("audit", lambda: node.call("ledger.audit"))
                assert audit is None or audit["sound"], audit
            time.sleep(0.2)


def paid_once(payer: Daemon, payee: Daemon) -> None:
    """What a payee captured is what its sessions say, each of them once."""

    def over() -> bool:
        live = payee.call("ledger.sessions", state="captured")["sessions"]
        return not live

    wait_for(over, "every capture is credited")
    sessions = payee.call("ledger.sessions", limit=1000)["sessions"]
    credited = [
        one
        for one in sessions
        if one["side"] == "payee" and one["state"] in ("credited", "reversed")
    ]
    whole = payee.call("ledger.history", limit=1000)
    lines = whole["lines"]
    while whole["next"]:
        whole = payee.call("ledger.history", limit=1000, before=whole["next"])
        lines += whole["lines"]
    captured = [
        line["change_micro"]
        for line in lines
        if line["why"] == "capture" and line["change_micro"] > 0
    ]
    assert len(captured) == len(credited)
    assert sum(captured) == sum(one["paid_micro"] for one in credited)
    told = {
        one["session"]: one["state"]
        for one in payer.call("ledger.sessions", limit=1000)["sessions"]
    }
    assert all(told[one["session"]] == one["state"] for one in credited)


def test_the_books_are_right_under_load_and_a_kill_LEDGER_18_21(net: Network):
    """The payee dies between the steps of its payments, and completes them once."""
    load = Load(net, 8.0)
    payer, payee = net[0], net[1]

    def kill() -> None:
        time.sleep(2.0)
        payee.kill()
        payee.start()

    load.run(kill)
    for what in ("send", "repeat", "authorize", "capture", "audit"):
        assert load.results[what], (what, load.results)
    assert load.results[f"send {errors.FUNDS_SHORT.code}"]
    assert load.results[f"conflict {errors.KEY_CONFLICT.code}"]
    agree(net)
    paid_once(payer, payee)


@long
def test_the_books_are_right_for_minutes(net: Network):
    load = Load(net, 120.0)

    def kill() -> None:
        source = random.Random(7)
        while time.monotonic() < load.until - 10:
            victim = source.choice(net.nodes[1:])
            time.sleep(source.uniform(1, 5))
            victim.kill()
            victim.start()

    load.run(kill)
    agree(net)
    paid_once(net[0], net[1])
