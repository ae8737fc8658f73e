"""A remote expert beside the same one in process, a raw echo, and hivemind's: one run.

    python -m tests.bench.bench_expert [--quick] [--hivemind PYTHON] [--widths 512,1024]
        [--batches 1,64,2048] [--threads 1]

Two processes over loopback TCP, TLS and our muxer: one serves /blyan/expert/1 with the
real server, batcher and blobs; this one calls it as a session does, one call at a time,
in turns with the computation in process, the same bytes echoed over a stream of the
same kind, and hivemind's remote expert of the same shape, so that all see the same
machine. Compare figures of one run only. PYTHON is one with hivemind 1.1.12 installed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trio

from blyan_proto.block.model import Model
from blyan_proto.protocols import expert as wire
from blyan_proto.signing import SigningKey
from blyan_tile.create import architecture_of, initial_parameters, model_of
from blyan_tile.layout import Group, Layout, group_root, layout_of, split
from blyand.compute import Threads, thread_environment
from blyand.inference.batch import Batcher, Work, forward_rows
from blyand.inference.call import make_call
from blyand.inference.experts import Experts
from blyand.inference.routes import Routes
from blyand.inference.scatter import Layer, Scatter, Tally
from blyand.inference.serve import ExpertServer
from blyand.inference.versions import Tiles, Versions
from blyand.metrics import Metrics
from blyand.net.calls import open_calls
from blyand.net.connections import PeerInfo
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.stream import MessageStream
from blyand.protocols import expert
from blyand.store.blobs import BlobStore
from tests.bench.bench_transport import Hivemind, program

ECHO = "/blyan/bench/echo/1"
HIDDEN = {256: 384, 512: 1376, 1024: 2816}  # of a SwiGLU expert, by width
NAMES = {
    "local": "in process",
    "own": "own queue",
    "echo": "raw echo",
    "remote": "remote expert",
    "hivemind": "hivemind remote",
    "hivemind local": "hivemind local",
}
Times = dict[str, list[float]]  # kind: seconds of each call


@dataclass(frozen=True)
class Scale:
    """Rounds, and calls of each kind in one round, by rows."""

    rounds: int
    calls: dict[int, int]

    def calls_of(self, rows: int) -> int:
        return next(self.calls[most] for most in sorted(self.calls) if rows <= most)


FULL = Scale(12, {8: 40, 128: 12, 8192: 1})
QUICK = Scale(4, {8: 25, 128: 6, 8192: 1})


class Holder:
    """One expert of a model of a width, ready to serve."""

    def __init__(self, directory: Path, width: int) -> None:
        heads = width // 64
        architecture = replace(
            architecture_of("demo"),
            layers=1,
            width=width,
            heads=heads,
            kv_heads=heads,
            head_width=64,
            expert_width=HIDDEN[width],
        )
        self.id = bytes([width // 256]) * 32
        self.model: Model = replace(
            model_of("demo", "bench"), architecture=architecture
        )
        self.layout: Layout = layout_of(self.model)
        self.group: Group = self.layout.group_named("layer0.expert0")
        blobs = BlobStore(directory / str(width))
        tiles = split(self.group, initial_parameters(architecture, 1))
        self.tiles: Tiles = tuple(blobs.put_array(t, durable=False) for t in tiles)
        self.root = group_root(self.tiles)
        self.experts = Experts(blobs, 1 << 30, Metrics())
        self.batcher = Batcher(self.experts, Threads("inference", 1))

    def answer(self, lane: Threads) -> expert.Answer:
        versions = Versions()
        versions.offer(self.id, self.group.index, self.tiles)
        model = {self.id: self.model}.get
        return ExpertServer(model, versions, self.batcher, lane, Metrics()).answer

    def work(self, x: np.ndarray) -> Work:
        places = np.arange(len(x))
        return Work(self.layout, self.group, self.root, self.tiles, x, places)

    def heads(self) -> Any:
        """What a session would have pinned, as far as it is looked at."""
        index = self.group.index
        return SimpleNamespace(
            model=self.id,
            layout=self.layout,
            roots={index: self.root},
            tiles={index: self.tiles},
            expert=lambda layer, expert: self.group,
        )

    def layer(self, x: np.ndarray) -> Layer:
        return Layer(
            heads=self.heads(),
            index=0,
            x=x,
            rows={0: np.arange(len(x))},
            tally=Tally(),
            deadline_s=float("inf"),
            is_stale=lambda: False,
        )


def call_of(layer: Layer) -> wire.Forward:
    rows, numerics = layer.rows, wire.Numerics.REFERENCE
    return make_call(layer.heads, layer.index, rows, layer.x, numerics)


def settings(number: int) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32)


async def serve(widths: list[int]) -> None:
    """Serve until stdin ends; the first line of stdout is the address."""
    with tempfile.TemporaryDirectory() as directory:
        holders = [Holder(Path(directory), width) for width in widths]
        lane = Threads("wire", 2)
        answers = {holder.id: holder.answer(lane) for holder in holders}
        async with open_host(settings(1)) as host, trio.open_nursery() as nursery:

            async def admit(info: PeerInfo) -> None:
                host.admit(info.peer_id)

            async def echo(stream: MessageStream) -> None:
                while body := await stream.receive_or_end(wire.MAX_MESSAGE_BYTES, 600):
                    await stream.send(body)

            async def answer(peer: str, call: wire.Forward) -> wire.Outputs:
                return await answers[call.model](peer, call)

            host.on_connected(admit)
            host.handle(ECHO, echo, deadline_s=None)
            host.handle(wire.PROTOCOL_ID, expert.serve(answer), deadline_s=None)
            for holder in holders:
                await nursery.start(holder.batcher.run)
            print(json.dumps(host.addresses[0]), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()


class Bench:
    """The client's ends."""

    def __init__(
        self, host: Host, client: expert.Client, peer: str, hivemind: Hivemind
    ) -> None:
        self.host, self.client, self.peer = host, client, peer
        self.lane, self.routes = Threads("wire", 2), Routes()
        self.hivemind = hivemind

    async def compare(self, holder: Holder, rows: int, scale: Scale) -> Times:
        """Return the seconds of each call of each kind."""
        width = holder.model.architecture.width
        x = np.random.default_rng(0).standard_normal((rows, width), np.float32)
        layer = holder.layer(x)
        body = wire.REQUEST.encode(call_of(layer))
        stream = await self.host.open_stream(self.peer, ECHO)
        here = holder.experts.get(
            holder.layout, holder.group, holder.root, holder.tiles
        )

        scatter = Scatter(
            "",
            holder.batcher,
            self.client,
            self.routes,
            lambda model, group: [self.peer],
            lambda model: frozenset(),
            self.lane,
        )

        async def remote() -> bytes:
            (made,) = (await scatter.outputs(layer)).values()
            return made[1].tobytes() if check else b""

        async def echo() -> None:
            await stream.send(body)
            await stream.receive(wire.MAX_MESSAGE_BYTES, 60)

        async def own() -> bytes:
            (made,) = await holder.batcher.compute([holder.work(x)])
            assert isinstance(made, np.ndarray)
            return made.tobytes() if check else b""

        async def local() -> None:
            with torch.no_grad():
                forward_rows(here, torch.from_numpy(x))

        check = True
        assert await remote() == await own(), "the same bits here and there"
        check = False
        kinds = {"local": local, "own": own, "echo": echo, "remote": remote}
        times: Times = defaultdict(list)
        count = scale.calls_of(rows)
        for turn in range(scale.rounds + 1):  # the first one warms up
            found = await in_turns(kinds, count)
            for name in ("remote", "local"):
                taken = await self.hivemind.ask(name, width, rows, count)
                if taken is not None:
                    found["hivemind" if name == "remote" else "hivemind local"] = taken
            if turn:
                for kind, taken in found.items():
                    times[kind] += taken
        await stream.close_write()
        await stream.aclose()
        return times


