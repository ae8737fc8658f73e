"""One daemon and an honest peer for an hour: memory, tasks and files over time.

Run: python -m tests.bench.bench_soak [MINUTES]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.functional.attacks.siege import siege

MINUTES = 60.0
LOOKS = 60
WARM = 0.25  # the part of the time in which caches may still fill


def main(minutes: float) -> int:
    print("| minute | tasks | files | RSS MiB | requests |")
    print("| --- | --- | --- | --- | --- |")
    times, sizes = [], []
    with tempfile.TemporaryDirectory(prefix="blyan-bench-") as directory:
        with siege(Path(directory) / "d") as one:
            began = time.monotonic()
            for look in range(1, LOOKS + 1):
                due = began + 60 * minutes * look / LOOKS
                time.sleep(max(0.0, due - time.monotonic()))
                seen = one.look()
                now = (time.monotonic() - began) / 60
                times.append(now)
                sizes.append(seen.resident_mib)
                print(
                    f"| {now:.1f} | {seen.tasks} | {seen.files} "
                    f"| {seen.resident_mib:.1f} | {one.peer.asked} |",
                    flush=True,
                )
            errors = one.peer.errors
    warm = [at for at, when in enumerate(times) if when >= WARM * minutes]
    x, y = [times[at] for at in warm], [sizes[at] for at in warm]
    slope, start = statistics.linear_regression(x, y)
    rest = [b - (start + slope * a) for a, b in zip(x, y, strict=True)]
    noise = statistics.pstdev(rest)
    grown = slope * (x[-1] - x[0])
    print(f"\nslope {60 * slope:+.2f} MiB an hour, noise {noise:.2f} MiB")
    print(f"requests that failed: {len(errors)} {errors[:5]}")
    return 1 if errors or grown > max(3 * noise, 0.01 * y[0]) else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
