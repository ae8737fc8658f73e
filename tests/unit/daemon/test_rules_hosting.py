"""Which whole layers a node hosts of its own will."""

import pytest

from blyand.rules.model.hosting import groups_of, layers_named, layers_with_room
from tests.unit.daemon.test_rules_placement import layout as layout_with

EVERYTHING = 1 << 40


def size_of(layout, groups):
    return 4 * sum(layout.groups[index].elements for index in groups)


def test_layers_are_named_by_a_range():
    assert layers_named("0-3", 8) == range(0, 4)
    assert layers_named("2", 8) == range(2, 3)
    assert layers_named("6-9", 8) == range(6, 8)
    assert layers_named("8-9", 8) == range(8, 8)
    for wrong in ("", "a", "3-1", "1-", "-1", "1-2-3", " 1", "¹"):
        with pytest.raises(ValueError):
            layers_named(wrong, 8)


def test_a_node_with_room_takes_everything():
    layout = layout_with(4, 4)
    whole = layers_with_room(layout, frozenset(), [], EVERYTHING, b"a")
    assert whole == range(0, 4)
    layers = {group.layer for group in layout.groups if group.layer is not None}
    expected = {group.index for group in layout.groups if group.layer in layers}
    assert groups_of(layout, whole) == expected


def test_one_without_room_takes_nothing():
    layout = layout_with(4, 4)
    shared = frozenset(group.index for group in layout.shared_groups)
    room = size_of(layout, shared)
    assert not layers_with_room(layout, shared, [], room, b"a")
    assert not layers_with_room(layout, shared, [], 0, b"a")


def test_as_many_layers_as_fit_beside_what_is_placed():
    layout = layout_with(4, 4)
    placed = frozenset(group.index for group in layout.shared_groups)
    two = groups_of(layout, range(2)) | placed
    for spare in (0, 100):
        room = size_of(layout, two) + spare
        assert len(layers_with_room(layout, placed, [], room, b"a")) == 2
    assert len(layers_with_room(layout, placed, [], room - 200, b"a")) == 1


def test_nodes_go_where_fewest_are():
    layout = layout_with(4, 4)
    placed = frozenset(group.index for group in layout.shared_groups)
    room = size_of(layout, groups_of(layout, range(2)) | placed)
    others = [groups_of(layout, range(0, 2)) | placed]
    assert layers_with_room(layout, placed, others, room, b"a") == range(2, 4)
    others.append(groups_of(layout, range(2, 4)) | placed)
    others.append(groups_of(layout, range(1, 3)) | placed)
    others.append(groups_of(layout, range(2, 4)) | placed)
    assert layers_with_room(layout, placed, others, room, b"a") == range(0, 2)


def test_among_equals_nodes_choose_differently_and_always_the_same():
    layout = layout_with(4, 4)
    placed = frozenset(group.index for group in layout.shared_groups)
    room = size_of(layout, groups_of(layout, range(1)) | placed)
    chosen = [layers_with_room(layout, placed, [], room, bytes([n])) for n in range(32)]
    assert set(map(len, chosen)) == {1}
    assert {run.start for run in chosen} == set(range(4))
    again = layers_with_room(layout, placed, [], room, bytes([7]))
    assert again == chosen[7]