async def in_turns(
    kinds: dict[str, Callable[[], Awaitable[object]]], count: int
) -> Times:
    times: Times = defaultdict(list)
    for _ in range(count):
        for name, one in kinds.items():
            began = time.perf_counter()
            await one()
            times[name].append(time.perf_counter() - began)
    return times


def show(width: int, rows: int, times: Times) -> None:
    for kind, name in NAMES.items():
        if kind in times:
            least, p50, p99 = np.percentile(times[kind], (0, 50, 99)) * 1e3
            print(
                f"{width:>5} {rows:>5} {name:<16} {least:>9.2f} {p50:>9.2f} "
                f"{p99:>9.2f} {rows / p50 * 1e3:>9.0f}"
            )
    for name, value, bar in bars(rows, times):
        verdict = "holds" if value <= bar else "BROKEN"
        print(f"{'':>11} {name:<44} {value:>8.2f} <= {bar:>8.2f}  {verdict}")


def bars(rows: int, times: Times) -> list[tuple[str, float, float]]:
    """Return (name, value, most) of what docs/benchmarks.md promises; ms."""
    p50 = {kind: float(np.median(taken)) * 1e3 for kind, taken in times.items()}
    p99 = {kind: float(np.percentile(t, 99)) * 1e3 for kind, t in times.items()}
    made = []
    if rows == 1:
        made.append(("p50: local + 1.0 ms", p50["remote"], p50["local"] + 1.0))
        made.append(("p99: 3 x the echo's", p99["remote"], 3 * p99["echo"]))
    elif rows < 1024:
        most = p50["local"] + 1.5 * p50["echo"]
        made.append(("p50: local + 1.5 x the echo", p50["remote"], most))
    else:
        made.append(("p50: 1.15 x local", p50["remote"], 1.15 * p50["local"]))
    if "hivemind" in p50:
        made.append(("p50: hivemind's", p50["remote"], p50["hivemind"]))
    return made


