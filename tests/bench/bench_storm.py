"""Two hundred rounds of everything that goes wrong, in virtual time: all end equal.

    python -m tests.bench.bench_storm [--rounds 200] [--seed 1] [--quick]

The storms of tests/sim/test_storm.py: three messages of ten are lost, learners and
primaries are killed and come back, some without their blobs, the network splits, and
newcomers join, up to ten nodes. At the end all have one state, every group the same tiles
everywhere, and replay of the blocks from the first weights gives them again, wherever
the storm left a copy of all deltas.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import trio

from tests.sim.storm import Storm, weather
from tests.sim.training import Training, simulate

VALIDATORS, NODES, MOST = 4, 6, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="ten rounds")
    given = parser.parse_args()
    rounds = 10 if given.quick else given.rounds
    began_s, cpu_s = time.monotonic(), time.process_time()
    happened: Counter[str] = Counter()

    def say(closed: int, storm: Storm) -> None:
        used, now = time.process_time() - cpu_s, trio.current_time()
        print(
            f"{closed:4} rounds, {now:5.0f} s of theirs, {used:4.0f} s of a processor, "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB",
            flush=True,
        )

    with tempfile.TemporaryDirectory(prefix="blyan-storm-") as folder:

        async def storm() -> None:
            net = Training(Path(folder), given.seed, NODES, validators=VALIDATORS)
            raged = await weather(net, given.seed, rounds, MOST, VALIDATORS, say)
            happened.update(raged.happened)

        simulate(storm)
    print("| | |\n| --- | --- |")
    print(f"| rounds | {rounds}, equal everywhere |")
    for what, count in sorted(happened.items()):
        print(f"| {what} | {count} |")
    print(f"| took | {time.monotonic() - began_s:.0f} s |")


if __name__ == "__main__":
    main()
