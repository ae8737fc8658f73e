"""Answers about experts: which there are, who holds them, at which versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blyan_proto.rpc import expert as spec
from blyan_proto.rpc.errors import EXPERT_UNKNOWN, RpcError
from blyan_tile.layout import Group, group_root
from blyand.net.identity import peer_id_of
from blyand.rpc.bind import Answers
from blyand.rpc.holders import Holders
from blyand.rpc.resolve import group_called, group_record, model_called
from blyand.rules.model.election import ranks
from blyand.rules.model.model import layout_for
from blyand.rules.model.schedule import next_round
from blyand.rules.records import GROUPS, SCHEDULES
from blyand.rules.records import Group as GroupRecord
from blyand.rules.records import ModelRecord, Node
from blyand.rules.view import View

ELEMENT_BYTES = 4  # float32


def bind(
    answers: Answers,
    *,
    holders: Holders,
    latency_ms: Callable[[str], float | None],
) -> None:
    """Bind expert.*. `latency_ms` gives a peer's measured round trip, None before one."""

    @answers(spec.list_)
    async def experts(params: spec.ListExperts) -> spec.Experts:
        view = holders.machine.view
        record = model_called(view, params.model)
        here = holders.holder.held(record.id)
        nodes = holders.of(record.id)
        return spec.Experts(
            model=record.model.name,
            model_id=record.id,
            experts=[
                line_of(view, record, group, group.index in here, nodes)
                for group in layout_for(record.model).expert_groups
            ],
        )

    @answers(spec.show)
    async def show(params: spec.GetExpert) -> spec.Expert:
        view = holders.machine.view
        record = model_called(view, params.model)
        group = group_called(record, params.name, EXPERT_UNKNOWN)
        if group.expert is None:
            raise RpcError(
                EXPERT_UNKNOWN,
                f"{group.name} is no expert; `blyanctl model show` lists all groups",
            )
        nodes = holders.of(record.id).get(group.index, [])
        held_by = [
            spec.Holder(
                peer_id=(peer := holders.peer_id(node)),
                local=node.account == holders.account,
                latency_ms=latency_ms(peer),
            )
            for node in nodes
        ]
        return expert_of(view, record, group, held_by)


@dataclass(frozen=True)
class Size:
    """How large a group is."""

    tiles: int
    bytes: int  # of its float32 weights


def size_of(group: Group) -> Size:
    """Return the size of a group."""
    return Size(len(group.tiles), ELEMENT_BYTES * group.elements)


def line_of(
    view: View,
    record: ModelRecord,
    group: Group,
    local: bool,
    nodes: dict[int, list[Node]],
) -> spec.ExpertLine:
    """Return one expert of a list as declared."""
    assert group.layer is not None and group.expert is not None
    heads = GROUPS.get(view, record.id, group.index)
    size = size_of(group)
    return spec.ExpertLine(
        name=group.name,
        layer=group.layer,
        expert=group.expert,
        tiles=size.tiles,
        bytes=size.bytes,
        local=local,
        holders=len(nodes.get(group.index, [])),
        round=heads.rounds if heads else 0,
        adopted_round=record.adopted_round,
    )


def expert_of(
    view: View, record: ModelRecord, group: Group, held_by: list[spec.Holder]
) -> spec.Expert:
    """Return one expert as declared. Unavailable while it has no weights."""
    assert group.layer is not None and group.expert is not None
    heads = group_record(view, record, group)
    size = size_of(group)
    return spec.Expert(
        name=group.name,
        model=record.model.name,
        model_id=record.id,
        layer=group.layer,
        expert=group.expert,
        parameters=group.elements,
        tiles=size.tiles,
        bytes=size.bytes,
        local=any(holder.local for holder in held_by),
        round=heads.rounds,
        root=group_root([tile.weights for tile in heads.tiles]),
        head=heads.head,
        adopted_round=record.adopted_round,
        adopted_root=group_root([tile.weights for tile in heads.adopted]),
        holders=held_by,
        primaries=primaries_of(view, record, heads),
    )


def primaries_of(view: View, record: ModelRecord, heads: GroupRecord) -> list[str]:
    """Return the peer ids of a group's ranks in the round it trains next; none without."""
    if record.run is None:
        return []
    round = next_round(heads, record.run)
    schedule = SCHEDULES.get(view, record.run, round)
    if schedule is None:
        return []
    return [peer_id_of(seat.key) for seat in ranks(schedule, heads.group)]
