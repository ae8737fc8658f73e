"""Ten years of money: epochs of work at its extremes, and every cap checked at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from blyan_proto.constants import PPM
from blyan_proto.genesis import Balance, Genesis, Setting
from blyan_proto.types import bitmap
from blyand.rules.chain.execute import begin
from blyand.rules.economy import claims, duty
from blyand.rules.economy import epoch as epochs
from blyand.rules.economy import pools, reward, supply, usage, vesting
from blyand.rules.economy.book import (
    BALANCES,
    MAX_SUPPLY_MICRO,
    Purse,
    amount,
    burn,
    move,
)
from blyand.rules.economy.book import supply as supply_of
from blyand.rules.economy.distribution import DAY_MS, distribute
from blyand.rules.economy.duty import DUTIES
from blyand.rules.economy.statement import CLOSED, Duties, Duty, Source
from blyand.rules.economy.usage import Served
from blyand.rules.records import NODES
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_world import START_MS, genesis_of, key, some

BLY = 1_000_000
YEARS = 10
PEOPLE = 4
MODEL = some("model").randbytes(32)


class Book:
    """A view in memory: what an epoch's end reads and writes, without a tree."""

    def __init__(self) -> None:
        self._tables: dict[bytes, dict[bytes, bytes]] = {}

    def _table(self, key: bytes) -> dict[bytes, bytes]:
        return self._tables.setdefault(key[: key.index(b"/")], {})

    def get(self, key: bytes) -> bytes | None:
        return self._table(key).get(key)

    def scan(self, prefix: bytes):
        pairs = self._table(prefix).items()
        return iter(sorted(pair for pair in pairs if pair[0].startswith(prefix)))

    def apply(self, changes) -> None:
        for name, value in changes.items():
            if value is None:
                self._table(name).pop(name, None)
            else:
                self._table(name)[name] = value


@dataclass
class Year:
    """What one year came to."""

    began_micro: int  # circulating
    issued_micro: int = 0
    paid_micro: int = 0
    burnt_micro: int = 0
    supply_micro: int = 0  # at its end


