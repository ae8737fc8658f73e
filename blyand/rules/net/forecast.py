"""How many hops and calls a token takes, and how long that is: from holders and a trace.

Everything is an argument: what was measured here, who holds what, and which experts some
tokens go to. Nothing is called. The choices are those of `route` and `path`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from blyand.rules.net.path import LayerCost, Leg, Offer, Route, Way, cost_us, plan
from blyand.rules.net.route import Holder, assign

LAST_US = 10**9  # of a layer by experts, where spans are looked for

Token = Sequence[Sequence[int]]  # by layer: the groups of the experts it goes to


@dataclass(frozen=True)
class Layer:
    """One layer, and what a token costs in it on a machine like this one."""

    experts: frozenset[int]  # groups; none: a dense layer
    attend_us: int  # attention and router
    expert_us: int  # one expert
    per_token: int


@dataclass(frozen=True)
class Near:
    """A connected peer."""

    peer: str
    held: frozenset[int]  # groups
    trip_us: int


@dataclass(frozen=True)
class Travel:
    """A token's way, on average."""

    hops: float  # round trips, one after the other
    calls: float  # to peers
    us: float


def nobody_holds(
    layers: Sequence[Layer], mine: Collection[int], peers: Sequence[Near]
) -> frozenset[int]:
    """Return the experts that neither this node nor a peer holds."""
    everyone = frozenset(mine).union(*(peer.held for peer in peers))
    return frozenset(e for layer in layers for e in layer.experts if e not in everyone)


def by_experts(
    layers: Sequence[Layer],
    mine: Collection[int],
    peers: Sequence[Near],
    trace: Sequence[Token],
) -> Travel:
    """Return the way of the tokens of `trace`, at least one, with experts at their holders.

    ValueError for an expert that nobody holds.
    """
    hops = calls = us = 0
    trips = {peer.peer: peer.trip_us for peer in peers}
    for token in trace:
        for layer, chosen in zip(layers, token, strict=True):
            here = [expert for expert in chosen if expert in mine]
            asked = assign(
                {
                    expert: [
                        Holder(peer.peer, peer.trip_us / 1e3, proven=True)
                        for peer in peers
                        if expert in peer.held
                    ]
                    for expert in chosen
                    if expert not in mine
                }
            )
            if len(here) + sum(map(len, asked.values())) < len(chosen):
                raise ValueError("nobody holds an expert")
            away_us = [
                trips[peer] + len(experts) * layer.expert_us
                for peer, experts in asked.items()
            ]
            us += layer.attend_us + max([len(here) * layer.expert_us, *away_us])
            hops += bool(asked)
            calls += len(asked)
    return Travel(hops / len(trace), calls / len(trace), us / len(trace))


def by_spans(
    layers: Sequence[Layer], mine: Collection[int], peers: Sequence[Near]
) -> tuple[Travel | None, tuple[Leg, ...]]:
    """Return the way through spans, and its legs; None where some layer has no span."""
    here = frozenset(mine)
    costs = [
        LayerCost(_layer_us(layer) if layer.experts <= here else None, LAST_US)
        for layer in layers
    ]
    offers = [
        Offer(peer.peer, first, end, peer.trip_us, max(map(_layer_us, layers)))
        for peer in peers
        for first, end in _whole(layers, peer.held)
    ]
    legs = plan(costs, offers, Route.SPANS) or ()
    if any(leg.way is Way.EXPERTS for leg in legs):
        return None, legs
    away = sum(leg.way is Way.SPAN for leg in legs)
    return Travel(away, away, cost_us(legs, costs, offers)), legs


def all_here(layers: Sequence[Layer]) -> Travel:
    """Return the way where all experts are here."""
    return Travel(0.0, 0.0, sum(map(_layer_us, layers)))


def _layer_us(layer: Layer) -> int:
    return layer.attend_us + layer.per_token * layer.expert_us


def _whole(layers: Sequence[Layer], held: frozenset[int]) -> list[tuple[int, int]]:
    """Return the runs (first, end) of layers all of whose experts are held."""
    runs: list[tuple[int, int]] = []
    for index, layer in enumerate(layers):
        if not layer.experts <= held:
            continue
        if runs and runs[-1][1] == index:
            runs[-1] = runs[-1][0], index + 1
        else:
            runs.append((index, index + 1))
    return runs
