"""A model is born on this node: first weights in a worker, then its blocks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from blyan_proto.block.block import Block
from blyan_proto.block.header import NO_LAYER
from blyan_proto.block.model import Model, Weights
from blyan_proto.constants import FORMAT_VERSION
from blyan_tile.create import CreateJob, CreateResult
from blyan_tile.layout import Layout
from blyand.compute import Threads, Worker
from blyand.rules.model.model import layout_for
from blyand.store.blobs import BlobStore

Report = Callable[[str, int, int], Awaitable[None]]  # stage, done, total


@dataclass(frozen=True)
class Born:
    """A model whose blocks are made."""

    id: bytes
    layout: Layout


async def create(
    model: Model,
    seed: int,
    worker: Worker,
    blobs: BlobStore,
    lane: Threads,
    make: Callable[..., Awaitable[Block]],
    work: Path,
    report: Report,
) -> Born:
    """Make first weights, keep them as blobs, publish the model and its groups.

    ComputeFault when the worker fails; nothing is published then.
    """
    layout = layout_for(model)
    await report("making first weights", 0, len(layout.groups))
    result: CreateResult = await worker.call(
        CreateJob(model=model, seed=seed, directory=str(work), momentum=False)
    )
    for index, tiles in enumerate(result.groups):
        for tile in tiles:
            path = work / tile.weights.hex()
            if path.exists():
                await lane.run(blobs.put_file, path)
        await report("storing", index + 1, len(layout.groups))
    block = await make(model, subject=model.name)
    for index, tiles in enumerate(result.groups):
        group = layout.groups[index]
        await make(
            Weights(FORMAT_VERSION, block.id, index, tiles),
            subject=group.name,
            layer=NO_LAYER if group.layer is None else group.layer,
            meta_ref=block.id,
        )
        await report("publishing", index + 1, len(layout.groups))
    return Born(block.id, layout)
