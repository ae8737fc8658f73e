"""Checkpoints by validators: from a block's submission to its finality on all of them.

    python -m tests.bench.bench_consensus [--quick] [--daemons]

First table: the daemon's own voter, chain and stores (LevelDB, intent log, synced), all
validators in one process and on its one core, with messages by function call that take
no time, or 40 ms each way. The floor beside it, in the same run: what a message there and
back three times over that wire takes (proposal, prevote, precommit), and one synced write
of the intent log. Second table: transactions executed a second, all pending beforehand on
every validator. With --daemons: real daemons on loopback, then with a proxy before each
that delays every byte by 40 ms; payments by RPC, one after the other; from the call to
its return, and until the last daemon has executed it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Heartbeat, Transfer
from blyan_proto.checkpoint import VoteStage
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Balance, Genesis
from blyan_proto.signing import SigningKey
from blyand.clock import SystemClock
from blyand.compute import Threads
from blyand.errors import NotHere
from blyand.events import BlockStored
from blyand.store.db import open_store
from blyand.store.intents import IntentLog
from tests.bench.delays import delayed
from tests.functional.harness import Network, network
from tests.sim import network as sim
from tests.sim.network import SimNode, make_network
from tests.unit.daemon.chain_world import child_of, sign_block

SIZES = (1, 4, 7, 16)
WARMING = 4  # payments while the mesh forms
ONE_WAY_S = 0.04
AUTHORS, PER_AUTHOR = 16, 128  # transfers in the second table


class SteadyWire(sim.Wire):
    """Every message takes the same time."""

    async def reach(self, source: str, target: str) -> SimNode:
        await trio.sleep(self.delay_s)
        if not self.connects(source, target):
            raise NotHere(f"{target} is not connected")
        return self.nodes[target]


def made(folder: Path, count: int, delay_s: float, *more: SigningKey) -> list[SimNode]:
    """Return validators on real stores; `more` own something from the start."""
    genesis, plain, _ = make_network(count, count, folder / "plan", validators=count)
    balances = tuple(Balance(key.account, 10**12) for key in more)
    genesis = replace(
        genesis,
        time_ms=time.time_ns() // 1_000_000 - 1_000,
        balances=genesis.balances + balances,
    )
    wire = SteadyWire(plain[0].wire.random, 0.0, delay_s)
    wire.names = plain[0].wire.names
    for one in plain:
        home = folder / one.name
        home.mkdir()
        store = open_store(home / "db")
        node = SimNode(one.name, genesis, one.key, wire, home, store)  # type: ignore
        wire.nodes[one.name] = node
    return list(wire.nodes.values())


@asynccontextmanager
async def alive(nodes: list[SimNode]):
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        while any(node.voter.is_learning for node in nodes):  # type: ignore[union-attr]
            await trio.sleep(0.05)
        yield
        nursery.cancel_scope.cancel()
    for node in nodes:
        node.store.close()


async def latencies(
    folder: Path, count: int, delay_s: float, turns: int
) -> list[float]:
    """Return seconds from submission on one node to finality on all, `turns` times."""
    nodes = made(folder, count, delay_s)
    found = []
    async with alive(nodes):
        for turn in range(turns):
            node = nodes[turn % count]
            # Between two heights: what waits for the interval is not the agreement.
            await trio.sleep(node.voter.timing.interval + delay_s + 0.05)
            began = time.monotonic()
            block = await node.author.make(Heartbeat(FORMAT_VERSION, None, b"", turn))
            while any(one.blocks.outcome(block.id) is None for one in nodes):
                await trio.sleep(0.001)
            found.append(time.monotonic() - began)
    return found


async def throughput(folder: Path, count: int) -> tuple[int, float]:
    """Return how many transfers became final in how many seconds."""
    keys = [SigningKey(bytes([n + 1]) * 32) for n in range(AUTHORS)]
    nodes = made(folder, count, 0.0, *keys)
    blocks = transfers(nodes[0].genesis, keys)
    async with alive(nodes):
        for node in nodes:
            await node.intake.submit_many(blocks, "bench", is_final=True)
            for block in blocks:
                node.pool.add(block)
        began = time.monotonic()
        for node in nodes:
            node.events.publish(BlockStored(blocks[0]))
        while any(len(node.pool) for node in nodes):
            await trio.sleep(0.005)
        took = time.monotonic() - began
        good = [nodes[-1].blocks.outcome(block.id) for block in blocks]
        assert all(one is not None and one.code == 0 for one in good)
    return len(blocks), took


def transfers(genesis: Genesis, keys: list[SigningKey]) -> list[Block]:
    """Return each author's payments, one standing on the other."""
    blocks = []
    for key in keys:
        chain: list[Block] = []
        for n in range(PER_AUTHOR):
            pays = Transfer(FORMAT_VERSION, keys[0].account, 1_000 + n, 10_000, "")
            fields = {"sequence": n + 1, "time_ms": genesis.time_ms}
            chain.append(
                child_of(genesis, key, pays, chain[-1], **fields)
                if chain
                else sign_block(genesis, key, pays, **fields)
            )
        blocks += chain
    return blocks


