"""The far ends of bench_blobs: a donor of one blob, our transport alone, plain TCP.

    python -m tests.bench.blob_donor NUMBER MIB FOLDER

The first line of stdout is JSON: where it listens, and the blob. It runs until stdin ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import trio

from blyan_proto.protocols import blobs as proto
from blyand.compute import Threads
from blyand.net.connections import PeerInfo
from blyand.net.host import open_host
from blyand.net.stream import MessageStream, Serve
from blyand.protocols import blobs as ends
from blyand.protocols.uploads import Uploads
from blyand.store.blobs import BlobStore
from tests.bench.transport_ends import WAIT_S, listen, settings

SOURCE = "/blyan/bench/source/1"
PART_BYTES = 1 << 20


def content(mib: int) -> np.ndarray:
    """Return the blob's tensor: equal for every donor."""
    return np.random.default_rng(7).integers(0, 256, mib << 20, np.uint8)


def give(body: memoryview) -> Serve:
    """Send the blob's bytes from memory, framed, for each empty frame."""

    async def serve(stream: MessageStream) -> None:
        while await stream.receive_or_end(8, WAIT_S) is not None:
            for at in range(0, len(body), PART_BYTES):
                part = body[at : at + PART_BYTES]
                prefix = len(part).to_bytes(4, "big")
                await stream.send_framed(memoryview(prefix), WAIT_S)
                await stream.send_framed(part, WAIT_S)

    return serve


def give_bare(body: memoryview) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """Send the blob's bytes for each byte that comes."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some(1):
                await stream.send_all(body)

    return serve


async def serve(number: int, mib: int, folder: Path) -> None:
    store = BlobStore(folder)
    array = content(mib)
    body = memoryview(array)
    blob = store.put_array(array, durable=False)
    async with open_host(settings(number)) as host, trio.open_nursery() as nursery:

        async def admit(info: PeerInfo) -> None:
            host.admit(info.peer_id)

        host.on_connected(admit)
        host.handle(SOURCE, give(body), deadline_s=None, bulk=True)
        host.handle(
            proto.PROTOCOL_ID,
            ends.serve(store, Threads("disk", 2), Uploads()),
            concurrency=16,
            deadline_s=None,
            bulk=True,
        )
        said = {
            "ours": host.addresses[0],
            "tcp": await listen(nursery, give_bare(body)),
            "blob": blob.hex(),
        }
        print(json.dumps(said), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
    store.close()


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
