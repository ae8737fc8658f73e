"""Intake of blocks: from a peer on loopback, and what the length of the chain costs.

    python -m tests.bench.bench_chain [--quick] [--blocks 100000]

Two processes, a host each: one serves blocks from its database by /blyan/blocks/1, the
other fetches them, 256 an answer, one answer ahead, and takes them in as a node that
follows does: decoded, digests and signatures checked, parents found, stored in LevelDB
and synced. The limits under it, in the same run: the same blocks from memory, their
decoding alone, their checking alone. Each block has two parents and a transfer.

The end of a long chain against its beginning: the first tenth into an empty database,
the last tenth into one that holds all before it, one after the other, five times.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from blyan_proto.block.block import Block, decode_block, encode_block
from blyan_proto.block.economy import Transfer
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.protocols.blocks import MAX_IDS, PROTOCOL_ID
from blyan_proto.signing import SigningKey
from blyand.chain.intake import Intake, Sources
from blyand.chain.pool import Pool
from blyand.clock import SystemClock
from blyand.compute import Threads
from blyand.events import Broadcast
from blyand.net.host import HostSettings, open_host
from blyand.poison import PoisonBox
from blyand.protocols import blocks as blocks_ends
from blyand.rules.chain.intake import check_many
from blyand.rules.chain.reconcile import IdSet
from blyand.store.blocks import BlockStore
from blyand.store.commit import GroupCommit
from blyand.store.db import open_store
from tests.unit.daemon.chain_world import (
    child_of,
    genesis_of,
    key,
    sign_block,
    verified,
)

AUTHORS = 16
REPEATS = 5
GROUP = 1000  # blocks of one batch when a database is filled beforehand

KEYS = [key(f"author {n}") for n in range(AUTHORS)]
GENESIS = genesis_of(KEYS, bytes(32))
Give = Callable[[Sequence[bytes]], Awaitable[Sequence[Block]]]


def make_blocks(count: int) -> list[Block]:
    """Return a DAG in which every block stands on the two before it."""
    made: list[Block] = []
    for number in range(count):
        author = KEYS[number % AUTHORS]
        payload = Transfer(FORMAT_VERSION, KEYS[0].account, number, 0, "")
        sequence = 1 + number // AUTHORS
        if not made:
            made.append(sign_block(GENESIS, author, payload))
            continue
        parents = made[-2:]
        made.append(child_of(GENESIS, author, payload, *parents, sequence=sequence))
    return made


def fill(folder: Path, blocks: Sequence[Block], known: Sequence[Block] = ()) -> None:
    """Put blocks into a database without the daemon."""
    store = open_store(folder)
    stored = BlockStore(store)
    for start in range(0, len(blocks), GROUP):
        some = blocks[start : start + GROUP]
        before = (*known[-2:], *blocks[:start][-2:])
        stored.put_many(verified(GENESIS, *some, known=before), None)
    store.close()


class Node:
    """A database with what takes blocks in."""

    def __init__(self, folder: Path) -> None:
        began = time.perf_counter()
        self.database = open_store(folder / "db")
        self.open_s = time.perf_counter() - began
        self.blocks = BlockStore(self.database)
        self.commit = GroupCommit(self.database)
        self.intake = Intake(
            GENESIS,
            self.blocks,
            self.commit,
            Pool(),
            Broadcast(),
            SystemClock(),
            Threads("chain", 2),
            PoisonBox(folder / "poison"),
            Sources(self._nothing, self._blame),
        )

    async def _nothing(self, peer: str, ids: Sequence[bytes]) -> Sequence[Block]:
        return ()

    def _blame(self, peer: str, error: Exception) -> None:
        raise RuntimeError(f"{peer} is blamed") from error

    async def take(self, ids: Sequence[bytes], give: Give) -> Pace:
        """Take in blocks, one answer ahead of their storing."""
        send, receive = trio.open_memory_channel[Sequence[Block]](1)

        async def fetch() -> None:
            async with send:
                for start in range(0, len(ids), MAX_IDS):
                    await send.send(await give(ids[start : start + MAX_IDS]))

        watch = Watch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch)
            async for got in receive:
                for one in await self.intake.submit_many(got, "peer", is_final=True):
                    if one.error is not None:
                        raise one.error
        return watch.pace(len(ids))


@asynccontextmanager
async def node_in(folder: Path) -> AsyncIterator[Node]:
    made = Node(folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.commit.run)
        await nursery.start(made.intake.run)
        yield made
        nursery.cancel_scope.cancel()
    made.database.close()


def settings(number: int) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), GENESIS.id)


# The peer


async def serve(folder: Path) -> None:
    """Serve the blocks of a database until stdin ends."""
    store = open_store(folder)
    stored = BlockStore(store)
    async with open_host(settings(1)) as host:
        handler = blocks_ends.serve(stored.get, IdSet(), Threads("disk", 2))
        host.handle(PROTOCOL_ID, handler, before_hello=True)
        print(json.dumps(host.addresses[0]), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
    store.close()


@asynccontextmanager
async def peer_with(folder: Path) -> AsyncIterator[Give]:
    """Start the serving process; give what fetches from it."""
    command = [sys.executable, "-m", "tests.bench.bench_chain", "--serve", str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        address = json.loads(process.stdout.readline())
        async with open_host(settings(2)) as host:
            peer = await host.connect(address)
            client = blocks_ends.Client(host)

            async def give(ids: Sequence[bytes]) -> Sequence[Block]:
                return await client.fetch(peer, ids)

            yield give
    finally:
        process.stdin.close()
        process.wait(20)


# Figures


@dataclass(frozen=True)
class Pace:
    """How fast some blocks went, and what they cost this process."""

    rate: float  # blocks a second
    cpu_us: float  # of all threads, for each block


class Watch:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def pace(self, count: int) -> Pace:
        took = time.perf_counter() - self._began
        return Pace(count / took, (time.process_time() - self._cpu) / count * 1e6)


def row(what: str, paces: Sequence[Pace], note: str = "") -> None:
    rates = [one.rate for one in paces]
    cpu_us = statistics.median(one.cpu_us for one in paces)
    spread = f"{min(rates):,.0f} … {max(rates):,.0f}"
    middle = statistics.median(rates)
    line = f"{what:<44} {middle:>10,.0f}   {spread:<20} {cpu_us:>8.0f}   {note}"
    print(line.rstrip(), flush=True)


def pace_of(work: Callable[[], object], count: int) -> Pace:
    watch = Watch()
    work()
    return watch.pace(count)


def limits(blocks: Sequence[Block]) -> None:
    raws = [encode_block(block) for block in blocks]
    decoding, checking = [], []
    for _ in range(REPEATS):
        fresh: list[Block] = []
        decoding.append(
            pace_of(lambda: fresh.extend(map(decode_block, raws)), len(raws))
        )
        checking.append(
            pace_of(lambda: check_many(fresh, GENESIS, None, []), len(raws))
        )
    row("decoding alone, one thread", decoding)
    row("checking alone, one thread", checking)


async def compare(made: Sequence[Block], home: Path, tenth: int) -> None:
    ids = [block.id for block in made]
    by_id = {block.id: block for block in made}
    long = home / "long"
    fill(long / "db", made[:-tenth])
    shutil.copytree(long / "db", home / "served")
    fill(home / "served", made[-tenth:], known=made[:-tenth])
    paces: dict[str, list[Pace]] = {"memory": [], "first": [], "last": []}
    opened = []

    async def remembered(some: Sequence[bytes]) -> Sequence[Block]:
        await trio.lowlevel.checkpoint()
        return [by_id[id] for id in some]

    async with peer_with(home / "served") as give:
        for number in range(REPEATS):
            for name, part, source in (
                ("memory", ids[:tenth], remembered),
                ("first", ids[:tenth], give),
                ("last", ids[-tenth:], give),
            ):
                folder = home / f"{name}{number}"
                if name == "last":
                    shutil.copytree(long, folder)
                async with node_in(folder) as node:
                    paces[name].append(await node.take(part, source))
                    opened.append((name, node.open_s))
                if name == "last":
                    began = time.perf_counter()
                    open_store(folder / "db").close()
                    opened.append(("full", time.perf_counter() - began))
                shutil.rmtree(folder)
    row("taken in from memory (no peer)", paces["memory"])
    row(f"from a peer, the first {tenth:,}", paces["first"], "limit: 2,000")
    last, first = (
        statistics.median(one.rate for one in paces[name]) for name in ("last", "first")
    )
    row(
        f"from a peer, the last {tenth:,} of {len(made):,}",
        paces["last"],
        f"{last / first:.2f} of the first; limit: 0.8",
    )
    full_s = statistics.median(s for name, s in opened if name == "full")
    print(
        f"opening the database of {len(made):,} blocks: {full_s * 1e3:.0f} ms, limit: 1 s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5,000 blocks")
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        trio.run(serve, asked.serve)
        return
    count = 5_000 if asked.quick else asked.blocks
    made = make_blocks(count)
    tenth = count // 10 if not asked.quick else 1_000
    print(
        f"{'blocks a second':<44} {'median':>10}   {'least … most':<20} {'CPU us':>8}"
    )
    limits(made[:2_000])
    with tempfile.TemporaryDirectory() as home:
        trio.run(compare, made, Path(home), tenth)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"memory of the taking process, with all blocks in it: {peak} MiB at most")


if __name__ == "__main__":
    main()
