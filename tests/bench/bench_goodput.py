"""What of the failure-free tokens is left when learners die or are slow.

    python -m tests.bench.bench_goodput [--quick] [--seconds 600] [--links | --real]

Virtual time: eight learners of which one is killed every minute and back after three
seconds; of which one or two are four times slower; all of them unsteady; rounds of five
seconds. Only tokens inside accepted deltas count; "too late" are those of deltas that came
when the round was over, and of steps given up then. `--links`: what transfer costs, bundles
and blobs as large as the demo model's, at the same rate each way and 25 ms. `--real`:
four daemons with the tiny model, one killed every minute, wall time; both halves of the
measurement in one network, one after the other, and the share of the nodes' time that
went into inner steps.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import trio
from trio.testing import MockClock

from tests.functional.harness import Daemon, Network, network
from tests.functional.killing import closed, resumed
from tests.sim.goodput import ROUND_S, STEPS, Yield, measured


def simulated(seconds: float, **arms: object) -> Yield:
    """Run one arm in virtual time."""

    async def main() -> Yield:
        with tempfile.TemporaryDirectory() as folder:
            return await measured(Path(folder), seconds, **arms)  # type: ignore[arg-type]

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def table(seconds: float) -> None:
    arms: dict[str, dict[str, object]] = {
        "8 learners": {},
        "one killed every minute": {"kill_every_s": 60.0},
        "one killed every 20 s": {"kill_every_s": 20.0},
        "7 learners": {"count": 7},
        "8, one 4 x slower": {"slow": {7: 4.0}},
        "6 learners": {"count": 6},
        "8, two 4 x slower": {"slow": {6: 4.0, 7: 4.0}},
        "8, each unsteady by a half": {"unsteady": 0.5},
    }
    print(f"{seconds:g} s of virtual time, rounds of {ROUND_S:g} s")
    print("| learners | rounds | s/round | tokens/s | of 8 | least | too late |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    whole = None
    for name, arm in arms.items():
        got = simulated(seconds, **arm)
        whole = whole or got
        least = min(got.by_learner.values()) / max(got.by_learner.values())
        print(
            f"| {name} | {got.rounds} | {got.seconds / max(1, got.rounds):.2f} "
            f"| {got.rate:.0f} | {100 * got.rate / whole.rate:.1f} % "
            f"| {100 * least:.0f} % | {100 * got.late / (got.tokens + got.late):.1f} % |",
            flush=True,
        )


def links(seconds: float) -> None:
    arms: dict[str, dict[str, object]] = {
        "takes no time": {},
        "50 Mbit/s": {"mbit_s": 50.0},
        "10 Mbit/s": {"mbit_s": 10.0},
        "10 Mbit/s, rounds twice as long": {"mbit_s": 10.0, "steps": 2 * STEPS},
    }
    print(f"{seconds:g} s of virtual time, inner steps of {ROUND_S:g} s a round")
    print(
        "| transfer | rounds | s/round | learners compute |\n| --- | --- | --- | --- |"
    )
    for name, arm in arms.items():
        got = simulated(seconds, **arm)
        print(
            f"| {name} | {got.rounds} | {got.seconds / max(1, got.rounds):.2f} "
            f"| {100 * got.utilisation:.0f} % |",
            flush=True,
        )


@dataclass(frozen=True)
class Seen:
    """What real daemons made of a while."""

    rounds: int
    kills: int
    rate: float  # tokens of accepted deltas a second
    busy: float  # share of the newest rounds' time in inner steps, mean of the nodes


def seen(net: Network, seconds: float, kill: bool, draw: random.Random) -> Seen:
    """Let daemons train for a while, one of them killed every minute or none."""
    first, began, kills = closed(net), time.monotonic(), 0
    until = began + seconds
    while time.monotonic() < until:
        if not kill:
            time.sleep(max(0.0, until - time.monotonic()))
            break
        minute = time.monotonic() + min(60.0, seconds)
        time.sleep(draw.uniform(0.0, min(50.0, seconds / 2)))
        victim: Daemon = draw.choice(net.nodes)
        victim.kill()
        victim.start()
        resumed(victim)
        kills += 1
        time.sleep(max(0.0, minute - time.monotonic()))
    last, took = closed(net), time.monotonic() - began
    rounds = net[0].call("train.report")["history"]
    tokens = sum(one["tokens"] for one in rounds if first < one["round"] <= last)
    told = [node.call("train.status")["utilisation"] or 0.0 for node in net.nodes]
    return Seen(last - first, kills, tokens / took, sum(told) / len(told))


def real(seconds: float) -> None:
    draw = random.Random(1)
    print(f"four daemons, {seconds:g} s each")
    print("| | rounds | kills | tokens/s | of them | in inner steps |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with network(Path(folder) / "net", 4) as net:
            net.make_model()
            net.start_run(rounds=100_000, deadline_s=2.0)
            while closed(net) < 2:
                time.sleep(0.5)
            whole = None
            for name, kill in (("without kills", False), ("one a minute", True)):
                got = seen(net, seconds, kill, draw)
                whole = whole or got
                share = 100 * got.rate / max(1e-9, whole.rate)
                print(
                    f"| {name} | {got.rounds} | {got.kills} | {got.rate:.0f} "
                    f"| {share:.1f} % | {100 * got.busy:.0f} % |",
                    flush=True,
                )
            net.end_runs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="two minutes")
    parser.add_argument("--links", action="store_true", help="what transfer costs")
    parser.add_argument("--real", action="store_true", help="with four daemons")
    options = parser.parse_args()
    seconds = 120.0 if options.quick else options.seconds
    measure = real if options.real else links if options.links else table
    measure(seconds)


if __name__ == "__main__":
    main()
