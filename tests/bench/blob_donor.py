"""The far ends of bench_blobs: a donor of one blob, our transport alone, plain TCP.

    python -m tests.bench.blob_donor NUMBER MIB FOLDER

The first line of stdout is JSON: where it listens, and the blob. It runs until stdin ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import trio

from blyan_proto.protocols import blobs as proto
from blyand.compute import Threads
from blyand.net.connections import PeerInfo
from blyand.net.host import open_host
from blyand.net.stream import MessageStream
from blyand.protocols import blobs as ends
from blyand.protocols.uploads import Uploads
from blyand.store.blobs import BlobStore
from tests.bench.transport_ends import WAIT_S, listen, settings

SOURCE = "/blyan/bench/source/1"
PART_BYTES = 1 << 20


def content(mib: int) -> np.ndarray:
    """Return the blob's tensor: equal for every donor."""
    return np.random.default_rng(7).integers(0, 256, mib << 20, np.uint8)


async def give(stream: MessageStream) -> None:
    """Send as many bytes as are asked for, in parts."""
    part = os.urandom(PART_BYTES)
    while (ask := await stream.receive_or_end(8, WAIT_S)) is not None:
        for _ in range(int.from_bytes(ask, "big") // PART_BYTES):
            await stream.send(part)


async def give_bare(stream: trio.SocketStream) -> None:
    """Send as many bytes as the first eight bytes say."""
    part = os.urandom(PART_BYTES)
    async with stream:
        while ask := await stream.receive_some(8):
            for _ in range(int.from_bytes(ask, "big") // PART_BYTES):
                await stream.send_all(part)


async def serve(number: int, mib: int, folder: Path) -> None:
    store = BlobStore(folder)
    blob = store.put_array(content(mib), durable=False)
    async with open_host(settings(number)) as host, trio.open_nursery() as nursery:

        async def admit(info: PeerInfo) -> None:
            host.admit(info.peer_id)

        host.on_connected(admit)
        host.handle(SOURCE, give, deadline_s=None, bulk=True)
        host.handle(
            proto.PROTOCOL_ID,
            ends.serve(store, Threads("disk", 2), Uploads()),
            concurrency=16,
            deadline_s=None,
            bulk=True,
        )
        said = {
            "ours": host.addresses[0],
            "tcp": await listen(nursery, give_bare),
            "blob": blob.hex(),
        }
        print(json.dumps(said), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
    store.close()


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
