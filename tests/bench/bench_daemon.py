"""What one idle daemon costs: import time, start to first answer, CPU at rest, memory.

Run: python -m tests.bench.bench_daemon
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blyanctl.client import Client, NoAnswer, NoDaemon

IMPORTS = 5
REST_S = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


def import_seconds() -> list[float]:
    """Return wall seconds of fresh processes that import the daemon and end."""
    found = []
    for _ in range(IMPORTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import blyand.daemon"], check=True)
        found.append(time.perf_counter() - began)
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def main() -> None:
    imports = import_seconds()
    directory = Path(tempfile.mkdtemp(prefix="blyan-bench-"))
    home = directory / "home"
    blyand = [sys.executable, "-m", "blyand"]
    subprocess.run(
        [*blyand, "init", "--home", str(home)], check=True, stdout=subprocess.DEVNULL
    )
    began = time.perf_counter()
    daemon = subprocess.Popen(
        [*blyand, "run", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0"],
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                with Client(home) as client:
                    client.call("node.status")
                break
            except (NoDaemon, NoAnswer):
                time.sleep(0.02)
        ready = time.perf_counter() - began
        time.sleep(5.0)  # what the start left to do
        before = cpu_seconds(daemon.pid)
        time.sleep(REST_S)
        idle = (cpu_seconds(daemon.pid) - before) / REST_S
        memory = resident_mib(daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait(30)
        shutil.rmtree(directory)
    print("| what | measured | bar |")
    print("| --- | --- | --- |")
    print(f"| import of the daemon, median of {IMPORTS} | ", end="")
    print(f"{statistics.median(imports):.2f} s | < 3 s |")
    print(f"| start to first answer | {ready:.2f} s | |")
    print(f"| CPU at rest, {REST_S:.0f} s | {100 * idle:.2f} % of one core | < 2 % |")
    print(f"| resident memory at rest | {memory:.0f} MiB | |")


if __name__ == "__main__":
    main()
