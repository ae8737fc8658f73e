"""Our streams beside TCP, a TLS stream, noise with yamux, and hivemind: one run, in turns.

    python -m tests.bench.bench_transport [--quick] [--hivemind PYTHON]

Two processes over loopback, without torch. Rounds take turns, so that all see the same
machine; compare figures of one run only. PYTHON is one with hivemind 1.1.12 installed.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import trio

from blyand.net.calls import Calls, open_calls
from blyand.net.host import Host, open_host
from blyand.net.mux.driver import PROTOCOL_ID as MUX
from blyand.net.mux.window import WINDOW_BYTES
from blyand.net.stream import MessageStream
from tests.bench.transport_ends import (
    CALL,
    ECHO,
    MOST_BYTES,
    SINK,
    WAIT_S,
    read_frame,
    send_frame,
    settings,
)

SIZES = {1 << 10: 200, 64 << 10: 60, 1 << 20: 12, 4 << 20: 4}  # calls of a round
PART_BYTES = 1 << 20
ROUND_TRIPS_S = (0.02, 0.08, 0.15)
IN_FLIGHT = 32
START_S = 120.0
HIVEMIND_S = 30.0  # for one answer: it is known to hang
MIB = 1 << 20

Call = Callable[[bytes], Awaitable[object]]
Times = dict[tuple[str, int], list[float]]


class Scale:
    """How much is measured."""

    def __init__(self, quick: bool) -> None:
        self.rounds = 2 if quick else 7
        self.share = 4 if quick else 1  # of the calls of SIZES
        self.bulk_bytes = (64 if quick else 256) * MIB
        self.seconds = 0.5 if quick else 3.0  # of what is counted by time
        self.probes = 100 if quick else 1000  # small messages of a round, beside bulk
        self.far_bytes = (16 if quick else 128) * MIB


@asynccontextmanager
async def program(*command: str) -> AsyncIterator[tuple[subprocess.Popen[str], Any]]:
    """Run a process that ends with its stdin; give it and what it said first."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with trio.fail_after(START_S):
            said = await trio.to_thread.run_sync(
                process.stdout.readline, abandon_on_cancel=True
            )
        yield process, json.loads(said)
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()


def ends(*arguments: object) -> tuple[str, ...]:
    module = [sys.executable, "-m", "tests.bench.transport_ends"]
    return (*module, *map(str, arguments))


class Hivemind:
    """hivemind's client, asked over a pipe; no more once it hung, which it may."""

    def __init__(self, process: subprocess.Popen[str] | None) -> None:
        self._process = process

    async def ask(self, *request: object) -> Any:
        """Return its answer, or None."""
        if (process := self._process) is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        with trio.move_on_after(HIVEMIND_S):
            line = await trio.to_thread.run_sync(
                process.stdout.readline, abandon_on_cancel=True
            )
            return json.loads(line) if line else None
        print(f"hivemind hung at {request}")
        self._process = None
        process.kill()
        return None


