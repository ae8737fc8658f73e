"""What it takes to bring a model or a dataset onto the chain from this node."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from blyan_proto.block.block import Block
from blyan_proto.rpc.errors import INVALID_PARAMS, RpcError
from blyand.compute import Threads, Worker
from blyand.store.blobs import BlobStore
from blyand.training.birth import Chain

MAX_NAME_BYTES = 128  # blyan_proto.types.Name


@dataclass(frozen=True)
class Publishing:
    """A worker of its own (never the learner's), the blobs, and the chain."""

    worker: Worker
    blobs: BlobStore
    lane: Threads
    syncs: Threads  # wider: files that wait for the disk
    chain: Chain
    work: Path  # scratch, on the file system of the blobs

    @property
    def make(self) -> Callable[..., Awaitable[Block]]:
        """What makes a block of ours and announces it."""
        return self.chain.make


@asynccontextmanager
async def scratch(publishing: Publishing) -> AsyncIterator[Path]:
    """Give a new empty folder, and remove it with all that is in it at the end."""
    path = publishing.work / f"job-{secrets.token_hex(8)}"
    path.mkdir(mode=0o700, parents=True)
    try:
        yield path
    finally:
        with trio.CancelScope(shield=True):
            await publishing.lane.run(shutil.rmtree, path, True)


def check_name(name: str) -> str:
    """Return `name` if a block may carry it as its subject, else RpcError."""
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES or not name.isprintable():
        raise RpcError(
            INVALID_PARAMS,
            f"a name is printable text of 1 to {MAX_NAME_BYTES} bytes, not {name!r}",
        )
    return name
