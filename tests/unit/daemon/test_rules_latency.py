"""Reports of latencies, their median, and the weight of the draw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blyan_proto.block.economy import Bond, Latency, LatencyClass, LatencyReport
from blyan_proto.genesis import Setting
from blyan_proto.types import bitmap
from blyand.rules.economy import latency as rules
from blyand.rules.economy.draw import draw_weight
from blyand.rules.economy.latency import class_of, class_of_ms
from blyand.rules.model.election import ranks
from blyand.rules.records import Schedule, Seat
from tests.unit.daemon.chain_world import Training, key, registration
from tests.unit.daemon.validators_world import BOND_MICRO, HOUR_MS, Validating

DAY_MS = 24 * HOUR_MS


def about(*said):
    """Return a report about (key, class) pairs."""
    lines = sorted((one.account, LatencyClass(told)) for one, told in said)
    return LatencyReport(1, tuple(Latency(*line) for line in lines))


def told(world, who):
    return class_of(world.view, who.account, world.time_ms, DAY_MS)


@pytest.mark.parametrize(
    "rtt_ms, name",
    [
        (0.1, "LOCAL"),
        (9.99, "LOCAL"),
        (10, "NEAR"),
        (30, "REGIONAL"),
        (79, "REGIONAL"),
        (80, "FAR"),
        (200, "DISTANT"),
        (1e9, "DISTANT"),
    ],
)
def test_the_bounds_of_the_classes(rtt_ms, name):
    assert class_of_ms(rtt_ms) is LatencyClass[name]


@pytest.mark.parametrize(
    "said, median",
    [([], None), ([4], None), ([4, 4], None), ([0, 1, 4], 1), ([0, 1, 3, 4], 1)],
)
def test_the_lower_median_of_three_or_more(said, median):
    world = Validating(count=7)
    one = world.keys[6]
    for reporter, latency in zip(world.keys, said):
        world.ordered(about((one, latency)), reporter)
    assert told(world, one) == median


def test_reports_end_and_are_replaced():
    world = Validating(count=5)
    one, *others = world.keys
    blocks = [world.block(about((one, 3)), other) for other in others[:3]]
    assert world.errors(*blocks) == [None] * 3
    assert told(world, one) is LatencyClass.FAR
    again = world.block(about((one, 0)), others[0])
    assert "one report" in world.errors(again)[0]
    world.epoch()
    blocks = [world.block(about((one, 0)), other) for other in others[:2]]
    assert world.errors(*blocks) == [None] * 2
    assert told(world, one) is LatencyClass.LOCAL
    for _ in range(24):
        world.epoch(steps=1)
    assert told(world, one) is None


def test_who_may_report_about_whom():
    world = Validating()
    new, one = world.new[0], world.keys[1]
    world.ordered(world.enlist(new), new)
    for payload, author, why in (
        (about((one, 1)), new, "registered before this epoch"),
        (about((one, 1)), key("stranger"), "registered before this epoch"),
        (about((one, 1)), one, "about itself"),
        (about((key("stranger"), 1)), one, "not registered"),
    ):
        assert why in world.errors(world.block(payload, author))[0]
    world.epoch()
    world.ordered(about((one, 1)), new)


def test_there_is_room_for_so_many_reporters(monkeypatch):
    monkeypatch.setattr(rules, "MAX_REPORTERS", 3)
    world = Validating(count=6)
    one = world.keys[0]
    for other in world.keys[1:]:
        world.ordered(about((one, 2)), other)
    assert len(rules.LATENCIES.get(world.view, one.account).said) == 3


def test_less_than_half_of_the_reporters_move_nothing():
    world = Validating(count=8)
    one = world.keys[0]
    for index, other in enumerate(world.keys[1:]):
        world.ordered(about((one, 4 if index < 3 else 1)), other)
    assert told(world, one) is LatencyClass.NEAR


@given(
    st.lists(st.sampled_from(list(LatencyClass)), min_size=3, max_size=9), st.randoms()
)
def test_the_median_does_not_depend_on_the_order(classes, source):
    ordered = sorted(classes)
    source.shuffle(classes)
    assert sorted(classes)[(len(classes) - 1) // 2] == ordered[(len(ordered) - 1) // 2]


def test_bond_and_latency_weigh_the_draw():
    world = Validating(count=5, primary_bond_micro=BOND_MICRO)
    one, *others = world.keys
    weigh = lambda: draw_weight(world.view, one.account, world.time_ms)  # noqa: E731
    assert weigh() == 8
    for factor in (2, 3, 4):
        world.ordered(Bond(1, BOND_MICRO, 0), one)
        assert weigh() == 8 * (1 + (factor >= 2) + (factor >= 4))
    world.ordered(Bond(1, 4 * BOND_MICRO, 0), one)
    assert weigh() == 32
    for latency, share in ((4, 2), (3, 4), (2, 8), (1, 12), (0, 16)):
        blocks = [world.block(about((one, latency)), other) for other in others]
        assert world.errors(*blocks) == [None] * 4
        assert weigh() == 4 * share
        world.epoch(steps=1)
    world.ordered(Bond(1, 0, 7 * BOND_MICRO + 1), one)
    assert weigh() == 0


def test_who_has_no_bond_contributes_and_leads_only_where_nobody_has():
    held = bitmap({0}, 1)
    seats = [
        Seat(bytes([i]) * 20, bytes(33), 1, w, held) for i, w in enumerate((0, 5, 0))
    ]
    led = ranks(Schedule(bytes(32), 0, 1, bytes(32), tuple(seats)), 0)
    assert [seat.weight for seat in led] == [5]
    without = tuple(seat for seat in seats if not seat.weight)
    assert len(ranks(Schedule(bytes(32), 0, 1, bytes(32), without), 0)) == 2


def test_a_schedule_has_the_weights_of_its_time():
    world = Training(settings=(Setting("primary_bond_micro", 500),))
    world.ordered(registration(world.keys[1], bond_micro=600), world.keys[1])
    run = world.open()
    weights = {seat.account: seat.weight for seat in world.schedule(run, 0).seats}
    assert weights == {k.account: 8 if k is world.keys[1] else 0 for k in world.keys}
    assert {seat.account for seat in ranks(world.schedule(run, 0), 1)} == {
        world.keys[1].account
    }
