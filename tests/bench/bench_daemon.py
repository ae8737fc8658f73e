"""What a daemon costs: import, start to the first answers, CPU at rest, memory.

At rest alone, and in a network of four. Run: python -m tests.bench.bench_daemon
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from blyan_proto.protocols.hello import PROTOCOL_ID
from blyan_proto.signing import SigningKey
from blyanctl.client import Client, NoAnswer, NoDaemon
from blyand.errors import Unavailable
from blyand.net.host import HostSettings, open_host
from blyand.net.identity import peer_id_of

IMPORTS = 5
REST_S = 20.0
SETTLE_S = 5.0
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


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def first_answer(port: int, public: bytes) -> float:
    """Return when a stranger's first request to that port was answered."""
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_of(public)}"
    settings = HostSettings(SigningKey(os.urandom(32)), bytes(32))
    async with open_host(settings) as host:
        await listening(port)
        while True:
            try:
                peer = await host.connect(address)
                break
            except Unavailable:
                pass  # it listens, and is not ready to talk
        async with host.request(peer, PROTOCOL_ID, 10.0) as stream:
            await stream.send(b"")  # no hello: the answer is a refusal
            await stream.receive(1, 10.0)
        return time.perf_counter()


async def listening(port: int) -> None:
    """Wait until somebody listens on a port."""
    while True:
        try:
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            return
        except OSError:
            await trio.sleep(0.02)


def ready(home: Path) -> float:
    """Return when the daemon of a home first answered on its socket."""
    while True:
        try:
            with Client(home) as client:
                client.call("node.status")
            return time.perf_counter()
        except (NoDaemon, NoAnswer):
            time.sleep(0.02)


def at_rest(pids: list[int]) -> list[float]:
    """Return each process's share of a core while nobody asks anything."""
    time.sleep(SETTLE_S)  # what the start left to do
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(REST_S)
    return [(cpu_seconds(pid) - was) / REST_S for pid, was in zip(pids, before)]


def alone(directory: Path) -> list[tuple[str, str, str]]:
    """Start one daemon; return its rows."""
    home, port = directory / "home", free_port()
    blyand = [sys.executable, "-m", "blyand"]
    made = subprocess.run(
        [*blyand, "init", "--home", str(home), "--json"],
        check=True,
        capture_output=True,
    )
    public = bytes.fromhex(json.loads(made.stdout)["public_key"])
    listen = f"/ip4/127.0.0.1/tcp/{port}"
    began = time.perf_counter()
    daemon = subprocess.Popen(
        [*blyand, "run", "--home", str(home), "--listen", listen],
        stderr=subprocess.DEVNULL,
    )
    try:
        served = trio.run(first_answer, port, public) - began
        answered = ready(home) - began
        (idle,) = at_rest([daemon.pid])
        memory = resident_mib(daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait(30)
    return [
        ("process start to the first answer to a peer", f"{served:.2f} s", ""),
        ("process start to the first answer on the socket", f"{answered:.2f} s", ""),
        (f"CPU at rest, {REST_S:.0f} s, alone", _share(idle), "< 2 %"),
        ("resident memory at rest", f"{memory:.0f} MiB", ""),
    ]


def four(directory: Path) -> tuple[str, str, str]:
    """Start a network of four; return the row of the busiest node at rest."""
    blyanctl = [sys.executable, "-m", "blyanctl", "devnet"]
    place = ["--dir", str(directory / "net")]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*blyanctl, "up", "--nodes", "4", *place], **quiet)
    try:
        pids = []
        for node in sorted((directory / "net").glob("node*")):
            with Client(node) as client:
                pids.append(client.call("node.status")["pid"])
        idle = max(at_rest(pids))
    finally:
        subprocess.run([*blyanctl, "down", *place], **quiet)
    return f"CPU at rest, {REST_S:.0f} s, busiest of four", _share(idle), "< 2 %"


def _share(of_a_core: float) -> str:
    return f"{100 * of_a_core:.2f} % of one core"


def main() -> None:
    imports = import_seconds()
    directory = Path(tempfile.mkdtemp(prefix="blyan-bench-"))
    try:
        rows = [*alone(directory), four(directory)]
    finally:
        shutil.rmtree(directory)
    print(f"load average: {os.getloadavg()[0]:.2f}\n")
    print("| what | measured | bar |")
    print("| --- | --- | --- |")
    print(f"| import of the daemon, median of {IMPORTS} | ", end="")
    print(f"{statistics.median(imports):.2f} s | < 3 s |")
    for what, measured, bar in rows:
        print(f"| {what} | {measured} | {bar} |")


if __name__ == "__main__":
    main()
