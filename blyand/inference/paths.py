"""The way of a sequence through the layers, planned from what is known of the peers.

What was measured here decides: round trips of connections, how long steps of spans and
calls of experts took, how many came back. What peers hold they say in heartbeats. The
choice itself is a rule: blyand.rules.net.path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

import trio

from blyan_proto.constants import PPM
from blyan_tile.layout import Layout
from blyand.errors import NoRoute
from blyand.inference.pins import Heads
from blyand.inference.routes import Routes
from blyand.rules.net.path import LayerCost, Leg, Offer, Route, plan

MAX_PEERS = 32  # that one plan looks at, the nearest
MODELS_KEPT = 16
KEPT = 1024  # peers of which something is remembered
SMOOTHING = 0.2  # weight of the newest sample
LAYER_US = 500  # a token through a layer, until it was measured
TRIP_US = 10_000  # a round trip, until it was measured
NOBODY_US = 10_000_000  # an expert that nobody is known to hold: somebody may come
UNPROVEN = 0.5  # the trust in a peer that has not answered yet
COOL_OFF_S = 5.0  # a peer that just failed offers nothing for this long


@dataclass(frozen=True)
class Layers:
    """The groups of each layer of a model, by index."""

    groups: tuple[frozenset[int], ...]
    experts: tuple[frozenset[int], ...]  # those of them; none where it is dense


@dataclass
class _Pace:
    """What was seen of one peer's spans."""

    layer_s: float = 0.0  # of one token through one layer; 0: not measured
    trust: float = UNPROVEN  # part of its answers that came, newest first
    sessions: int = 0  # ours that are open there
    failures: int = 0  # in a row
    failed_s: float = 0.0


