"""A remote expert beside a raw echo of the same bytes and the same expert in process.

    python -m tests.bench.bench_expert [--calls 200] [--threads 1]

Two processes over loopback TCP, TLS and our muxer: one serves /blyan/expert/1 with
the real server, batcher and blobs; this one calls it, one call at a time, in turns
with the echo and the local computation, so that all three see the same machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import trio

from blyan_proto.block.model import Model
from blyan_proto.protocols import expert as wire
from blyan_proto.signing import SigningKey
from blyan_tile.create import initial_parameters, model_of
from blyan_tile.layout import Group, Layout, group_root, layout_of, split
from blyand.compute import Threads, thread_environment
from blyand.inference.batch import Batcher, Work
from blyand.inference.experts import Experts
from blyand.inference.serve import ExpertServer
from blyand.inference.versions import Tiles, Versions
from blyand.metrics import Metrics
from blyand.net.calls import open_calls
from blyand.net.connections import PeerInfo
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.stream import MessageStream
from blyand.protocols import expert
from blyand.store.blobs import BlobStore

ID = b"\x01" * 32
ECHO = "/blyan/bench/echo/1"
BATCHES = (1, 64)
WARM_UP = 20


class Holder:
    """One expert of the demo model, ready to serve."""

    def __init__(self, directory: Path) -> None:
        self.model: Model = model_of("demo", "bench")
        self.layout: Layout = layout_of(self.model)
        self.group: Group = self.layout.group_named("layer0.expert0")
        blobs = BlobStore(directory)
        parameters = initial_parameters(self.model.architecture, 1)
        tiles = split(self.group, parameters)
        self.tiles: Tiles = tuple(blobs.put_array(t, durable=False) for t in tiles)
        self.root = group_root(self.tiles)
        self.metrics = Metrics()
        experts = Experts(blobs, 1 << 30, self.metrics)
        self.batcher = Batcher(experts, Threads("inference", 1))

    def server(self) -> ExpertServer:
        versions = Versions()
        versions.offer(ID, self.group.index, self.tiles)
        model = {ID: self.model}.get
        return ExpertServer(model, versions, self.batcher, self.metrics)


def settings(number: int) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32)


async def serve() -> None:
    """Serve until stdin ends; the first line of stdout is the address."""
    with tempfile.TemporaryDirectory() as directory:
        holder = Holder(Path(directory))
        async with open_host(settings(1)) as host, trio.open_nursery() as nursery:

            async def admit(info: PeerInfo) -> None:
                host.admit(info.peer_id)

            async def echo(stream: MessageStream) -> None:
                while body := await stream.receive_or_end(wire.MAX_MESSAGE_BYTES, 60):
                    await stream.send(body)

            host.on_connected(admit)
            host.handle(ECHO, echo, deadline_s=None)
            answer = expert.serve(holder.server().answer)
            host.handle(wire.PROTOCOL_ID, answer, deadline_s=None)
            await nursery.start(holder.batcher.run)
            print(host.addresses[0], flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()


async def measure(address: str, calls: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        holder = Holder(Path(directory))
        async with (
            open_host(settings(2)) as host,
            open_calls(host) as streams,
            trio.open_nursery() as nursery,
        ):
            client = expert.Client(streams)
            await nursery.start(holder.batcher.run)
            peer = await host.connect(address)
            print(f"d {holder.model.architecture.width}, {calls} calls of each kind")
            print(f"{'rows':>5} {'kind':<14} {'p50 ms':>8} {'p99 ms':>8} {'kB':>7}")
            for rows in BATCHES:
                await compare(holder, host, client, peer, rows, calls)
            nursery.cancel_scope.cancel()


async def compare(
    holder: Holder,
    host: Host,
    client: expert.Client,
    peer: str,
    rows: int,
    calls: int,
) -> None:
    width = holder.model.architecture.width
    x = np.random.default_rng(0).standard_normal((rows, width), np.float32)
    places = np.arange(rows)
    work = Work(holder.layout, holder.group, holder.root, holder.tiles, x, places)
    numbers = places.astype("<u2").tobytes()
    call = wire.Forward(
        model=ID,
        numerics=wire.Numerics.REFERENCE,
        width=width,
        experts=(wire.ExpertRows(holder.group.index, holder.root, numbers),),
        activations=x.tobytes(),
    )
    body = wire.REQUEST.encode(call)
    stream = await host.open_stream(peer, ECHO)

    async def remote() -> bytes:
        return (await client.forward(peer, call))[0]

    async def raw_echo() -> bytes:
        await stream.send(body)
        return await stream.receive(wire.MAX_MESSAGE_BYTES, 60)

    async def local() -> bytes:
        (made,) = await holder.batcher.compute([work])
        assert isinstance(made, np.ndarray)
        return made.tobytes()

    assert await remote() == await local(), "the same bits here and there"
    kinds = {"remote expert": remote, "raw echo": raw_echo, "local expert": local}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(WARM_UP + calls):
        for name, one in kinds.items():
            began = time.perf_counter()
            await one()
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - began) * 1e3)
    await stream.close_write()
    await stream.aclose()
    for name, taken in times.items():
        p50, p99 = np.percentile(taken, (50, 99))
        size = 0.0 if name == "local expert" else len(body) / 1e3
        print(f"{rows:>5} {name:<14} {p50:>8.2f} {p99:>8.2f} {size:>7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    wanted = thread_environment(asked.threads)
    if not wanted.items() <= os.environ.items():  # torch reads them when imported
        os.environ.update(wanted)
        os.execv(sys.executable, [*sys.orig_argv])
    if asked.serve:
        trio.run(serve)
        return
    command = [sys.executable, "-m", "tests.bench.bench_expert", "--serve"]
    command += ["--threads", str(asked.threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            trio.run(measure, server.stdout.readline().strip(), asked.calls)
        finally:
            server.stdin.close()


if __name__ == "__main__":
    main()
