"""Strangers in waves against one daemon for some minutes: what they did, what it did.

Run: python -m tests.bench.bench_attacks [MINUTES]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.functional.attacks.siege import BEHAVIOURS, siege

MINUTES = 10.0
PATIENCE = 20  # how often a stranger repeats what was refused


def main(minutes: float) -> int:
    with tempfile.TemporaryDirectory(prefix="blyan-bench-") as directory:
        with siege(Path(directory) / "d") as one:
            one.patience = PATIENCE
            until = time.monotonic() + 60 * minutes
            prints = []
            print(
                "| wave | tasks | files | peers | RSS MiB | honest requests | errors |"
            )
            print("| --- | --- | --- | --- | --- | --- | --- |")
            while len(prints) < 2 or time.monotonic() < until:
                seen = one.wave()
                prints.append(seen)
                print(
                    f"| {one.waves} | {seen.tasks} | {seen.files} "
                    f"| {seen.connections} | {seen.resident_mib:.1f} "
                    f"| {one.peer.asked} | {len(one.peer.errors)} |",
                    flush=True,
                )
            print()
            print("\n".join(one.table()))
            print(f"\n{len(BEHAVIOURS)} behaviours, {one.waves} waves")
            print(f"honest requests: {one.peer.asked}, failed: {len(one.peer.errors)}")
            print(f"slowest honest request: {one.peer.slowest_s:.2f} s")
            second, last = prints[1], prints[-1]
            failures = one.failures() + one.peer.errors
            if (second.tasks, second.files) != (last.tasks, last.files):
                failures.append(f"tasks or files grew: {second} to {last}")
            if last.resident_mib > 1.05 * second.resident_mib:
                failures.append(f"memory grew: {second} to {last}")
    print("\n".join(failures[:40]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
