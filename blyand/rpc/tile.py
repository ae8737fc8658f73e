"""Answers about tiles: what this node holds, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from blyan_proto.block.model import TileRoots, TileRootsList, TileUpdate
from blyan_proto.digest import Domain, digest
from blyan_proto.rpc import tile as spec
from blyan_proto.rpc.errors import TILE_UNKNOWN, RpcError
from blyan_tile.layout import Group, Piece, Tile
from blyan_tile.tblock import Outline
from blyand.compute import Threads
from blyand.errors import NotHere, Pruned, Unavailable
from blyand.rpc.bind import Answers
from blyand.rpc.ordering import Ordering
from blyand.rpc.resolve import group_called, model_called, newest_run
from blyand.rules.model.dispute import is_single, open_disputes
from blyand.rules.model.model import layout_for
from blyand.rules.records import GROUPS, VERSIONS, ModelRecord, RunRecord
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.training.holder import Holder
from blyand.training.trails import Version


@dataclass(frozen=True)
class Finalised:
    """Every group's tiles after one finalised round; rounds count from 1, 0: before."""

    round: int
    checkpoint: int  # height of the one that finalised it
    tiles: dict[int, TileRootsList]  # by group index


def bind(
    answers: Answers,
    *,
    ordering: Ordering,
    holder: Holder,
    blocks: BlockStore,
    blobs: BlobStore,
    lane: Threads,
) -> None:
    """Bind tile.*. `lane` reads and hashes tiles."""

    @answers(spec.list_)
    async def tiles(params: spec.ListTiles) -> spec.Tiles:
        record = model_called(ordering.view, params.model)
        groups = layout_for(record.model).groups
        if params.group is not None:
            groups = (group_called(record, params.group, TILE_UNKNOWN),)
        return spec.Tiles(
            model=record.model.name,
            model_id=record.id,
            tiles=[
                line
                for group in groups
                if (head := holder.head(record.id, group.index)) is not None
                for line in lines_of(group, head)
            ],
        )

    @answers(spec.show)
    async def show(params: spec.GetTile) -> spec.Tile:
        record = model_called(ordering.view, params.model)
        group = group_called(record, params.group, TILE_UNKNOWN)
        if params.index >= len(group.tiles):
            text = f"{group.name} has tiles 0 to {len(group.tiles) - 1}"
            raise RpcError(TILE_UNKNOWN, text)
        head = holder.head(record.id, group.index)
        if head is None:
            raise NotHere(f"this node does not hold {group.name}")
        outline = await lane.run(blobs.outline, head.tiles[params.index].weights)
        tile = group.tiles[params.index]
        return tile_of(ordering.view, record, group, tile, head, outline)

    @answers(spec.roots)
    async def roots(params: spec.GetRoots) -> spec.Roots:
        record = model_called(ordering.view, params.model)
        final = finalised(ordering, blocks, record, params.round)
        groups = layout_for(record.model).groups
        held = []
        for group in (groups[index] for index in sorted(holder.held(record.id))):
            # One tile at a time: hashing 4 MiB keeps the thread for some milliseconds.
            read = [
                await lane.run(read_roots, blobs, tile)
                for tile in final.tiles.get(group.index, ())
            ]
            if read and None not in read:
                held.append(root_of(group, final.round, [r for r in read if r]))
        return spec.Roots(
            model=record.model.name,
            model_id=record.id,
            round=final.round,
            checkpoint=final.checkpoint,
            tiles=sum(group.tiles for group in held),
            digest=digest(Domain.MODEL, *(group.root for group in held)),
            groups=held,
        )


def lines_of(group: Group, head: Version) -> Iterator[spec.TileLine]:
    """Yield a group's tiles as declared."""
    for tile, roots in zip(group.tiles, head.tiles, strict=True):
        yield spec.TileLine(
            group=group.name,
            index=tile.index,
            parameter=tile.pieces[0].parameter,
            shape=list(tile.shape),
            round=head.rounds,
            weights_root=roots.weights,
            momentum_root=roots.momentum,
        )


