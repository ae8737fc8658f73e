"""What a gossiped message costs: 10 and 20 nodes, a process each, without torch.

    python -m tests.bench.bench_gossip [--nodes 10 20] [--messages 30] [--burst 1000]

Each node is a host and its gossip, nothing else, dialled to 4 others at random. One
message a second of 1 KiB, then of 64 KiB, from each node in turn; then a burst of
small messages from one node. CPU is that of all processes above their idle, divided by
deliveries; wire is bytes received, envelopes included, by bytes delivered.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from typing import Any

import trio

from blyan_proto.signing import SigningKey
from blyan_proto.topics import BLOCK
from blyand.net.gossip import GOSSIP, Verdict
from blyand.net.host import Host, HostSettings, open_host

DEGREE = 4
IDLE_S = 5.0
GRACE_S = 6.0  # after the last message: what gossip repairs, it repairs by then
SIZES = (1024, 65_536)
BURST_BYTES = 100
HEAD_BYTES = 12  # which message, and when it left


class Node:
    """One process: obeys a line of JSON at a time on stdin, answers on stdout."""

    def __init__(self, number: int, host: Host) -> None:
        self.number, self.host = number, host
        self.delays: list[float] = []

    async def check(self, peer: str, raw: bytes) -> Verdict:
        left = int.from_bytes(raw[4:HEAD_BYTES], "big")
        self.delays.append((time.time_ns() - left) / 1e6)
        return Verdict.ACCEPT

    async def publish(self, number: int, size: int) -> None:
        head = number.to_bytes(4, "big") + time.time_ns().to_bytes(8, "big")
        await self.host.gossip.publish(BLOCK, head + bytes(size - HEAD_BYTES))

    async def obey(self, order: dict[str, Any]) -> Any:
        if order["do"] == "dial":
            for address in order["to"]:
                await self.host.connect(address)
        elif order["do"] == "peers":
            return len(self.host.gossip.peers(BLOCK))
        elif order["do"] == "burst":
            for number in range(order["messages"]):
                await self.publish(number, order["size"])
        elif order["do"] == "turns":
            for number in range(self.number, order["messages"], order["nodes"]):
                moment = order["from"] + number * order["gap"]
                await trio.sleep(max(0.0, moment - time.time()))
                await self.publish(number, order["size"])
        elif order["do"] == "count":
            delays, self.delays = self.delays, []
            down = self.host.traffic().get(GOSSIP, (0, 0))[1]
            return {"cpu": time.process_time(), "down": down, "delays": delays}
        return None

    async def run(self) -> None:
        await self.host.gossip.listen(BLOCK, self.check)
        print(json.dumps(self.host.addresses[0]), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(await self.obey(json.loads(line))), flush=True)


async def serve(number: int) -> None:
    key = SigningKey((number + 1).to_bytes(32, "big"))
    async with open_host(HostSettings(key, b"\x07" * 32)) as host:
        assert "torch" not in sys.modules
        await Node(number, host).run()


class Net:
    """All processes, and the orders they are given together."""

    def __init__(self, nodes: int) -> None:
        command = [sys.executable, "-m", "tests.bench.bench_gossip", "--serve"]
        self.nodes = [
            subprocess.Popen(
                [*command, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(nodes)
        ]
        self.addresses = [self._answer(node) for node in self.nodes]

    def _answer(self, node: Any) -> Any:
        return json.loads(node.stdout.readline())

    def tell(self, node: Any, do: str, **more: Any) -> None:
        node.stdin.write(json.dumps({"do": do, **more}) + "\n")
        node.stdin.flush()

    def all(self, do: str, **more: Any) -> list[Any]:
        for node in self.nodes:
            self.tell(node, do, **more)
        return [self._answer(node) for node in self.nodes]

    def dial(self) -> None:
        order = random.Random(7)
        for place, node in enumerate(self.nodes):
            before = self.addresses[:place]
            self.tell(node, "dial", to=order.sample(before, min(DEGREE // 2, place)))
            self._answer(node)
        while min(self.all("peers")) < 1:
            time.sleep(0.1)
        time.sleep(3)  # meshes settle

    def close(self) -> None:
        for node in self.nodes:
            node.stdin.close()
        for node in self.nodes:
            node.wait(20)


def report(
    name: str, sent: int, size: int, idle: float, before: list[Any], after: list[Any]
) -> None:
    nodes = len(after)
    delays = sorted(delay for node in after for delay in node["delays"])
    wanted = sent * (nodes - 1)
    cpu = sum(a["cpu"] - b["cpu"] for a, b in zip(after, before)) - idle
    down = sum(a["down"] - b["down"] for a, b in zip(after, before))
    got = max(len(delays), 1)
    p50, p99 = (delays[int(part * (got - 1))] if delays else 0 for part in (0.5, 0.99))
    print(
        f"{nodes:>5} {name:<10} {cpu * 1e3 / got:>13.2f} {p50:>8.1f} {p99:>8.1f}"
        f" {down / got / size:>12.2f} {1 - len(delays) / wanted:>7.2%}",
        flush=True,
    )


def measure(nodes: int, messages: int, burst: int) -> None:
    net = Net(nodes)
    try:
        net.dial()
        before = net.all("count")
        time.sleep(IDLE_S)
        after = net.all("count")
        rate = sum(a["cpu"] - b["cpu"] for a, b in zip(after, before)) / IDLE_S
        print(f"{nodes:>5} idle: {rate / nodes:.2%} of a core for each node")
        for size in SIZES:
            before, began = net.all("count"), time.time()
            order = {"messages": messages, "nodes": nodes, "size": size, "gap": 1.0}
            net.all("turns", **order, **{"from": time.time() + 0.5})
            time.sleep(GRACE_S)
            after, took = net.all("count"), time.time() - began
            report(f"{size >> 10} KiB", messages, size, rate * took, before, after)
        before, began = net.all("count"), time.time()
        net.tell(net.nodes[0], "burst", messages=burst, size=BURST_BYTES)
        net._answer(net.nodes[0])
        time.sleep(GRACE_S + burst * nodes / 500)
        after, took = net.all("count"), time.time() - began
        report(f"burst {burst}", burst, BURST_BYTES, rate * took, before, after)
    finally:
        net.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--messages", type=int, default=30)
    parser.add_argument("--burst", type=int, default=1000)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        trio.run(serve, asked.serve)
        return
    print(
        f"{'nodes':>5} {'messages':<10} {'CPU ms/deliv.':>13} {'p50 ms':>8}"
        f" {'p99 ms':>8} {'wire/payload':>12} {'loss':>7}"
    )
    for nodes in asked.nodes:
        measure(nodes, asked.messages, asked.burst)


if __name__ == "__main__":
    main()
