"""Who carries deltas between regions: regions of a round, and the draw of an edge."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from blyan_proto.block.economy import Hardware, LatencyClass
from blyan_proto.types import Role, bitmap
from blyand.rules.economy.latency import LATENCIES, Reports, Said
from blyand.rules.model.edges import edge_of, regions_of
from blyand.rules.model.election import ranks
from blyand.rules.records import NODES, Node, Schedule, Seat
from blyand.rules.view import Overlay

ACCOUNTS = [bytes([n]) * 20 for n in range(1, 9)]
LEARN = int(Role.LEARN)


def schedule(count: int = 8, beacon: int = 0, roles: int = LEARN) -> Schedule:
    held = bitmap({0}, 1)
    seats = [Seat(one, one + bytes(13), roles, 64, held) for one in ACCOUNTS[:count]]
    return Schedule(bytes(32), 3, 1, bytes([beacon]) * 32, tuple(seats))


def world(regions: dict[bytes, str]) -> Overlay:
    view = Overlay(SimpleNamespace(get=lambda key: None))  # type: ignore[arg-type]
    for account in ACCOUNTS:
        hardware = Hardware("cpu", 1 << 30, 1)
        region = regions.get(account, "")
        key = b"\2" + bytes(32)
        node = Node(account, key, LEARN, region, hardware, 0, 0, None, b"")
        NODES.put(view, node, account)
    return view


def said(view: Overlay, of: bytes, by: list[bytes], latency: LatencyClass) -> None:
    lines = tuple(Said(one, latency, 0) for one in sorted(by))
    LATENCIES.put(view, Reports(lines), of)


def test_names_come_first_and_the_rest_stand_by_what_both_sides_measured():
    a, b, c, d, e, f, *_ = ACCOUNTS
    view = world({a: "x", b: "x"})
    said(view, c, [d], LatencyClass.LOCAL)
    said(view, d, [c, e], LatencyClass.LOCAL)
    said(view, e, [d], LatencyClass.LOCAL)
    said(view, f, [c, d, e], LatencyClass.LOCAL)  # it said nothing of them
    regions = regions_of(view, schedule())
    linked = f"near {c.hex()}"
    assert regions == {a: "x", b: "x", c: linked, d: linked, e: linked}
    said(view, d, [c, e], LatencyClass.NEAR)  # 10 ms and more
    assert regions_of(view, schedule()) == {a: "x", b: "x"}


@pytest.mark.parametrize("beacon", range(8))
def test_a_region_without_the_primary_has_one_edge_that_all_draw_alike(beacon: int):
    made = schedule(beacon=beacon)
    regions = {account: "ab"[i % 2] for i, account in enumerate(ACCOUNTS)}
    first, *standbys = ranks(made, 0)
    home = regions[first.account]
    far = "b" if home == "a" else "a"
    assert edge_of(made, 0, regions, home) is None
    assert edge_of(made, 0, regions, None) is None
    edge = edge_of(made, 0, regions, far)
    assert edge is not None and regions[edge.account] == far
    near = [seat for seat in standbys if regions[seat.account] == far]
    assert not near or edge == near[0], "a standby has the deltas to fetch anyway"
    assert edge_of(made, 0, dict(reversed(regions.items())), far) == edge


def test_the_draw_is_spread_and_nobody_carries_for_itself_alone():
    drawn = set()
    for beacon in range(64):
        made = schedule(beacon=beacon)
        leading = {seat.account for seat in ranks(made, 0)}
        others = [account for account in ACCOUNTS if account not in leading]
        regions = dict.fromkeys(others, "far")
        edge = edge_of(made, 0, regions, "far")
        assert edge is not None and edge.account in others
        drawn.add(edge.account)
        assert edge_of(made, 0, {others[0]: "far"}, "far") is None
    assert len(drawn) == len(ACCOUNTS)
    made = schedule(roles=int(Role.SERVE))
    others = [a for a in ACCOUNTS if a != ranks(made, 0)[0].account]
    assert edge_of(made, 0, dict.fromkeys(others, "far"), "far") is None
