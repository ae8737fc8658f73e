"""Fuzz the decoders for a while.

    python -m tests.fuzz.run --seconds 600 [--target NAME]... [--seed N]

Ends with exit code 1 and the bytes that broke a decoder, as hex, at the first failure.
"""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, Target

BATCH = 200
KEPT = 64  # mutated inputs that still decoded, to mutate further


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    chosen = parser.parse_args()
    names = chosen.target or list(TARGETS)
    corpora = {name: list(TARGETS[name].samples) for name in names}
    random = Random(chosen.seed)
    print(f"seed {chosen.seed}, {len(names)} targets, {chosen.seconds:g} s")
    end, tried = time.monotonic() + chosen.seconds, 0
    while time.monotonic() < end:
        for name in names:
            if not _batch(TARGETS[name], corpora[name], random, name):
                return 1
            tried += BATCH
    print(f"{tried} inputs, no failure")
    return 0


def _batch(target: Target, corpus: list[bytes], random: Random, name: str) -> bool:
    for _ in range(BATCH):
        raw = mutate(random, corpus)
        try:
            good = target.check(raw)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}\n{raw.hex()}")
            return False
        if good and len(raw) < 4096:
            place = random.randrange(KEPT)
            if len(corpus) < KEPT:
                corpus.append(raw)
            elif place >= len(target.samples):
                corpus[place] = raw
    return True


if __name__ == "__main__":
    sys.exit(main())