def tile_of(
    view: View,
    record: ModelRecord,
    group: Group,
    tile: Tile,
    head: Version,
    outline: Outline,
) -> spec.Tile:
    """Return one tile as declared."""
    made_by = GROUPS.get(view, record.id, group.index)
    is_final = made_by is not None and made_by.head == head.block
    roots = head.tiles[tile.index]
    return spec.Tile(
        model=record.model.name,
        model_id=record.id,
        group=group.name,
        index=tile.index,
        tensor_class=tile.tensor_class.name.lower(),
        dtype=outline.dtype.name.lower(),
        shape=list(tile.shape),
        bytes=prod(tile.shape) * outline.dtype.bytes,
        leaves=len(outline.leaves),
        pieces=[piece_of(piece, flat=len(tile.shape) == 1) for piece in tile.pieces],
        round=head.rounds,
        block=head.block,
        single=is_final and is_single(view, record.id, group.index),
        disputed=any(one.update == head.block for one in open_disputes(view)),
        weights_root=roots.weights,
        momentum_root=roots.momentum,
    )


def piece_of(piece: Piece, flat: bool) -> spec.TilePiece:
    """Return a part of a parameter as declared; of a vector its elements as columns."""
    rows, columns = [piece.row0, piece.row1], [piece.col0, piece.col1]
    if flat:
        rows, columns = [], rows
    return spec.TilePiece(parameter=piece.parameter, rows=rows, columns=columns)


def finalised(
    ordering: Ordering, blocks: BlockStore, record: ModelRecord, round: int | None
) -> Finalised:
    """Return the versions after a round of the model's newest run; None: the newest.

    Unavailable while the round is not finalised, Pruned once state forgot it.
    """
    run = newest_run(ordering.view, ordering.place_of, record.id)
    closed = run.closed if run is not None else 0
    rounds = closed if round is None else round
    if rounds > closed:
        raise Unavailable(
            f"round {rounds} is not finalised; the newest one is {closed}"
        )
    tiles: dict[int, TileRootsList] = {}
    height = 0
    for group in layout_for(record.model).groups:
        found = _version(ordering, blocks, record, run, rounds, group)
        if found is not None:
            block, tiles[group.index] = found
            height = max(height, ordering.place_of(block)[0])
    if len(tiles) < record.weights:
        raise Pruned(f"the versions of round {rounds} are no longer remembered")
    return Finalised(rounds, height, tiles)


def _version(
    ordering: Ordering,
    blocks: BlockStore,
    record: ModelRecord,
    run: RunRecord | None,
    rounds: int,
    group: Group,
) -> tuple[bytes, TileRootsList] | None:
    """Return the block that made a group's version after `rounds`, and its tiles."""
    view = ordering.view
    heads = GROUPS.get(view, record.id, group.index)
    if heads is None:
        return None
    if run is None or heads.run != run.id:  # this run has not moved the group yet
        return (heads.head, heads.tiles) if rounds == 0 else None
    version = VERSIONS.get(view, run.id, max(0, rounds - 1), group.index)
    if version is None or rounds > 0:
        return (version.update, version.tiles) if version else None
    block = blocks.get(version.update)
    if block is None or not isinstance(block.content, TileUpdate):
        return None
    return block.content.parent, block.content.base


def read_roots(blobs: BlobStore, tile: TileRoots) -> tuple[bytes, bytes] | None:
    """Hash a tile's state as it lies on this disk; None unless all of it is here.

    Returns the roots of weights and momentum, the latter empty where there is none.
    Blocking.
    """
    roots = (tile.weights, tile.momentum)
    if all(root is None or blobs.verify(root) for root in roots):
        return tile.weights, tile.momentum or b""
    return None


def root_of(
    group: Group, round: int, read: list[tuple[bytes, bytes]]
) -> spec.GroupRoot:
    """Return a group's root over the roots (weights, momentum) of its tiles."""
    parts = (part for roots in read for part in roots)
    return spec.GroupRoot(
        group=group.name,
        round=round,
        tiles=len(read),
        root=digest(Domain.GROUP, *parts),
    )