def promise_s(folder: Path) -> float:
    """Return what one promise in an intent log takes, synced."""
    log = IntentLog(folder / "promises")
    times = []
    for height in range(200):
        began = time.perf_counter()
        log.record_vote(height, 0, VoteStage.PREVOTE, bytes(32))
        times.append(time.perf_counter() - began)
    log.close()
    return statistics.median(times)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def one_process(quick: bool) -> None:
    sim.InlineLane = lambda: Threads("bench", 2)  # type: ignore[misc,assignment]
    SimNode.clock = SystemClock()  # type: ignore[assignment]
    turns = 8 if quick else 100
    with tempfile.TemporaryDirectory() as name:
        promise = promise_s(Path(name))
    print(f"\none promise, synced: {promise * 1e3:.2f} ms; {os.cpu_count()} cores\n")
    print("| validators | round trip | p50 | p99 | floor: 3 messages, 3 promises |")
    print("| --- | --- | --- | --- | --- |")
    for delay_s in (0.0, ONE_WAY_S):
        for count in SIZES[1:3] if quick else SIZES:
            with tempfile.TemporaryDirectory() as name:
                found = trio.run(latencies, Path(name), count, delay_s, turns)
            hops = 0.0 if count == 1 else 3 * delay_s
            print(
                f"| {count} | {2000 * delay_s:.0f} ms | {quantile(found, 0.5) * 1e3:.0f} ms "
                f"| {quantile(found, 0.99) * 1e3:.0f} ms "
                f"| {(hops + 3 * promise) * 1e3:.0f} ms |",
                flush=True,
            )
    print("\n| validators | transfers | seconds | transfers a second |")
    print("| --- | --- | --- | --- |")
    for count in (1, 4):
        with tempfile.TemporaryDirectory() as name:
            done, took = trio.run(throughput, Path(name), count)
        print(f"| {count} | {done} | {took:.2f} | {done / took:.0f} |", flush=True)


def daemons(quick: bool) -> None:
    print(
        "\n| daemons, all validate | round trip | p50 until it returns | p50 on all "
        "| p99 on all |"
    )
    print("| --- | --- | --- | --- | --- |")
    for count in (4,) if quick else SIZES:
        with (
            tempfile.TemporaryDirectory() as name,
            network(Path(name) / "d", count, validators=count) as net,
        ):
            for delay_s in (0.0, ONE_WAY_S) if count > 1 else (0.0,):
                with delayed(net, delay_s) if delay_s else nullcontext():
                    paid(net, WARMING)
                    returned, everywhere = paid(net, 20 if quick else 40)
                print(
                    f"| {count} | {2000 * delay_s:.0f} ms "
                    f"| {quantile(returned, 0.5) * 1e3:.0f} ms "
                    f"| {quantile(everywhere, 0.5) * 1e3:.0f} ms "
                    f"| {quantile(everywhere, 0.99) * 1e3:.0f} ms |",
                    flush=True,
                )


def paid(net: Network, turns: int) -> tuple[list[float], list[float]]:
    to = net[-1].status()["account"]
    returned, everywhere = [], []
    clients = [node.client() for node in net.nodes]
    for turn in range(turns):
        time.sleep(0.3)
        client = clients[turn % len(clients)]
        began = time.monotonic()
        client.call("ledger.send", {"to": to, "amount_micro": 1 + turn})
        returned.append(time.monotonic() - began)
        height = client.call("node.status")["finalised"]
        for other in clients:
            while other.call("node.status")["finalised"] < height:
                time.sleep(0.002)
        everywhere.append(time.monotonic() - began)
    for client in clients:
        client.close()
    return returned, everywhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--daemons", action="store_true", help="real ones as well")
    options = parser.parse_args()
    one_process(options.quick)
    if options.daemons:
        daemons(options.quick)


if __name__ == "__main__":
    main()
