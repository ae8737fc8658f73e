"""A small internet in network namespaces: relays outside, nodes behind NATs.

Runs itself again as root of a user namespace of its own (`run_world`), so that neither
privileges nor anything of the machine's network are touched. Everything in it dies with
it. Addresses look global, each node in a /16 of its own; nothing leaves the machine.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from tests.functional.nat.node import main

ROOT = Path(__file__).parents[3]
NATS = ("none", "full-cone", "port-restricted", "symmetric")
PORT = 4001
# Root of a user namespace; whatever runs in it dies with its first process.
ALONE = ("unshare", "-Urnp", "--mount-proc", "--fork", "--kill-child")
TOOLS = ("unshare", "nsenter", "ip", "iptables")

# In one namespace per NAT: {wan} is its outer address, {lan} the node behind it.
_SOURCE = "-t nat -A POSTROUTING -o wan -j SNAT --to-source {wan}"
_FILTER = (
    "-A FORWARD -i wan -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    "-A FORWARD -i wan -j DROP",
)
RULES = {
    "full-cone": (_SOURCE, "-t nat -A PREROUTING -i wan -j DNAT --to {lan}"),
    "port-restricted": (_SOURCE, *_FILTER),
    "symmetric": (_SOURCE + " --random-fully", *_FILTER),
}


def why_not() -> str:
    """Return why namespaces cannot be made here; "" if they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    script = (
        "ip link add veth8 type veth peer name veth9 && iptables -t nat -A POSTROUTING "
        "-j SNAT --to-source 1.2.3.4 --random-fully && iptables -A FORWARD "
        "-m conntrack --ctstate ESTABLISHED -j ACCEPT "
        "&& echo 1 > /proc/sys/net/ipv4/ip_forward"
    )
    tried = subprocess.run(
        [*ALONE, "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "XTABLES_LOCKFILE": "/dev/null"},
    )
    return "" if tried.returncode == 0 else f"not allowed: {tried.stderr.strip()}"


def run_world(rows: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    """Return what `matrix` finds, from inside a user and network namespace."""
    command = [sys.executable, "-m", __name__, ",".join(rows), ",".join(columns)]
    done = subprocess.run(
        [*ALONE, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XTABLES_LOCKFILE": "/dev/null", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"the world ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)


class Place:
    """A network namespace, kept by a process that sleeps."""

    def __init__(self) -> None:
        self._keeper = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        self.enter = ("nsenter", "-t", str(self._keeper.pid), "-n")
        mine = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._keeper.pid}/ns/net") == mine:
            time.sleep(0.005)
        self.sh("ip link set lo up")

    def sh(self, command: str) -> None:
        sh(" ".join(self.enter) + " " + command)

    def plug(self, name: str, address: str, into: "Place | None", there: str) -> None:
        """Lay a cable: `name` with an address here, `there` at the other end."""
        own = f"ip link add {name} netns {self._keeper.pid} type veth peer name {there}"
        sh(own + (f" netns {into._keeper.pid}" if into else ""))
        self.sh(f"ip addr add {address} dev {name}")
        self.sh(f"ip link set {name} up")
        if into is None:
            sh(f"ip link set {there} master inet")
            sh(f"ip link set {there} up")

    def move_here(self) -> None:
        """Move this process into the namespace."""
        with open(f"/proc/{self._keeper.pid}/ns/net") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")

    def end(self) -> None:
        self._keeper.kill()
        self._keeper.wait()


class Node:
    """A node process in a place, driven by JSON lines."""

    def __init__(self, number: int, nat: str, mode: str = "auto") -> None:
        self.nat, self.places = nat, [Place()]
        outer = f"20.{number}.0.1"
        if nat == "none":
            self.places[0].plug("wan", f"{outer}/8", None, f"w{number}")
        else:
            router = Place()
            self.places.append(router)
            router.plug("wan", f"{outer}/8", None, f"w{number}")
            inner = f"192.168.{number}"
            self.places[0].plug("lan", f"{inner}.2/24", router, "lan")
            router.sh(f"ip addr add {inner}.1/24 dev lan")
            router.sh("ip link set lan up")
            self.places[0].sh(f"ip route add default via {inner}.1")
            subprocess.run(
                [*router.enter, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
                check=True,
            )
            for rule in RULES[nat]:
                router.sh(f"iptables {rule.format(wan=outer, lan=f'{inner}.2')}")
        listen = f"/ip4/0.0.0.0/tcp/{PORT}"
        asked, told = os.pipe(), os.pipe()
        self._pid = os.fork()  # everything is imported already: a start costs nothing
        if not self._pid:
            try:
                self.places[0].move_here()
                ends = os.fdopen(asked[0]), os.fdopen(told[1], "w")
                logging.disable()  # refused dials are what this is about
                trio.run(main, number, listen, mode, *ends)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(asked[0])
        os.close(told[1])
        self._asking, self._told = os.fdopen(asked[1], "w"), os.fdopen(told[0])

    def ask(self, **asked: Any) -> dict[str, Any]:
        print(json.dumps(asked), file=self._asking, flush=True)
        told: dict[str, Any] = json.loads(self._told.readline())
        return told

    def until(self, what: str, holds: Any) -> dict[str, Any]:
        end = time.monotonic() + 60
        while True:
            seen = self.ask(do="look")
            if holds(seen):
                return seen
            if time.monotonic() > end:
                raise RuntimeError(f"{self.nat}: not {what}: {seen}")
            time.sleep(0.1)

    def end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        for place in self.places:
            place.end()


def matrix(rows: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    """Put nodes behind NATs and find for each pair the best path between them."""
    sh("ip link set lo up")
    sh("ip link add inet type bridge")
    sh("ip link set inet up")
    relays = [Node(number, "none", "serve") for number in (1, 2)]
    sought = [Node(10 + i, nat) for i, nat in enumerate(rows)]
    seeking = [Node(20 + i, nat) for i, nat in enumerate(columns)]
    try:
        known = [relay.ask(do="look")["addresses"] for relay in relays]
        for node in (*sought, *seeking):
            for addresses in known:
                told = node.ask(do="dial", address=addresses[0])
                assert told["path"] == "direct", told
        states = {}
        for node in (*sought, *seeking):
            seen = node.until("judged", lambda seen: seen["state"] != "unknown")
            states[node.nat] = seen["state"]
            if seen["state"] == "private":
                node.until("placed", lambda seen: len(seen["places"]) == 2)
        paths = {f"{a.nat}/{b.nat}": pair(a, b) for a in sought for b in seeking}
        return {
            "states": states,
            "paths": paths,
            "moved": move(relays, sought, seeking),
        }
    finally:
        for node in (*relays, *sought, *seeking):
            node.end()


def pair(a: Node, b: Node) -> str:
    """Return how `b` and `a` come together: each dials what the other announces."""
    ours, theirs = a.ask(do="look"), b.ask(do="look")
    for dialler, target in ((b, ours), (a, theirs)):
        for address in outside(target["addresses"], circuits=False):
            if dialler.ask(do="dial", address=address)["path"] == "direct":
                who = "direct" if dialler is b else "direct (back)"
                return finish(dialler, target["peer"], who)
    for address in outside(ours["addresses"], circuits=True):
        if b.ask(do="dial", address=address)["path"] == "relay":
            return finish(b, ours["peer"], "relay")
    return "failed"


def outside(addresses: Sequence[str], circuits: bool) -> list[str]:
    """What a peer that was told of them elsewhere may dial (DEC-C9): no private ones."""
    return [
        one
        for one in addresses
        if ("/p2p-circuit/" in one) == circuits
        and not one.startswith("/ip4/192.168.")
        and not one.startswith("/ip4/127.")
    ]


def finish(dialler: Node, peer: str, path: str) -> str:
    """Exchange a megabyte over a path, then leave."""
    told = dialler.ask(do="exchange", peer=peer, size=1 << 20)
    dialler.ask(do="leave", peer=peer)
    return path if told["same"] else f"failed: {told['why']}"


def table(found: dict[str, Any]) -> str:
    """Return the paths as a table: a row for each NAT of the node that is sought."""
    rows = list(dict.fromkeys(pair.split("/")[0] for pair in found["paths"]))
    columns = list(dict.fromkeys(pair.split("/")[1] for pair in found["paths"]))
    lines = ["| sought behind | " + " | ".join(columns) + " |"]
    lines.append("| --- " * (len(columns) + 1) + "|")
    for row in rows:
        cells = [found["paths"][f"{row}/{column}"] for column in columns]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def move(relays: list[Node], sought: list[Node], seeking: list[Node]) -> str:
    """Kill a relay; return how the last pair comes together afterwards."""
    a, b = sought[-1], seeking[-1]
    gone = relays.pop(0)
    gone.end()
    a.until("moved", lambda seen: len(seen["places"]) < 2)
    return pair(a, b)


if __name__ == "__main__":
    print(json.dumps(matrix(sys.argv[1].split(","), sys.argv[2].split(","))))
