"""A fresh node gets a long chain from one peer and from three: real daemons on loopback.

Run: python -m tests.bench.bench_sync [--quick] [--blocks N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from blyan_proto.protocols import blocks, sync
from blyanctl.client import Client, NoAnswer, NoDaemon
from blyand import genesis as genesis_file
from tests.bench.made_chain import Maker

BLOCKS, QUICK_BLOCKS = 50_000, 2_000
START_S = 60.0
BLYAND = [sys.executable, "-m", "blyand"]


@dataclass
class Row:
    """What one sync cost."""

    peers: int
    blocks: int  # by chain.sync's account, as is the time
    seconds: float
    wall_s: float  # from the start of the process
    down: dict[str, int]  # bytes by protocol
    donors_up: list[int]
    peak_mib: float
    cpu_s: float


def make_home(path: Path, genesis: Path) -> None:
    command = [*BLYAND, "init", "--home", str(path), "--genesis", str(genesis)]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def running(
    home: Path, *bootstrap: str, options: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon of a home; end it with the block."""
    command = [*BLYAND, "run", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0"]
    for address in bootstrap:
        command += ["--bootstrap", address]
    command += ["--daemons-on-host", "4", "--max-per-group", "64", *options]
    with open(home / "stderr", "wb") as errors:
        daemon = subprocess.Popen(command, stderr=errors)
    try:
        yield daemon
    finally:
        daemon.terminate()
        daemon.wait(30)


def call(home: Path, method: str) -> dict[str, Any]:
    """Call a method, as soon as the daemon answers."""
    until = time.monotonic() + START_S
    while True:
        try:
            with Client(home) as client:
                return client.call(method)
        except (NoDaemon, NoAnswer):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def followed(home: Path) -> dict[str, Any]:
    """Wait until a node is level; show how it comes along."""
    with Client(home, timeout_s=None) as client:
        stream = client.stream("chain.sync", {})
        for item in stream:
            if sys.stderr.isatty():
                told = (
                    f"{item['checkpoint']}/{item['known']} {item['blocks_per_s']:.0f}/s"
                )
                sys.stderr.write(f"\r{told:40}")
        return stream.result


def traffic(home: Path, way: str) -> dict[str, int]:
    """Return bytes of the two protocols since the start."""
    told = call(home, "node.traffic")["protocols"]
    wanted = (blocks.PROTOCOL_ID, sync.PROTOCOL_ID)
    return {
        one["protocol"]: one[f"{way}_bytes"]
        for one in told
        if one["protocol"] in wanted
    }


def status_of(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(name)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(directory: Path, donors: list[Path], name: str, count: int) -> Row:
    """Let a fresh node get everything from running donors."""
    home = directory / name
    make_home(home, directory / "genesis.json")
    addresses = [call(donor, "node.status")["listen"][0] for donor in donors]
    before = [sum(traffic(donor, "up").values()) for donor in donors]
    began = time.perf_counter()
    with running(home, *addresses) as daemon:
        call(home, "node.status")
        result = followed(home)
        wall = time.perf_counter() - began
        ordered = call(home, "chain.stats")["blocks"]
        if ordered < count:
            raise RuntimeError(f"only {ordered} of {count} blocks came")
        return Row(
            len(donors),
            result["blocks"],
            result["seconds"],
            wall,
            traffic(home, "down"),
            [
                sum(traffic(donor, "up").values()) - was
                for donor, was in zip(donors, before)
            ],
            status_of(daemon.pid, "VmHWM") / 1024,
            cpu_seconds(daemon.pid),
        )


def bench(directory: Path, count: int) -> list[Row]:
    """Make the chain, then measure."""
    maker = Maker()
    genesis_file.save(maker.genesis, directory / "genesis.json")
    donors = [directory / f"donor{n}" for n in range(3)]
    for donor in donors:
        make_home(donor, directory / "genesis.json")
    began = time.perf_counter()
    database = donors[0] / "db"
    trio.run(maker.fill, database, directory / "poison", count)
    print(
        f"{count} blocks made in {time.perf_counter() - began:.0f} s", file=sys.stderr
    )
    for donor in donors[1:]:
        shutil.copytree(database, donor / "db", dirs_exist_ok=True)
    rows = []
    with ExitStack() as stack:
        stack.enter_context(running(donors[0]))
        rows.append(measure(directory, donors[:1], "from-one", count))
        for donor in donors[1:]:
            stack.enter_context(running(donor))
        rows.append(measure(directory, donors, "from-three", count))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BLOCKS} blocks")
    parser.add_argument("--blocks", type=int, default=0)
    arguments = parser.parse_args()
    count = arguments.blocks or (QUICK_BLOCKS if arguments.quick else BLOCKS)
    directory = Path(tempfile.mkdtemp(prefix="blyan-bench-"))
    try:
        rows = bench(directory, count)
    finally:
        shutil.rmtree(directory)
    print(f"load average: {os.getloadavg()[0]:.2f}\n")
    print(
        "| peers | blocks | sync | blocks/s | from process start | received "
        "| per block | each peer sent | peak memory | CPU |"
    )
    print("| --- " * 10 + "|")
    for row in rows:
        down = sum(row.down.values())
        sent = ", ".join(f"{up / 2**20:.1f}" for up in row.donors_up)
        print(
            f"| {row.peers} | {row.blocks} | {row.seconds:.1f} s "
            f"| {row.blocks / row.seconds:.0f} | {row.wall_s:.1f} s "
            f"| {down / 2**20:.1f} MiB | {down / row.blocks:.0f} B | {sent} MiB "
            f"| {row.peak_mib:.0f} MiB | {row.cpu_s:.1f} s |"
        )


if __name__ == "__main__":
    main()
