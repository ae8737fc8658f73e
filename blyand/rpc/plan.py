"""Answers to model.plan: what fits, how many hops, how fast; nothing is fetched for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from blyan_proto.block.model import Dtype, Model
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import ProtocolError
from blyan_proto.rpc import planning as spec
from blyan_proto.rpc.errors import CHECKPOINT_INVALID, INVALID_PARAMS, RpcError
from blyan_tile.layout import Layout
from blyand.compute import Threads
from blyand.net.identity import peer_id_of
from blyand.rpc.bind import Answers
from blyand.rpc.resolve import model_called
from blyand.rules.model import placement
from blyand.rules.model.model import layout_for
from blyand.rules.net.forecast import (
    Layer,
    Near,
    Travel,
    all_here,
    by_experts,
    by_spans,
    nobody_holds,
)
from blyand.rules.records import NODES
from blyand.rules.view import View

if TYPE_CHECKING:  # torch is imported when a node is built, not when it is named
    from blyan_tile.recipe import Recipe
    from blyand.inference.hardware import Speed

ELEMENT_BYTES = 4  # float32
MAX_CONFIG_BYTES = 1 << 20
TRACED = 32  # tokens of the trace from which hops are counted


@dataclass(frozen=True)
class Around:
    """What a plan is made from. All but `disk_bytes` on the loop."""

    account: bytes  # this node's
    me: str
    view: Callable[[], View]
    held: Callable[[bytes], frozenset[int]]
    hosts: Callable[[bytes], Mapping[str, frozenset[int]]]  # of connected peers
    rtt_ms: Callable[[str], float | None]
    is_connected: Callable[[str], bool]
    speed: Callable[[], Speed | None]
    memory_bytes: int
    recipe: str  # this node's
    replication: int  # the network's
    disk_bytes: Callable[[], int]  # left; blocking


@dataclass(frozen=True)
class _Case:
    """A model, and who holds what of it."""

    model: Model
    layout: Layout
    held: Mapping[str, frozenset[int]]  # this node first
    trips_ms: Mapping[str, float | None]  # None: not connected, or not measured
    element_bytes: int  # as its weights are stored
    here_bytes: int  # of what is here already


def bind(answers: Answers, *, around: Around, lane: Threads) -> None:
    """Bind model.plan."""

    @answers(spec.plan)
    async def plan(params: spec.GetPlan) -> spec.Plan:
        view = around.view()
        if params.directory is None:
            record = model_called(view, params.model)
            model, id, known = record.model, record.id, True
            if record.run or record.adopted_run:  # trained weights are float32
                model = replace(model, dtype=Dtype.F32)
        elif params.model is not None:
            text = "give a model or a directory, one of the two"
            raise RpcError(INVALID_PARAMS, text)
        else:
            model = await lane.run(_described, params.directory, around.replication)
            id, known = digest(Domain.SEED, model.name.encode()), False
        case = _case(around, view, model, id, known)
        return await lane.run(_planned, around, case, around.speed(), params.context)


def _described(directory: str, replication: int) -> Model:
    """Return the model that a checkpoint's config.json describes. Blocking. RpcError."""
    from blyan_tile.model.families import read_config

    file = Path(directory) / "config.json"
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MiB")
        config = json.loads(raw)
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        family = read_config(config)
    except (OSError, ValueError, RecursionError, ProtocolError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RpcError(CHECKPOINT_INVALID, f"{file}: {why}") from error
    name, dtype = Path(directory).name or "checkpoint", family.dtype or Dtype.F32
    return Model(
        FORMAT_VERSION, name, family.architecture, "bytes", dtype, replication, ""
    )


def _case(around: Around, view: View, model: Model, id: bytes, known: bool) -> _Case:
    layout = layout_for(model)
    accounts = {node.account: peer_id_of(node.key) for node in NODES.scan(view)}
    placed = placement.place(id, layout, accounts, model.replication)
    told = around.hosts(id) if known else {}
    mine = placed.get(around.account, frozenset())
    held = {around.me: mine | (around.held(id) if known else frozenset())}
    for account, groups in placed.items():
        if account != around.account:
            peer = accounts[account]
            held[peer] = told.get(peer, groups)
    trips = {
        peer: around.rtt_ms(peer) if around.is_connected(peer) else None
        for peer in held
        if peer != around.me
    }
    mine = around.held(id) if known else frozenset()
    size = ELEMENT_BYTES if model.dtype is Dtype.F32 else 2
    here_bytes = sum(size * layout.groups[group].elements for group in mine)
    return _Case(model, layout, held, trips, size, here_bytes)


def _planned(
    around: Around, case: _Case, speed: Speed | None, context: int
) -> spec.Plan:
    """Blocking."""
    from blyan_tile.model.cache import cache_bytes
    from blyan_tile.recipe import recipe_called

    model, layout = case.model, case.layout
    shape = model.architecture
    recipe = recipe_called(around.recipe)
    mine = case.held[around.me]
    experts = [group.index for group in layout.expert_groups]
    sizes = [case.element_bytes * group.elements for group in layout.groups]
    trunk_bytes = sum(sizes[group.index] for group in layout.shared_groups)
    free = around.disk_bytes()
    disk = trunk_bytes + sum(sizes[group] for group in mine & set(experts))
    layers = _layers(layout, model, recipe, speed)
    recipes = [
        _recipe_plan(around, case, one, speed, len(mine & set(experts)))
        for one in type(recipe)
    ]
    placed = next(one for one in recipes if one.recipe == recipe.label)
    ways = _ways(case, layers, around, speed, placed.fits)
    made = spec.Plan(
        model=model.name,
        verdict="",
        parameters=sum(group.elements for group in layout.groups),
        bytes=sum(sizes),
        layers=shape.layers,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        replication=model.replication,
        disk_bytes=disk,
        disk_free_bytes=free,
        disk_fits=disk - case.here_bytes <= free,
        memory_bytes=around.memory_bytes,
        cache_bytes=cache_bytes(shape, min(context, shape.context), shape.layers),
        nodes=[
            spec.NodePlan(
                node=peer,
                local=peer == around.me,
                experts=len(held & set(experts)),
                trunk_bytes=trunk_bytes,
                expert_bytes=sum(sizes[group] for group in held & set(experts)),
                round_trip_ms=case.trips_ms.get(peer),
            )
            for peer, held in case.held.items()
        ],
        recipes=recipes,
        ways=ways,
    )
    return replace(made, verdict=_verdict(made, recipe.label))


def _layers(
    layout: Layout, model: Model, recipe: Recipe, speed: Speed | None
) -> list[Layer]:
    """Return each layer with its costs; of no time where nothing was measured."""
    from blyan_tile.stream import expert_bytes

    shape = model.architecture
    first = layout.expert_groups[0]
    expert_us = _us(speed, expert_bytes(first, recipe), first.elements)
    trunk = [0] * shape.layers
    experts: list[set[int]] = [set() for _ in range(shape.layers)]
    for group in layout.groups:
        if group.layer is None:
            continue
        if group.expert is None:
            trunk[group.layer] += group.elements
        else:
            experts[group.layer].add(group.index)
    return [
        Layer(
            frozenset(experts[layer]),
            _us(speed, ELEMENT_BYTES * trunk[layer], trunk[layer]),
            expert_us,
            shape.experts_per_token if experts[layer] else 0,
        )
        for layer in range(shape.layers)
    ]


def _us(speed: Speed | None, weight_bytes: int, elements: int) -> int:
    return round(1e6 * speed.seconds(weight_bytes, 2 * elements)) if speed else 0


def _head_us(model: Model, speed: Speed | None) -> int:
    elements = model.architecture.vocabulary * model.architecture.width
    return _us(speed, ELEMENT_BYTES * elements, elements)


def _recipe_plan(
    around: Around, case: _Case, recipe: Recipe, speed: Speed | None, placed: int
) -> spec.RecipePlan:
    from blyan_tile.stream import expert_bytes

    size = expert_bytes(case.layout.expert_groups[0], recipe)
    total = size * len(case.layout.expert_groups)
    travel = all_here(_layers(case.layout, case.model, recipe, speed))
    fits = total <= around.memory_bytes
    return spec.RecipePlan(
        recipe=recipe.label,
        placed_bytes=size * placed,
        fits=size * placed <= around.memory_bytes,
        all_bytes=total,
        all_fit=fits,
        tokens_per_s=_rate(case.model, travel, speed) if fits else None,
    )


def _rate(model: Model, travel: Travel, speed: Speed | None) -> float | None:
    if speed is None:
        return None
    return 1e6 / max(travel.us + _head_us(model, speed), 1.0)


def _ways(
    case: _Case,
    layers: Sequence[Layer],
    around: Around,
    speed: Speed | None,
    fits: bool,
) -> list[spec.Way]:
    mine, total = case.held[around.me], len(case.layout.expert_groups)
    near = [
        Near(peer, case.held[peer], round(1e3 * trip_ms))
        for peer, trip_ms in sorted(case.trips_ms.items())
        if trip_ms is not None
    ]
    lacking = total - sum(len(layer.experts & mine) for layer in layers)
    basis = "from the speed measured here and the round trips of the peers"
    if speed is None:
        basis = "this machine's speed is not measured yet; ask again in a moment"
    elif not fits:
        basis = "the experts here exceed the memory, and files were not measured"
        speed = None
    if lacking:
        text = f"{lacking} of {total} experts are not placed here (inference.spans)"
        local = spec.Way("local", None, None, None, text)
    else:
        local = _way("local", case, all_here(layers), speed, basis)
    nobody = nobody_holds(layers, mine, near)
    if nobody:
        name = case.layout.groups[min(nobody)].name
        text = f"no connected peer with a measured round trip has {name}"
        if len(nobody) > 1:
            text += f", nor {len(nobody) - 1} others"
        experts = spec.Way("experts", None, None, None, text)
    else:
        travel = by_experts(layers, mine, near, _trace(layers))
        experts = _way("experts", case, travel, speed, basis)
    through, legs = by_spans(layers, mine, near)
    if through is None:
        at = next(leg.first for leg in legs if not leg.peer and leg.way.name != "LOCAL")
        text = (
            f"nobody near has all of layer {at}; a node hosts layers by inference.spans"
        )
        spans = spec.Way("spans", None, None, None, text)
    else:
        spans = _way("spans", case, through, speed, basis)
    return [local, experts, spans]


def _way(
    way: str, case: _Case, travel: Travel, speed: Speed | None, why: str
) -> spec.Way:
    rate = _rate(case.model, travel, speed)
    return spec.Way(way, travel.hops, travel.calls, rate, why)


def _trace(layers: Sequence[Layer]) -> list[list[list[int]]]:
    """Return the experts of some tokens, drawn evenly, the same each time."""
    random = Random(0)
    return [
        [random.sample(sorted(layer.experts), layer.per_token) for layer in layers]
        for _ in range(TRACED)
    ]


def _verdict(plan: spec.Plan, recipe: str) -> str:
    mine = plan.nodes[0]
    placed = next(one for one in plan.recipes if one.recipe == recipe)
    has = (
        "fits" if placed.fits else "does not fit: experts are computed from their files"
    )
    disk = "" if plan.disk_fits else ", which the disk has no room for"
    total = plan.layers * plan.experts
    fastest = max(
        (way for way in plan.ways if way.tokens_per_s is not None),
        key=lambda way: way.tokens_per_s or 0.0,
        default=None,
    )
    speed = (
        f"about {fastest.tokens_per_s:.1f} tokens/s by {fastest.way}"
        if fastest is not None
        else f"how fast cannot be said: {plan.ways[1].why}"
    )
    return (
        f"this node holds {mine.experts} of {total} experts{disk}; as {recipe} that "
        f"{has}; {speed}"
    )
