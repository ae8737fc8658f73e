"""A model is born on this node: first weights in a worker, then its blocks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from blyan_proto.block.block import Block, Unsigned
from blyan_proto.block.header import NO_LAYER
from blyan_proto.block.model import Model, TileRootsList, Weights
from blyan_proto.block.payload import KINDS
from blyan_proto.constants import FORMAT_VERSION
from blyan_tile.create import CreateJob, CreateResult
from blyan_tile.layout import Group, Layout
from blyand.compute import Threads, Worker
from blyand.errors import TooSlow
from blyand.rules.model.model import layout_for
from blyand.rules.records import GROUPS, MODELS
from blyand.rules.view import View
from blyand.store.blobs import BlobStore

Report = Callable[[str, int, int], Awaitable[None]]  # stage, done, total

AT_ONCE = 64  # blocks that are made with one sync
TILES_AT_ONCE = 1024  # that they name
MAX_AHEAD = 192  # blocks that no checkpoint took: whoever orders looks at them all
MAX_AHEAD_BYTES = 2048 * 36  # of their roots: validators ask for all of their blobs
ROOM_S = 300.0  # for one of them to be taken
LOOK_S = 0.05


@dataclass(frozen=True)
class Born:
    """A model whose blocks are made."""

    id: bytes
    layout: Layout


@dataclass(frozen=True)
class Chain:
    """What a model's birth needs of this node's chain."""

    make: Callable[..., Awaitable[Block]]
    make_many: Callable[[Sequence[Unsigned]], Awaitable[Sequence[Block]]]
    pending: Callable[[], Sequence[Block]]  # our own blocks that no checkpoint took
    view: Callable[[], View]
    account: bytes


async def create(
    model: Model,
    seed: int,
    weights: str,
    worker: Worker,
    blobs: BlobStore,
    lane: Threads,
    chain: Chain,
    work: Path,
    report: Report,
) -> Born:
    """Make first weights, keep them as blobs, publish the model and its groups.

    `weights`: a file of packed ones; empty: random ones from `seed`. ComputeFault when
    the worker fails, ProtocolError when the file is no good; nothing is published then.
    """
    layout = layout_for(model)
    await report("making first weights", 0, len(layout.groups))
    result: CreateResult = await worker.call(
        CreateJob(
            model=model, seed=seed, directory=str(work), momentum=False, weights=weights
        )
    )
    for index, tiles in enumerate(result.groups):
        for tile in tiles:
            path = work / tile.weights.hex()
            if path.exists():
                await lane.run(blobs.put_file, path)
        await report("storing", index + 1, len(layout.groups))
    return await publish(model, result.groups, None, chain, report)


async def publish(
    model: Model,
    groups: Sequence[TileRootsList],
    begun: bytes | None,
    chain: Chain,
    report: Report,
) -> Born:
    """Publish a model and the first weights of its groups; their blobs are here.

    `begun`: its block, when an earlier life came so far (`find_begun`); then only what
    is lacking is made. TooSlow when no checkpoint takes our blocks.
    """
    layout = layout_for(model)
    id = begun or (await chain.make(model, subject=model.name)).id
    known = _groups_known(id, chain) if begun else frozenset()
    missing = [group for group in layout.groups if group.index not in known]
    done = len(known)
    while missing:
        await _room(chain)
        some = _some(missing)
        missing = missing[len(some) :]
        await chain.make_many([_weights(id, g, groups[g.index]) for g in some])
        done += len(some)
        await report("publishing", done, len(groups))
    return Born(id, layout)


def _some(groups: Sequence[Group]) -> list[Group]:
    """Return the next groups whose blocks are made at once: few if they are large."""
    taken: list[Group] = []
    tiles = 0
    for group in groups[:AT_ONCE]:
        tiles += len(group.tiles)
        if taken and tiles > TILES_AT_ONCE:
            break
        taken.append(group)
    return taken


def _weights(model: bytes, group: Group, tiles: TileRootsList) -> Unsigned:
    return Unsigned(
        Weights(FORMAT_VERSION, model, group.index, tiles),
        subject=group.name,
        layer=NO_LAYER if group.layer is None else group.layer,
        meta_ref=model,
    )


def find_begun(
    model: Model, groups: Sequence[TileRootsList], chain: Chain
) -> bytes | None:
    """Return our block of exactly this model, executed or not; None without one.

    What is executed of its weights must be these too, and not be trained.
    """
    for record in MODELS.scan(chain.view()):
        same = replace(record.model, replication=model.replication) == model
        if same and record.creator == chain.account:
            known = list(GROUPS.scan(chain.view(), record.id))
            if all(one.tiles == groups[one.group] for one in known):
                return record.id
    for block in _pending(Model, chain):
        if block.content == model:
            return block.id
    return None


def _groups_known(model: bytes, chain: Chain) -> frozenset[int]:
    ordered = {record.group for record in GROUPS.scan(chain.view(), model)}
    waiting = (block.content for block in _pending(Weights, chain))
    return frozenset(ordered | {one.group for one in waiting if one.model == model})


def _pending(payload: type, chain: Chain) -> list[Block]:
    (code,) = (kind.code for kind in KINDS.values() if kind.payload is payload)
    return [block for block in chain.pending() if block.header.kind == code]


async def _room(chain: Chain) -> None:
    """Wait until checkpoints took enough of our blocks."""
    last, since = _ahead(chain), trio.current_time()
    while last >= 1.0:
        await trio.sleep(LOOK_S)
        now = _ahead(chain)
        if now < last:
            since = trio.current_time()
        elif trio.current_time() - since > ROOM_S:
            raise TooSlow(
                f"no checkpoint took a block of ours for {ROOM_S:g} s; "
                "`blyanctl consensus status` says what the next one waits for"
            )
        last = now


def _ahead(chain: Chain) -> float:
    """Return what waits of our blocks, as a share of what may."""
    waiting = chain.pending()
    size = sum(block.header.payload_bytes for block in waiting)
    return max(len(waiting) / MAX_AHEAD, size / MAX_AHEAD_BYTES)