async def measure(
    widths: list[int], batches: list[int], scale: Scale, python: str | None
) -> None:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        hivemind = Hivemind(None)
        if python is None:
            print("hivemind: skipped, no --hivemind PYTHON was given")
        else:
            script = Path(__file__).parent / "expert_hivemind.py"
            shapes = [f"{width}:{HIDDEN[width]}" for width in widths]
            command = (python, "-W", "ignore", str(script), *shapes)
            hivemind = Hivemind((await enter(program(*command)))[0])
        chosen = ",".join(map(str, widths))
        module = (sys.executable, "-m", "tests.bench.bench_expert")
        _, address = await enter(program(*module, "--serve", "--widths", chosen))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = await enter(open_host(settings(2)))
        calls = await enter(open_calls(host))
        nursery = await enter(trio.open_nursery())
        peer = await host.connect(address)
        bench = Bench(host, expert.Client(calls), peer, hivemind)
        print(
            f"{'d':>5} {'rows':>5} {'kind':<16} {'least ms':>9} {'p50':>9} {'p99':>9} "
            f"{'rows/s':>9}"
        )
        for width in widths:
            holder = Holder(directory, width)
            await nursery.start(holder.batcher.run)
            for rows in batches:
                show(width, rows, await bench.compare(holder, rows, scale))
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hivemind", metavar="PYTHON")
    parser.add_argument("--widths", default="512,1024")
    parser.add_argument("--batches", default="1,64,2048")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    wanted = thread_environment(asked.threads)
    if not wanted.items() <= os.environ.items():  # torch reads them when imported
        os.environ.update(wanted)
        os.execv(sys.executable, [*sys.orig_argv])
    torch.set_num_threads(asked.threads)
    widths = [int(width) for width in asked.widths.split(",")]
    if asked.serve:
        trio.run(serve, widths)
        return
    batches = [int(rows) for rows in asked.batches.split(",")]
    scale = QUICK if asked.quick else FULL
    trio.run(measure, widths, batches, scale, asked.hivemind)


if __name__ == "__main__":
    main()
