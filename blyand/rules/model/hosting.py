"""Whole layers that a node holds beyond what placement gives it, so that it can serve
spans. Placement stays as it is: this is each node's own choice, said in its heartbeat.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from blyan_proto.digest import Domain, digest
from blyan_tile.layout import Layout

ELEMENT_BYTES = 4  # float32 (DEC-B2)


def layers_named(wish: str, count: int) -> range:
    """Return the layers that "A-B" names of a model of `count` layers; "A": one.

    Layers that the model lacks are left out. ValueError for another text.
    """
    first, dash, last = wish.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"{wish!r} names no layers")
    start, end = int(first), int(last or first) + 1
    if start >= end:
        raise ValueError(f"{wish!r} ends before it begins")
    return range(min(start, count), min(end, count))


def layers_with_room(
    layout: Layout,
    placed: frozenset[int],
    others: Collection[frozenset[int]],
    room_bytes: int,
    draw: bytes,
) -> range:
    """Return the run of layers that a node with `room_bytes` had best hold whole.

    As many as fit beside what is `placed` here, and there where fewest of the `others`
    hold whole layers already; among equals `draw`, the node's own, decides.
    """
    layers: dict[int, list[int]] = {}
    for group in layout.groups:
        if group.layer is not None:
            layers.setdefault(group.layer, []).append(group.index)
    sizes = [ELEMENT_BYTES * group.elements for group in layout.groups]
    costs = [
        sum(sizes[index] for index in layers[layer] if index not in placed)
        for layer in sorted(layers)
    ]
    hosts = [
        sum(held.issuperset(layers[layer]) for held in others)
        for layer in sorted(layers)
    ]
    left = room_bytes - sum(sizes[index] for index in placed)
    runs = list(_runs(costs, left))
    most = max((len(run) for run in runs), default=0)
    if not most:
        return range(0)

    def rank(run: range) -> tuple[int, bytes]:
        place = run.start.to_bytes(2, "little")
        return sum(hosts[n] for n in run), digest(Domain.PLACEMENT, draw, place)

    return min((run for run in runs if len(run) == most), key=rank)


def groups_of(layout: Layout, layers: range) -> frozenset[int]:
    """Return the indices of all groups of these layers."""
    return frozenset(
        group.index
        for group in layout.groups
        if group.layer is not None and group.layer in layers
    )


def _runs(costs: Sequence[int], room: int) -> list[range]:
    """Return for each layer the longest run from it on that fits the room."""
    runs = []
    end, taken = 0, 0
    for start in range(len(costs)):
        if end < start:
            end, taken = start, 0
        while end < len(costs) and taken + costs[end] <= room:
            taken += costs[end]
            end += 1
        if end > start:
            runs.append(range(start, end))
            taken -= costs[start]
    return runs
