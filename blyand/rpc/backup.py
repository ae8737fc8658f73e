"""Answers node.backup: this node's home, saved while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from blyan_proto.rpc import node as spec
from blyan_proto.rpc.errors import BACKUP_REFUSED, RpcError
from blyan_proto.rpc.parts import Progress
from blyand.backup import back_up
from blyand.compute import Threads
from blyand.errors import ConfigFault, LocalFault, StorageFault
from blyand.home import Home
from blyand.rpc.bind import Answers, Emit
from blyand.store.blobs import BlobStore
from blyand.store.db import LevelStore


def bind(
    answers: Answers,
    *,
    home: Home,
    database: LevelStore,
    blobs: BlobStore,
    height: Callable[[], int],
    lane: Threads,
) -> None:
    """Bind node.backup. `lane` copies; one backup is made at a time."""
    turn = trio.Lock()

    @answers(spec.backup)
    async def backup(params: spec.Backup, emit: Emit) -> spec.BackedUp:
        to = Path(params.directory)
        if not to.is_absolute() or "\0" in params.directory:
            raise RpcError(BACKUP_REFUSED, f"{params.directory!r} is no absolute path")
        if turn.locked():
            raise RpcError(BACKUP_REFUSED, "another backup is being made; wait for it")
        finalised = height()
        send, receive = trio.open_memory_channel[Progress](1)

        def report(stage: str, done: int, total: int | None) -> None:
            item = Progress(f"saving {stage}", done, total, stage)
            try:
                trio.from_thread.run_sync(send.send_nowait, item)
            except trio.WouldBlock:
                pass  # the reader is slow; the next sign of progress says more

        async def relay() -> None:
            async for item in receive:
                await emit(item)

        refused: LocalFault | None = None
        async with turn, trio.open_nursery() as nursery:
            nursery.start_soon(relay)
            try:
                count, size = await lane.run(back_up, home, database, blobs, to, report)
            except (ConfigFault, StorageFault) as error:
                refused = error
            finally:
                send.close()
        if refused is not None:
            raise RpcError(BACKUP_REFUSED, str(refused))
        return spec.BackedUp(
            directory=str(to), blobs=count, blob_bytes=size, finalised=finalised
        )