@dataclass
class Economy:
    """A network of a few accounts whose epochs pass without its checkpoints."""

    genesis: Genesis
    view: Book = field(default_factory=Book)
    years: list[Year] = field(default_factory=list)
    days: dict[int, int] = field(default_factory=dict)
    time_ms: int = START_MS
    height: int = 1

    @classmethod
    def of(cls, bly: int, span_ms: int, **numbers: int) -> Economy:
        keys = [key(n) for n in range(PEOPLE)]
        numbers["epoch_span_ms"] = span_ms
        chosen = tuple(Setting(name, numbers[name]) for name in sorted(numbers))
        given = tuple(Balance(k.account, bly * BLY // PEOPLE) for k in keys)
        made = cls(genesis_of(keys, bytes(32), balances=given, settings=chosen))
        made.view.apply(begin(made.genesis).changes)
        return made

    @property
    def accounts(self) -> list[bytes]:
        return [key(n).account for n in range(PEOPLE)]

    def run(self, work: Callable[[Economy, Overlay, int], None], years: int) -> None:
        """Let epochs pass; `work` says what is done in each."""
        span = self.genesis.setting("epoch_span_ms")
        number = 0
        while self.time_ms < START_MS + years * supply.YEAR_MS:
            self.time_ms += span
            self.height += 1
            over = Overlay(self.view)
            work(self, over, number)
            self._end(over)
            number += 1

    def _end(self, over: Overlay) -> None:
        """End an epoch as execution does, and check every cap."""
        epoch = replace(epochs.running(over), checkpoints=1000)
        year = supply.turn_year(over, self.time_ms)
        if len(self.years) <= year.number:
            self.years.append(Year(year.circulating_micro))
        room = supply.room(over, self.time_ms)
        before = supply_of(over)
        vesting.pay_due(over, epoch.number, self.time_ms)
        distribute(over, self.genesis, epoch, self.height, self.time_ms)
        duty.forget(over)
        epochs.follow(over, epoch, self.height, self.time_ms)
        self.view.apply(over.changes)
        after, closed = supply_of(self.view), CLOSED.get(self.view, epoch.number)
        assert closed is not None
        issued = after.issued_micro - before.issued_micro
        assert issued == closed.issued_micro <= min(room, closed.mintable_micro)
        self._note(closed, issued)
        assert self.years[-1].issued_micro * 10 <= self.years[-1].began_micro
        assert after.micro <= MAX_SUPPLY_MICRO
        assert sum(b.micro for b in BALANCES.scan(self.view)) == after.micro

    def _note(self, closed, issued: int) -> None:
        sums = {one.source: one.micro for one in closed.sums}
        assert sums.get(Source.VALIDATOR, 0) <= closed.pool_micro
        judged = sums.get(Source.VALIDATION, 0) + sums.get(Source.DATASET, 0)
        envelope = self.genesis.setting("quality_envelope_ppm")
        assert judged * PPM <= closed.allowance_micro * envelope
        day = self.time_ms // DAY_MS
        self.days[day] = self.days.get(day, 0) + closed.micro
        assert self.days[day] <= self.genesis.setting("reward_budget_micro")
        year = self.years[-1]
        year.issued_micro += issued
        year.paid_micro += closed.micro
        year.supply_micro = supply_of(self.view).micro

    # What can be done in an epoch.

    def sign(self, over: Overlay, signed: int = 1000) -> None:
        """Everybody signs `signed` of a thousand checkpoints."""
        duties = [
            Duty(k.public, k.account, 1000, signed, 0, 0, 0)
            for k in (key(n) for n in range(PEOPLE))
        ]
        DUTIES.put(over, Duties(tuple(sorted(duties, key=lambda one: one.key))))

    def serve(self, over: Overlay, experts: int, fee_micro: int) -> None:
        """The first account answers for the others, who pay the network a fee."""
        server, payer = self.accounts[:2]
        node = NODES.get(over, server)
        assert node is not None
        held = bitmap(set(range(experts)), experts)
        NODES.put(over, replace(node, model=MODEL, held=held), server)
        fee = min(fee_micro, amount(over, payer))
        burnt = fee // 100
        burn(over, (payer, Purse.FREE), burnt, "fee burnt")
        move(
            over,
            (payer, Purse.FREE),
            (pools.VALIDATORS, Purse.FREE),
            fee - burnt,
            "fee",
        )
        if self.years:
            self.years[-1].burnt_micro += burnt
        calls = tuple((group, 10_000) for group in range(experts))
        usage.count(
            over, Served(server, payer, MODEL, calls, 0, PPM, fee), self.time_ms
        )

    def learn(self, over: Overlay, tokens: int, who: int = 2) -> None:
        micro = reward.learning(self.genesis.setting("learning_micro"), tokens, 1)
        claims.claim(over, Source.LEARNING, self.accounts[who], micro, tokens)

    def judge(self, over: Overlay, submissions: int, who: int = 3) -> None:
        micro = self.genesis.setting("validation_micro")
        worth = reward.validation(micro, submissions, 5 * PPM)
        claims.claim(over, Source.VALIDATION, self.accounts[who], worth, submissions)

    def slash(self, over: Overlay) -> None:
        """All that is unclaimed is taken and burnt."""
        for account in self.accounts:
            purse = (account, Purse.UNCLAIMED)
            burn(over, purse, amount(over, *purse), "slash")


def idle(economy: Economy, over: Overlay, number: int) -> None:
    """Nothing is ever done."""


def full(economy: Economy, over: Overlay, number: int) -> None:
    """Everybody does as much of everything as any rule counts."""
    economy.sign(over)
    economy.serve(over, 8, 50_000 * BLY)
    economy.learn(over, 10**15)
    economy.judge(over, 10**9)


def burst(economy: Economy, over: Overlay, number: int) -> None:
    """One epoch in thirty is full, the others are idle."""
    if number % 30 == 0:
        full(economy, over, number)


def whale(economy: Economy, over: Overlay, number: int) -> None:
    """One account claims more than there is, of every kind."""
    for source in (Source.LEARNING, Source.VALIDATION, Source.DATASET):
        claims.claim(over, source, economy.accounts[0], MAX_SUPPLY_MICRO, 1)


def slashed(economy: Economy, over: Overlay, number: int) -> None:
    """Full, and nobody keeps anything."""
    economy.slash(over)
    full(economy, over, number)


def signers(economy: Economy, over: Overlay, number: int) -> None:
    """Validators do their duty, and nothing else happens."""
    economy.sign(over)


# Name -> what is done, BLY in the genesis.
SCENARIOS = {
    "idle": (idle, 500_000_000),
    "validators only": (signers, 500_000_000),
    "full": (full, 500_000_000),
    "full, near the cap": (full, 999_990_000),
    "full, small network": (full, 1_000),
    "bursts": (burst, 500_000_000),
    "one whale": (whale, 500_000_000),
    "all slashed": (slashed, 500_000_000),
}


def simulate(name: str, span_ms: int, years: int = YEARS) -> Economy:
    """Return a scenario's economy after ten years; AssertionError where a cap breaks."""
    work, bly = SCENARIOS[name]
    economy = Economy.of(bly, span_ms)
    economy.run(work, years)
    return economy
