"""Answers about a group's past: its versions, followed from the head to the first."""

from __future__ import annotations

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate, Weights
from blyan_proto.rpc import expert as spec
from blyan_proto.rpc.errors import EXPERT_UNKNOWN
from blyan_tile.layout import group_root
from blyand.compute import Threads
from blyand.errors import Pruned
from blyand.rpc.bind import Answers
from blyand.rpc.expert import size_of
from blyand.rpc.ordering import Ordering
from blyand.rpc.resolve import group_called, group_record, model_called
from blyand.store.blocks import BlockStore


def bind(
    answers: Answers, *, ordering: Ordering, blocks: BlockStore, lane: Threads
) -> None:
    """Bind expert.history. `lane` reads the database."""

    @answers(spec.history)
    async def history(params: spec.GetHistory) -> spec.History:
        record = model_called(ordering.view, params.model)
        group = group_called(record, params.name, EXPERT_UNKNOWN)
        heads = group_record(ordering.view, record, group)

        def read() -> tuple[list[spec.ExpertVersion], bool]:
            adopted = heads.adopted_head
            return versions(ordering, blocks, heads.head, adopted, params.limit)

        found, complete = await lane.run(read)
        return spec.History(
            name=group.name,
            model=record.model.name,
            model_id=record.id,
            parameters=group.elements,
            bytes=size_of(group).bytes,
            complete=complete,
            versions=found,
        )


def versions(
    ordering: Ordering, blocks: BlockStore, head: bytes, adopted: bytes, limit: int
) -> tuple[list[spec.ExpertVersion], bool]:
    """Return at most `limit` versions from `head` back, and whether the first is there.

    Ends early where a payload is no longer kept. Blocking.
    """
    found: list[spec.ExpertVersion] = []
    at = head
    while len(found) < limit:
        try:
            block = blocks.get(at)
        except Pruned:
            return found, False
        if block is None:
            return found, False
        content = block.content
        if isinstance(content, TileUpdate):
            found.append(_trained(ordering, block, content, at == adopted))
            at = content.parent
        elif isinstance(content, Weights):
            found.append(_first(ordering, block, content, at == adopted))
            return found, True
        else:
            return found, False
    return found, False


def _trained(
    ordering: Ordering, block: Block, update: TileUpdate, adopted: bool
) -> spec.ExpertVersion:
    return spec.ExpertVersion(
        round=update.round + 1,
        block=block.id,
        account=block.header.account,
        rank=update.rank,
        contributions=len(update.contributions),
        tokens=sum(part.tokens for part in update.contributions),
        delta_bytes=sum(part.bytes for part in update.contributions),
        root=group_root([tile.weights for tile in update.result]),
        checkpoint=ordering.place_of(block.id)[0],
        time_ms=block.header.time_ms,
        adopted=adopted,
    )


def _first(
    ordering: Ordering, block: Block, weights: Weights, adopted: bool
) -> spec.ExpertVersion:
    return spec.ExpertVersion(
        round=None,
        block=block.id,
        account=block.header.account,
        rank=None,
        contributions=0,
        tokens=0,
        delta_bytes=0,
        root=group_root([tile.weights for tile in weights.tiles]),
        checkpoint=ordering.place_of(block.id)[0],
        time_ms=block.header.time_ms,
        adopted=adopted,
    )
