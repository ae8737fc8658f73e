"""How fast daemons on loopback close rounds, and how many ranks sign their updates.

    python -m tests.bench.bench_training [--rounds 20] [--nodes 4] [--quick]

The tiny model: the time of a round is that of the protocol, not of learning.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path

from tests.functional.harness import Daemon, network


def signatures(node: Daemon, limit: int) -> Counter[int]:
    """Return how many of a node's last ordered updates have how many signatures."""
    lines = node.call("chain.log", limit=limit)["blocks"]
    updates = [line["id"] for line in lines if line["kind"] == "tile_update"]
    found: Counter[int] = Counter()
    for id in updates:
        payload = node.call("chain.block", id=id, payload=True)["payload"]
        found[len(payload["cosignatures"])] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="6 rounds")
    options = parser.parse_args()
    rounds = 6 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        with network(Path(folder) / "net", options.nodes) as net:
            net.make_model()
            net[0].call("train.start", preset="tiny", rounds=rounds)
            with net[0].client() as client:
                took = [item["seconds"] for item in client.stream("train.watch", {})][
                    1:
                ]
            signed = signatures(net[0], 200)
    print(f"{options.nodes} daemons, {rounds} rounds of the tiny model")
    print(
        f"  a round: median {statistics.median(took):.2f} s, longest {max(took):.2f} s"
    )
    print(f"  rounds/s: {len(took) / sum(took):.3f}")
    for count, updates in sorted(signed.items()):
        print(f"  of the last updates, with {count} signatures: {updates}")


if __name__ == "__main__":
    main()
