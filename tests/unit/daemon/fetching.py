"""A process that fetches one blob: python -m tests.unit.daemon.fetching ADDRESS BLOB FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from blyand.compute import Threads
from blyand.net.host import open_host
from blyand.protocols.blobs import Client
from blyand.protocols.fetch import Fetcher
from blyand.store.blobs import BlobStore
from tests.unit.daemon.test_net_stream import settings


async def main(address: str, blob: str, folder: str) -> None:
    store = BlobStore(Path(folder))
    async with open_host(settings(2)) as host:
        peer = await host.connect(address)
        fetcher = Fetcher(Client(host), store, Threads("disk", 2), lambda: [peer])
        await fetcher.get(bytes.fromhex(blob))
    store.close()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