class Paths:
    """Plans paths. Use it from the loop only.

    `held(model)` are the groups that are here; `hosts(model)` those of each connected
    peer that serves; `rtt_ms(peer)` is a connection's round trip, None if unknown.
    """

    def __init__(
        self,
        held: Callable[[bytes], frozenset[int]],
        hosts: Callable[[bytes], Mapping[str, frozenset[int]]],
        rtt_ms: Callable[[str], float | None],
        routes: Routes,
    ) -> None:
        self._held = held
        self._hosts = hosts
        self._rtt_ms = rtt_ms
        self._routes = routes
        self._local = _Pace()  # of layers whose experts are all here
        self._attend = _Pace()  # of this node's part where they are not
        self._trip_s = 0.0  # of a call to the experts of a layer, as last planned
        self._peers: OrderedDict[str, _Pace] = OrderedDict()
        self._layers: OrderedDict[bytes, Layers] = OrderedDict()  # by model

    def legs(
        self,
        heads: Heads,
        route: Route = Route.AUTO,
        avoid: Set[str] = frozenset(),
        first: int = 0,
        end: int | None = None,
    ) -> tuple[Leg, ...]:
        """Return the best legs for the layers first, …, end - 1, by default all.

        `avoid` are peers that the caller does not want to meet again. NoRoute when
        `route` leaves a layer to nobody.
        """
        last = heads.architecture.layers if end is None else end
        hosts = self._nearest(heads.model)
        costs = self._costs(heads, hosts)[first:last]
        offers = [
            Offer(
                offer.peer,
                max(offer.first, first) - first,
                min(offer.end, last) - first,
                offer.round_trip_us,
                offer.layer_us,
                offer.load,
                offer.trust_ppm,
            )
            for offer in self._offers(heads, hosts)
            if offer.peer not in avoid and offer.first < last and first < offer.end
        ]
        legs = plan(costs, offers, route)
        if legs is None:
            raise NoRoute(_sentence(heads.layout, self._held(heads.model)))
        return tuple(
            Leg(leg.first + first, leg.end + first, leg.way, leg.peer) for leg in legs
        )

    def opened(self, peer: str) -> None:
        """Count a session at a peer."""
        self._known(peer).sessions += 1

    def ended(self, peer: str) -> None:
        """The session is over, however it went."""
        self._known(peer).sessions = max(0, self._known(peer).sessions - 1)

    def computed(self, layers: int, seconds: float) -> None:
        """Note how long one token took through layers here."""
        _note(self._local, seconds / layers)

    def scattered(self, layers: int, seconds: float) -> None:
        """Note how long one token took through layers whose experts are at peers."""
        _note(self._attend, max(seconds / layers - self._trip_s, 1e-6))

    def answered(self, peer: str, layers: int, seconds: float, rows: int) -> None:
        """Note a step that came back from a peer's span."""
        known = self._known(peer)
        known.failures = 0
        known.trust += SMOOTHING * (1.0 - known.trust)
        if rows == 1:
            trip_s = (self._rtt_ms(peer) or 0.0) / 1e3
            _note(known, max(seconds - trip_s, 1e-6) / layers)

    def failed(self, peer: str) -> None:
        """Note that a peer's span did not answer, or not as it should."""
        known = self._known(peer)
        known.failures += 1
        known.failed_s = trio.current_time()
        known.trust -= SMOOTHING * known.trust

    def step_s(self, peer: str, layers: int, rows: int) -> float:
        """Return how long a step there ought to take."""
        known = self._peers.get(peer, _Pace())
        trip_s = self._trip_us(peer) / 1e6
        return trip_s + layers * rows * (known.layer_s or LAYER_US / 1e6)

    def _nearest(self, model: bytes) -> dict[str, frozenset[int]]:
        hosts = self._hosts(model)
        near = sorted(hosts, key=lambda peer: (self._trip_us(peer), peer))
        return {peer: hosts[peer] for peer in near[:MAX_PEERS]}

    def _offers(
        self, heads: Heads, hosts: Mapping[str, frozenset[int]]
    ) -> Iterator[Offer]:
        now_s, layers = trio.current_time(), self._layers_of(heads)
        for peer, held in hosts.items():
            known = self._peers.get(peer, _Pace())
            is_cooling = known.failures and now_s - known.failed_s < COOL_OFF_S
            if is_cooling or self._routes.is_out(peer):
                continue
            for first, end in whole_layers(layers.groups, held):
                yield Offer(
                    peer,
                    first,
                    end,
                    round(self._trip_us(peer)),
                    round(known.layer_s * 1e6) or self._layer_us,
                    known.sessions,
                    round(known.trust * PPM),
                )

    def _costs(
        self, heads: Heads, hosts: Mapping[str, frozenset[int]]
    ) -> list[LayerCost]:
        held = self._held(heads.model)
        calls = {peer: self._call_us(peer) for peer in hosts}
        near = sorted(hosts, key=lambda peer: (calls[peer], peer))
        attend_us = round(self._attend.layer_s * 1e6) or self._layer_us
        costs: list[LayerCost] = []
        trips: list[int] = []
        for experts in self._layers_of(heads).experts:
            missing = experts - held
            local_us = None if missing else self._layer_us
            slowest_us = 0
            for peer in near:
                if not missing:
                    break
                if missing & hosts[peer]:
                    slowest_us = calls[peer]
                    missing -= hosts[peer]
            trip_us = NOBODY_US if missing else slowest_us
            costs.append(LayerCost(local_us, attend_us + trip_us))
            trips.append(slowest_us)
        self._trip_s = sum(trips) / len(trips) / 1e6 if trips else 0.0
        return costs

    @property
    def _layer_us(self) -> int:
        """What a token's layer costs here; until it was measured, as at the best peer."""
        known = self._local.layer_s or min(
            (pace.layer_s for pace in self._peers.values() if pace.layer_s), default=0.0
        )
        return round(known * 1e6) or LAYER_US

    def _trip_us(self, peer: str) -> float:
        rtt_ms = self._rtt_ms(peer)
        return TRIP_US if rtt_ms is None else rtt_ms * 1e3

    def _call_us(self, peer: str) -> int:
        """Return what a call of experts there costs, computing included."""
        latency_ms = self._routes.latency_ms(peer)
        return round(latency_ms * 1e3 if latency_ms else self._trip_us(peer) + LAYER_US)

    def _layers_of(self, heads: Heads) -> Layers:
        if heads.model not in self._layers:
            self._layers[heads.model] = layers_of(heads.layout)
            while len(self._layers) > MODELS_KEPT:
                self._layers.popitem(last=False)
        return self._layers[heads.model]

    def _known(self, peer: str) -> _Pace:
        known = self._peers.setdefault(peer, _Pace())
        self._peers.move_to_end(peer)
        while len(self._peers) > KEPT:
            self._peers.popitem(last=False)
        return known


def _note(pace: _Pace, layer_s: float) -> None:
    if pace.layer_s:
        pace.layer_s += SMOOTHING * (layer_s - pace.layer_s)
    else:
        pace.layer_s = layer_s


def layers_of(layout: Layout) -> Layers:
    """Return the groups of each layer, and those of them that are experts."""
    groups: dict[int, set[int]] = {}
    for group in layout.groups:
        if group.layer is not None:
            groups.setdefault(group.layer, set()).add(group.index)
    experts = frozenset(group.index for group in layout.expert_groups)
    whole = tuple(frozenset(groups[layer]) for layer in sorted(groups))
    return Layers(whole, tuple(layer & experts for layer in whole))


@lru_cache(maxsize=256)  # what a node holds changes seldom
def whole_layers(
    groups: tuple[frozenset[int], ...], held: frozenset[int]
) -> tuple[tuple[int, int], ...]:
    """Return the runs (first, end) of layers all of whose `groups` are in `held`."""
    runs: list[tuple[int, int]] = []
    for layer, mine in enumerate(groups):
        if not mine <= held:
            continue
        if runs and runs[-1][1] == layer:
            runs[-1] = runs[-1][0], layer + 1
        else:
            runs.append((layer, layer + 1))
    return tuple(runs)


def _sentence(layout: Layout, held: frozenset[int]) -> str:
    lacking = next(g.name for g in layout.expert_groups if g.index not in held)
    return (
        f"{lacking} is not on this node; ask with another route than local, or host "
        "more layers here (inference.spans)"
    )