class Bench:
    """The client's ends of all transports, and what was measured."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.calls: dict[str, Call] = {}  # kind: one echo
        self.sinks: dict[str, Callable[[int], Awaitable[float]]] = {}  # seconds
        self.times: Times = defaultdict(list)
        self.bulk: dict[str, list[float]] = defaultdict(list)  # bytes/s
        self.rates: dict[str, list[float]] = defaultdict(list)  # calls/s
        self.beside: dict[str, list[float]] = defaultdict(list)
        self.pushed: dict[str, list[float]] = defaultdict(list)  # bytes/s meanwhile
        self.hivemind = Hivemind(None)

    async def time_calls(self) -> None:
        for size, most in SIZES.items():
            body, count = os.urandom(size), max(2, most // self.scale.share)
            for kind, call in self.calls.items():
                if size > CALL.max_bytes and kind == "pooled call":
                    continue
                await call(body)
                slow = kind == "noise, yamux" and size >= MIB
                for _ in range(1 if slow else count):
                    began = time.perf_counter()
                    await call(body)
                    self.times[kind, size].append(time.perf_counter() - began)
            await self.hivemind.ask("rpc", size, 1)
            if (taken := await self.hivemind.ask("rpc", size, count)) is not None:
                self.times["hivemind", size] += taken

    async def time_bulk(self) -> None:
        size = self.scale.bulk_bytes
        for kind, push in self.sinks.items():
            share = size // 16 if kind == "noise, yamux" else size
            self.bulk[kind].append(share / await push(share))
        if (seconds := await self.hivemind.ask("bulk", size // 2)) is not None:
            self.bulk["hivemind"].append(size / 2 / seconds)

    async def count_calls(self) -> None:
        body = os.urandom(1024)
        for kind in ("pooled call", "fresh stream"):
            done, began = 0, time.perf_counter()
            async with trio.open_nursery() as nursery:

                async def work() -> None:
                    nonlocal done
                    while time.perf_counter() - began < self.scale.seconds:
                        await self.calls[kind](body)
                        done += 1

                for _ in range(IN_FLIGHT):
                    nursery.start_soon(work)
            self.rates[kind].append(done / (time.perf_counter() - began))
        rate = await self.hivemind.ask("calls", self.scale.seconds)
        if rate is not None:
            self.rates["hivemind"].append(rate)

    async def time_beside(self, host: Host, peer: str) -> None:
        """Small messages on one connection with a bulk stream, or without."""
        most = median(self.bulk["ours"])
        body, call = os.urandom(1024), self.calls["ours"]
        for kind, rate in (("idle", 0.0), ("half", most / 2), ("uncapped", 1e12)):
            async with trio.open_nursery() as nursery:
                if rate:
                    sent = await nursery.start(push_on, host, peer, rate)
                began = time.perf_counter()
                for _ in range(self.scale.probes):
                    before = time.perf_counter()
                    await call(body)
                    self.beside[kind].append(time.perf_counter() - before)
                    await trio.sleep(0.001)
                if rate:
                    pushed = sent[0] / (time.perf_counter() - began)
                    self.pushed[kind].append(pushed)
                nursery.cancel_scope.cancel()


async def push_on(
    host: Host, peer: str, rate: float, task_status: trio.TaskStatus[list[int]]
) -> None:
    """Send bulk at `rate` bytes/s until cancelled."""
    part, sent = os.urandom(PART_BYTES // 4), [0]
    async with await host.open_stream(peer, SINK, bulk=True) as stream:
        task_status.started(sent)
        began = trio.current_time()
        while True:
            await trio.sleep_until(began + sent[0] / rate)
            await stream.send(part)
            sent[0] += len(part)


def on_stream(stream: MessageStream) -> Call:
    async def call(body: bytes) -> None:
        await stream.send(body)
        await stream.receive(MOST_BYTES, WAIT_S)

    return call


def on_fresh(host: Host, peer: str) -> Call:
    async def call(body: bytes) -> None:
        async with host.request(peer, ECHO, WAIT_S) as stream:
            await stream.send(body)
            await stream.close_write()
            await stream.receive(MOST_BYTES, WAIT_S)
            await stream.receive_or_end(MOST_BYTES, WAIT_S)

    return call


def on_pool(calls: Calls, peer: str) -> Call:
    async def call(body: bytes) -> None:
        await calls.call(peer, CALL, body, bytes)

    return call


def into_sink(host: Host, peer: str) -> Callable[[int], Awaitable[float]]:
    part = os.urandom(PART_BYTES)

    async def push(size: int) -> float:
        async with await host.open_stream(peer, SINK, bulk=True) as stream:
            began = time.perf_counter()
            for _ in range(size // PART_BYTES):
                await stream.send(part)
            await stream.send(b"")
            count = await stream.receive(8, WAIT_S)
            assert int.from_bytes(count, "big") == size
            return time.perf_counter() - began

    return push


async def add_bare(bench: Bench, stack: AsyncExitStack, name: str, port: int) -> None:
    """Add a limit: trio's TCP or TLS, with the same frames."""

    async def dial(first: bytes) -> tuple[trio.abc.Stream, bytearray]:
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
        if name == "TLS stream":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            stream = trio.SSLStream(stream, context)  # type: ignore[arg-type]
        await stack.enter_async_context(stream)
        await stream.send_all(first)
        return stream, bytearray()

    echoing, sinking, part = await dial(b"E"), await dial(b"S"), os.urandom(PART_BYTES)

    async def call(body: bytes) -> None:
        await send_frame(echoing[0], body)
        await read_frame(*echoing)

    async def push(size: int) -> float:
        began = time.perf_counter()
        for _ in range(size // PART_BYTES):
            await send_frame(sinking[0], part)
        await send_frame(sinking[0], b"")
        await read_frame(*sinking)
        return time.perf_counter() - began

    bench.calls[name], bench.sinks[name] = call, push


async def time_far(address: str, scale: Scale) -> list[tuple[float, float]]:
    """Return (round trip, bytes/s) through roads that take their time."""
    found = []
    port = address.split("/")[4]
    async with program(*ends("delay", port, *ROUND_TRIPS_S)) as (_, ports):
        for number, (seconds, far) in enumerate(zip(ROUND_TRIPS_S, ports)):
            async with open_host(settings(10 + number)) as host:
                peer = await host.connect(
                    address.replace(f"/tcp/{port}", f"/tcp/{far}")
                )
                push = into_sink(host, peer)
                await push(8 * MIB)
                found.append((seconds, scale.far_bytes / await push(scale.far_bytes)))
    return found


async def measure(scale: Scale, python: str | None) -> None:
    bench, script = Bench(scale), Path(__file__).parent / "transport_hivemind.py"
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if python is not None:
            command = (python, "-W", "ignore", str(script))
            bench.hivemind = Hivemind((await enter(program(*command)))[0])
        _, at = await enter(program(*ends("serve")))
        host, old = await enter(open_host(settings(2))), await enter(
            open_host(settings(3))
        )
        security = old._network.upgrader.security_multistream.transports
        security.pop(next(iter(security)))
        old._network.upgrader.muxer_multistream.transports.pop(MUX)
        peer = await host.connect(at["ours"])
        await old.connect(at["ours"])
        assert [wire.security for wire in old.wires()] == ["/noise"], old.wires()
        calls = await enter(open_calls(host))
        bench.calls["ours"] = on_stream(await host.open_stream(peer, ECHO))
        bench.calls["fresh stream"] = on_fresh(host, peer)
        bench.calls["pooled call"] = on_pool(calls, peer)
        bench.calls["noise, yamux"] = on_stream(await old.open_stream(peer, ECHO))
        bench.sinks["ours"] = into_sink(host, peer)
        bench.sinks["noise, yamux"] = into_sink(old, peer)
        await add_bare(bench, stack, "TCP", at["tcp"])
        await add_bare(bench, stack, "TLS stream", at["tls"])
        for number in range(scale.rounds):
            print(f"round {number + 1} of {scale.rounds}", flush=True)
            await bench.time_calls()
            await bench.time_bulk()
            await bench.count_calls()
            await bench.time_beside(host, peer)
        far = await time_far(at["ours"], scale)
    show(bench, far)


def show(bench: Bench, far: list[tuple[float, float]]) -> None:
    kinds = list(dict.fromkeys(kind for kind, _ in bench.times))
    print(f"\n{'echo, ms':<14}" + "".join(f"{s >> 10:>14} KiB" for s in SIZES))
    print(f"{'':<14}" + f"{'p50':>9}{'p99':>9}" * len(SIZES))
    for kind in kinds:
        cells = ""
        for size in SIZES:
            taken = bench.times.get((kind, size))
            p50, p99 = np.percentile(taken, (50, 99)) * 1e3 if taken else (0, 0)
            cells += f"{p50:>9.2f}{p99:>9.2f}" if taken else f"{'-':>9}" * 2
        print(f"{kind:<14}{cells}")
    print(f"\n{'one way':<14}{'MiB/s':>9}")
    for kind, rates in bench.bulk.items():
        print(f"{kind:<14}{median(rates) / MIB:>9.0f}")
    print(f"\n{'32 in flight':<14}{'calls/s':>9}   1 KiB")
    for kind, rates in bench.rates.items():
        print(f"{kind:<14}{median(rates):>9.0f}")
    print(f"\n{'beside bulk':<14}{'p50 ms':>9}{'p99 ms':>9}{'MiB/s':>9}   1 KiB")
    for kind, taken in bench.beside.items():
        p50, p99 = np.percentile(taken, (50, 99)) * 1e3
        pushed = median(bench.pushed[kind]) / MIB if kind in bench.pushed else 0
        print(f"{kind:<14}{p50:>9.2f}{p99:>9.2f}{pushed:>9.0f}")
    print(f"\n{'round trip':<14}{'MiB/s':>9}{'window/RTT':>12}")
    for seconds, rate in far:
        limit = WINDOW_BYTES / seconds / MIB
        print(f"{seconds * 1e3:>4.0f} ms{'':<7}{rate / MIB:>9.1f}{limit:>12.1f}")
    show_bars(bench)


def show_bars(bench: Bench) -> None:
    p99 = {kind: np.percentile(t, 99) * 1e3 for kind, t in bench.beside.items()}
    bulk = {kind: median(rates) / MIB for kind, rates in bench.bulk.items()}
    bars = [
        ("p99 beside half bulk, ms", p99["half"], "<=", p99["idle"] + 5),
        ("one way, MiB/s: TLS stream", bulk["ours"], ">=", bulk["TLS stream"]),
    ]
    if "hivemind" in bench.bulk:
        p50 = {k: median(bench.times[k, 1024]) * 1e3 for k in ("ours", "hivemind")}
        bars += [
            ("1 KiB p50, ms: half hivemind's", p50["ours"], "<=", p50["hivemind"] / 2),
            ("one way: 3 x hivemind", bulk["ours"], ">=", 3 * bulk["hivemind"]),
        ]
    print()
    for name, found, sign, wanted in bars:
        held = found <= wanted if sign == "<=" else found >= wanted
        word = "ok" if held else "missed"
        print(f"{name:<32}{found:>9.2f} {sign} {wanted:<9.2f} {word}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hivemind", metavar="PYTHON")
    asked = parser.parse_args()
    load = os.getloadavg()
    print("load average: " + " ".join(f"{value:.1f}" for value in load))
    began = time.perf_counter()
    trio.run(measure, Scale(asked.quick), asked.hivemind)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
