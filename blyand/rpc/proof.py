"""Answers about a group's versions: which there were, and that they follow."""

from __future__ import annotations

from blyan_proto.block.model import Weights
from blyan_proto.digest import Domain, digest
from blyan_proto.rpc import tile as spec
from blyan_proto.rpc.errors import TILE_UNKNOWN, RpcError
from blyan_proto.rpc.parts import Progress
from blyand.compute import Threads
from blyand.errors import Pruned, Unavailable
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.ordering import Ordering
from blyand.rpc.resolve import group_called, group_record, model_called
from blyand.rules.model.compaction import listed_bytes
from blyand.rules.records import Group as GroupRecord
from blyand.training.proof import Made, Proof


def bind(answers: Answers, *, ordering: Ordering, proof: Proof, lane: Threads) -> None:
    """Bind tile.replay and tile.history. `lane` reads blocks."""

    @answers(spec.replay)
    async def replay(params: spec.ReplayGroup, emit: Emit) -> spec.Replayed:
        record = model_called(ordering.view, params.model)
        group = group_called(record, params.group, TILE_UNKNOWN)
        heads = group_record(ordering.view, record, group)
        head = params.version or heads.head
        if head != heads.head:
            await lane.run(check_version, proof, heads, head)
        path = await proof.path_to(head, from_genesis=params.from_genesis)

        async def report(done: int, total: int) -> None:
            await emit(Progress("replaying updates", done, total, "updates"))

        problem = await proof.replay(path, group, report)
        return spec.Replayed(
            model=record.model.name,
            model_id=record.id,
            group=group.name,
            start=path.start,
            from_genesis=path.is_first,
            head=head,
            updates=len(path.updates),
            tiles=len(group.tiles),
            sound=problem is None,
            problem=problem,
        )

    @answers(spec.history)
    async def history(params: spec.GetHistory) -> spec.History:
        record = model_called(ordering.view, params.model)
        group = group_called(record, params.group, TILE_UNKNOWN)
        heads = group_record(ordering.view, record, group)
        found, pruned = await lane.run(proof.versions, heads.head, params.limit)
        kept = {heads.snapshot, heads.earlier_snapshot}
        return spec.History(
            model=record.model.name,
            model_id=record.id,
            group=group.name,
            from_genesis=bool(found) and isinstance(found[-1].block.content, Weights),
            pruned=pruned,
            chain_updates=heads.updates,
            chain_bytes=heads.delta_bytes,
            versions=[line_of(made, made.block.id in kept) for made in found],
        )


def check_version(proof: Proof, heads: GroupRecord, version: bytes) -> None:
    """Raise RpcError unless a block made a version behind the head. Blocking."""
    try:
        is_behind = proof.is_behind(heads.head, version)
    except Pruned:
        raise Unavailable(
            "the payloads between this version and the head are pruned here; ask a node "
            "with the role archive"
        ) from None
    if not is_behind:
        raise RpcError(
            TILE_UNKNOWN,
            f"{version.hex()} made no version of this group; `blyanctl tile history` "
            "lists them",
        )


def line_of(made: Made, is_kept: bool) -> spec.HistoryLine:
    """Return one version as declared."""
    update = made.block.content
    parts = (
        part for tile in made.tiles for part in (tile.weights, tile.momentum or b"")
    )
    root = digest(Domain.GROUP, *parts)
    if isinstance(update, Weights):
        return spec.HistoryLine(
            round=0,
            block=made.block.id,
            kind="weights",
            run=None,
            rank=None,
            deltas=0,
            bytes=0,
            snapshot=is_kept,
            here=made.is_here,
            root=root,
        )
    return spec.HistoryLine(
        round=update.round + 1,
        block=made.block.id,
        kind="update",
        run=update.run,
        rank=update.rank,
        deltas=len(update.contributions),
        bytes=listed_bytes(update),
        snapshot=is_kept,
        here=made.is_here,
        root=root,
    )
