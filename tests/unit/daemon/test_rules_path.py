"""The way through the layers: the cheapest there is, and always the same one."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from blyand.rules.net.path import LayerCost, Leg, Offer, Route, Way, cost_us, plan

LOCAL, SPAN, EXPERTS = Way.LOCAL, Way.SPAN, Way.EXPERTS
MS = 1000


def away(count, experts_us=5 * MS):
    return [LayerCost(None, experts_us)] * count


def offers_of(draw_peers, layers):
    return st.builds(
        lambda peer, a, b, *costs: Offer(peer, min(a, b), max(a, b) + 1, *costs),
        draw_peers,
        st.integers(0, layers - 1),
        st.integers(0, layers - 1),
        st.integers(0, 30),
        st.integers(0, 8),
        st.integers(0, 2),
        st.sampled_from([0, 500_000, 1_000_000]),
    )


@st.composite
def situations(draw):
    count = draw(st.integers(1, 4))
    costs = st.builds(LayerCost, st.none() | st.integers(0, 9), st.integers(0, 40))
    layers = draw(st.lists(costs, min_size=count, max_size=count))
    offers = draw(st.lists(offers_of(st.sampled_from("abc"), count), max_size=3))
    return layers, offers


def every_path(layers, offers):
    """Every division into legs, each by everybody who can compute it."""
    count = len(layers)
    for cuts in product([False, True], repeat=count - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), count]
        choices = []
        for first, end in zip(edges, edges[1:]):
            mine = [
                Leg(first, end, SPAN, offer.peer)
                for offer in offers
                if offer.first <= first and end <= offer.end
            ]
            if all(cost.local_us is not None for cost in layers[first:end]):
                mine.append(Leg(first, end, LOCAL))
            if end - first == 1:
                mine.append(Leg(first, end, EXPERTS))
            choices.append(sorted(set(mine)))
        yield from product(*choices)


@settings(deadline=None, max_examples=60)
@given(situations())
def test_no_path_is_cheaper_and_none_as_cheap_has_fewer_legs(situation):
    layers, offers = situation
    found = plan(layers, offers)
    best = min((cost_us(p, layers, offers), len(p)) for p in every_path(*situation))
    assert (cost_us(found, layers, offers), len(found)) == best


@given(situations(), st.randoms())
def test_the_order_of_the_offers_makes_no_difference(situation, random):
    layers, offers = situation
    mixed = list(offers)
    random.shuffle(mixed)
    assert plan(layers, mixed) == plan(layers, offers)


@given(situations(), st.sampled_from(Route))
def test_a_path_covers_each_layer_once_and_obeys_the_route(situation, route):
    layers, offers = situation
    legs = plan(layers, offers, route)
    if legs is None:
        assert route is Route.LOCAL
        assert any(cost.local_us is None for cost in layers)
        return
    assert [leg.first for leg in legs] == [0, *(leg.end for leg in legs)][:-1]
    assert legs[-1].end == len(layers)
    for leg in legs:
        for layer in range(leg.first, leg.end):
            offered = any(offer.first <= layer < offer.end for offer in offers)
            if route is Route.SPANS:
                assert (leg.way is SPAN) == offered
            elif route is Route.EXPERTS:
                assert leg.way is not SPAN
            elif route is Route.LOCAL:
                assert leg.way is LOCAL


def test_one_hop_for_many_layers_is_shorter_than_a_hop_for_each():
    offers = [Offer("a", 0, 8, 4 * MS, MS)]
    assert plan(away(8), offers) == (Leg(0, 8, SPAN, "a"),)
    assert plan(away(1, experts_us=4 * MS), offers) == (Leg(0, 1, EXPERTS),)


def test_a_near_peer_gives_way_to_a_far_one_where_a_change_costs_more():
    near, far = Offer("a", 0, 3, MS, MS), Offer("b", 0, 8, 20 * MS, MS)
    assert plan(away(8, 99 * MS), [near, far]) == (Leg(0, 8, SPAN, "b"),)
    middle = Offer("b", 3, 8, 20 * MS, MS)
    assert plan(away(8, 99 * MS), [near, middle]) == (
        Leg(0, 3, SPAN, "a"),
        Leg(3, 8, SPAN, "b"),
    )


def test_layers_that_are_here_are_computed_here_unless_a_span_runs_through():
    here = LayerCost(MS // 2, 9 * MS)
    layers = [here, here, *away(4), here]
    offers = [Offer("a", 0, 7, 6 * MS, MS)]
    assert plan(layers, offers) == (
        Leg(0, 2, LOCAL),
        Leg(2, 6, SPAN, "a"),
        Leg(6, 7, LOCAL),
    )
    slow = [LayerCost(3 * MS, 9 * MS)] * 2
    assert plan([*slow, *away(4)], offers) == (Leg(0, 6, SPAN, "a"),)


def test_load_and_doubt_turn_to_another_peer():
    busy = Offer("a", 0, 4, MS, MS, load=3)
    idle = Offer("b", 0, 4, 2 * MS, MS)
    assert plan(away(4, 99 * MS), [busy, idle])[0].peer == "b"
    doubtful = Offer("a", 0, 4, MS, MS, trust_ppm=0)
    assert plan(away(4, 99 * MS), [doubtful, idle])[0].peer == "b"
    assert plan(away(4, 99 * MS), [Offer("a", 0, 4, MS, MS), idle])[0].peer == "a"


def test_among_equals_the_lower_peer_id():
    offers = [Offer("b", 0, 2, MS, MS), Offer("a", 0, 2, MS, MS)]
    assert plan(away(2), offers) == (Leg(0, 2, SPAN, "a"),)


def test_without_layers_there_is_nothing_to_do():
    assert plan([], []) is None
