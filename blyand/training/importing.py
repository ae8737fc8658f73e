"""A foreign checkpoint becomes a model of this network: cut in a worker, then published.

While the worker cuts, what is cut becomes durable blobs here, group by group, and is
noted in the import's journal: after a kill of either, the same import goes on there.
Only when everything is cut and sound is anything published.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from blyan_proto.block.model import Model
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_tile.jobs import Progress
from blyan_tile.model.import_hf import ImportJob, ImportResult, Journal
from blyand.compute import Threads, Worker
from blyand.errors import ComputeFault, Unavailable
from blyand.store.blobs import BlobStore

Report = Callable[[str, int, int], Awaitable[None]]  # stage, done, total
TRIES = 3  # of a whole import, when retention took blobs of an earlier one


async def cut(
    directory: str,
    work: Path,
    worker: Worker,
    blobs: BlobStore,
    lane: Threads,
    report: Report,
) -> ImportResult:
    """Return what a folder holds once all its tiles are durable blobs.

    `lane`: its threads sync files; many of them wait for a disk hardly longer than one.
    `work` is this import's own folder, kept when it fails. ProtocolError names what is
    wrong with the checkpoint; Unavailable when this machine could not go on.
    """
    journal = Journal(work)
    for _ in range(TRIES):
        result = await _cut_once(directory, work, journal, worker, blobs, lane, report)
        lost = await lane.run(_lost, blobs, journal, result)
        if not lost:
            return result
    raise Unavailable(
        "the blobs of the import go faster than they come; is a disk full?"
    )


async def _cut_once(
    directory: str,
    work: Path,
    journal: Journal,
    worker: Worker,
    blobs: BlobStore,
    lane: Threads,
    report: Report,
) -> ImportResult:
    send, receive = trio.open_memory_channel[Progress](float("inf"))  # one per group

    async def take_over() -> None:
        async for progress in receive:
            await _take(progress.done - 1, work, journal, blobs, lane)
            await report("cutting", progress.done, progress.total)

    result: ImportResult | None = None
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        try:
            job = ImportJob(directory, str(work))
            result = await worker.call(job, send.send_nowait)
        except ProtocolError as error:
            failure = error
        except ComputeFault as error:
            failure = Unavailable(f"{error}; the same command goes on where it was")
        finally:
            send.close()
    if result is None:
        assert failure is not None
        raise failure
    await _put(work / result.companions.hex(), blobs, lane)
    return result


async def _take(
    group: int, work: Path, journal: Journal, blobs: BlobStore, lane: Threads
) -> None:
    """Make the tiles of a group durable, unless that was done in an earlier life."""
    try:
        tiles = await lane.run(journal.noted, group)
    except FileNotFoundError:
        return
    async with trio.open_nursery() as nursery:  # syncs wait for the disk together
        for root in {tile.weights for tile in tiles}:
            nursery.start_soon(_put, work / root.hex(), blobs, lane)
    await lane.run(journal.taken, group)


async def _put(path: Path, blobs: BlobStore, lane: Threads) -> None:
    if path.exists():  # else another group had the same tile
        try:
            await lane.run(blobs.put_file, path)
        except ProtocolError as error:
            path.unlink()
            raise Unavailable(
                f"a tile in {path.parent} was damaged ({error}) and is removed; the same "
                "command goes on where it was"
            ) from error


def _lost(blobs: BlobStore, journal: Journal, result: ImportResult) -> bool:
    """Forget the groups of which something is no durable blob; True if there are any."""
    lost = False
    for index, tiles in enumerate(result.groups):
        if not all(blobs.is_durable(tile.weights) for tile in tiles):
            journal.lost(index)
            lost = True
    return lost or not blobs.is_durable(result.companions)


def model_of(result: ImportResult, name: str, replication: int) -> Model:
    """Return the payload of an imported model's block."""
    return Model(
        version=FORMAT_VERSION,
        name=name,
        architecture=result.architecture,
        tokenizer=result.companions.hex(),
        dtype=result.dtype,
        replication=replication,
        note=f"imported: {result.family}",
    )
