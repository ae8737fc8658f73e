"""Answers about the use of experts: heat, groups by co-use, what should be copied or moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from blyan_proto.constants import PPM
from blyan_proto.rpc import demand as spec
from blyand.compute import Threads
from blyand.rpc.bind import Answers
from blyand.rpc.holders import Holders
from blyand.rpc.resolve import model_called
from blyand.rules.model import rebalance
from blyand.rules.model.demand import hottest, unused
from blyand.rules.model.model import layout_for
from blyand.rules.records import ModelRecord

if TYPE_CHECKING:  # torch is imported when the first part of inference is made
    from blyand.inference.replication import Replication
    from blyand.inference.usage import Usage, Use

Counts = Mapping[int, int]  # by group


def bind(
    answers: Answers,
    *,
    holders: Holders,
    usage: Usage,
    replication: Replication,
    lane: Threads,
) -> None:
    """Bind expert.usage, expert.groups, expert.suggestions."""

    @answers(spec.usage)
    async def used(params: spec.GetUsage) -> spec.Usage:
        record = model_called(holders.machine.view, params.model)
        use = await lane.run(usage.of, record.id)
        return usage_of(record, use)

    @answers(spec.groups)
    async def groups(params: spec.GetGroups) -> spec.Groups:
        record = model_called(holders.machine.view, params.model)
        use = await lane.run(usage.of, record.id)
        nodes = _held(holders, record)
        found = await lane.run(_groups, record, use, nodes) if use is not None else []
        return spec.Groups(
            model=record.model.name,
            model_id=record.id,
            tokens=use.tokens if use is not None else 0,
            groups=found,
        )

    @answers(spec.suggestions)
    async def suggestions(params: spec.GetSuggestions) -> spec.Suggestions:
        record = model_called(holders.machine.view, params.model)
        use = await lane.run(usage.of, record.id)
        copied = replication.chosen(record)
        here = holders.holder.held(record.id)
        nodes = _held(holders, record)
        more = replication.sight.most_experts(1)
        return await lane.run(suggestions_of, record, use, here, copied, nodes, more)


def usage_of(record: ModelRecord, use: Use | None) -> spec.Usage:
    """Return a model's use as declared."""
    from blyand.inference.replication import by_group
    from blyand.inference.usage import WINDOW_S

    layout, shape = layout_for(record.model), record.model.architecture
    visits = by_group(layout, use.visits) if use is not None else {}
    used = by_group(layout, use.used) if use is not None else {}
    windows = [by_group(layout, w.visits) for w in use.windows] if use else []
    lines = []
    for group in layout.expert_groups:
        assert group.layer is not None and group.expert is not None
        seen = visits.get(group.index, 0)
        lines.append(
            spec.Used(
                name=group.name,
                layer=group.layer,
                expert=group.expert,
                visits=seen,
                served=used.get(group.index, 0) - seen,
                windows=[window[group.index] for window in windows],
            )
        )
    return spec.Usage(
        model=record.model.name,
        model_id=record.id,
        tokens=use.tokens if use is not None else 0,
        window_s=WINDOW_S,
        layers=shape.layers,
        experts_per_layer=shape.experts,
        experts=lines,
    )


def suggestions_of(
    record: ModelRecord,
    use: Use | None,
    here: frozenset[int],
    copied: frozenset[int],
    nodes: Mapping[str, frozenset[int]],
    more: int,
) -> spec.Suggestions:
    """Return what a model's use suggests as declared. Blocking.

    Each node is taken to have room for `more` experts than it holds: what others'
    hardware is they do not tell, so it is what this node's tier allows.
    """
    from blyand.inference.replication import by_group

    layout = layout_for(record.model)
    groups = layout.groups
    experts = frozenset(group.index for group in layout.expert_groups)
    visits: Counts = by_group(layout, use.visits) if use is not None else {}
    cold: frozenset[int] = frozenset()
    if use is not None:
        cold = unused(by_group(layout, use.used), here & experts)
    held = {peer: some & experts for peer, some in nodes.items()}
    loads = rebalance.loads(held, visits)
    total = sum(loads.values())
    capacities = {peer: len(some) + more for peer, some in held.items()}
    return spec.Suggestions(
        model=record.model.name,
        model_id=record.id,
        tokens=use.tokens if use is not None else 0,
        hot=[
            spec.Hot(
                name=groups[index].name,
                visits=visits[index],
                holders=sum(index in some for some in held.values()),
                local=index in here,
                copied=index in copied,
            )
            for index in hottest(visits)
        ],
        cold=[groups[group].name for group in sorted(cold)],
        loads=[
            spec.Load(peer, len(held[peer]), PPM * load // total if total else 0)
            for peer, load in loads.items()
        ],
        imbalance_ppm=rebalance.imbalance_ppm(loads),
        moves=[
            spec.Moved(groups[move.expert].name, move.source, move.target)
            for move in rebalance.plan(held, visits, capacities)
        ],
    )


def _groups(
    record: ModelRecord, use: Use, nodes: Mapping[str, frozenset[int]]
) -> list[spec.Together]:
    from blyand.inference.replication import together_in

    layout = layout_for(record.model)
    places = {(g.layer, g.expert): g.index for g in layout.expert_groups}
    visits = use.visits
    return [
        spec.Together(
            layer=layer,
            experts=list(one.experts),
            affinity=one.affinity,
            visits=int(visits[layer, list(one.experts)].sum()),
            whole=sorted(
                peer
                for peer, held in nodes.items()
                if held.issuperset(places[layer, expert] for expert in one.experts)
            ),
        )
        for layer, groups in together_in(use).items()
        for one in groups
    ]


def _held(holders: Holders, record: ModelRecord) -> dict[str, frozenset[int]]:
    """Return the live nodes by peer id, with the groups that each holds."""
    found: dict[str, set[int]] = {}
    for group, nodes in holders.of(record.id).items():
        for node in nodes:
            found.setdefault(holders.peer_id(node), set()).add(group)
    return {peer: frozenset(groups) for peer, groups in sorted(found.items())}
