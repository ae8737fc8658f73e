"""Which way a token takes through the layers: here, expert by expert, or by spans.

Strategy. A walk over the layers in which each layer is computed by one of a few hands:
this node, the holders of its experts, or one peer of those that offer a span with it.
Going on with the same hand costs that layer's work; changing to a peer costs a round
trip besides. The cheapest walk is found layer by layer (the shortest path of a graph
without cycles): the work is layers x hands. Costs are whole microseconds, and every tie
has a winner, so that the same facts give the same path.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from blyan_proto.constants import PPM


class Way(enum.IntEnum):
    """Who computes a leg; among equals the first."""

    LOCAL = 0
    SPAN = 1  # one peer, all layers of the leg
    EXPERTS = 2  # attention here, each expert where it is held: one layer


class Route(enum.Enum):
    """What may be planned with."""

    AUTO = "auto"  # whatever is cheapest
    EXPERTS = "experts"  # no spans
    SPANS = "spans"  # spans wherever one is offered
    LOCAL = "local"  # nothing but this node


@dataclass(frozen=True)
class LayerCost:
    """One layer of the model as this node sees it."""

    local_us: int | None  # None: it cannot be computed here alone
    experts_us: int  # with its experts at their holders, the round trip included


@dataclass(frozen=True)
class Offer:
    """A run of layers that one peer can compute alone."""

    peer: str
    first: int
    end: int
    round_trip_us: int
    layer_us: int  # of one token through one layer there
    load: int = 0  # sessions that we have there: each slows the others
    trust_ppm: int = PPM  # part of its answers that came, and were well-formed


@dataclass(frozen=True, order=True)
class Leg:
    """Consecutive layers first, …, end - 1 that one hand computes."""

    first: int
    end: int
    way: Way
    peer: str = ""


@dataclass(frozen=True)
class _Hand:
    """Somebody who can compute layers first, …, end - 1."""

    way: Way
    peer: str
    first: int
    end: int
    enter_us: int
    layers_us: tuple[int, ...]  # of each of its layers

    def covers(self, layer: int) -> bool:
        return self.first <= layer < self.end


FORCED_US = 10**12  # what a layer without a span costs where spans are wanted

_Reached = tuple[int, int]  # microseconds, legs


def plan(
    layers: Sequence[LayerCost], offers: Sequence[Offer], route: Route = Route.AUTO
) -> tuple[Leg, ...] | None:
    """Return the cheapest legs that cover all layers, in order.

    Of equally cheap ones that with fewest legs; then here before a span before experts,
    and the lower peer id. None when `route` leaves a layer to nobody.
    """
    hands = _hands(layers, offers, route)
    reached: list[_Reached | None] = [None] * len(hands)  # by hand, at this layer
    came: list[list[int]] = []  # by layer and hand: the hand of the layer before
    for layer in range(len(layers)):
        before = _best(reached)
        now: list[_Reached | None] = []
        came.append([])
        for index, hand in enumerate(hands):
            found, origin = None, index
            if hand.covers(layer):
                found, origin = _step(layer, hand, index, before, reached)
            now.append(found)
            came[-1].append(origin)
        reached = now
    last = _best(reached)
    return _legs(hands, came, last) if last is not None else None


def cost_us(
    legs: Sequence[Leg], layers: Sequence[LayerCost], offers: Sequence[Offer]
) -> int:
    """Return what a path costs. ValueError for a leg that nobody can compute."""
    total = 0
    for leg in legs:
        costs = [_leg_us(leg, hand) for hand in _hands(layers, offers, Route.AUTO)]
        fitting = [cost for cost in costs if cost is not None]
        if not fitting:
            raise ValueError(f"nobody computes {leg}")
        total += min(fitting)
    return total


def _leg_us(leg: Leg, hand: _Hand) -> int | None:
    if (hand.way, hand.peer) != (leg.way, leg.peer):
        return None
    if not hand.first <= leg.first < leg.end <= hand.end:
        return None
    work = hand.layers_us[leg.first - hand.first : leg.end - hand.first]
    return hand.enter_us + sum(work)


def _hands(
    layers: Sequence[LayerCost], offers: Sequence[Offer], route: Route
) -> list[_Hand]:
    """Return who may compute what, in the order in which ties are decided."""
    extra = FORCED_US if route is Route.SPANS else 0
    hands: list[_Hand] = []
    for layer, cost in enumerate(layers):
        one = layer, layer + 1
        if cost.local_us is not None:
            if hands and hands[-1].end == layer:
                first, before = hands[-1].first, hands.pop().layers_us
            else:
                first, before = layer, ()
            work = (*before, cost.local_us + extra)
            hands.append(_Hand(Way.LOCAL, "", first, layer + 1, 0, work))
    if route in (Route.AUTO, Route.SPANS):
        for offer in sorted(offers, key=lambda offer: (offer.peer, offer.first)):
            doubt = 2 * PPM - offer.trust_ppm  # a lost answer is one more try
            work_us = offer.layer_us * (1 + offer.load) * doubt // PPM
            enter_us = offer.round_trip_us * doubt // PPM
            first, end = max(0, offer.first), min(offer.end, len(layers))
            work = (work_us,) * max(0, end - first)
            hands.append(_Hand(Way.SPAN, offer.peer, first, end, enter_us, work))
    if route is not Route.LOCAL:
        for layer, cost in enumerate(layers):
            one = layer, layer + 1
            work = (cost.experts_us + extra,)
            hands.append(_Hand(Way.EXPERTS, "", *one, 0, work))
    return hands


def _step(
    layer: int,
    hand: _Hand,
    index: int,
    before: int | None,
    reached: Sequence[_Reached | None],
) -> tuple[_Reached | None, int]:
    """Return the cheapest way to have `layer` done by `hand`, and whose layer was before."""
    work_us = hand.layers_us[layer - hand.first]
    best: _Reached | None = None
    origin = index
    stayed = reached[index]
    if stayed is not None:
        best = stayed[0] + work_us, stayed[1]
    if layer == 0:
        return (hand.enter_us + work_us, 1), index
    if before is not None:
        us, legs = reached[before] or (0, 0)
        entered = us + hand.enter_us + work_us, legs + 1
        if best is None or entered < best:
            best, origin = entered, before
    return best, origin


def _best(reached: Sequence[_Reached | None]) -> int | None:
    """Return the hand with the cheapest way so far; the first of equals."""
    found = [(cost, index) for index, cost in enumerate(reached) if cost is not None]
    return min(found)[1] if found else None


def _legs(
    hands: Sequence[_Hand], came: Sequence[Sequence[int]], last: int
) -> tuple[Leg, ...]:
    legs: list[Leg] = []
    end, index = len(came), last
    for layer in range(len(came) - 1, -1, -1):
        origin = came[layer][index]
        hand = hands[index]
        if layer == 0 or origin != index:
            legs.append(Leg(layer, end, hand.way, hand.peer))
            end, index = layer, origin
    return tuple(reversed(legs))
