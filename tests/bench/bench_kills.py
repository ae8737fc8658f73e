"""Answers while replicas are killed at random moments: every token as before (DEC-S1).

    python -m tests.bench.bench_kills [--moments 20] [--seed 0] [--quick]

The network is that of tests/functional/test_inference.py: four daemons, of which two hold
whole layers. One asks, by spans and by experts in turn; in the middle of each answer the
replica that computes most of it gets SIGKILL. Said of each: whether the answer is the same,
and the longest gap between two of its tokens beside the median one. Ends with 1 if one differs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.agreement import assert_same, read_model
from tests.bench import made_checkpoint
from tests.functional.harness import Daemon, Network, wait_for
from tests.functional.test_inference import (
    PROMPT,
    SHAPE,
    TOKENS,
    answer_of,
    asked,
    calls_of,
    is_placed,
    opened,
)


def killed(net: Network, victim: Daemon, moment: int, route: str) -> tuple[list, list]:
    """Return the tokens of an answer and the seconds before each of them."""
    gaps, before_s = [], time.monotonic()
    with net[3].client() as client:
        stream = client.stream("infer.generate", asked(route=route))
        for count, _ in enumerate(stream, 1):
            now_s = time.monotonic()
            gaps.append(now_s - before_s)
            if count == moment:
                victim.kill()
            before_s = time.monotonic()
        return stream.result["token_ids"], gaps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 moments")
    given = parser.parse_args()
    source = random.Random(given.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "odd"
        made_checkpoint.make(folder, SHAPE)
        model = read_model(folder)
        expected = answer_of(model)
        print("route    at  same  same as alone  longest gap ms  median ms")
        with opened(Path(scratch) / "d", folder) as net:
            for number in range(4 if given.quick else given.moments):
                route = ("spans", "experts")[number % 2]
                wait_for(lambda: net[3].status()["peers"] == 3, "all meet")
                wait_for(lambda: is_placed(net, net[3]), "both hosts are known")
                whole = net[3].call("infer.generate", **asked(route=route))
                calls = calls_of(whole)
                victim = max(net.nodes[1:3], key=lambda n: calls.get(n.peer_id, 0))
                moment = source.randrange(1, TOKENS - 1)
                tokens, gaps = killed(net, victim, moment, route)
                is_same = tokens == whole["token_ids"]
                assert_same(model, PROMPT, expected, tokens)
                wrong += not is_same
                middle = 1e3 * statistics.median(gaps[1:])
                print(
                    f"{route:8} {moment:2}  {is_same!s:5} {tokens == expected!s:14} "
                    f"{1e3 * max(gaps[1:]):14.1f} {middle:10.1f}",
                    flush=True,
                )
                victim.start()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
