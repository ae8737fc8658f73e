"""Ten thousand histories of validators in every mix of faults: what they found.

A row is a mix: `rounds` are those that a height took once the network was whole (the
first height from where it was stuck), `after` the virtual milliseconds from then until all
honest were two heights further. Below a third of lying weight there must be no fork and
no violation. Where a third or more lies, `named` says in how many of the forks evidence
(pairs of signed votes) names more than a third of the weight, and `shown` in how many all
votes together do.

Run: python -m tests.bench.bench_agreement [--seeds N] [--quick]
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.consensus_plans import (
    A_THIRD_OR_MORE,
    BELOW_A_THIRD,
    Outcome,
    make_plan,
    play,
)

SEEDS, QUICK = 10_000, 300
HEAD = (
    "| mix | seeds | decisions | rounds p50 / p99 / max | after p50 / max ms "
    "| messages | forks | named | shown | violations |"
)


def main() -> int:
    """Print the table; 1 if anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="in all")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} seeds")
    options = parser.parse_args()
    mixes = [*BELOW_A_THIRD, *A_THIRD_OR_MORE]
    seeds = QUICK if options.quick else options.seeds
    began = time.monotonic()
    wrong: list[str] = []
    print(HEAD)
    print("| --- |" + " ---: |" * 9)
    for place, mix in enumerate(mixes):
        count = seeds // len(mixes) + (place < seeds % len(mixes))
        played = [play(make_plan(mix, seed)) for seed in range(count)]
        print(row(mix, played), flush=True)
        wrong += [
            f"{mix} {o.plan.seed}: {o.violations}" for o in played if o.violations
        ]
    spent = time.monotonic() - began
    print(f"\n{seeds} seeds in {spent:.0f} s, {1000 * spent / seeds:.1f} ms each")
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


def row(mix: str, played: list[Outcome]) -> str:
    """Return the line of a mix."""
    rounds = sorted(round for outcome in played for round in outcome.rounds)
    after = sorted(outcome.time_ms for outcome in played)
    forks = [outcome for outcome in played if outcome.is_forked]
    weights = [sum(outcome.plan.weights) for outcome in forks]
    named = sum(3 * o.by_evidence > total for o, total in zip(forks, weights))
    shown = sum(3 * o.by_history > total for o, total in zip(forks, weights))
    cells = [
        mix,
        f"{len(played):,}",
        f"{sum(outcome.decisions for outcome in played):,}",
        f"{share(rounds, 50)} / {share(rounds, 99)} / {share(rounds, 100)}",
        f"{share(after, 50):,} / {share(after, 100):,}",
        f"{sum(outcome.messages for outcome in played):,}",
        str(len(forks)),
        str(named) if mix in A_THIRD_OR_MORE else "",
        str(shown) if mix in A_THIRD_OR_MORE else "",
        str(sum(bool(outcome.violations) for outcome in played)),
    ]
    return "| " + " | ".join(cells) + " |"


def share(found: list[int], percent: int) -> int:
    """Return the value below which `percent` of a sorted list lies."""
    return found[min(len(found) - 1, len(found) * percent // 100)] if found else 0


if __name__ == "__main__":
    sys.exit(main())
