"""A blob from one donor and from three, beside plain TCP and our transport: one run, in turns.

    python -m tests.bench.bench_blobs [--quick] [--mib N] [--rounds N]

Donors are processes of their own, on loopback. Compare figures of one run only. "in
memory": leaves checked and dropped; "file": checked and written, fsync shown apart.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import trio

from blyan_tile.tblock import Outline
from blyand.compute import Threads
from blyand.net.host import Host, open_host
from blyand.protocols.blobs import Client
from blyand.protocols.fetch import Fetcher
from blyand.protocols.gather import Body
from blyand.store.blobs import BlobStore
from blyand.store.medium import Medium
from tests.bench.bench_transport import MIB, program
from tests.bench.blob_donor import PART_BYTES, SOURCE, content
from tests.bench.transport_ends import WAIT_S, settings
from tests.sim.network import InlineLane

DONORS = 3
OPEN_MIB = 128
SAMPLE_S = 0.02


class Dropping:
    """An arriving blob of which nothing is kept."""

    def __init__(self, outline: Outline, here: set[bytes]) -> None:
        self._outline, self._here = outline, here
        self._missing = set(range(len(outline.leaves)))

    def missing(self) -> tuple[int, ...]:
        return tuple(sorted(self._missing))

    def write_leaves(self, leaves: Iterable[Body]) -> None:
        self._missing.difference_update(index for index, _ in leaves)

    def finish(self, *, durable: bool = True) -> bytes:
        assert not self._missing
        self._here.add(self._outline.root)
        return self._outline.root

    def close(self) -> None: ...


class Memory:
    """A store that keeps nothing."""

    def __init__(self) -> None:
        self.here: set[bytes] = set()

    def has(self, root: bytes) -> bool:
        return root in self.here

    def begin_fetch(self, outline: Outline) -> Dropping:
        return Dropping(outline, self.here)


class Timed(Medium):
    """The disk; how long fdatasync took."""

    synced_s = 0.0

    def sync(self, fd: int) -> None:
        began = time.perf_counter()
        super().sync(fd)
        self.synced_s += time.perf_counter() - began


@contextmanager
def peak() -> Iterator[list[float]]:
    """Give [RSS before, highest RSS meanwhile], in MiB."""
    page = os.sysconf("SC_PAGE_SIZE")
    over = threading.Event()

    def rss() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page / MIB

    seen = [rss(), 0.0]

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            seen[1] = max(seen[1], rss())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        seen[1] = max(seen[1], rss())


class Bench:
    """What is measured, of `size` bytes each time."""

    def __init__(self, host: Host, donors: list[Any], size: int, folder: Path) -> None:
        self.host, self.donors, self.size, self.folder = host, donors, size, folder
        self.peers = [said["peer"] for said in donors]
        self.blob = bytes.fromhex(donors[0]["blob"])
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.rss: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.files = 0

    async def time(self, kind: str, work: Callable[[], Awaitable[float]]) -> None:
        with peak() as seen:
            here, there = time.process_time(), self._donors_cpu_s()
            began = time.perf_counter()
            apart = await work()
            self.seconds[kind].append(time.perf_counter() - began - apart)
            here, there = time.process_time() - here, self._donors_cpu_s() - there
            self.cpu[kind].append((here, there))
        self.rss[kind] = max(self.rss[kind], seen[1] - seen[0])
        if apart:
            self.seconds[f"{kind}: fsync"].append(apart)

    def _donors_cpu_s(self) -> float:
        ticks = 0
        for said in self.donors:
            fields = Path(f"/proc/{said['pid']}/stat").read_text().rsplit(") ")[1]
            ticks += sum(map(int, fields.split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    async def tcp(self) -> float:
        stream = await trio.open_tcp_stream("127.0.0.1", self.donors[0]["tcp"])
        async with stream:
            await stream.send_all(b"x")
            count = 0
            while count < self.size:
                count += len(await stream.receive_some(256 * 1024))
        return 0.0

    async def transport(self) -> float:
        peer = self.peers[0]
        async with await self.host.open_stream(peer, SOURCE, bulk=True) as stream:
            await stream.send(b"")
            room, count = memoryview(bytearray(PART_BYTES)), 0
            while count < self.size:
                parts = await stream.receive_into(0, room, WAIT_S)
                assert parts is not None
                count += parts[1]
        return 0.0

    def in_memory(self, donors: int) -> Callable[[], Awaitable[float]]:
        async def fetch() -> float:
            await self._fetch(Memory(), InlineLane(), donors)
            return 0.0

        return fetch

    def to_file(self, donors: int) -> Callable[[], Awaitable[float]]:
        async def fetch() -> float:
            self.files += 1
            folder = self.folder / str(self.files)
            medium = Timed(folder)
            store = BlobStore(folder, medium=medium)
            await self._fetch(store, Threads("disk", 2), donors)
            store.delete(self.blob)
            store.close()
            return medium.synced_s

        return fetch

    async def _fetch(self, store: Any, lane: Any, donors: int) -> None:
        peers = self.peers[:donors]
        fetcher = Fetcher(Client(self.host), store, lane, lambda: peers)
        await fetcher.get(self.blob, peers)

    async def run(self, rounds: int) -> None:
        ways = {"TCP": self.tcp, "transport": self.transport}
        for donors in (1, DONORS):
            ways[f"in memory, {donors} donor(s)"] = self.in_memory(donors)
            ways[f"file, {donors} donor(s)"] = self.to_file(donors)
        await self.transport()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            for kind, work in ways.items():
                await self.time(kind, work)

    def show(self) -> None:
        rates = {k: self.size / MIB / median(s) for k, s in self.seconds.items()}
        print(
            f"\n{'':<24}{'MiB/s':>8}{'of TCP':>8}{'of ours':>8}{'RSS +MiB':>10}"
            f"{'CPU s here':>12}{'donors':>8}"
        )
        for kind, rate in rates.items():
            if kind.endswith("fsync"):
                print(f"{kind:<24}{median(self.seconds[kind]):>8.2f} s")
                continue
            tcp, ours = rate / rates["TCP"], rate / rates["transport"]
            here, there = map(median, zip(*self.cpu[kind]))
            print(
                f"{kind:<24}{rate:>8.0f}{tcp:>8.2f}{ours:>8.2f}{self.rss[kind]:>10.0f}"
                f"{here:>12.3f}{there:>8.2f}"
            )
        for kind, bar in (("in memory", 0.8), ("file", 0.6)):
            best = rates[f"{kind}, 1 donor(s)"] / rates["transport"]
            verdict = "met" if best >= bar else "MISSED"
            print(f"{kind}, 1 donor / transport: {best:.2f} >= {bar}: {verdict}")


def time_opening(folder: Path, mib: int, rounds: int) -> None:
    """How long until a tensor of a serving copy can be used, by format."""
    array = content(mib)
    store = BlobStore(folder / "open", open_views=0)  # none is remembered
    root = store.put_array(array)
    np.save(folder / "a.npy", array)
    (folder / "a.pickle").write_bytes(pickle.dumps(array, protocol=5))

    ways: dict[str, Callable[[], Any]] = {
        "TBLOCK": lambda: store.open_array(root),
        "numpy.load, mapped": lambda: np.load(folder / "a.npy", mmap_mode="r"),
        "numpy.load": lambda: np.load(folder / "a.npy"),
        "pickle": lambda: pickle.loads((folder / "a.pickle").read_bytes()),
    }
    try:
        from safetensors import safe_open
        from safetensors.numpy import save_file
    except ImportError:
        print("\nsafetensors is not installed: numpy.load, mapped, is what it does")
    else:
        save_file({"a": array}, folder / "a.safetensors")

        def safetensors() -> Any:
            with safe_open(folder / "a.safetensors", "np") as file:
                return file.get_tensor("a")

        ways["safetensors"] = safetensors
    print(f"\n{f'open {mib} MiB, ms':<24}{'open':>8}{'and sum':>9}")
    for kind, load in ways.items():
        taken, summed = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            opened = load()
            taken.append(time.perf_counter() - began)
            assert int(opened[::4096].sum(dtype=np.int64))
            summed.append(time.perf_counter() - began)
            del opened
        print(f"{kind:<24}{median(taken) * 1e3:>8.2f}{median(summed) * 1e3:>9.2f}")


async def measure(mib: int, rounds: int, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        host = await enter(open_host(settings(9)))
        donors = []
        for number in range(1, DONORS + 1):
            home = folder / f"donor{number}"
            process, said = await enter(
                program(
                    *(sys.executable, "-m", "tests.bench.blob_donor"),
                    *map(str, (number, mib, home)),
                )
            )
            said["peer"] = await host.connect(said["ours"])
            said["pid"] = process.pid
            donors.append(said)
        bench = Bench(host, donors, mib * MIB, folder)
        await bench.run(rounds)
        bench.show()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--mib", type=int)
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    mib = given.mib or (32 if given.quick else 256)
    rounds = given.rounds or (2 if given.quick else 5)
    with tempfile.TemporaryDirectory(prefix="blyan-blobs-") as folder:
        trio.run(measure, mib, rounds, Path(folder))
        time_opening(Path(folder), 32 if given.quick else OPEN_MIB, max(3, rounds))


if __name__ == "__main__":
    main()
