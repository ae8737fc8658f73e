"""Thirty nodes for some minutes while they are killed and come back.

Six are daemons, killed by SIGKILL; the others are hosts with a book, a dialer and hello
in this process, whose connections are cut without a word. Checkpoints go by gossip
through all of them: every live node has to hear them.

Run: python -m tests.bench.bench_churn [MINUTES]
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

import trio

from blyan_proto.protocols.hello import PROTOCOL_ID, Greeting, KnownPeers
from blyan_proto.signing import SigningKey
from blyan_proto.topics import CHECKPOINT
from blyan_proto.types import Role
from blyand import genesis as genesis_file
from blyand.errors import Unavailable
from blyand.net.connections import PeerInfo
from blyand.net.gossip import Verdict
from blyand.net.host import Host, HostSettings, open_host
from blyand.protocols.hello import Greeter
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.functional.test_churn import HELD, publish

MINUTES = 10.0
DAEMONS, LIGHT = 6, 24
NEIGHBOURS = 4  # that a light node dials
CYCLE_S = 20.0
ROUNDS_S = 12.0  # in which what is new has to be everywhere


class Light:
    """A node without a chain: it meets peers, and counts the checkpoints it hears."""

    def __init__(self, network_id: bytes) -> None:
        self.network, self.key = network_id, SigningKey(os.urandom(32))
        self.heard: set[bytes] = set()
        self.address = ""
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def stop(self) -> None:
        """End it; one after the other, or they all close slowly and not at all."""
        self.scope.cancel()
        await self.ended.wait()

    def greeting(self) -> Greeting:
        return Greeting(
            network=self.network,
            software="light/1",
            roles=int(Role.SERVE),
            region="",
            addresses=(self.address,) if self.address else (),
            model=None,
            held=b"",
            finalised=0,
            checkpoint=self.network,
        )

    async def run(self, others: list[str], started: trio.Event) -> None:
        with self.scope:
            async with open_host(HostSettings(self.key, self.network)) as host:
                self.address = host.addresses[0]
                greeter = Greeter(
                    self.key,
                    self.greeting,
                    lambda _: KnownPeers(()),
                    lambda peer, _: host.admit(peer),
                )
                host.handle(PROTOCOL_ID, greeter.serve(), before_hello=True)
                await host.gossip.listen(CHECKPOINT, self._hear)
                started.set()
                await self._mingle(host, greeter, others)
        self.ended.set()

    async def _mingle(self, host: Host, greeter: Greeter, others: list[str]) -> None:
        while True:
            here: tuple[PeerInfo, ...] = host.peers()
            if len(here) < NEIGHBOURS and others:
                address = random.choice(others)
                try:
                    peer = await host.connect(address)
                    await greeter.greet(host, peer)
                    host.admit(peer)
                except Unavailable:
                    await trio.sleep(0.2)
            await trio.sleep(0.3)

    async def _hear(self, peer: str, raw: bytes) -> Verdict:
        self.heard.add(raw)
        return Verdict.ACCEPT


async def churn(net: Network, minutes: float) -> list[str]:
    """Kill and bring back; return what went wrong."""
    wrong: list[str] = []
    genesis = genesis_file.load(net[0].home / "genesis.json")
    lights: list[Light] = []
    addresses = [node.address for node in net.nodes]

    async with trio.open_nursery() as nursery:

        async def join() -> None:
            light, started = Light(genesis.id), trio.Event()
            nursery.start_soon(light.run, addresses, started)
            await started.wait()
            lights.append(light)
            addresses.append(light.address)

        for _ in range(LIGHT):
            await join()
        until = trio.current_time() + 60 * minutes
        cycle = 0
        print("| cycle | live | heard by all | tasks | files | peers | RSS MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        while cycle < 3 or trio.current_time() < until:
            cycle += 1
            began = trio.current_time()
            for light in random.sample(lights, 4):
                lights.remove(light)
                addresses.remove(light.address)
                await light.stop()
            killed: Daemon = random.choice(net.nodes[1:])
            await trio.to_thread.run_sync(killed.kill)
            for _ in range(4):
                await join()
            await trio.to_thread.run_sync(killed.start)
            await trio.sleep(ROUNDS_S / 2)  # to find neighbours
            for light in lights:
                light.heard.clear()
            await trio.to_thread.run_sync(publish, net.nodes[-1], net.directory)
            await trio.sleep(ROUNDS_S)
            common = set.intersection(*(light.heard for light in lights))
            deaf = sum(not light.heard for light in lights)
            if deaf:
                wrong.append(f"cycle {cycle}: {deaf} nodes hear nothing")
            heights = [
                (await trio.to_thread.run_sync(node.status))["finalised"]
                for node in net.nodes
            ]
            if max(heights) - min(heights) > 8:
                wrong.append(f"cycle {cycle}: daemons at {heights}")
            seen = await trio.to_thread.run_sync(lambda: net[0].call("node.resources"))
            print(
                f"| {cycle} | {len(lights) + len(net.nodes)} | {len(common)} "
                f"| {seen['tasks']} | {seen['files']} | {seen['connections']} "
                f"| {seen['resident_bytes'] / 2**20:.1f} |",
                flush=True,
            )
            await trio.sleep(max(0.0, began + CYCLE_S - trio.current_time()))
        for light in lights:
            await light.stop()
    return wrong


def main(minutes: float) -> int:
    with tempfile.TemporaryDirectory(prefix="blyan-bench-") as directory:
        with network(Path(directory) / "d", DAEMONS) as net:
            before = rest(net)
            began = time.monotonic()
            wrong = trio.run(churn, net, minutes)
            print(f"\n{time.monotonic() - began:.0f} s")
            after = rest(net)
    print(f"the first daemon at rest, before: {before}\nafter:  {after}")
    twice = DAEMONS  # a pair that dialled each other at once has two connections
    if after["tasks"] > before["tasks"] + 10 * twice:
        wrong.append("tasks were left")
    if after["files"] > before["files"] + twice:
        wrong.append("files were left")
    print("\n".join(wrong))
    return 1 if wrong else 0


def rest(net: Network) -> dict[str, int]:
    """What the first daemon holds when only the daemons are there."""

    def quiet() -> dict[str, int] | None:
        looks = [net[0].call("node.resources") for _ in range(8)]
        seen = {name: min(one[name] for one in looks) for name in HELD}
        return seen if seen["connections"] == DAEMONS - 1 else None

    found: dict[str, int] = wait_for(quiet, "only the daemons are there", 60.0)
    return found


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
