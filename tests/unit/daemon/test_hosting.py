"""Layers that a node hosts of its own will: chosen once, and refused with a sentence."""

import pytest

from blyan_proto.block.economy import Hardware
from blyan_proto.types import bitmap
from blyand.errors import ConfigFault
from blyand.hosting import Hosting
from blyand.rules.model.hosting import groups_of
from blyand.rules.model.placement import placed_on
from blyand.rules.records import NODES, Node
from tests.unit.daemon.inference_world import MODEL, World

ME, OTHER, *MORE = (bytes([n]) * 20 for n in range(1, 5))


@pytest.fixture
def world():
    made = World()
    for account in (ME, OTHER, *MORE):
        hold(made, account, frozenset())
    return made


def hold(world, account, groups):
    """Have a node registered that says it holds `groups`."""
    held = bitmap(groups, len(world.layout.groups))
    node = Node(account, bytes(33), 3, "", Hardware("", 1, 1), 0, 0, MODEL, held)
    NODES.put(world.view, node, account)


def hosting(world, wish, room_bytes=1 << 40):
    return Hosting(wish, ME, lambda: world.view, room_bytes)


def test_what_is_named_is_hosted_whole(world):
    layer = {g.index for g in world.layout.groups if g.layer == 1}
    assert hosting(world, "1").groups(world.record) == layer
    assert hosting(world, "1-7").groups(world.record) == layer
    assert hosting(world, "0-1").groups(world.record) > layer
    assert not hosting(world, "off").groups(world.record)
    assert not hosting(world, "5-7").groups(world.record)


@pytest.mark.parametrize("wish", ["", "all", "2-1", "-1", "0-"])
def test_another_wish_is_refused_when_the_node_starts(world, wish):
    with pytest.raises(ConfigFault, match="inference.spans.*off, auto, or layers"):
        hosting(world, wish)


def test_auto_takes_what_fits_where_nobody_is_and_stays_there(world):
    everything = groups_of(world.layout, range(2))
    assert hosting(world, "auto").groups(world.record) == everything
    placed = placed_on(ME, world.view, world.record)
    groups = world.layout.groups
    needed = groups_of(world.layout, range(1)) | placed
    room_bytes = 4 * sum(groups[index].elements for index in needed)
    hold(world, OTHER, groups_of(world.layout, range(0, 1)))
    chosen = hosting(world, "auto", room_bytes)
    second = groups_of(world.layout, range(1, 2))
    assert chosen.groups(world.record) == second
    hold(world, OTHER, second)
    assert chosen.groups(world.record) == second
    assert hosting(world, "auto", room_bytes).groups(world.record) != second
    assert not hosting(world, "auto", 1).groups(world.record)


def test_a_node_that_is_not_registered_holds_nothing_by_placement(world):
    assert placed_on(b"\7" * 20, world.view, world.record) is None
