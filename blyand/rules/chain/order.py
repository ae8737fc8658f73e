"""The order of blocks inside a checkpoint (DEC-A3): A, D, B, C; topological; ties by id."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import fields

from blyan_proto.block.block import Block
from blyan_proto.block.model import Run, TileUpdate
from blyan_proto.block.payload import KINDS
from blyan_proto.types import CHAIN_ORDER

TILE_UPDATE = next(k.code for k in KINDS.values() if k.payload is TileUpdate)


def order(blocks: Iterable[Block]) -> list[Block]:
    """Return `blocks` in execution order; parents outside the set count as ordered.

    Kahn's algorithm per chain. Ties go by id, among tile updates by rank first, so that
    of two heads of one round the lower rank is executed first and wins (DEC-A6).
    """
    chains: dict[int, dict[bytes, Block]] = {chain: {} for chain in CHAIN_ORDER}
    for block in blocks:
        chains[block.header.chain][block.id] = block
    return [block for chain in CHAIN_ORDER for block in _topological(chains[chain])]


def references(block: Block) -> list[bytes]:
    """Return the ids of blocks that a payload names, checked but no edges of the DAG."""
    content = block.content
    named = [block.header.meta_ref] if block.header.meta_ref else []
    for field in fields(content):
        if field.name in ("model", "run", "parent", "update", "dataset"):
            value = getattr(content, field.name)
            if isinstance(value, bytes):
                named.append(value)
    if isinstance(content, Run):
        named += content.datasets
    return named


def is_before(earlier: Block, block: Block, *, is_parent: bool) -> bool:
    """True when a checkpoint that orders both executes `earlier` early enough (DEC-A3).

    A parent's place is given by the topological order; what is referred to has to be on
    a chain that is executed before.
    """
    if is_parent:
        return True
    place = CHAIN_ORDER.index
    return place(earlier.header.chain) < place(block.header.chain)


def _topological(blocks: dict[bytes, Block]) -> list[Block]:
    children: dict[bytes, list[bytes]] = {}
    waiting: dict[bytes, int] = {}
    for id, block in blocks.items():
        inside = [parent for parent in block.header.parents if parent in blocks]
        waiting[id] = len(inside)
        for parent in inside:
            children.setdefault(parent, []).append(id)
    ready = [(_rank(blocks[id]), id) for id, count in waiting.items() if not count]
    heapq.heapify(ready)
    ordered: list[Block] = []
    while ready:
        _, id = heapq.heappop(ready)
        ordered.append(blocks[id])
        for child in children.get(id, ()):
            waiting[child] -= 1
            if not waiting[child]:
                heapq.heappush(ready, (_rank(blocks[child]), child))
    return ordered


def _rank(block: Block) -> int:
    if block.header.kind != TILE_UPDATE:
        return 0  # without decoding it
    rank: int = block.content.rank
    return rank
