"""What may go from a disk: payloads past their window that nothing needs (DEC-B9).

A payload stays while its block is pending, younger than the retention span, or needed:
named by executed state, or between a group's oldest kept snapshot and its head. A blob
stays while a payload that is still here names it. Headers stay for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from blyan_proto.block.data import Dataset
from blyan_proto.block.model import Model, Run, Snapshot, TileUpdate, Weights
from blyan_proto.block.payload import KINDS
from blyand.rules.records import DATASETS, GROUPS, MODELS, RUNS, VERSIONS, Group
from blyand.rules.view import View

Place = tuple[int, int]  # height of the checkpoint, position in its order
PlaceOf = Callable[[bytes], Place | None]  # block -> place; None: not ordered here

VERSIONED = (Weights, TileUpdate, Snapshot)  # what makes or keeps versions of a group
NAMING = {
    kind.code for kind in KINDS.values() if kind.payload in (*VERSIONED, Dataset, Model)
}  # kinds whose payloads name blobs


@dataclass(frozen=True)
class Ordered:
    """An ordered block as retention sees it."""

    id: bytes
    place: Place
    took_effect: bool
    content: Any  # the typed payload


def is_past(ordered_ms: int, now_ms: int, span_ms: int) -> bool:
    """True when a block's retention window is over; all in median chain time."""
    return now_ms - ordered_ms > span_ms


def blobs_named(content: Any) -> Iterator[bytes]:
    """Yield the roots of the durable blobs that a payload names.

    The versions between snapshots are not among them: they are derived (DEC-B4).
    """
    if isinstance(content, TileUpdate):
        if content.blob is not None:
            yield content.blob
    elif isinstance(content, Dataset):
        yield content.blob
    elif isinstance(content, Model):
        if content.companions is not None:
            yield content.companions
    elif isinstance(content, (Weights, Snapshot)):
        for tile in content.tiles:
            yield tile.weights
            if tile.momentum is not None:
                yield tile.momentum


def is_needed(view: View, block: Ordered, place_of: PlaceOf) -> bool:
    """True while an ordered block's payload has to stay, however old it is.

    What is not needed any more is never needed again: heads and snapshots only move
    forward. (An adoption may name an update whose payload went; its tiles count then.)
    """
    if not block.took_effect:
        return False
    content = block.content
    if isinstance(content, Model):
        return MODELS.get(view, block.id) is not None
    if isinstance(content, Run):
        return RUNS.get(view, block.id) is not None
    if isinstance(content, Dataset):
        return DATASETS.get(view, block.id) is not None
    if not isinstance(content, VERSIONED):
        return False
    group = GROUPS.get(view, content.model, content.group)
    if group is None:
        return False
    if isinstance(content, Snapshot):
        return content.update in snapshots_of(group)
    if block.id in (group.head, group.adopted_head):
        return True
    oldest = place_of(oldest_kept(group))
    return oldest is None or block.place >= oldest


def snapshots_of(group: Group) -> tuple[bytes, ...]:
    """Return the blocks that made the group's last two snapshots, the older first."""
    if group.earlier_snapshot is None:
        return (group.snapshot,)
    return (group.earlier_snapshot, group.snapshot)


def oldest_kept(group: Group) -> bytes:
    """Return the block that made the group's oldest kept snapshot."""
    return snapshots_of(group)[0]


def named_by_state(view: View) -> Iterator[bytes]:
    """Yield the roots of all tiles, archives and companions that executed state names."""
    for record in GROUPS.scan(view):
        for tile in (*record.tiles, *record.adopted):
            yield tile.weights
            if tile.momentum is not None:
                yield tile.momentum
    for version in VERSIONS.scan(view):
        for tile in version.tiles:
            yield tile.weights
            if tile.momentum is not None:
                yield tile.momentum
    for dataset in DATASETS.scan(view):
        yield dataset.dataset.blob
    for model in MODELS.scan(view):
        yield from blobs_named(model.model)
