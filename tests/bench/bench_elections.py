"""A hundred nodes that come and go: who leads a group, and how long it stays without.

    python -m tests.bench.bench_elections [--nodes 100] [--minutes 10] [--quick]

Virtual time over the rules alone: nodes beat while they live, every round's schedule is
written from state, ranks are drawn from it; a rank that is dead when its turn comes is
passed over, at once where learners see that its connection is gone, else after the
deadline; a round all of whose ranks are dead gets a new lease. Every head that anybody
publishes is judged by the rule that execution uses: exactly one per (group, epoch,
round) may count.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import Counter

from tests.sim.elections import Network

CHURN_S = {"none": 0.0, "one a minute": 60.0, "one in 10 s": 10.0, "one in 3 s": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="three minutes")
    options = parser.parse_args()
    minutes = 3.0 if options.quick else options.minutes
    print(f"{options.nodes} nodes, {minutes:g} min of virtual time")
    print("| killed | heads | by rank 0, 1, 2 | new leases | takeover s: median, p99 |")
    print("| --- | --- | --- | --- | --- |")
    for name, every_s in CHURN_S.items():
        net = Network(options.nodes, random.Random(1), every_s)
        net.run(60.0 * minutes)
        by_rank = Counter(rank for rank in net.accepted.values())
        late = sorted(net.takeovers_s) or [0.0]
        print(
            f"| {name} | {len(net.accepted)} | {[by_rank[rank] for rank in range(3)]} "
            f"| {net.leases} | {statistics.median(late):.1f}, "
            f"{late[int(0.99 * (len(late) - 1))]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
