"""Ten years of supply at the extremes of usage, and what an epoch's end costs.

    python -m tests.bench.bench_supply [--quick] [--hourly SCENARIO]

Each scenario runs the rules themselves, epoch by epoch, and asserts every cap at each:
the supply, a year's tenth, a day's budget, the validators' pool, the envelope for judging
data, and that purses sum to the supply. Epochs last two days here, each with one day's
budget; `--hourly` runs one scenario with hourly epochs. Amounts are BLY.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

from blyan_proto.types import bitmap
from blyand.rules.economy import claims
from blyand.rules.economy import epoch as epochs
from blyand.rules.economy import supply, usage
from blyand.rules.economy.book import supply as supply_of
from blyand.rules.economy.distribution import DAY_MS, distribute
from blyand.rules.economy.duty import DUTIES, count
from blyand.rules.economy.statement import Duties, Duty, Source
from blyand.rules.economy.usage import Served
from blyand.rules.records import NODES
from blyand.rules.view import Overlay
from tests.sim.supply import BLY, MODEL, SCENARIOS, YEARS, Economy, simulate
from tests.unit.daemon.chain_world import key, some

HOUR_MS = 3_600_000


def supplies(names: list[str], span_ms: int, years: int) -> None:
    print(
        f"{'scenario':<20} {'genesis':>12} {'after':>14} {'minted':>14} {'paid':>14} "
        f"{'burnt fees':>11} {'most a year':>11} {'most a day':>10} {'s':>6}"
    )
    for name in names:
        begun = time.perf_counter()
        economy = simulate(name, span_ms, years)
        took = time.perf_counter() - begun
        found = economy.years
        most = max(
            (y.issued_micro / y.began_micro for y in found if y.began_micro), default=0
        )
        print(
            f"{name:<20} {SCENARIOS[name][1]:>12,} "
            f"{supply_of(economy.view).micro // BLY:>14,} "
            f"{sum(y.issued_micro for y in found) // BLY:>14,} "
            f"{sum(y.paid_micro for y in found) // BLY:>14,} "
            f"{sum(y.burnt_micro for y in found) // BLY:>11,} "
            f"{100 * most:>10.3f}% {max(economy.days.values()) // BLY:>10,} {took:>6.1f}"
        )


def ends(times: int) -> None:
    """What the last checkpoint of an epoch costs more, by recipients and lines."""
    print(f"\n{'recipients':>10} {'lines':>7} {'end of an epoch':>16} {'duties':>12}")
    for people, experts in ((4, 8), (128, 16), (1024, 8)):
        world = crowd(people, experts)
        taken = []
        for _ in range(times):
            over = Overlay(world.view)
            begun = time.perf_counter()
            running = replace(epochs.running(over), checkpoints=1000)
            distribute(over, world.genesis, running, 2, world.time_ms)
            taken.append(time.perf_counter() - begun)
        over = Overlay(world.view)
        begun = time.perf_counter()
        count(over, key(0).public, frozenset())
        duty_ms = 1000 * (time.perf_counter() - begun)
        print(
            f"{people:>10} {people * experts:>7} {1000 * statistics.median(taken):>13.1f} ms "
            f"{duty_ms:>9.2f} ms"
        )


def crowd(people: int, experts: int) -> Economy:
    """An economy in which each of many accounts validates, serves and learns."""
    world = Economy.of(500_000_000, HOUR_MS)
    world.time_ms += HOUR_MS
    over = Overlay(world.view)
    supply.turn_year(over, world.time_ms)
    pattern = NODES.get(over, world.accounts[0])
    assert pattern is not None
    held = bitmap(set(range(experts)), experts)
    calls = tuple((group, 200) for group in range(experts))
    duties = []
    for number in range(people):
        public, account = some(number).randbytes(33), some(-number - 1).randbytes(20)
        NODES.put(
            over, replace(pattern, account=account, model=MODEL, held=held), account
        )
        served = Served(account, bytes(20), MODEL, calls, 100, 0, BLY)
        usage.count(over, served, world.time_ms)
        claims.claim(over, Source.LEARNING, account, BLY, 1)
        duties.append(Duty(public, account, 1000, 1000, 8, 8000, 8000))
    validating = sorted(duties[:128], key=lambda one: one.key)
    DUTIES.put(over, Duties(tuple(validating)))
    world.view.apply(over.changes)
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two years")
    parser.add_argument(
        "--hourly", choices=SCENARIOS, help="one scenario, hour by hour"
    )
    given = parser.parse_args()
    years = 2 if given.quick else YEARS
    if given.hourly:
        supplies([given.hourly], HOUR_MS, years)
        return
    supplies(list(SCENARIOS), 2 * DAY_MS, years)
    ends(1 if given.quick else 5)


if __name__ == "__main__":
    main()
