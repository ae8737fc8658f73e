"""Answers tile.replay: a group's head, computed again from what is here."""

from __future__ import annotations

from blyan_proto.rpc import tile as spec
from blyan_proto.rpc.errors import TILE_UNKNOWN
from blyan_proto.rpc.parts import Progress
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.ordering import Ordering
from blyand.rpc.resolve import group_called, group_record, model_called
from blyand.training.proof import Proof


def bind(answers: Answers, *, ordering: Ordering, proof: Proof) -> None:
    """Bind tile.replay."""

    @answers(spec.replay)
    async def replay(params: spec.ReplayGroup, emit: Emit) -> spec.Replayed:
        record = model_called(ordering.view, params.model)
        group = group_called(record, params.group, TILE_UNKNOWN)
        heads = group_record(ordering.view, record, group)
        path = await proof.path_to(heads.head, from_genesis=params.from_genesis)

        async def report(done: int, total: int) -> None:
            await emit(Progress("replaying updates", done, total, "updates"))

        problem = await proof.replay(path, group, report)
        return spec.Replayed(
            model=record.model.name,
            model_id=record.id,
            group=group.name,
            start=path.start,
            from_genesis=path.is_first,
            head=heads.head,
            updates=len(path.updates),
            tiles=len(group.tiles),
            sound=problem is None,
            problem=problem,
        )
