"""Two hundred rounds of real daemons with SIGKILLs: what is left is equal everywhere.

    python -m tests.bench.bench_kills_training [--rounds 200] [--every 4] [--seed 1] [--quick]

Four daemons train the tiny model on loopback; every few rounds one of them is killed at
any moment of a round, in turn the one that leads most groups and any, and started again a
little later. At the end all hold the same bytes, every chain verifies, and every group's
head is computed again from its first weights. Ends with 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.functional.harness import Network, network
from tests.functional.killing import train_and_kill

PATIENCE_S = 1800.0  # on a busy machine, too


def problems_of(net: Network) -> list[str]:
    """Return what `chain verify` finds on any node, and groups that replay refutes."""
    found = []
    for node in net.nodes:
        told = node.call("chain.verify")
        if not told["sound"]:
            found.append(f"{node.name}: {told['problems'][:3]}")
    for group in net.group_roots(*net.nodes):
        node = next(node for node in net.nodes if group in node.hosted())
        if not node.call("tile.replay", group=group, from_genesis=True)["sound"]:
            found.append(f"{group}: another head by replay on {node.name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--every", type=int, default=4, help="rounds between kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="12 rounds")
    given = parser.parse_args()
    rounds = 12 if given.quick else given.rounds
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="blyan-kills-") as folder:
        with network(Path(folder) / "d", 4) as net:
            net.make_model()
            return measured(net, rounds, given.every, random.Random(given.seed), say)


def measured(
    net: Network,
    rounds: int,
    every: int,
    draw: random.Random,
    say: Callable[[str], None],
) -> int:
    """Train through the kills; print the table, return the exit code."""
    say("training")
    names = train_and_kill(
        net, rounds, every, draw, say, patience_s=PATIENCE_S, deadline_s=2.0
    )
    killed = Counter(names)
    say("all nodes hold the same bytes")
    problems = problems_of(net)
    told = net[0].call("train.report")
    print("| | |\n| --- | --- |")
    rows = {
        "rounds, final on every node": told["round"],
        "SIGKILLs": f"{sum(killed.values())}, {min(killed.values())} to "
        f"{max(killed.values())} of one node",
        "takeovers": sum(one["takeovers"] for one in told["learners"]),
        "updates": sum(one["primary_of"] for one in told["learners"]),
        "deltas listed": sum(one["listed"] for one in told["learners"]),
        "tokens": told["tokens"],
        "groups with equal roots on all holders": len(net.group_roots(*net.nodes)),
        "held-out loss": f"{told['first_held_out_loss']} to {told['held_out_loss']}",
        "problems by `chain verify` and replay from genesis": problems or "none",
    }
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
