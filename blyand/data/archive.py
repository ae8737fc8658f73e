"""Text becomes a dataset: an archive made in a worker, a blob, a block on chain D."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from blyan_proto.block.block import Block
from blyan_proto.block.data import Dataset
from blyan_proto.constants import FORMAT_VERSION
from blyan_tile.corpus import ArchiveJob, ArchiveResult
from blyan_tile.jobs import Progress
from blyand.compute import Threads, Worker
from blyand.store.blobs import BlobStore

STANDARD_LIBRARY = "the Python standard library on the author's machine"
HELD_OUT_PPM = 30_000


async def add(
    directory: str,
    name: str,
    max_bytes: int,
    worker: Worker,
    blobs: BlobStore,
    lane: Threads,
    make: Callable[..., Awaitable[Block]],
    work: Path,
    report: Callable[[Progress], None],
    license: str = "",
) -> tuple[Block, ArchiveResult]:
    """Archive a directory's text (or the standard library's) and publish it.

    `license` is an SPDX expression; that of the standard library is known.
    LimitExceeded when there is no text; ComputeFault when it cannot be read.
    """
    out = work / f"archive-{name.encode().hex()[:32]}"
    result: ArchiveResult = await worker.call(
        ArchiveJob(directory, str(out), max_bytes, HELD_OUT_PPM), report
    )
    await lane.run(blobs.put_file, out)
    block = await make(
        Dataset(
            version=FORMAT_VERSION,
            name=name,
            blob=result.blob,
            bytes=result.bytes,
            files=result.files,
            held_out_ppm=HELD_OUT_PPM,
            license=license or ("" if directory else "PSF-2.0"),
            source="" if directory else STANDARD_LIBRARY,
            near_duplicates=result.near_duplicates,
            parent=None,
        ),
        subject=name,
    )
    return block, result
